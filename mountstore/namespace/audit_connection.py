"""The checker's connection to the catalog: one transaction, and what SQLite says of its own file.

Everything happens in one transaction: the checks see one state, changes follow in the same transaction and
are checked by the same queries before `commit`. Until then the database file is as it was; a connection that
is closed, or a process that dies, without `commit` has changed nothing.

Errors, from every method: CorruptError (SQLite cannot read the database), NoSpaceError, and
KeyboardInterrupt, which also ends a long statement.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from mountstore.errors import BusyError, CorruptError, NoSpaceError, StoreError
from mountstore.namespace.connection import uri_path
from mountstore.namespace.schema import APPLICATION_ID, CATALOG_FORMAT, SCHEMA
from mountstore.namespace.stale import BASE_KEY

_STEPS: Final = 200_000  # of SQLite's virtual machine, some ms, between looks at Ctrl-C

# The latter when SQLite's own message quotes what the disk holds.
_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)

# Not for what the disk holds: a wrong statement of this module.
_MISTAKES: Final = frozenset({0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_LOCKED})


class AuditConnection:
    """The catalog of one store, opened for checking.

    Args:
      path: Of the database file.
      writable: Changes will be made. Otherwise nothing is written, not even a WAL.

    Raises:
      CorruptError: It cannot be read, or is no catalog.
      StoreError: It has another format, or the file system does not let it be opened.
    """

    def __init__(self, path: str, *, writable: bool = False) -> None:
        self.path = path
        mode = "rw" if writable else "ro"
        if not writable and not _has_wal(path):
            mode += "&immutable=1"
        try:
            self._db = sqlite3.connect(f"file:{uri_path(path)}?mode={mode}", uri=True, isolation_level=None)
        except _ERRORS as exc:
            raise self._translated(exc) from exc
        try:
            self._db.text_factory = os.fsdecode
            self._db.set_progress_handler(lambda: 0, _STEPS)
            self._run("PRAGMA busy_timeout = 10000")
            self._run("PRAGMA synchronous = FULL")
            self._run("PRAGMA temp_store = FILE")
            self._run("PRAGMA main.cache_size = -65536")
            self._run("PRAGMA temp.cache_size = -65536")
            self._run("PRAGMA cell_size_check = ON")
            self._run("PRAGMA trusted_schema = OFF")
            application = self._value("PRAGMA application_id")
            version = self._value("PRAGMA user_version")
            if application != APPLICATION_ID:
                raise CorruptError(f"{path}: this is not a catalog of mountstore")
            if version != CATALOG_FORMAT:
                raise StoreError(
                    f"{path}: catalog format {version}, this release reads {CATALOG_FORMAT};"
                    " use the release that wrote it"
                )
            self._run("BEGIN")
            tables = {row[0] for row in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
            # Old contents are as needed as those of inodes; a new store may have no such table yet.
            self._contents = ["inode", *(table for table in ("version", "previous") if table in tables)]
            self._of_inodes = [table for table in ("inode_history", "previous") if table in tables]
            self._staging = [table for table in ("draft", "previous") if table in tables]
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; what was not committed is undone."""
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except _ERRORS:
            pass
        self._db.close()

    def commit(self) -> None:
        """Make all changes, and make them survive power loss; a new transaction begins.

        Nobody noted what was changed, so the next snapshot reads everything.
        """
        self._run("DELETE FROM meta WHERE key = ?", (BASE_KEY,))
        self._run("COMMIT")
        self._run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._run("BEGIN")

    # --- SQL ---

    def _run(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, parameters)
        except _ERRORS as exc:
            raise self._translated(exc) from exc

    def _run_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._db.executemany(sql, rows)
        except _ERRORS as exc:
            raise self._translated(exc) from exc

    def _rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        cursor = self._run(sql, parameters)
        try:
            yield from cursor
        except _ERRORS as exc:
            raise self._translated(exc) from exc
        finally:
            cursor.close()

    def _value(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        return next(self._rows(sql, parameters), (None,))[0]

    def _translated(self, exc: Exception) -> BaseException:
        if isinstance(exc, UnicodeDecodeError):
            return CorruptError(f"{self.path}: the catalog cannot be read: {exc}")
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_INTERRUPT:
            return KeyboardInterrupt()
        if code == sqlite3.SQLITE_FULL:
            return NoSpaceError(f"{self.path}: no room for the catalog or for temporary tables")
        if code == sqlite3.SQLITE_BUSY:
            return BusyError(f"{self.path}: somebody else has the catalog open")
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return StoreError(f"{self.path}: the catalog cannot be opened: {exc}")
        if code in _MISTAKES:
            return exc
        return CorruptError(f"{self.path}: the catalog cannot be read: {exc}")

    def _refill(self, table: str, columns: str, select: str) -> None:
        """A temporary table made anew."""
        self._run(f"DROP TABLE IF EXISTS temp.{table}")
        self._run(f"CREATE TEMP TABLE {table} ({columns})")
        self._run(f"INSERT INTO temp.{table} {select}")

    # --- the database itself ---

    def integrity(self, *, full: bool) -> list[str]:
        """What SQLite finds wrong with its file, at most 100 lines; `full` compares indexes as well."""
        pragma = "integrity_check" if full else "quick_check"
        try:
            lines = [str(row[0]) for row in self._rows(f"PRAGMA main.{pragma}")]
        except CorruptError as exc:
            return [str(exc)]
        return [] if lines == ["ok"] else lines or ["no answer"]

    def schema_differences(self) -> list[str]:
        """Tables and indexes that are missing, or are not as this release makes them."""
        query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        model = sqlite3.connect(":memory:")
        try:
            model.executescript(SCHEMA)
            wanted = dict(model.execute(query))
        finally:
            model.close()
        found = dict(self._rows(query))
        # The next mount makes it.
        found.setdefault("draft_change", wanted["draft_change"])
        return [name for name, sql in wanted.items() if _bare(found.get(name, "")) != _bare(sql)]

    def rebuild_indexes(self) -> None:
        self._run("REINDEX main.orphan")
        self._run("REINDEX main.listing")

    def meta(self, key: str) -> Any:
        return self._value("SELECT value FROM meta WHERE key = ?", (key,))

    def set_meta(self, key: str, value: int) -> None:
        self._run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def count(self, table: str) -> int:
        assert table in ("inode", "entry", "blob", "draft", "unsynced")
        return int(self._value(f"SELECT count(*) FROM main.{table}"))


def _bare(sql: str) -> str:
    """A statement without comments, which are as they were when the store was made."""
    return " ".join(re.sub("--.*", "", sql).split())


def _has_wal(path: str) -> bool:
    try:
        return os.stat(path + "-wal").st_size > 0
    except FileNotFoundError:
        return False
