"""Room on the disk: what was accepted from a writer must find a place when it is sealed.

A write is refused with `NoSpaceError` while the writer can still be told, instead of failing when the draft
is sealed. A reserve stays untouched, so that the catalog can record deletions on a full disk.
"""

from __future__ import annotations

import os

from mountstore.errors import NoSpaceError

RESERVE_BYTES = 16 << 20
"""Never promised to file contents."""

RESERVE_FILES = 16
"""The same for a file system with a fixed number of files: directories of the tree, files of SQLite."""

_BLOCK_BYTES = 4096


class Space:
    """Claims on the free space of one file system.

    Args:
      path: A directory on it.
    """

    def __init__(self, path: str, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._path = path
        self._reserve = reserve_bytes
        self._claimed = 0
        self._claimed_files = 0
        # How much may be claimed before the disk is asked again: a quarter of what was free, because
        # others use the disk too.
        self._unasked = 0
        self._unasked_files = 0

    @property
    def claimed_bytes(self) -> int:
        return self._claimed

    def claim(self, length: int, *, new_file: bool = False) -> None:
        """Promise room for `length` more bytes, and, if they are the first of something, for a file.

        Raises:
          NoSpaceError: There is not that much; nothing was claimed.
        """
        # Files take whole blocks.
        self._unasked -= length + _BLOCK_BYTES * new_file
        self._unasked_files -= new_file
        if self._unasked < 0 or self._unasked_files < 0:
            self._ask(length + _BLOCK_BYTES * new_file, new_file)
        self._claimed += length
        self._claimed_files += new_file

    def _ask(self, length: int, files: int) -> None:
        status = os.statvfs(self._path)
        claimed = self._claimed + _BLOCK_BYTES * self._claimed_files
        free = status.f_bavail * status.f_frsize - self._reserve - claimed
        # Zero files in all: they are made as they are needed.
        free_files = status.f_favail - RESERVE_FILES - self._claimed_files if status.f_files else 1 << 30
        if free < length or free_files < files:
            self.ask_again()
            raise NoSpaceError(
                f"{self._path}: no room for {length} more bytes"
                if free < length
                else f"{self._path}: no room for another file"
            )
        self._unasked = (free - length) // 4
        self._unasked_files = (free_files - files) // 4

    def ask_again(self) -> None:
        """There was no room where some had been promised: others use it up."""
        self._unasked = self._unasked_files = 0

    def release(self, length: int, *, whole: bool = True) -> None:
        """The bytes claimed for a file, or a part of them, have found their place or are no longer wanted."""
        self._claimed -= length
        if length and whole:
            self._claimed_files = max(self._claimed_files - 1, 0)

    def statvfs(self) -> os.statvfs_result:
        """The file system below, as it is."""
        return os.statvfs(self._path)
