"""Room on the disk: what was accepted from a writer must find a place when it is sealed.

A write is refused with `NoSpaceError` while the writer can still be told, instead of failing when the draft
is sealed. A reserve stays untouched, so that the catalog can record deletions on a full disk.

What statvfs(2) says is believed until the disk refuses what it should have had room for: then there is a quota,
or a file system that needs more than it shows. From then on a write is accepted only if as much as is promised
could really be written at that moment.
"""

from __future__ import annotations

import os

from mountstore.blobs.flush import is_no_room, is_quota, room_refused
from mountstore.errors import NoSpaceError, QuotaError

RESERVE_BYTES = 16 << 20
"""Never promised to file contents."""

RESERVE_FILES = 16
"""The same for a file system with a fixed number of files: directories of the tree, files of SQLite."""

_CLAIM_MAX_BYTES = 8 << 20
"""The most that one write claims: for a draft in memory, all of it."""

_BLOCK_BYTES = 4096


class Space:
    """Claims on the free space of one file system.

    Args:
      path: A directory on it, where files can be made.
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
        # The disk has refused what was promised.
        self._distrusted = False

    @property
    def claimed_bytes(self) -> int:
        return self._claimed

    @property
    def claimed_files(self) -> int:
        return self._claimed_files

    def claim(self, length: int, *, new_file: bool = False) -> None:
        """Promise room for `length` more bytes, and for a file if they are the first of one.

        Raises:
          NoSpaceError, QuotaError: There is not that much; nothing was claimed.
        """
        # Files take whole blocks.
        self._unasked -= length + _BLOCK_BYTES * new_file
        self._unasked_files -= new_file
        if self._unasked < 0 or self._unasked_files < 0:
            self._ask(length + _BLOCK_BYTES * new_file, new_file)
        self._claimed += length
        self._claimed_files += new_file

    @property
    def is_full(self) -> bool:
        """Whether there is not room for any one write, so that some are refused. Asks the disk, as a write does,
        and tries it if it has refused what was promised."""
        try:
            self._require(_CLAIM_MAX_BYTES, 1)
        except NoSpaceError:
            return True
        return False

    def _ask(self, length: int, files: int) -> None:
        self._unasked = self._unasked_files = 0
        free, free_files = self._require(length, files)
        self._unasked = (free - length) // 4
        self._unasked_files = (free_files - files) // 4

    def _require(self, length: int, files: int) -> tuple[int, int]:
        """How many bytes and files may be claimed. Raises: NoSpaceError, QuotaError if that is less than this."""
        status = os.statvfs(self._path)
        claimed = self._claimed + _BLOCK_BYTES * self._claimed_files
        free = status.f_bavail * status.f_frsize - self._reserve - claimed
        # Zero files in all: they are made as they are needed.
        free_files = status.f_favail - RESERVE_FILES - self._claimed_files if status.f_files else 1 << 30
        if free < length or free_files < files:
            raise NoSpaceError(
                f"{self._path}: no room for {length} more bytes"
                if free < length
                else f"{self._path}: no room for another file"
            )
        if self._distrusted:
            self._try(claimed + length)
        return free, free_files

    def _try(self, length: int) -> None:
        """Raises: NoSpaceError, QuotaError if so much cannot be allocated now."""
        refusal = room_refused(self._path, length + self._reserve)
        if refusal is not None:
            kind = QuotaError if is_quota(refusal) else NoSpaceError
            raise kind(f"{self._path}: {refusal.strerror}")
        self._distrusted = False

    def ask_again(self, failure: Exception | None = None) -> None:
        """There was no room where some had been promised: others use it up, or a quota is (`failure`)."""
        self._unasked = self._unasked_files = 0
        if failure is not None and is_no_room(failure):
            self._distrusted = True

    def release(self, length: int, *, file: bool = False) -> None:
        """So many bytes that were claimed, and the file, have found their place or are no longer wanted."""
        self._claimed -= length
        self._claimed_files -= file

    def statvfs(self) -> os.statvfs_result:
        """The file system below, as it is."""
        return os.statvfs(self._path)
