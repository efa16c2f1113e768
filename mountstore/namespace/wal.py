"""The catalog's write-ahead log, as a file: how much of it is in use, room behind its end, its flush.

SQLite writes it; here it is only measured, lengthened and flushed. The file keeps its length when SQLite begins it
anew. One object, used by the thread that owns the catalog, but for `flush`.
"""

from __future__ import annotations

import os
from typing import Final

from mountstore.blobs.flush import fsync, fsync_path

PAGE_BYTES: Final = 4096
"""Of the database."""

_HEADER_BYTES: Final = 32
_FRAME_BYTES: Final = 24 + PAGE_BYTES

AHEAD_BYTES: Final = 4 << 20
"""Written behind the end of the WAL: a thousand changed pages, enough to delete some ten thousand files."""

_ZEROS: Final = bytes(1 << 20)


class Wal:
    """The WAL of one database.

    Args:
      path: Of the database file.
    """

    def __init__(self, path: str) -> None:
        self._path = path + "-wal"
        # Open from the first flush on.
        self._fd = -1
        self._salts = b""
        self._frames = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def used_bytes(self) -> int:
        """How much of it is in use.

        Told by the salts: all frames in use bear those of the header, what lies behind them older ones, or
        zeros ("WAL File Format" of SQLite). The index of the WAL has it too, but that file must not be opened:
        closing it would give up SQLite's locks (fcntl(2)).
        """
        if self._fd < 0:
            return 0
        salts = os.pread(self._fd, 8, 16)
        if not any(salts):
            return 0

        def is_used(frame: int) -> bool:
            return os.pread(self._fd, 8, _HEADER_BYTES + (frame - 1) * _FRAME_BYTES + 8) == salts

        if salts != self._salts:
            self._salts, self._frames = salts, 0
        low, step = self._frames, 1
        while is_used(low + step):
            low += step
            step *= 2
        while step > 1:
            step //= 2
            if is_used(low + step):
                low += step
        self._frames = low
        return _HEADER_BYTES + low * _FRAME_BYTES

    def extend(self) -> None:
        """Have some MiB behind the end of the WAL written already: a flush of it is one of data alone then,
        without the file system's journal, and a full disk takes a few more commits. On the owner's thread, like
        every other write to it; a fraction of a millisecond, now and then.
        """
        if self._fd >= 0:
            end = os.fstat(self._fd).st_size
            if end - self.used_bytes() < AHEAD_BYTES:
                try:
                    os.pwrite(self._fd, _ZEROS, end)
                except OSError:
                    # No room: SQLite will say so when it matters.
                    pass

    def flush(self) -> None:
        """Make every commit so far survive power loss. Blocks: for a worker thread, one at a time.

        Raises: As `mountstore.blobs.flush.fsync_path`.
        """
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            # The name, of a WAL that SQLite has just made.
            fsync_path(os.path.dirname(self._path), os.O_DIRECTORY)
        fsync(self._fd, self._path, data_only=True)
