"""The trash: emptying it, and bringing blobs back."""

from __future__ import annotations

import trio

from mountstore.blobs.content import SealedBlob
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.verification import read_blob
from mountstore.care.roots import hashes_below
from mountstore.care.stretches import in_stretches
from mountstore.care.sweep import Tally
from mountstore.store import Store

__all__ = ["OLDER_THAN_DAYS", "purge", "untrash"]

OLDER_THAN_DAYS = 7.0
"""What `purge` leaves in the trash."""


async def purge(store: Store, older_than_days: float = OLDER_THAN_DAYS) -> Tally:
    """Delete what was collected on days that ended longer ago; 0: all of the trash."""
    purged = Tally()
    await in_stretches(store.trash.purge(older_than_days), purged.count)
    return purged


async def untrash(store: Store, digest: Digest) -> list[Digest]:
    """Bring a blob back from the trash and, if it is a manifest, whatever it lists. The next collection takes
    it again, unless something uses it by then or it is pinned.

    Returns: What was brought back; empty if all of it was in the tree.

    Raises:
      BlobMissingError: It is neither in the tree nor in the trash.
      CorruptError: Its bytes are not those of its name.
      ReadOnlyError: The store takes no writes.
    """
    store.namespace.require_writable()
    returned: list[Digest] = []
    waiting = [digest]
    while waiting:
        wanted = waiting.pop()
        blob = await trio.to_thread.run_sync(_put_back, store, wanted)
        if blob is not None:
            store.ledger.record([blob])
            returned.append(wanted)
        if wanted == digest:
            below = await trio.to_thread.run_sync(_missing_below, store, digest)
            waiting += below
    return returned


def _put_back(store: Store, digest: Digest) -> SealedBlob | None:
    if store.tree.want(digest):
        return None
    added = store.trash.put_back(digest)
    return SealedBlob(digest, checksum(read_blob(store.tree, digest, None)), added.path, True)


def _missing_below(store: Store, digest: Digest) -> list[Digest]:
    missing: list[Digest] = []
    hashes = set(hashes_below(store.tree, digest)) - {digest.sha256}
    if hashes:
        found = {gone.digest for gone in store.trash.walk() if gone.digest.sha256 in hashes}
        missing = [gone for gone in found if store.tree.find(gone) is None]
    return missing
