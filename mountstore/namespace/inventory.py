"""The whole catalog as of one commit, for garbage collection: on a connection of its own, beside the one at work.

The state is that of the last commit before the object was made, however long it is used; WAL readers do not
disturb the writer, but keep the WAL from being started anew. What grows with the store is a temporary table, which
SQLite keeps in a file when it is large.

Any thread, one at a time. Iterators are exhausted, or closed, before `close`.

Errors: CorruptError (SQLite cannot read the database), NoSpaceError (no room for temporary tables).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError, MisuseError
from mountstore.namespace.connection import connect, translated
from mountstore.namespace.history import FLEETING, RowKind
from mountstore.namespace.stale import BASE_KEY

_CACHE_KIB: Final = 16 * 1024
_BATCH: Final = 500

_IS_KEPT: Final = (
    "EXISTS (SELECT 1 FROM temp.verdict AS k WHERE k.history = v.history AND k.number = v.number AND k.keep)"
)


class Line(NamedTuple):
    """A name and the histories that make up its versions (0: none)."""

    parent: int
    name: bytes
    exists: bool
    own: int
    in_place: int


class HistoryRow(NamedTuple):
    """A row of a history, without what retention does not ask for."""

    number: int
    kind: int
    size: int
    span: int
    """Of a splice."""
    until_ns: int
    fleeting: bool


class RowVerdict(NamedTuple):
    """What one name has to say of a row: kept if any name keeps it."""

    history: int
    number: int
    keep: bool
    reason: str


class Need(NamedTuple):
    """If any name keeps a row, another one is kept, too."""

    history: int
    number: int
    kept: RowVerdict


class Inventory:
    """One state of a catalog.

    Args:
      path: Of the database file.

    Raises: CorruptError
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._judged = False
        try:
            self._db = connect(path, read_only=True)
        except sqlite3.Error as exc:
            raise translated(path, exc) from exc
        try:
            self._run("PRAGMA temp_store = FILE")
            self._run(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._run(f"PRAGMA temp.cache_size = -{_CACHE_KIB}")
            self._run("BEGIN")
            # The first look fixes the state.
            self._run("SELECT count(*) FROM main.meta").fetchone()
            self._run(
                "CREATE TEMP TABLE verdict (history INTEGER, number INTEGER, keep INTEGER, reason TEXT,"
                " PRIMARY KEY (history, number)) WITHOUT ROWID"
            )
            self._run(
                "CREATE TEMP TABLE need (history INTEGER, number INTEGER, kept_history INTEGER,"
                " kept_number INTEGER, reason TEXT)"
            )
            self._run("CREATE TEMP TABLE reached (history INTEGER PRIMARY KEY)")
            self._run("CREATE TEMP TABLE bare (parent INTEGER, name BLOB, history INTEGER)")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def _run(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, parameters)
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc

    def _run_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._db.executemany(sql, rows)
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc

    def _rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        cursor = self._run(sql, parameters)
        try:
            while batch := cursor.fetchmany(_BATCH):
                yield from batch
        except sqlite3.Error as exc:
            raise translated(self._path, exc) from exc
        finally:
            cursor.close()

    def snapshot_base(self) -> Digest | None:
        """The root of the snapshot on which the next one is built. Raises: CorruptError."""
        row = next(self._rows("SELECT value FROM main.meta WHERE key = ?", (BASE_KEY,)), None)
        try:
            return None if row is None else Digest.parse(row[0])
        except MisuseError as exc:
            raise CorruptError(f"{self._path}: {exc}") from exc

    # --- names and their versions ---

    def has_versions(self) -> bool:
        return next(self._rows("SELECT 1 FROM main.version LIMIT 1"), None) is not None

    def lines(self) -> Iterator[Line]:
        """Every name that has versions, or had some."""
        for row in self._rows(
            "SELECT n.parent, n.name, e.inode IS NOT NULL, n.history, coalesce(i.history, 0)"
            " FROM main.name_history AS n"
            " LEFT JOIN main.entry AS e ON e.parent = n.parent AND e.name = n.name"
            " LEFT JOIN main.inode_history AS i ON i.inode = e.inode"
        ):
            yield Line(row[0], row[1], bool(row[2]), row[3], row[4])
        if next(self._rows("SELECT 1 FROM main.inode_history LIMIT 1"), None) is None:
            return
        for row in self._rows(
            "SELECT e.parent, e.name, i.history FROM main.entry AS e"
            " CROSS JOIN main.inode_history AS i ON i.inode = e.inode WHERE NOT EXISTS"
            " (SELECT 1 FROM main.name_history AS n WHERE n.parent = e.parent AND n.name = e.name)"
        ):
            yield Line(row[0], row[1], True, 0, row[2])

    def history(self, history: int) -> list[HistoryRow]:
        """Rows in order."""
        rows = self._run(
            "SELECT number, kind, size, blob_size, until_ns, mode FROM main.version WHERE history = ?"
            " ORDER BY number",
            (history,),
        ).fetchall()
        return [
            HistoryRow(number, kind, size, span, until_ns, bool(mode & FLEETING))
            for number, kind, size, span, until_ns, mode in rows
        ]

    def attributes(self, name: bytes) -> dict[int, bytes]:
        """Inodes that have an extended attribute of that name, with its value."""
        return dict(self._rows("SELECT inode, value FROM main.xattr WHERE name = ?", (name,)))

    def parent_of(self, directory: int) -> int | None:
        """The directory in which a directory lies; None if it was removed, also if somebody still uses it."""
        row = self._run("SELECT parent FROM main.inode WHERE id = ? AND nlink > 0", (directory,)).fetchone()
        return None if row is None else row[0]

    def removed_directories(self) -> dict[int, int]:
        """Directories that were removed and are found among the versions of a name: where that name was."""
        return dict(
            self._rows(
                "SELECT v.size, n.parent FROM main.version AS v"
                " JOIN main.name_history AS n ON n.history = v.history WHERE v.kind = ?",
                (RowKind.DIRECTORY,),
            )
        )

    # --- what is decided about them ---

    def judge(self, verdicts: Iterable[RowVerdict]) -> None:
        """Take down what a name has to say."""
        self._judged = True
        self._run_many(
            "INSERT INTO temp.verdict VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET keep = max(keep, excluded.keep)",
            verdicts,
        )

    def need(self, needs: Iterable[Need]) -> None:
        """Take down what is asked for in case a row is kept; `settle_needs` sees to it."""
        self._run_many(
            "INSERT INTO temp.need VALUES (?, ?, ?, ?, ?)",
            ((need.history, need.number, *need.kept[:2], need.kept.reason) for need in needs),
        )

    def settle_needs(self) -> None:
        """Every name was judged: keep what is needed by what was kept."""
        self._run(
            "INSERT INTO temp.verdict SELECT n.kept_history, n.kept_number, 1, n.reason FROM temp.need AS n"
            " JOIN temp.verdict AS v ON v.history = n.history AND v.number = n.number WHERE v.keep"
            " ON CONFLICT DO UPDATE SET keep = 1"
        )

    def reach(self, histories: Iterable[int]) -> None:
        """Some name has these."""
        self._judged = True
        self._run_many("INSERT OR IGNORE INTO temp.reached VALUES (?)", ((number,) for number in histories))

    def bare(self, names: Iterable[tuple[int, bytes, int]]) -> None:
        """Names (parent, name, history) that do not exist and of which no version is kept."""
        self._run_many("INSERT INTO temp.bare VALUES (?, ?, ?)", names)

    def bare_names(self) -> Iterator[tuple[int, bytes, int]]:
        for row in self._rows("SELECT parent, name, history FROM temp.bare"):
            yield row[0], row[1], row[2]

    def dropped_rows(self) -> Iterator[tuple[int, int]]:
        """Rows (history, number) that no name keeps, of histories that some name has."""
        for row in self._rows(
            "SELECT v.history, v.number FROM main.version AS v JOIN temp.reached AS r ON r.history = v.history"
            f" WHERE NOT {_IS_KEPT} AND (v.kind <> ? OR EXISTS"
            " (SELECT 1 FROM main.version AS w WHERE w.history = v.history AND w.number > v.number))",
            (RowKind.DROPPED,),
        ):
            yield row[0], row[1]

    def unreached_histories(self) -> Iterator[int]:
        """Histories that no name has any more."""
        for row in self._rows(
            "SELECT DISTINCT v.history FROM main.version AS v"
            " WHERE NOT EXISTS (SELECT 1 FROM temp.reached AS r WHERE r.history = v.history)"
        ):
            yield row[0]

    def stray_inode_histories(self) -> Iterator[int]:
        """Inodes that do not exist and have a history all the same."""
        for row in self._rows(
            "SELECT h.inode FROM main.inode_history AS h"
            " WHERE NOT EXISTS (SELECT 1 FROM main.inode AS i WHERE i.id = h.inode)"
        ):
            yield row[0]

    def kept_versions(self) -> tuple[int, dict[str, int]]:
        """How many versions are kept, and how many are dropped for which reason."""
        kinds = f"v.kind IN ({RowKind.BLOB:d}, {RowKind.MANIFEST:d}, {RowKind.PREFIX:d})"
        kept = 0
        dropped: dict[str, int] = {}
        for keep, reason, number in self._rows(
            "SELECT k.keep, k.reason, count(*) FROM main.version AS v LEFT JOIN temp.verdict AS k"
            f" ON k.history = v.history AND k.number = v.number WHERE {kinds} GROUP BY k.keep, k.reason"
        ):
            if keep:
                kept += number
            else:
                dropped[reason or "no name has it"] = dropped.get(reason, 0) + number
        return kept, dropped

    # --- contents ---

    def current(self) -> Iterator[Content]:
        """What inodes stand for, and what they go back to after power loss; manifests each once."""
        for row in self._rows(
            "SELECT sha256, blob_size FROM main.inode WHERE kind = 1"
            " UNION ALL SELECT sha256, blob_size FROM main.previous WHERE kind = 1"
            " UNION ALL SELECT sha256, size FROM main.unsynced"
        ):
            yield Content(ContentKind.BLOB, Digest(*row), row[1])
        yield from self._manifests(
            "SELECT sha256, blob_size, size FROM main.inode WHERE kind = 2"
            " UNION SELECT sha256, blob_size, size FROM main.previous WHERE kind = 2"
        )

    def superseded(self, *, kept: bool = True) -> Iterator[Content]:
        """Contents of versions, or of those that are dropped; manifests each once."""
        which = "1" if not self._judged else _IS_KEPT if kept else f"NOT {_IS_KEPT}"
        if not kept and not self._judged:
            return
        for row in self._rows(f"SELECT sha256, blob_size FROM main.version AS v WHERE kind = 1 AND {which}"):
            yield Content(ContentKind.BLOB, Digest(*row), row[1])
        yield from self._manifests(
            f"SELECT DISTINCT sha256, blob_size, size FROM main.version AS v WHERE kind = 2 AND {which}"
        )

    def _manifests(self, sql: str) -> Iterator[Content]:
        for sha256, blob_size, size in self._rows(sql):
            yield Content(ContentKind.MANIFEST, Digest(sha256, blob_size), size)

    def sizes_of(self, sha256: bytes) -> list[int]:
        """Sizes of the recorded blobs with that hash; there is one, or none."""
        return [row[0] for row in self._run("SELECT size FROM main.blob WHERE sha256 = ?", (sha256,))]

    def count_blobs(self) -> int:
        """How many blobs are recorded; a scan, some 30 ms for a million."""
        (number,) = self._run("SELECT count(*) FROM blob").fetchone()
        return int(number)

    def is_recorded(self, digest: Digest) -> bool:
        """Whether something stood for the blob once."""
        row = self._run("SELECT 1 FROM main.blob WHERE sha256 = ? AND size = ?", digest).fetchone()
        return row is not None
