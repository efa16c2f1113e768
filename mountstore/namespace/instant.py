"""The catalog's rows as of one commit, as the records of a snapshot: on a connection beside the one at work.

The state is that of the last commit before the object was made, however long it is used; WAL readers do not
disturb the writer, but keep the WAL from being started anew.

Any thread, one at a time. Iterators are exhausted, or closed, before `close`.

Errors: CorruptError (SQLite cannot read the database, or it holds what no catalog may hold).
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from mountstore.namespace.catalog import INODE_COLUMNS
from mountstore.namespace.connection import connect, sum_of, translated
from mountstore.namespace.inodes import FIRST_COOKIE, ROOT, TYPE_BITS
from mountstore.namespace.pages import HistoryRow, InodeRecord, ListingEntry
from mountstore.namespace.stale import PAGE_SHIFT

_CACHE_KIB: Final = 8 * 1024
_BATCH: Final = 500

_INODES: Final = (
    f"SELECT {INODE_COLUMNS} FROM inode WHERE id BETWEEN ? AND ? AND nlink > 0 ORDER BY id"
)

_NAMES: Final = (
    "SELECT e.name, e.inode, e.cookie, coalesce(n.history, 0) FROM entry AS e"
    " LEFT JOIN name_history AS n ON n.parent = e.parent AND n.name = e.name"
    " WHERE e.parent = ?1 AND e.name >= ?2 {below_e}"
    " UNION ALL SELECT n.name, 0, 0, n.history FROM name_history AS n"
    " WHERE n.parent = ?1 AND n.name >= ?2 {below_n}"
    " AND NOT EXISTS (SELECT 1 FROM entry AS e WHERE e.parent = n.parent AND e.name = n.name)"
    " ORDER BY 1"
)
_ALL_NAMES: Final = _NAMES.format(below_e="", below_n="")
_SOME_NAMES: Final = _NAMES.format(below_e="AND e.name < ?3", below_n="AND n.name < ?3")

_FILE_BYTES: Final = (
    f"SELECT {sum_of('size')} FROM inode WHERE nlink > 0 AND mode & {TYPE_BITS} = {stat.S_IFREG}"
)
_CHECKSUM: Final = "SELECT checksum FROM blob WHERE sha256 = ? AND size = ?"
_INODE_HISTORIES: Final = "SELECT inode, history FROM inode_history WHERE inode BETWEEN ? AND ?"
_XATTRS: Final = "SELECT inode, name, value FROM xattr WHERE inode BETWEEN ? AND ? ORDER BY inode, name"
_NEXT_PARENT: Final = "SELECT parent FROM name_history WHERE parent >= ? ORDER BY parent LIMIT 1"
_NEXT_HISTORY: Final = "SELECT history FROM version WHERE history >= ? ORDER BY history LIMIT 1"

_HISTORIES: Final = (
    "SELECT v.history, v.number, v.kind, v.sha256, v.blob_size, v.size, v.mode, v.uid, v.gid, v.mtime_ns,"
    " v.until_ns, coalesce(b.checksum, x'') FROM version AS v"
    " LEFT JOIN blob AS b ON b.sha256 = v.sha256 AND b.size = v.blob_size"
    " WHERE v.history BETWEEN ? AND ? ORDER BY v.history, v.number"
)


class Instant:
    """One state of a catalog.

    Args:
      path: Of the database file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._db = connect(path, read_only=True)
        except sqlite3.Error as exc:
            raise translated(path, exc) from exc
        try:
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._db.execute("BEGIN")
            # The first look fixes the state.
            self.next_inode = self._counter("next_inode", ROOT + 1)
            self.next_cookie = self._counter("next_cookie", FIRST_COOKIE)
            self.adopted = bool(self._counter("adopted", 0))
        except sqlite3.Error as exc:
            self._db.close()
            raise translated(path, exc) from exc
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def _counter(self, key: str, default: int) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else int(row[0])

    def _rows(self, sql: str, parameters: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        try:
            cursor = self._db.execute(sql, parameters)
            try:
                while batch := cursor.fetchmany(_BATCH):
                    yield from batch
            finally:
                cursor.close()
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc

    def _value(self, sql: str, parameters: tuple[Any, ...]) -> int | None:
        try:
            row = self._db.execute(sql, parameters).fetchone()
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc
        return None if row is None else row[0]

    # --- which pages there are ---

    def inode_pages(self) -> Iterator[int]:
        """Numbers of all pages that have a record, ascending."""
        first = 0
        while True:
            found = [
                number
                for sql in (
                    "SELECT id FROM inode WHERE id >= ? AND nlink > 0 ORDER BY id LIMIT 1",
                    _NEXT_PARENT,
                )
                if (number := self._value(sql, (first,))) is not None
            ]
            if not found:
                return
            page = min(found) >> PAGE_SHIFT
            yield page
            first = page + 1 << PAGE_SHIFT

    def history_pages(self) -> Iterator[int]:
        """Numbers of all pages that have a history, ascending."""
        first = 0
        while True:
            number = self._value(_NEXT_HISTORY, (first,))
            if number is None:
                return
            page = number >> PAGE_SHIFT
            yield page
            first = page + 1 << PAGE_SHIFT

    # --- what they hold ---

    def inodes(self, page: int, known: Mapping[int, InodeRecord] = MappingProxyType({})) -> list[InodeRecord]:
        """The records of a page, but for the removed directories, without their listings.

        Args:
          known: Earlier ones by number, of which the checksums of contents that are still the same are taken.
        """
        first = page << PAGE_SHIFT
        last = first + (1 << PAGE_SHIFT) - 1
        rows = list(self._rows(_INODES, (first, last)))
        xattrs: dict[int, list[tuple[bytes, bytes]]] = {}
        if any(row[17] for row in rows):
            for inode, name, value in self._rows(_XATTRS, (first, last)):
                xattrs.setdefault(inode, []).append((name, value))
        histories: dict[int, int] = dict(self._rows(_INODE_HISTORIES, (first, last)))

        def beside(inode: int) -> tuple[list[tuple[bytes, bytes]], int]:
            return xattrs.get(inode, []), histories.get(inode, 0)

        return [
            InodeRecord(*(*row[:16], self._checksum(row, known), row[16], *beside(row[0]), None)) for row in rows
        ]

    def _checksum(self, row: tuple[Any, ...], known: Mapping[int, InodeRecord]) -> bytes:
        sha256, blob_size = row[14], row[15]
        if sha256 is None:
            return b""
        before = known.get(row[0])
        if before is not None and before.checksum and before.sha256 == sha256 and before.blob_size == blob_size:
            return before.checksum
        found = next(self._rows(_CHECKSUM, (sha256, blob_size)), None)
        return b"" if found is None else found[0]

    def removed_directories(self, page: int) -> list[int]:
        """Directories of a page that do not exist, and in which names have histories."""
        removed: list[int] = []
        first = page << PAGE_SHIFT
        end = first + (1 << PAGE_SHIFT)
        while True:
            parent = self._value(_NEXT_PARENT, (first,))
            if parent is None or parent >= end:
                return removed
            if self._value("SELECT 1 FROM inode WHERE id = ? AND nlink > 0", (parent,)) is None:
                removed.append(parent)
            first = parent + 1

    def file_bytes(self) -> int:
        """The sum of the sizes of regular files, as far as `sum_of` tells; reads all inodes."""
        return self._value(_FILE_BYTES, ()) or 0

    def names(self, directory: int, low: bytes = b"", high: bytes | None = None) -> Iterator[ListingEntry]:
        """What a directory says of its names from `low` up to, not including, `high` (None: all), in order."""
        if high is None:
            rows = self._rows(_ALL_NAMES, (directory, low))
        else:
            rows = self._rows(_SOME_NAMES, (directory, low, high))
        for row in rows:
            yield ListingEntry(*row)

    def histories(self, page: int) -> dict[int, list[HistoryRow]]:
        """The rows of the histories of a page."""
        first = page << PAGE_SHIFT
        found: dict[int, list[HistoryRow]] = {}
        for row in self._rows(_HISTORIES, (first, first + (1 << PAGE_SHIFT) - 1)):
            found.setdefault(row[0], []).append(HistoryRow(*row[1:]))
        return found
