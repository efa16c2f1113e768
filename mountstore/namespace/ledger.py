"""What is known of blobs and not yet in the catalog, or not yet known to survive power loss.

Sealing a file only notes its blobs here; the rows are written together at the next commit, and the blobs
placed since the last hard sync are handed to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from mountstore.blobs.content import SealedBlob
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog


class Ledger:
    """Blobs recorded in memory, on their way into the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pending: dict[Digest, bytes] = {}
        # Digest -> path of every blob placed since the last hard sync; those not yet in the table.
        self._unsynced: dict[Digest, str] = {}
        self._unlisted: list[Digest] = []
        # Blobs may lie in the tree that were never recorded (a seal that failed half-way, a crash): the
        # next hard sync has to flush the whole file system, for they will be found as known.
        self.suspect = True
        self.blobs_new = 0
        self.blobs_known = 0
        self.bytes_new = 0
        self.bytes_known = 0

    def record(self, blobs: Iterable[SealedBlob]) -> None:
        """Note the blobs of a sealed content."""
        for blob in blobs:
            digest = blob.digest
            if blob.new:
                self.blobs_new += 1
                self.bytes_new += digest.size_bytes
            else:
                self.blobs_known += 1
                self.bytes_known += digest.size_bytes
            # Known to the tree only: another seal has just placed it and is not through, or one that a crash
            # ended; nobody but us has it flushed.
            if blob.new or self.checksum(digest) is None:
                self._unsynced[digest] = blob.path
                self._unlisted.append(digest)
            # Also for a known one: a tree that was adopted or rebuilt has blobs without a row.
            self._pending[digest] = blob.checksum

    def checksum(self, digest: Digest) -> bytes | None:
        """The XXH3-128 checksum of a blob, or None if it was never recorded."""
        return self._pending.get(digest) or self._catalog.get_checksum(digest)

    @property
    def has_changes(self) -> bool:
        return bool(self._pending)

    def flush(self) -> None:
        """Write the pending rows into the catalog's open transaction."""
        if self._pending:
            self._catalog.add_blobs((sha256, size, sum_) for (sha256, size), sum_ in self._pending.items())
            self._pending = {}
        if self._unlisted:
            self._catalog.add_unsynced(self._unlisted)
            self._unlisted = []

    @property
    def has_unsynced(self) -> bool:
        return bool(self._unsynced) or self.suspect

    def take_unsynced(self) -> dict[Digest, str]:
        """The blobs that the hard sync now starting has to flush."""
        taken, self._unsynced = self._unsynced, {}
        return taken

    def put_back(self, taken: dict[Digest, str]) -> None:
        """The flush failed: they are unsynced as before."""
        self._unsynced = {**taken, **self._unsynced}

    def settle(self) -> None:
        """The blobs taken are flushed: only later ones remain listed as unsynced."""
        self._catalog.clear_unsynced()
        self._catalog.add_unsynced(self._unsynced)
        self._unlisted = []
