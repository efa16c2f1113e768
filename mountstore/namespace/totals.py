"""Sums over the whole catalog, for reports: one pass over its tables, no blob is touched."""

from __future__ import annotations

import sqlite3
import stat
from typing import Final, NamedTuple

from mountstore.namespace.connection import connect, sum_of, translated
from mountstore.namespace.history import RowKind
from mountstore.namespace.inodes import TYPE_BITS

_CONTENTS: Final = ", ".join(str(int(kind)) for kind in (RowKind.BLOB, RowKind.MANIFEST, RowKind.PREFIX))


class CatalogTotals(NamedTuple):
    """Everything that the catalog knows of, in numbers."""

    files: int
    """Regular files, each once however many names it has."""
    directories: int
    others: int
    """Symbolic links, fifos, sockets, devices."""
    logical_bytes: int
    """The sum of the sizes of all files."""
    data_bytes: int
    """Of these, what is not in holes."""
    versions: int
    """Old contents; those that several names have after a rename count once."""
    version_bytes: int
    """The sum of their sizes."""
    blobs: int
    """Recorded in the tree: pieces, whole contents, manifests, trees of snapshots; also what garbage collection
    has not yet taken."""
    blob_bytes: int


def read_totals(catalog_path: str) -> CatalogTotals:
    """Sum up the catalog as of the last commit.

    Blocks, about a second for a million files, on a connection of its own: for a worker thread.

    Raises:
      CorruptError: SQLite cannot read the catalog.
    """
    try:
        db = connect(catalog_path, read_only=True)
    except sqlite3.Error as exc:
        raise translated(catalog_path, exc) from exc
    try:
        # One state of the catalog for all three.
        db.execute("BEGIN")
        files = directories = others = logical_bytes = data_bytes = 0
        for kind, number, size, allocated in db.execute(
            f"SELECT mode & {TYPE_BITS}, count(*), {sum_of('size')}, {sum_of('allocated')} FROM inode"
            " WHERE nlink > 0 GROUP BY 1"
        ):
            if kind == stat.S_IFREG:
                files, logical_bytes, data_bytes = number, size, allocated
            elif kind == stat.S_IFDIR:
                directories = number
            else:
                others += number
        versions, version_bytes = db.execute(
            f"SELECT count(*), {sum_of('size')} FROM version WHERE kind IN ({_CONTENTS})"
        ).fetchone()
        blobs, blob_bytes = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM blob").fetchone()
    except sqlite3.Error as exc:
        raise translated(catalog_path, exc) from exc
    finally:
        db.close()
    return CatalogTotals(
        files=files,
        directories=directories,
        others=others,
        logical_bytes=logical_bytes,
        data_bytes=data_bytes,
        versions=versions,
        version_bytes=version_bytes,
        blobs=blobs,
        blob_bytes=blob_bytes,
    )
