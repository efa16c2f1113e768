"""Room on the disk: what was accepted from a writer must find a place when it is sealed.

A write is refused with `NoSpaceError` while the writer can still be told, instead of failing when the draft
is sealed. A reserve stays untouched, so that the catalog can record deletions on a full disk.
"""

from __future__ import annotations

import os

from mountstore.errors import NoSpaceError

RESERVE_BYTES = 16 << 20
"""Never promised to file contents."""


class Space:
    """Claims on the free space of one file system.

    Args:
      path: A directory on it.
    """

    def __init__(self, path: str, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._path = path
        self._reserve = reserve_bytes
        self._claimed = 0
        # How much may be claimed before the disk is asked again: a quarter of what was free, because
        # others use the disk too.
        self._unasked = 0

    @property
    def claimed_bytes(self) -> int:
        return self._claimed

    def claim(self, length: int) -> None:
        """Promise room for `length` more bytes.

        Raises:
          NoSpaceError: There is not that much; nothing was claimed.
        """
        self._unasked -= length
        if self._unasked < 0:
            status = os.statvfs(self._path)
            free = status.f_bavail * status.f_frsize - self._reserve - self._claimed
            if free < length or (status.f_files and not status.f_favail):
                self._unasked = 0
                raise NoSpaceError(f"{self._path}: no room for {length} more bytes")
            self._unasked = (free - length) // 4
        self._claimed += length

    def release(self, length: int) -> None:
        """The bytes claimed have found their place, or are no longer wanted."""
        self._claimed -= length

    def statvfs(self) -> os.statvfs_result:
        """The file system below, as it is."""
        return os.statvfs(self._path)
