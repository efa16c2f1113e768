"""The checker's view of the catalog: what does not agree with itself, and the changes that mend it.

An `Audit` has a connection of its own, and everything happens in one transaction: the checks see one state,
the changes follow in the same transaction and are checked by the same queries before `commit`. Until then
the database file is as it was; an audit that is closed, or a process that dies, without `commit` has changed
nothing.

The caller holds the store's lock. One thread. Working sets that grow with the store are temporary tables,
which SQLite keeps on disk when they are large.

Errors, from every method: CorruptError (SQLite cannot read the database), NoSpaceError, and
KeyboardInterrupt, which also ends a long statement.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from mountstore.blobs.digest import Digest
from mountstore.errors import BusyError, CorruptError, NoSpaceError, StoreError
from mountstore.namespace.catalog import _APPLICATION_ID, _SCHEMA, CATALOG_FORMAT, _quoted

ROOT: Final = 1
FIRST_COOKIE: Final = 3
NUMBER_MAX: Final = 1 << 62
"""Inode numbers and cookies beyond this were never handed out."""

LOST_FOUND: Final = b"lost+found"

_BATCH: Final = 20_000
_STEPS: Final = 200_000  # of SQLite's virtual machine, some ms, between looks at Ctrl-C

# The latter when SQLite's own message quotes what the disk holds.
_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)

# Not for what the disk holds: a wrong statement of this module.
_MISTAKES: Final = frozenset({0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_LOCKED})

_TYPE = "(i.mode & 61440)"
_IS_DIRECTORY = f"{_TYPE} = {stat.S_IFDIR}"
_TYPES = ", ".join(
    str(kind)
    for kind in (
        stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK
    )
)  # fmt: skip

# Every row for which this is not true is looked at one by one.
_SOUND_INODE = f"""
    i.id BETWEEN 1 AND {NUMBER_MAX}
    AND i.mode BETWEEN 0 AND 65535 AND {_TYPE} IN ({_TYPES})
    AND i.uid BETWEEN 0 AND 4294967294 AND i.gid BETWEEN 0 AND 4294967294 AND i.rdev >= 0
    AND i.size >= 0 AND i.allocated BETWEEN 0 AND i.size
    AND CASE {_TYPE} WHEN {stat.S_IFDIR} THEN i.parent BETWEEN 1 AND {NUMBER_MAX} ELSE i.parent = 0 END
    AND CASE i.kind
        WHEN 0 THEN i.sha256 IS NULL AND i.blob_size IS NULL AND ({_TYPE} <> {stat.S_IFREG} OR i.size = 0)
        WHEN 1 THEN {_TYPE} = {stat.S_IFREG} AND length(i.sha256) = 32 AND i.blob_size = i.size
        WHEN 2 THEN {_TYPE} = {stat.S_IFREG} AND length(i.sha256) = 32 AND i.blob_size > 0 AND i.size > 0
        ELSE 0 END
    AND CASE {_TYPE}
        WHEN {stat.S_IFLNK} THEN length(i.target) BETWEEN 1 AND 4095 AND i.size = length(i.target)
        ELSE i.target IS NULL END
    AND i.xattrs = coalesce(x.number, 0)
    AND CASE {_TYPE}
        WHEN {stat.S_IFDIR} THEN i.nlink = 2 + coalesce(s.number, 0)
            OR (i.nlink = 0 AND l.number IS NULL AND s.number IS NULL AND i.id <> {ROOT})
        ELSE i.nlink = coalesce(l.number, 0) END
"""

_SOUND_ENTRY = f"""
    length(e.name) BETWEEN 1 AND 255 AND instr(e.name, x'2f') = 0 AND instr(e.name, x'00') = 0
    AND e.name NOT IN (x'2e', x'2e2e')
    AND e.cookie BETWEEN {FIRST_COOKIE} AND {NUMBER_MAX}
    AND d.id IS NOT NULL
    AND EXISTS (SELECT 1 FROM inode WHERE id = e.inode)
"""


class AuditedInode(NamedTuple):
    """A row of `inode` that is not sound, and what is counted elsewhere about it."""

    id: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    allocated: int
    parent: int
    kind: int
    sha256: bytes | None
    blob_size: int | None
    target: bytes | None
    xattrs: int
    names: int
    """Entries that stand for it."""
    subdirectories: int
    attributes: int
    """Rows in `xattr`."""
    has_entries: int


class AuditedEntry(NamedTuple):
    """A row of `entry` that is not sound."""

    parent: int
    name: bytes
    inode: int
    cookie: int
    parent_mode: int | None
    """None if there is no such inode."""
    exists: int
    """Whether the inode does: 0 or 1."""


class AuditedDirectory(NamedTuple):
    """A directory whose names are not exactly one, in the directory that its row says."""

    id: int
    parent: int
    nlink: int
    names: list[tuple[int, bytes]]
    """(directory, name) of each."""
    subdirectories: int


class ContentRow(NamedTuple):
    """What an inode says of its content."""

    inode: int
    mode: int
    kind: int
    sha256: bytes | None
    blob_size: int | None
    size: int


class DraftFacts(NamedTuple):
    """A row of `draft`, and the mode of its inode (None if there is none)."""

    inode: int
    staging: str
    size: int
    base_limit: int
    dirty: bytes
    mode: int | None


class Audit:
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
        self._interrupted: BaseException | None = None
        mode = "rw" if writable else "ro"
        if not writable and not _has_wal(path):
            mode += "&immutable=1"
        try:
            self._db = sqlite3.connect(f"file:{_quoted(path)}?mode={mode}", uri=True, isolation_level=None)
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
            if application != _APPLICATION_ID:
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
        """Make all changes, and make them survive power loss; a new transaction begins."""
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
            model.executescript(_SCHEMA)
            wanted = dict(model.execute(query))
        finally:
            model.close()
        found = dict(self._rows(query))
        return [name for name, sql in wanted.items() if found.get(name) != sql]

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

    def highest_inode(self) -> int:
        """The highest number in use that can have been handed out."""
        return int(self._value("SELECT max(id) FROM inode WHERE id <= ?", (NUMBER_MAX,)) or 0)

    def highest_cookie(self) -> int:
        """The same for places in listings."""
        return int(self._value("SELECT max(cookie) FROM entry WHERE cookie <= ?", (NUMBER_MAX,)) or 0)

    # --- names ---

    def prepare_names(self) -> None:
        """Count names, subdirectories and attributes anew; before the queries of this section."""
        self._refill(
            "directory",
            "id INTEGER PRIMARY KEY, parent INTEGER, nlink INTEGER",
            f"SELECT i.id, i.parent, i.nlink FROM inode AS i WHERE {_IS_DIRECTORY}",
        )
        self._refill(
            "directory_name",
            "inode INTEGER, parent INTEGER, name BLOB",
            "SELECT e.inode, e.parent, e.name FROM main.entry AS e"
            " JOIN temp.directory AS d ON d.id = e.inode",
        )
        self._run("CREATE INDEX temp.directory_of ON directory_name (inode)")
        self._run("CREATE INDEX temp.directory_in ON directory_name (parent)")
        number = "inode INTEGER PRIMARY KEY, number INTEGER"
        self._refill("link", number, "SELECT inode, count(*) FROM main.entry GROUP BY inode ORDER BY inode")
        self._refill("attribute", number, "SELECT inode, count(*) FROM main.xattr GROUP BY inode")
        self._refill(
            "subdirectory", number, "SELECT parent, count(*) FROM temp.directory_name GROUP BY parent"
        )

    def root_mode(self) -> int | None:
        mode: int | None = self._value("SELECT mode FROM inode WHERE id = ?", (ROOT,))
        return mode

    def unsound_inodes(self) -> Iterator[AuditedInode]:
        for row in self._rows(
            "SELECT i.id, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.size, i.allocated, i.parent, i.kind,"
            " i.sha256, i.blob_size, i.target, i.xattrs, coalesce(l.number, 0), coalesce(s.number, 0),"
            " coalesce(x.number, 0), EXISTS (SELECT 1 FROM main.entry WHERE parent = i.id)"
            " FROM main.inode AS i LEFT JOIN temp.link AS l ON l.inode = i.id"
            " LEFT JOIN temp.subdirectory AS s ON s.inode = i.id"
            " LEFT JOIN temp.attribute AS x ON x.inode = i.id"
            f" WHERE ({_SOUND_INODE}) IS NOT TRUE"
        ):
            yield AuditedInode._make(row)

    def unsound_entries(self) -> Iterator[AuditedEntry]:
        for row in self._rows(
            "SELECT e.parent, e.name, e.inode, e.cookie,"
            " (SELECT mode FROM main.inode WHERE id = e.parent),"
            " EXISTS (SELECT 1 FROM main.inode WHERE id = e.inode)"
            " FROM main.entry AS e LEFT JOIN temp.directory AS d ON d.id = e.parent"
            f" WHERE ({_SOUND_ENTRY}) IS NOT TRUE"
        ):
            yield AuditedEntry._make(row)

    def misnamed_directories(self) -> Iterator[AuditedDirectory]:
        """Directories without exactly one name in the right place; the root has none."""
        suspects = list(
            self._rows(
                "SELECT d.id, d.parent, d.nlink, coalesce(s.number, 0) FROM temp.directory AS d"
                " LEFT JOIN temp.directory_name AS n ON n.inode = d.id"
                " LEFT JOIN temp.subdirectory AS s ON s.inode = d.id"
                " GROUP BY d.id"
                f" HAVING CASE d.id WHEN {ROOT} THEN count(n.inode) > 0 OR d.parent <> {ROOT}"
                "   ELSE count(n.inode) <> 1 OR n.parent <> d.parent END"
            )
        )
        for number, parent, nlink, subdirectories in suspects:
            names = list(
                self._rows("SELECT parent, name FROM temp.directory_name WHERE inode = ?", (number,))
            )
            yield AuditedDirectory(number, parent, nlink, names, subdirectories)

    def directories_in_cycles(self) -> list[int]:
        """One directory of each cycle: below itself, and so not below the root."""
        self._refill(
            "reached",
            "id INTEGER PRIMARY KEY",
            "WITH RECURSIVE below (id) AS ("
            f" SELECT id FROM temp.directory WHERE id = {ROOT}"
            " OR id NOT IN (SELECT inode FROM temp.directory_name)"
            " UNION SELECT n.inode FROM below JOIN temp.directory_name AS n ON n.parent = below.id)"
            " SELECT id FROM below",
        )
        # Those below a directory that is missing, or is a file, are found by their entries.
        above = dict(
            self._rows(
                "SELECT n.inode, n.parent FROM temp.directory_name AS n"
                " JOIN temp.directory AS d ON d.id = n.parent"
                " WHERE n.inode NOT IN (SELECT id FROM temp.reached) ORDER BY n.inode DESC"
            )
        )
        cycles: list[int] = []
        seen: set[int] = set()
        for start in sorted(above):
            trail: set[int] = set()
            number = start
            while number in above and number not in seen:
                seen.add(number)
                trail.add(number)
                number = above[number]
            if number in trail:
                cycles.append(number)
        return cycles

    def nameless_files(self) -> Iterator[tuple[int, int]]:
        """Inode and link count of everything but directories that has no name."""
        for row in self._rows(
            "SELECT i.id, i.nlink FROM main.inode AS i LEFT JOIN temp.link AS l ON l.inode = i.id"
            f" WHERE l.inode IS NULL AND NOT {_IS_DIRECTORY}"
        ):
            yield row[0], row[1]

    def stray_attributes(self) -> Iterator[tuple[int, bytes]]:
        """Inode and name of extended attributes of nothing, or that cannot be."""
        for row in self._rows(
            "SELECT x.inode, x.name FROM main.xattr AS x WHERE x.inode NOT IN (SELECT id FROM main.inode)"
            " OR (length(x.name) BETWEEN 1 AND 255 AND length(x.value) <= 65536) IS NOT TRUE"
        ):
            yield row[0], row[1]

    def path_of(self, directory: int, name: bytes = b"") -> bytes:
        """A path as far as it can be told; `prepare_names` was called."""
        parts = [name] if name else []
        seen = set()
        while directory != ROOT and directory not in seen:
            seen.add(directory)
            row = next(
                self._rows("SELECT parent, name FROM temp.directory_name WHERE inode = ?", (directory,)), None
            )
            parts.append(b"#%d" % directory if row is None else row[1])
            if row is None:
                return b"/".join(reversed(parts))
            directory = row[0]
        return b"/" + b"/".join(reversed(parts))

    def names_of(self, inodes: Iterable[int]) -> Iterator[tuple[int, int, bytes]]:
        """(inode, directory, name) of every entry of these inodes; reads all entries once."""
        self._run("DROP TABLE IF EXISTS temp.wanted")
        self._run("CREATE TEMP TABLE wanted (inode INTEGER PRIMARY KEY)")
        self._run_many("INSERT OR IGNORE INTO temp.wanted VALUES (?)", ((number,) for number in inodes))
        yield from self._rows(
            "SELECT e.inode, e.parent, e.name FROM main.entry AS e JOIN temp.wanted AS w ON w.inode = e.inode"
        )

    # --- the tree ---

    def begin_survey(self) -> None:
        """Forget what is known of the tree."""
        for table in ("file", "reference", "manifest", "unusable"):
            self._run(f"DROP TABLE IF EXISTS temp.{table}")
        key = "sha256 BLOB, size INTEGER"
        self._run(
            f"CREATE TEMP TABLE file ({key}, level INTEGER, whole INTEGER, checksum BLOB,"
            " PRIMARY KEY (sha256, size, level)) WITHOUT ROWID"
        )
        self._run(f"CREATE TEMP TABLE reference ({key}, PRIMARY KEY (sha256, size)) WITHOUT ROWID")
        # file_size is NULL for a blob that is no manifest; `broken` says what is wrong with its pieces.
        self._run(
            f"CREATE TEMP TABLE manifest ({key}, file_size INTEGER, broken TEXT,"
            " PRIMARY KEY (sha256, size)) WITHOUT ROWID"
        )

    def add_files(self, rows: Iterable[tuple[bytes, int, int, bool]]) -> None:
        """Blobs in the tree: (sha256, size in the name, level, whether the file has that size)."""
        self._run_many("INSERT OR REPLACE INTO temp.file VALUES (?, ?, ?, ?, NULL)", rows)

    def mark_damaged(self, digest: Digest, level: int) -> None:
        self._run(
            "UPDATE temp.file SET whole = 0 WHERE sha256 = ? AND size = ? AND level = ?", (*digest, level)
        )

    def note_checksums(self, rows: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Checksums of blobs whose digest was verified: (checksum, sha256, size)."""
        self._run_many("UPDATE temp.file SET checksum = ? WHERE sha256 = ? AND size = ?", rows)

    def levels_of(self, digest: Digest) -> list[int]:
        """Where in the tree whole files of this name are."""
        return [
            row[0]
            for row in self._rows(
                "SELECT level FROM temp.file WHERE sha256 = ? AND size = ? AND whole ORDER BY level", digest
            )
        ]

    def files(self) -> Iterator[tuple[Digest, int, bytes | None]]:
        """Whole files in the order of the tree: digest, level, and the checksum in the catalog.

        What is found meanwhile may be noted only after the iteration, or between batches.
        """
        last: tuple[Any, ...] = (b"", -1, -1)
        while True:
            batch = list(
                self._rows(
                    "SELECT f.sha256, f.size, f.level, b.checksum FROM temp.file AS f"
                    " LEFT JOIN main.blob AS b ON b.sha256 = f.sha256 AND b.size = f.size"
                    " WHERE (f.sha256, f.size, f.level) > (?, ?, ?) AND f.whole"
                    f" ORDER BY f.sha256, f.size, f.level LIMIT {_BATCH}",
                    last,
                )
            )
            if not batch:
                return
            for sha256, size, level, checksum in batch:
                yield Digest(sha256, size), level, checksum
            last = batch[-1][:3]

    def tree_totals(self) -> tuple[int, int]:
        """Number and bytes of the whole files in the tree."""
        row = next(self._rows("SELECT count(*), coalesce(sum(size), 0) FROM temp.file WHERE whole"))
        return row[0], row[1]

    def garbage_totals(self) -> tuple[int, int]:
        """The same of those that no content needs."""
        row = next(
            self._rows(
                "SELECT count(*), coalesce(sum(f.size), 0) FROM temp.file AS f WHERE f.whole AND NOT EXISTS"
                " (SELECT 1 FROM temp.reference AS r WHERE r.sha256 = f.sha256 AND r.size = f.size)"
            )
        )
        return row[0], row[1]

    # --- contents ---

    def checksum_of(self, digest: Digest) -> bytes | None:
        checksum: bytes | None = self._value(
            "SELECT checksum FROM main.blob WHERE sha256 = ? AND size = ?", digest
        )
        return checksum

    def unread_manifests(self) -> list[Digest]:
        """Manifests that contents name and that were not looked at yet, some thousands at a time."""
        contents = " UNION ".join(
            f"SELECT sha256, blob_size FROM main.{table} AS t WHERE kind = 2 AND length(sha256) = 32"
            " AND blob_size > 0 AND NOT EXISTS (SELECT 1 FROM temp.manifest AS m"
            " WHERE m.sha256 = t.sha256 AND m.size = t.blob_size)"
            for table in self._contents
        )
        return [Digest(*row) for row in self._rows(f"{contents} LIMIT {_BATCH}")]

    def add_manifest(self, digest: Digest, file_size: int | None, broken: str | None) -> None:
        self._run("INSERT OR REPLACE INTO temp.manifest VALUES (?, ?, ?, ?)", (*digest, file_size, broken))

    def add_references(self, digests: Iterable[Digest]) -> None:
        self._run_many("INSERT OR IGNORE INTO temp.reference VALUES (?, ?)", digests)

    def refer_contents(self) -> None:
        """Note what contents name as needed."""
        for table in self._contents:
            self._run(
                f"INSERT OR IGNORE INTO temp.reference SELECT DISTINCT sha256, blob_size FROM main.{table}"
                " WHERE kind IN (1, 2) AND sha256 IS NOT NULL AND blob_size IS NOT NULL"
            )

    def lost_contents(self) -> Iterator[tuple[ContentRow, int | None, str | None]]:
        """Contents that cannot be read as their inode says: with the manifest's file size, and its flaw."""
        for row in self._rows(
            "SELECT i.id, i.mode, i.kind, i.sha256, i.blob_size, i.size, m.file_size, m.broken"
            " FROM main.inode AS i LEFT JOIN temp.manifest AS m"
            "   ON i.kind = 2 AND m.sha256 = i.sha256 AND m.size = i.blob_size"
            " WHERE i.kind IN (1, 2) AND length(i.sha256) = 32 AND i.blob_size >= 0"
            " AND (NOT EXISTS (SELECT 1 FROM temp.file AS f"
            "   WHERE f.sha256 = i.sha256 AND f.size = i.blob_size AND f.whole)"
            "   OR (i.kind = 2 AND (m.broken IS NOT NULL OR m.file_size IS NOT i.size)))"
        ):
            yield ContentRow(*row[:6]), row[6], row[7]

    def lost_versions(self) -> Iterator[tuple[Digest, int, str | None]]:
        """Old versions that cannot be read: digest, how many have it, and the flaw of a manifest."""
        if "version" not in self._contents:
            return
        for row in self._rows(
            "SELECT v.sha256, v.blob_size, count(*), max(m.broken) FROM main.version AS v"
            " LEFT JOIN temp.manifest AS m"
            "   ON v.kind = 2 AND m.sha256 = v.sha256 AND m.size = v.blob_size"
            " WHERE v.kind IN (1, 2) AND length(v.sha256) = 32 AND v.blob_size >= 0"
            " AND (m.broken IS NOT NULL OR NOT EXISTS (SELECT 1 FROM temp.file AS f"
            "   WHERE f.sha256 = v.sha256 AND f.size = v.blob_size AND f.whole))"
            " GROUP BY v.sha256, v.blob_size"
        ):
            yield Digest(row[0], row[1]), row[2], row[3]

    def invalid_blob_rows(self) -> Iterator[tuple[bytes, int]]:
        yield from self._rows(
            "SELECT sha256, size FROM main.blob"
            " WHERE (length(sha256) = 32 AND size >= 0 AND length(checksum) = 16) IS NOT TRUE"
        )

    def invalid_unsynced_rows(self) -> Iterator[tuple[bytes, int]]:
        yield from self._rows(
            "SELECT sha256, size FROM main.unsynced WHERE (length(sha256) = 32 AND size >= 0) IS NOT TRUE"
        )

    def unsynced(self) -> list[Digest]:
        return [
            Digest(*row)
            for row in self._rows("SELECT sha256, size FROM unsynced WHERE length(sha256) = 32 AND size >= 0")
        ]

    def stale_blob_rows(self) -> Iterator[Digest]:
        """Rows of blobs that the tree does not have and nothing needs."""
        for row in self._rows(
            "SELECT b.sha256, b.size FROM main.blob AS b WHERE length(b.sha256) = 32 AND b.size >= 0"
            " AND NOT EXISTS (SELECT 1 FROM temp.file AS f WHERE f.sha256 = b.sha256 AND f.size = b.size)"
            " AND NOT EXISTS"
            "   (SELECT 1 FROM temp.reference AS r WHERE r.sha256 = b.sha256 AND r.size = b.size)"
        ):
            yield Digest(*row)

    def unrecorded_blobs(self) -> Iterator[tuple[Digest, bytes | None]]:
        """Whole files without a row, with their checksum if they were read."""
        for row in self._rows(
            "SELECT f.sha256, f.size, max(f.checksum) FROM temp.file AS f WHERE f.whole AND NOT EXISTS"
            " (SELECT 1 FROM main.blob AS b WHERE b.sha256 = f.sha256 AND b.size = f.size)"
            " GROUP BY f.sha256, f.size"
        ):
            yield Digest(row[0], row[1]), row[2]

    def unnamed_contents(self) -> list[ContentRow]:
        """Regular files whose kind does not go with the digest they have."""
        return [
            ContentRow(*row)
            for row in self._rows(
                "SELECT id, mode, kind, sha256, blob_size, size FROM main.inode AS i"
                f" WHERE {_TYPE} = {stat.S_IFREG} AND (CASE kind WHEN 0 THEN sha256 IS NULL"
                " AND blob_size IS NULL AND size = 0"
                " WHEN 1 THEN length(sha256) = 32 AND blob_size = size"
                " WHEN 2 THEN length(sha256) = 32 AND blob_size > 0 AND size > 0 ELSE 0 END) IS NOT TRUE"
            )
        ]

    def drafts(self) -> list[DraftFacts]:
        return [
            DraftFacts(*row)
            for row in self._rows(
                "SELECT d.inode, d.staging, d.size, d.base_limit, d.dirty, i.mode FROM main.draft AS d"
                " LEFT JOIN main.inode AS i ON i.id = d.inode"
            )
        ]

    def staging_names(self) -> set[str]:
        """Every file in staging that some row speaks of."""
        return {
            row[0]
            for table in self._staging
            for row in self._rows(f"SELECT staging FROM main.{table} WHERE staging IS NOT NULL")
        }

    # --- changes: names ---

    def set_field(self, inode: int, field: str, value: object) -> None:
        """Set one column of an inode's row."""
        assert field in (
            "mode", "uid", "gid", "nlink", "rdev", "size", "allocated", "parent", "xattrs", "target"
        ), field  # fmt: skip
        self._run(f"UPDATE inode SET {field} = ? WHERE id = ?", (value, inode))

    def set_content(self, inode: int, kind: int, digest: Digest | None, size: int) -> None:
        sha256, blob_size = digest or (None, None)
        self._run(
            "UPDATE inode SET kind = ?, sha256 = ?, blob_size = ?, size = ?, allocated = min(allocated, ?)"
            " WHERE id = ?",
            (kind, sha256, blob_size, size, size, inode),
        )

    def renumber(self, inode: int) -> int:
        """Give an inode a number that was never used, everywhere."""
        number = self._next("next_inode", self.highest_inode())
        self._run("UPDATE inode SET id = ? WHERE id = ?", (number, inode))
        self._run("UPDATE inode SET parent = ? WHERE parent = ?", (number, inode))
        self._run("UPDATE entry SET inode = ? WHERE inode = ?", (number, inode))
        self._run("UPDATE entry SET parent = ? WHERE parent = ?", (number, inode))
        self._run("UPDATE OR IGNORE xattr SET inode = ? WHERE inode = ?", (number, inode))
        for table in ("draft", *self._of_inodes):
            self._run(f"UPDATE OR IGNORE main.{table} SET inode = ? WHERE inode = ?", (number, inode))
        return number

    def _next(self, key: str, highest: int) -> int:
        recorded = self.meta(key)
        number = max(highest + 1, recorded if isinstance(recorded, int) and recorded <= NUMBER_MAX else 0)
        self.set_meta(key, number + 1)
        return number

    def next_cookie(self) -> int:
        return max(FIRST_COOKIE, self._next("next_cookie", max(self.highest_cookie(), FIRST_COOKIE - 1)))

    def remove_inode(self, inode: int) -> None:
        """With its attributes, draft record and the like."""
        for table in ("xattr", "draft", *self._of_inodes):
            self._run(f"DELETE FROM main.{table} WHERE inode = ?", (inode,))
        self._run("DELETE FROM main.inode WHERE id = ?", (inode,))

    def make_directory(self, inode: int, parent: int, mode: int = 0o700) -> None:
        """The row of an empty directory, owned as the root is."""
        owner = next(self._rows("SELECT uid, gid FROM inode WHERE id = ?", (ROOT,)), None)
        uid, gid = owner or (os.geteuid(), os.getegid())
        now = time.time_ns()
        self._run(
            "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, 2, 0, 4096, 0, ?, ?, ?, ?, ?, 0, NULL, NULL,"
            " NULL, 0)",
            (inode, stat.S_IFDIR | mode, uid, gid, now, now, now, now, parent),
        )

    def exists(self, inode: int) -> bool:
        return self._value("SELECT 1 FROM inode WHERE id = ?", (inode,)) is not None

    def is_bare(self, inode: int) -> bool:
        """Whether its row holds nothing that a directory's does not."""
        sql = "SELECT 1 FROM inode WHERE id = ? AND kind = 0 AND sha256 IS NULL AND target IS NULL"
        return self._value(sql, (inode,)) is not None

    def has_entries(self, directory: int) -> bool:
        return self._value("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (directory,)) is not None

    def move_entries(self, directory: int, new_directory: int) -> None:
        """All entries of one directory into another, which is empty."""
        self._run("UPDATE entry SET parent = ? WHERE parent = ?", (new_directory, directory))
        self._run(
            f"UPDATE inode AS i SET parent = ? WHERE parent = ? AND {_IS_DIRECTORY}",
            (new_directory, directory),
        )

    def remove_names(self, inode: int) -> None:
        """Every entry that stands for it; reads all entries."""
        self._run("DELETE FROM entry WHERE inode = ?", (inode,))

    def remove_entry(self, parent: int, name: bytes) -> None:
        self._run("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))

    def rename_entry(self, parent: int, name: bytes, wanted: bytes) -> bytes:
        """Give an entry another name, `wanted` or like it; returns the one it got."""
        free = self._free_name(parent, wanted)
        self._run("UPDATE entry SET name = ? WHERE parent = ? AND name = ?", (free, parent, name))
        return free

    def replace_cookie(self, parent: int, name: bytes) -> None:
        """Put an entry at the end of its directory's listing."""
        self._run(
            "UPDATE entry SET cookie = ? WHERE parent = ? AND name = ?", (self.next_cookie(), parent, name)
        )

    def attach(self, inode: int) -> bytes:
        """Name an inode `#<number>` in `/lost+found`, which is made if needed; returns the name."""
        directory = self._lost_found()
        name = self._free_name(directory, b"#%d" % inode)
        self._add_entry(directory, name, inode)
        self._run(
            f"UPDATE inode AS i SET parent = ?, nlink = max(nlink, 2) WHERE id = ? AND {_IS_DIRECTORY}",
            (directory, inode),
        )
        return name

    def _lost_found(self) -> int:
        for suffix in (b"", *(b".%d" % number for number in range(1, 1000))):
            name = LOST_FOUND + suffix
            row = next(
                self._rows(
                    "SELECT i.id, i.mode, i.parent FROM entry AS e LEFT JOIN inode AS i ON i.id = e.inode"
                    " WHERE e.parent = ? AND e.name = ?",
                    (ROOT, name),
                ),
                None,
            )
            if row is None:
                number = self._next("next_inode", self.highest_inode())
                self.make_directory(number, ROOT)
                self._add_entry(ROOT, name, number)
                return number
            if row[1] is not None and row[1] & 0o170000 == stat.S_IFDIR and row[2] == ROOT and row[0] != ROOT:
                return int(row[0])
        raise CorruptError(f"{self.path}: every name for lost+found is taken")

    def _add_entry(self, parent: int, name: bytes, inode: int) -> None:
        self._run("INSERT INTO entry VALUES (?, ?, ?, ?)", (parent, name, inode, self.next_cookie()))

    def _free_name(self, parent: int, wanted: bytes) -> bytes:
        name, number = wanted, 0
        while self._value("SELECT 1 FROM entry WHERE parent = ? AND name = ?", (parent, name)):
            number += 1
            name = b"%b.%d" % (wanted, number)
        return name

    def remove_attribute(self, inode: int, name: bytes) -> None:
        self._run("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name))

    # --- changes: blobs ---

    def remove_blob_row(self, sha256: bytes, size: int) -> None:
        """Forget a blob: written again, it is recorded anew."""
        self._run("DELETE FROM main.blob WHERE sha256 = ? AND size = ?", (sha256, size))

    def remove_unsynced_row(self, sha256: bytes, size: int) -> None:
        self._run("DELETE FROM main.unsynced WHERE sha256 = ? AND size = ?", (sha256, size))

    def record_blob(self, digest: Digest, checksum: bytes) -> None:
        self._run("INSERT OR REPLACE INTO main.blob VALUES (?, ?, ?)", (*digest, checksum))

    def remove_draft(self, inode: int) -> None:
        self._run("DELETE FROM draft WHERE inode = ?", (inode,))


def _has_wal(path: str) -> bool:
    try:
        return os.stat(path + "-wal").st_size > 0
    except FileNotFoundError:
        return False
