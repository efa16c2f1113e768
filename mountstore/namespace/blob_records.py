"""What is recorded of blobs, for workers: on connections of their own, as of the last commit.

Errors, from everything here: CorruptError (SQLite cannot read the catalog).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError
from mountstore.namespace.connection import connect

__all__ = ["BlobRecords", "find_digests"]


class BlobRecords:
    """An open connection; one thread at a time."""

    def __init__(self, catalog_path: str) -> None:
        self._path = catalog_path
        try:
            self._db = connect(catalog_path, read_only=True)
        except sqlite3.Error as exc:
            raise CorruptError(f"{catalog_path}: {exc}") from exc

    def close(self) -> None:
        self._db.close()

    def _one(self, sql: str, parameters: tuple[object, ...] = ()) -> tuple[object, ...] | None:
        try:
            row: tuple[object, ...] | None = self._db.execute(sql, parameters).fetchone()
        except sqlite3.Error as exc:
            raise CorruptError(f"{self._path}: {exc}") from exc
        return row

    def find(self, sha256: bytes) -> Digest | None:
        """The blob that has a SHA-256."""
        row = self._one("SELECT size FROM blob WHERE sha256 = ?", (sha256,))
        if row is None or not isinstance(row[0], int):
            return None
        return Digest(sha256, row[0])

    def checksum(self, digest: Digest) -> bytes | None:
        """The XXH3-128 of a blob."""
        row = self._one("SELECT checksum FROM blob WHERE sha256 = ? AND size = ?", digest)
        return row[0] if row is not None and isinstance(row[0], bytes) else None

    def total_bytes(self) -> int:
        """Of all blobs; a scan, a tenth of a second for a million."""
        row = self._one("SELECT total(size) FROM blob")
        return int(row[0]) if row is not None and isinstance(row[0], float) else 0


def find_digests(catalog_path: str, hashes: Iterable[bytes]) -> dict[bytes, Digest]:
    """The blobs that have one of these SHA-256; those not found are left out. Blocks."""
    records = BlobRecords(catalog_path)
    try:
        found = {sha256: records.find(sha256) for sha256 in hashes}
    finally:
        records.close()
    return {sha256: digest for sha256, digest in found.items() if digest is not None}
