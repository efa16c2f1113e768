"""Paths: the names that they consist of, and which of them lead to an inode."""

from __future__ import annotations

from mountstore.namespace.connection import connect
from mountstore.namespace.inodes import ROOT

PATHS_MAX = 8
"""An inode with more names is shown with so many."""


def parts_of(path: bytes) -> list[bytes]:
    """The names that a path consists of."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def find_paths(catalog_path: str, inode: int) -> list[bytes]:
    """Paths of an inode from the mount's root, as of the last commit; none if it has no name.

    Entries are indexed by name, so this reads all of them: for messages only. Blocks, a third of a second for a
    million entries, on a connection of its own: for a worker thread.

    Raises:
      sqlite3.Error: The catalog cannot be read.
    """
    db = connect(catalog_path, read_only=True)
    try:
        db.execute("BEGIN")
        found = db.execute(
            "SELECT parent, name FROM entry WHERE inode = ? LIMIT ?", (inode, PATHS_MAX)
        ).fetchall()
        paths = []
        for parent, name in found:
            path = b"/" + name
            while parent != ROOT:
                row = db.execute(
                    "SELECT e.parent, e.name FROM inode AS i JOIN entry AS e ON e.parent = i.parent"
                    " AND e.inode = i.id WHERE i.id = ?",
                    (parent,),
                ).fetchone()
                if row is None:
                    break
                parent, path = row[0], b"/" + row[1] + path
            paths.append(path)
        return paths
    finally:
        db.close()
