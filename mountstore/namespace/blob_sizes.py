"""Which blobs have a SHA-256: for people who name a blob by its hash alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError
from mountstore.namespace.catalog import connect


def find_digests(catalog_path: str, hashes: Iterable[bytes]) -> dict[bytes, Digest]:
    """The blobs, recorded as of the last commit, that have one of these SHA-256; those not found are left out.

    Blocks, on a connection of its own; any thread.

    Raises: CorruptError if the catalog cannot be read.
    """
    found = {}
    try:
        db = connect(catalog_path, read_only=True)
        try:
            for sha256 in hashes:
                row = db.execute("SELECT size FROM blob WHERE sha256 = ?", (sha256,)).fetchone()
                if row is not None:
                    found[sha256] = Digest(sha256, row[0])
        finally:
            db.close()
    except sqlite3.Error as exc:
        raise CorruptError(f"{catalog_path}: {exc}") from exc
    return found
