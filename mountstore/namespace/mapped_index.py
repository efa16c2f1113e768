"""Where the catalog's shared memory may not be written to when the disk is full.

SQLite maps the index of its write-ahead log (`catalog.db-shm`) into memory. On a file system that needs room
for changing what a file has already (btrfs), the kernel ends a process that changes such a page when there is
none, or a quota is used up: SIGBUS. So there

1. a commit or a checkpoint begins only while there is room for the whole index, and for what the commit writes
   before it changes the index;
2. after every commit one connection reads, so that the mark that readers set in the index is set already, and
   those that come later, when the disk may be full, change nothing;
3. some room is held in a file without a name, and let go when there is none left: contents may use up a quota
   to the last byte, and deletions have to be committed all the same.

Within the milliseconds of a commit somebody else may still use up the room that was there.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable

from mountstore.blobs.flush import copies_on_write, hold_room, is_quota, room_refused, syncfs
from mountstore.errors import NoSpaceError, QuotaError

_HELD_BYTES = 8 << 20
"""Enough for the names of some ten thousand files."""

_HOLD_EVERY_S = 40.0
"""Longer than btrfs counts what was freed."""

_ENOUGH_BYTES = 256 << 10
"""More than the index of a WAL of 100 MiB."""

_ROW_BYTES = 4 << 10
"""A page of the database: what a changed row adds to the WAL, or less. (Rows of one commit share pages.)"""

_ROWS_MAX = 1 << 10
"""So many rows share enough."""


class MappedIndex:
    """The guard of one catalog; on the owner's thread.

    Args:
      connect: Makes another connection for reading.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._directory = os.path.dirname(os.path.abspath(path))
        self._db: sqlite3.Connection | None = None
        self.needed = copies_on_write(self._directory)
        """Whether there is anything to guard against."""
        self.on_scarce: Callable[[OSError], None] = lambda refusal: None
        """Told why there was no room, before what is held is let go: contents are not to have that."""
        self._held = -1
        self._hold_again_s = 0.0

    def require_room(self, rows: int = 0, contents_bytes: int = 0) -> None:
        """Raises: NoSpaceError, QuotaError if the index must not be changed now, by a commit of so many rows, and
        of contents in them."""
        if not self.needed:
            return
        needed_bytes = _ENOUGH_BYTES + min(rows, _ROWS_MAX) * _ROW_BYTES + contents_bytes
        refusal = room_refused(self._directory, needed_bytes)
        if refusal is None:
            self._hold()
        elif self._held >= 0:
            self.on_scarce(refusal)
            self._let_go()
            # What was freed counts until the file system has committed that. A blocking call, once in a full disk.
            syncfs(self._directory)
            refusal = room_refused(self._directory, needed_bytes)
        if refusal is not None:
            kind = QuotaError if is_quota(refusal) else NoSpaceError
            raise kind(f"{self._path}: no room for the catalog: {refusal.strerror}")

    def _hold(self) -> None:
        now_s = time.monotonic()
        if self._held >= 0 or now_s < self._hold_again_s:
            return
        self._hold_again_s = now_s + _HOLD_EVERY_S
        self._held = hold_room(self._directory, _HELD_BYTES)

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        self._hold_again_s = time.monotonic() + _HOLD_EVERY_S

    def committed(self) -> None:
        """A commit has succeeded: have the mark for readers set."""
        if self.needed:
            self._read("SELECT 1 FROM meta LIMIT 1")

    def closing(self) -> None:
        """The catalog is about to be closed: without room, its log must not be folded into it."""
        if self.needed and room_refused(self._directory, _ENOUGH_BYTES):
            # SQLite folds when the last connection closes that could write.
            self._read("BEGIN")
            self._read("SELECT 1 FROM meta LIMIT 1")

    def _read(self, sql: str) -> None:
        if self._db is None:
            self._db = self._connect()
        self._db.execute(sql).fetchone()

    def close(self) -> None:
        """After the catalog's own connections."""
        self._let_go()
        if self._db is not None:
            self._db.close()
            self._db = None
