"""What the checker asks about names: entries, inodes, directories, attributes, and how they hang together.

Rows that are sound never leave SQLite: each query yields only what is to be judged.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from mountstore.namespace.audit_connection import AuditConnection
from mountstore.namespace.inodes import FIRST_COOKIE, ROOT, TYPE_BITS

NUMBER_MAX: Final = 1 << 62
"""Inode numbers and cookies beyond this were never handed out."""

TYPE = f"(i.mode & {TYPE_BITS})"
IS_DIRECTORY = f"{TYPE} = {stat.S_IFDIR}"
_TYPES = ", ".join(
    str(kind)
    for kind in (
        stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK
    )
)  # fmt: skip

# Every row for which this is not true is looked at one by one.
_SOUND_INODE = f"""
    i.id BETWEEN 1 AND {NUMBER_MAX}
    AND i.mode BETWEEN 0 AND 65535 AND {TYPE} IN ({_TYPES})
    AND i.uid BETWEEN 0 AND 4294967294 AND i.gid BETWEEN 0 AND 4294967294 AND i.rdev >= 0
    AND i.size >= 0 AND i.allocated BETWEEN 0 AND i.size
    AND CASE {TYPE} WHEN {stat.S_IFDIR} THEN i.parent BETWEEN 1 AND {NUMBER_MAX} ELSE i.parent = 0 END
    AND CASE i.kind
        WHEN 0 THEN i.sha256 IS NULL AND i.blob_size IS NULL AND ({TYPE} <> {stat.S_IFREG} OR i.size = 0)
        WHEN 1 THEN {TYPE} = {stat.S_IFREG} AND length(i.sha256) = 32 AND i.blob_size = i.size
        WHEN 2 THEN {TYPE} = {stat.S_IFREG} AND length(i.sha256) = 32 AND i.blob_size > 0 AND i.size > 0
        ELSE 0 END
    AND CASE {TYPE}
        WHEN {stat.S_IFLNK} THEN length(i.target) BETWEEN 1 AND 4095 AND i.size = length(i.target)
        ELSE i.target IS NULL END
    AND i.xattrs = coalesce(x.number, 0)
    AND CASE {TYPE}
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


class AuditedNames(AuditConnection):
    """The catalog, asked about names."""

    def highest_inode(self) -> int:
        """The highest number in use that can have been handed out."""
        return int(self._value("SELECT max(id) FROM inode WHERE id <= ?", (NUMBER_MAX,)) or 0)

    def highest_cookie(self) -> int:
        """The same for places in listings."""
        return int(self._value("SELECT max(cookie) FROM entry WHERE cookie <= ?", (NUMBER_MAX,)) or 0)

    def prepare_names(self) -> None:
        """Count names, subdirectories and attributes anew; before the queries of this section."""
        self._refill(
            "directory",
            "id INTEGER PRIMARY KEY, parent INTEGER, nlink INTEGER",
            f"SELECT i.id, i.parent, i.nlink FROM inode AS i WHERE {IS_DIRECTORY}",
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
            f" WHERE l.inode IS NULL AND NOT {IS_DIRECTORY}"
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
