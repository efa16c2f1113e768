"""Which blobs the files below a path consist of, and which of them other files use as well.

A `Usage` sees the catalog as of the last commit, on a connection of its own; what it collects lies in
temporary tables, which SQLite keeps on disk when they are large. Manifests are for the caller to read: their
contents come out of `manifests`, their pieces go back in. One thread, which may block.

Errors, from every method: CorruptError (SQLite cannot read the catalog).
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.errors import AbsentError, CorruptError
from mountstore.namespace.connection import connect, sum_of
from mountstore.namespace.inodes import ROOT, TYPE_BITS

_TABLES: Final = """
CREATE TABLE temp.inside (inode INTEGER PRIMARY KEY);
CREATE TABLE temp.used (
    sha256 BLOB NOT NULL, size INTEGER NOT NULL, piece INTEGER NOT NULL, PRIMARY KEY (sha256, size)
) WITHOUT ROWID;
CREATE TABLE temp.elsewhere (
    sha256 BLOB NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (sha256, size)
) WITHOUT ROWID;
"""

_BELOW: Final = """
INSERT INTO temp.inside
WITH RECURSIVE below (inode) AS (
    SELECT ? UNION SELECT e.inode FROM below AS b JOIN entry AS e ON e.parent = b.inode
) SELECT inode FROM below
"""

# The whole contents of the files outside, as far as they are used inside: a scan, with a look-up for each row.
_CONTENTS_ELSEWHERE: Final = """
INSERT OR IGNORE INTO temp.elsewhere
SELECT u.sha256, u.size FROM inode AS i CROSS JOIN temp.used AS u ON u.sha256 = i.sha256 AND u.size = i.blob_size
WHERE i.kind != 0 AND NOT EXISTS (SELECT 1 FROM temp.inside AS t WHERE t.inode = i.id)
"""

_MANIFESTS: Final = f"""
SELECT DISTINCT i.sha256, i.blob_size, i.size, b.checksum
FROM inode AS i LEFT JOIN blob AS b ON b.sha256 = i.sha256 AND b.size = i.blob_size
WHERE i.kind = {ContentKind.MANIFEST.value} AND {{which}} (SELECT 1 FROM temp.inside AS t WHERE t.inode = i.id)
"""


class Totals(NamedTuple):
    """What `Usage` has collected; all in bytes, or counts."""

    files: int
    logical_bytes: int
    stored_bytes: int
    shared_bytes: int
    pieces: int
    shared_pieces: int


class Usage:
    """The blobs below one path. A context manager.

    Args:
      path: From the root of the mount, "/"-separated.

    Raises:
      AbsentError: There is nothing at `path`.
    """

    def __init__(self, catalog_path: str, path: bytes) -> None:
        self._path = catalog_path
        self._db = connect(catalog_path, read_only=True)
        try:
            self._db.execute("PRAGMA temp_store = FILE")
            self._db.executescript(_TABLES)
            # One state of the catalog for everything that follows.
            self._db.execute("BEGIN")
            self._db.execute(_BELOW, (self._resolve(path),))
            self._db.execute(
                "INSERT OR IGNORE INTO temp.used SELECT i.sha256, i.blob_size, i.kind = ?"
                " FROM temp.inside AS t CROSS JOIN inode AS i ON i.id = t.inode WHERE i.kind != 0",
                (ContentKind.BLOB.value,),
            )
        except sqlite3.Error as exc:
            self._db.close()
            raise CorruptError(f"{catalog_path}: {exc}") from exc
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if isinstance(exc, sqlite3.Error):
            raise CorruptError(f"{self._path}: {exc}") from exc

    def _resolve(self, path: bytes) -> int:
        inode: int = ROOT
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            row = self._db.execute(
                "SELECT inode FROM entry WHERE parent = ? AND name = ?", (inode, name)
            ).fetchone()
            if row is None:
                raise AbsentError(os.fsdecode(path))
            (inode,) = row
        return inode

    def manifests(self, *, inside: bool) -> Iterator[tuple[Content, bytes | None]]:
        """The contents, each once, of the large files below the path or elsewhere, with their checksums."""
        which = "EXISTS" if inside else "NOT EXISTS"
        for sha256, blob_size, size, checksum in self._db.execute(_MANIFESTS.format(which=which)):
            yield Content(ContentKind.MANIFEST, Digest(sha256, blob_size), size), checksum

    def add_used(self, blobs: Iterable[tuple[Digest, bool]]) -> None:
        """Blobs that a file below the path needs, and whether each holds data of files (or a manifest)."""
        self._db.executemany(
            "INSERT INTO temp.used VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET piece = 1 WHERE excluded.piece AND NOT piece",
            ((sha256, size, piece) for (sha256, size), piece in blobs),
        )

    def find_elsewhere(self) -> None:
        """Note which of the blobs used are whole contents of other files; when all used are known."""
        self._db.execute(_CONTENTS_ELSEWHERE)

    def add_elsewhere(self, blobs: Iterable[Digest]) -> None:
        """Blobs that a file elsewhere needs; those not used below the path do not matter."""
        self._db.executemany(
            "INSERT OR IGNORE INTO temp.elsewhere"
            " SELECT sha256, size FROM temp.used WHERE sha256 = ? AND size = ?",
            blobs,
        )

    def everything_is_inside(self) -> bool:
        """Whether no file with a content lies elsewhere."""
        (elsewhere,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM inode AS i WHERE i.kind != 0"
            " AND NOT EXISTS (SELECT 1 FROM temp.inside AS t WHERE t.inode = i.id))"
        ).fetchone()
        return not elsewhere

    def totals(self) -> Totals:
        """The sums over everything added."""
        files, logical_bytes = self._db.execute(
            f"SELECT count(*), {sum_of('i.size')}"
            " FROM temp.inside AS t CROSS JOIN inode AS i ON i.id = t.inode"
            f" WHERE i.mode & {TYPE_BITS} = {stat.S_IFREG}"
        ).fetchone()
        stored_bytes, pieces = self._db.execute(
            "SELECT coalesce(sum(size), 0), coalesce(sum(piece), 0) FROM temp.used"
        ).fetchone()
        shared_bytes, shared_pieces = self._db.execute(
            "SELECT coalesce(sum(u.size), 0), coalesce(sum(u.piece), 0)"
            " FROM temp.elsewhere AS e CROSS JOIN temp.used AS u ON u.sha256 = e.sha256 AND u.size = e.size"
        ).fetchone()
        return Totals(files, logical_bytes, stored_bytes, shared_bytes, pieces, shared_pieces)
