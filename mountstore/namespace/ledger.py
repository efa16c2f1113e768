"""What is known of blobs and not yet in the catalog, or not yet known to survive power loss.

Sealing a file only notes its blobs here; the rows are written together at the next commit, and the blobs
placed since the last hard sync are handed to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from mountstore.blobs.content import SealedBlob
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog

_JOURNAL_BLOBS = 32
_JOURNAL_BYTES = 256 << 10
"""So much may one fsync put into the journal: beyond, flushing the blobs themselves is cheaper."""

_JOURNAL_BYTES_MAX = 8 << 20
"""What the journal holds in all; a hard sync empties it."""


class Ledger:
    """Blobs recorded in memory, on their way into the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pending: dict[Digest, bytes] = {}
        # Digest -> path of every blob placed since the last hard sync; those not yet in the table.
        self._unsynced: dict[Digest, str] = {}
        self._unlisted: list[Digest] = []
        # Those of them whose bytes are in the catalog's journal, so that they survive all the same.
        self._journaled: dict[Digest, str] = {}
        self._journaled_bytes = 0
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
        """Whether blobs were placed whose bytes are not to survive power loss before the next hard sync."""
        return bool(self._unsynced) or self.suspect

    @property
    def has_journaled(self) -> bool:
        """Whether blobs are in the journal that the next hard sync flushes."""
        return bool(self._journaled)

    def journal(self) -> bool:
        """Copy the bytes of all unsynced blobs into the catalog's open transaction, if they are few and small.

        Returns: Whether everything recorded so far survives power loss once that transaction does.
        """
        if self.suspect or len(self._unsynced) > _JOURNAL_BLOBS:
            return False
        size_bytes = sum(digest.size_bytes for digest in self._unsynced)
        if size_bytes > _JOURNAL_BYTES or self._journaled_bytes + size_bytes > _JOURNAL_BYTES_MAX:
            return False
        rows = []
        for digest, path in self._unsynced.items():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    data = os.read(fd, digest.size_bytes + 1)
                finally:
                    os.close(fd)
            except OSError:
                return False
            if len(data) != digest.size_bytes:
                return False
            rows.append((*digest, data))
        if rows:
            self._catalog.add_journal(rows)
            self._journaled.update(self._unsynced)
            self._journaled_bytes += size_bytes
            self._unsynced = {}
        return True

    def take_unsynced(self) -> dict[Digest, str]:
        """The blobs that the hard sync now starting has to flush."""
        taken = {**self._journaled, **self._unsynced}
        self._unsynced, self._journaled, self._journaled_bytes = {}, {}, 0
        return taken

    def put_back(self, taken: dict[Digest, str]) -> None:
        """The flush failed: they are unsynced as before."""
        self._unsynced = {**taken, **self._unsynced}

    def settle(self) -> None:
        """The blobs taken are flushed: only later ones remain listed as unsynced."""
        self._catalog.clear_unsynced()
        self._catalog.clear_journal()
        self._catalog.add_unsynced(self._unsynced)
        self._unlisted = []
