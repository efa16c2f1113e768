"""One connection to an SQLite database, with a transaction that is always open.

Every statement sees all earlier ones, and `commit` makes them survive the death of the process (WAL,
`synchronous=NORMAL`: an append without a flush). `flush_wal` is the flush itself, for whoever may block.

Invariants
  1. Between two commits nothing is written to the database file or its WAL (`cache_spill` is off), so
     a statement can fail for a broken disk but never for a full one.
  2. What was changed is never forgotten while the process lives: SQLite rolls a transaction back when its
     COMMIT fails (SQLITE_FULL and SQLITE_IOERR do so, see sqlite3.c sqlite3VdbeHalt), so every statement since
     the last commit is kept and said again in a new transaction. A commit that failed may be repeated.
  3. Nobody else writes to the database: the store's lock is held.
  4. Checkpoints run on a connection of their own, in a thread.
  5. Room for the next commits is kept behind the end of the WAL, so that deletions can be committed on a full
     disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from mountstore.errors import CorruptError, StoreError
from mountstore.namespace.connection import REBUILD_HINT, connect, reading_catalog, translated
from mountstore.namespace.mapped_index import MappedIndex
from mountstore.namespace.schema import APPLICATION_ID, CATALOG_FORMAT, DRAFT_CHANGE, SCHEMA
from mountstore.namespace.wal import PAGE_BYTES, Wal

_CHECKPOINT_BYTES = 16 << 20
"""A WAL longer than this is worth a checkpoint."""


class Transactions:
    """The open database of a catalog.

    Args:
      path: Of the database file; made when absent, unless `read_only` or `must_exist`.

    Raises:
      StoreError: Not a catalog, or one of another format.
      CorruptError: SQLite cannot read it.
      NoSpaceError, QuotaError: There is no room for its shared memory.
    """

    def __init__(self, path: str, *, read_only: bool = False, must_exist: bool = False) -> None:
        self.path = path
        if must_exist and not (os.path.exists(path) and os.stat(path).st_size):
            raise CorruptError(f"{path}: the catalog is missing or empty; {REBUILD_HINT}")
        self.read_only = read_only
        self.mapped_index = MappedIndex(path, lambda: connect(path, read_only=True))
        """The guard of its shared memory."""
        if not read_only:
            self.mapped_index.require_room()
        with reading_catalog(path):
            self._db = connect(path, read_only=read_only)
            self._prepare_schema()
            if not read_only:
                self._db.execute("BEGIN")
        self._execute = self._db.execute
        # The statements of the open transaction, to be said again if SQLite rolls it back.
        self._said: list[tuple[str, Any, bool]] = []
        # Of files, in rows of the open transaction.
        self._contents_bytes = 0
        self._checkpointer: sqlite3.Connection | None = None
        self._wal = Wal(path)
        self._committed_changes = self._db.total_changes
        # To be told that statements since the last commit were undone, by those who remember what they said.
        self.on_undone: list[Callable[[], None]] = []

    def _prepare_schema(self) -> None:
        db = self._db
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0 and not self.read_only:
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {CATALOG_FORMAT}; COMMIT;"
            )
        elif application != APPLICATION_ID:
            raise StoreError(f"{self.path}: this is not a catalog of mountstore")
        elif version != CATALOG_FORMAT:
            raise StoreError(
                f"{self.path}: catalog format {version}, this release reads {CATALOG_FORMAT};"
                " use the release that wrote it"
            )
        elif not self.read_only:
            db.executescript(DRAFT_CHANGE)

    def commit(self, *, pause: bool = False) -> None:
        """End the open transaction and begin the next one.

        Args:
          pause: Begin it with the first change only: until then a checkpoint can move all of the WAL, and SQLite
            then begins that anew.

        Raises:
          NoSpaceError: The disk is full.
          CorruptError: SQLite cannot write. In both cases nothing was committed, and the transaction is open
            as before.
        """
        rows = self._db.total_changes - self._committed_changes
        self.mapped_index.require_room(rows, self._contents_bytes)
        try:
            if not self._db.in_transaction:
                self._say_again()
            self._say_last()
            self._execute("COMMIT")
        except sqlite3.Error as exc:
            if not self._db.in_transaction:
                self._say_again()
            raise translated(self.path, exc) from exc
        self._said = []
        self._contents_bytes = 0
        self._committed_changes = self._db.total_changes
        self.mapped_index.committed()
        if not pause:
            self._execute("BEGIN")

    def _say_last(self) -> None:
        """Say what a commit needs beside what was said; called before every one, and only then."""

    def ask(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Execute a statement that changes nothing; for the modules of this package."""
        return self._execute(sql, parameters)

    def say(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Execute a statement that changes something. All changes go through here or `_say_all`."""
        if not self._db.in_transaction:
            self._say_again()
        cursor = self._execute(sql, parameters)
        self._said.append((sql, parameters, False))
        return cursor

    def _say_all(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """As `say` for each row."""
        if not self._db.in_transaction:
            self._say_again()
        rows = list(rows)
        self._db.executemany(sql, rows)
        self._said.append((sql, rows, True))

    def _say_again(self) -> None:
        """SQLite rolled the transaction back: bring it about once more."""
        try:
            self._execute("BEGIN")
            for sql, parameters, many in self._said:
                if many:
                    self._db.executemany(sql, parameters)
                else:
                    self._execute(sql, parameters)
        except sqlite3.Error as exc:
            if self._db.in_transaction:
                self._execute("ROLLBACK")
            raise translated(self.path, exc) from exc

    def _take_back(self, kept: int) -> None:
        """Undo all but the first `kept` statements of the open transaction."""
        if len(self._said) == kept:
            # What failed was the first, which changed nothing.
            return
        del self._said[kept:]
        for forget in self.on_undone:
            forget()
        if self._db.in_transaction:
            self._execute("ROLLBACK")
        self._say_again()

    def changes(self) -> int:
        """Grows with every row changed."""
        return self._db.total_changes

    def uncommitted(self) -> bool:
        """Whether rows were changed since the last commit."""
        return self._db.total_changes != self._committed_changes

    def savepoint(self) -> Savepoint:
        """A context in which several statements happen together or not at all."""
        return Savepoint(self)

    def wal_bytes(self) -> int:
        """How much of the WAL is in use."""
        return self._wal.used_bytes()

    def extend_wal(self) -> None:
        """Keep room behind the end of the WAL, see `Wal.extend`."""
        self._wal.extend()

    def flush_wal(self) -> None:
        """Make every commit so far survive power loss. Blocks: for a worker thread, one at a time.

        Raises: As `mountstore.blobs.flush.fsync_path`.
        """
        self._wal.flush()

    def checkpoint(self) -> None:
        """Move what the WAL holds into the database file. Blocks: for a worker thread, one at a time."""
        self.mapped_index.require_room()
        try:
            if self._checkpointer is None:
                self._checkpointer = connect(self.path, read_only=False)
            self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as exc:
            raise translated(self.path, exc) from exc

    def wants_checkpoint(self) -> bool:
        return self.wal_bytes() > _CHECKPOINT_BYTES

    def close(self) -> None:
        """Close; the WAL is folded into the database file. What was not committed is undone: alone, without what
        others would have written before a commit, it makes no sense."""
        if not self.read_only:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self.mapped_index.closing()
        if self._checkpointer is not None:
            self._checkpointer.close()
        self._wal.close()
        self._db.close()
        self.mapped_index.close()


class Savepoint:
    """Context of `Transactions.savepoint`: on an exception everything inside it is undone.

    Costs nothing unless that happens; then the whole transaction is rolled back, and what came before said again.
    """

    __slots__ = ("_owner", "_said")

    def __init__(self, owner: Transactions) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._said = len(self._owner._said)

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        if kind is not None:
            self._owner._take_back(self._said)
