"""Is this catalog the store's own, and its latest?

A catalog that was put back from an older copy, or has lost its WAL, is sound in itself. Used as if nothing
were wrong, it would show the past, and snapshots, retention and garbage collection would act on that. What
tells: it has the store's uuid, and the instant of every snapshot is noted in it, durably, before the snapshot
is there. So a snapshot that is later than what is noted was taken of a later catalog.

Catalogs made before either was noted say nothing, as do impossible notes, and are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from mountstore.blobs.refs import Ref
from mountstore.namespace.stale import SNAPSHOT_KEY, UUID_KEY
from mountstore.store.config import is_uuid

__all__ = ["lineage_flaw"]


def lineage_flaw(meta: Callable[[str], Any], uuid: str, refs: Iterable[Ref]) -> str | None:
    """What is wrong with a catalog that is to be used with this store and its snapshots, and what can be done.

    Args:
      meta: The catalog's value of a key, None if it has none.
      uuid: Of the store.
    """
    own = meta(UUID_KEY)
    if isinstance(own, str) and is_uuid(own) and own != uuid:
        return (
            f"the catalog is that of another store ({own}; this one is {uuid}): put its own back, or have one made"
            " from the snapshots (fsck.cas --rebuild)"
        )
    noted_ns = meta(SNAPSHOT_KEY)
    if not isinstance(noted_ns, int):
        return None
    later = max((ref for ref in refs if ref.uuid == uuid and ref.time_ns > noted_ns), key=_time, default=None)
    if later is None:
        return None
    when = datetime.fromtimestamp(later.time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"the catalog is older than snapshot {later.name} ({when}): it was put back from a copy, or lost what had"
        " not been written into it yet (catalog.db-wal). fsck.cas --rebuild makes one from that snapshot; to go on"
        f" with this one and without the snapshot, move blobs/refs/{later.name} out of the store first"
    )


def _time(ref: Ref) -> int:
    return ref.time_ns
