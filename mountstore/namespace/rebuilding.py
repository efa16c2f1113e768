"""A catalog made anew from the records of a snapshot, in bulk.

Records arrive in the order of the tables' keys, so rows are appended to their B-trees; indexes are made at the
end. The file is no catalog before `finish` returns: nothing is synchronised, and there is no journal.

Thread: any, one at a time; blocks. Errors: CorruptError (the records contradict each other), NoSpaceError.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from mountstore.blobs.digest import CHECKSUM_BYTES, Digest
from mountstore.blobs.flush import fsync_path
from mountstore.errors import CorruptError
from mountstore.namespace.connection import translated, uri_path
from mountstore.namespace.pages import HistoryRow, InodeRecord, ListingEntry
from mountstore.namespace.schema import APPLICATION_ID, CATALOG_FORMAT, SCHEMA

_BATCH: Final = 20_000
_CACHE_KIB: Final = 64 * 1024
_INODE_COLUMNS: Final = 16
"""Those of a record that are the first columns of the table, in its order."""


class CatalogBuilder:
    """One new catalog. A context manager; what was not finished is deleted.

    Args:
      path: Of the new file; what lies there is replaced.

    Attributes:
      names: How many were added that stand for something.

    Raises: as above, and OSError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._finished = False
        self.names = 0
        remove_catalog(path)
        self._inodes: list[tuple[Any, ...]] = []
        self._entries: list[tuple[Any, ...]] = []
        self._names: list[tuple[Any, ...]] = []
        self._versions: list[tuple[Any, ...]] = []
        self._needed: list[tuple[Any, ...]] = []
        try:
            self._db = sqlite3.connect(f"file:{uri_path(path)}?mode=rwc", uri=True, isolation_level=None)
        except sqlite3.Error as exc:
            raise translated(path, exc) from exc
        try:
            self._begin()
        except BaseException:
            self._db.close()
            raise

    def _begin(self) -> None:
        for pragma in (
            "page_size = 4096",
            "journal_mode = OFF",
            "synchronous = OFF",
            "locking_mode = EXCLUSIVE",
            "temp_store = FILE",
            f"main.cache_size = -{_CACHE_KIB}",
            f"temp.cache_size = -{_CACHE_KIB}",
        ):
            self._run(f"PRAGMA {pragma}")
        try:
            self._db.executescript(f"BEGIN; {SCHEMA}")
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc
        self._indexes = self._run(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"
        ).fetchall()
        for name, _ in self._indexes:
            self._run(f"DROP INDEX {name}")
        self._run("CREATE TEMP TABLE needed (sha256 BLOB, size INTEGER, checksum BLOB)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if not self._finished:
            remove_catalog(self._path)

    # --- records ---

    def add_inodes(self, records: Iterable[InodeRecord]) -> None:
        """Records in ascending order; of removed directories nothing is kept."""
        for record in records:
            if record.is_ghost:
                continue
            fields = msgspec.structs.astuple(record)
            self._inodes.append((*fields[:_INODE_COLUMNS], record.target, len(record.xattrs)))
            if record.sha256 is not None:
                self._needed.append((record.sha256, record.blob_size, record.checksum))
            if record.xattrs:
                self._run_many(
                    "INSERT INTO xattr VALUES (?, ?, ?)",
                    [(record.number, name, value) for name, value in record.xattrs],
                )
            if record.history:
                self._run("INSERT INTO inode_history VALUES (?, ?)", (record.number, record.history))
        if len(self._inodes) > _BATCH:
            self._flush()

    def add_entries(self, directory: int, entries: Iterable[ListingEntry]) -> None:
        """The names of a directory, in order; directories in ascending order."""
        for entry in entries:
            if entry.inode:
                self.names += 1
                self._entries.append((directory, entry.name, entry.inode, entry.cookie))
            if entry.history:
                self._names.append((directory, entry.name, entry.history))
            if len(self._entries) > _BATCH or len(self._names) > _BATCH:
                self._flush()

    def add_history(self, history: int, rows: Sequence[HistoryRow]) -> None:
        """The rows of a history, in order; histories in ascending order."""
        for row in rows:
            number, kind, sha256, blob_size, *rest, checksum = msgspec.structs.astuple(row)
            self._versions.append((history, number, kind, sha256, blob_size, *rest))
            if sha256 is not None:
                self._needed.append((sha256, blob_size, checksum))
        if len(self._versions) > _BATCH:
            self._flush()

    def need(self, digest: Digest, checksum: bytes) -> None:
        """Record a blob; as often as one likes."""
        self._needed.append((*digest, checksum))
        if len(self._needed) > _BATCH:
            self._flush()

    def _flush(self) -> None:
        for sql, rows in (
            ("INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._inodes),
            ("INSERT INTO entry VALUES (?, ?, ?, ?)", self._entries),
            ("INSERT INTO name_history VALUES (?, ?, ?)", self._names),
            ("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._versions),
            ("INSERT INTO temp.needed VALUES (?, ?, ?)", self._needed),
        ):
            if rows:
                self._run_many(sql, rows)
                rows.clear()

    # --- the end ---

    def finish(self, meta: Mapping[str, int | str]) -> None:
        """Complete the catalog, and bring it to the disk."""
        self._flush()
        # Blobs whose checksum nobody knows are not recorded: the first read verifies their digest.
        self._run(
            "INSERT INTO blob SELECT sha256, size, max(checksum) FROM temp.needed"
            f" WHERE length(checksum) = {CHECKSUM_BYTES} GROUP BY sha256, size"
        )
        for _, sql in self._indexes:
            self._run(sql)
        self._run_many("INSERT INTO meta VALUES (?, ?)", meta.items())
        self._run(f"PRAGMA application_id = {APPLICATION_ID}")
        self._run(f"PRAGMA user_version = {CATALOG_FORMAT}")
        self._run("COMMIT")
        self._run("PRAGMA locking_mode = NORMAL")
        # Written into the file's head; the file that is made for it goes when the connection closes.
        self._run("PRAGMA journal_mode = WAL")
        self._db.close()
        self._finished = True
        fsync_path(self._path)

    def _run(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, parameters)
        except sqlite3.IntegrityError as exc:
            raise CorruptError(f"the snapshot contradicts itself: {exc}") from exc
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc

    def _run_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._db.executemany(sql, rows)
        except sqlite3.IntegrityError as exc:
            raise CorruptError(f"the snapshot contradicts itself: {exc}") from exc
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc


def remove_catalog(path: str) -> None:
    """Delete a catalog that was not finished."""
    for name in (path, path + "-wal", path + "-shm", path + "-journal"):
        with suppress(FileNotFoundError):
            os.unlink(name)
