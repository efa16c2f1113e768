"""What a snapshot shows, and what the catalog has, in one form that can be compared."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec

from mountstore.blobs.refs import read_refs
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.namespace.instant import Instant
from mountstore.namespace.pages import HistoryRow, InodeRecord, ListingEntry
from mountstore.store import Store

Picture = tuple[
    dict[int, InodeRecord], dict[int, list[ListingEntry]], dict[int, list[HistoryRow]], tuple[int, ...]
]
"""Inodes without their listings, the listings, the histories, and the counters with the totals."""


def of_catalog(path: str) -> Picture:
    """Everything that a snapshot taken now would have, by a plain look at the whole catalog."""
    instant = Instant(path)
    try:
        inodes: dict[int, InodeRecord] = {}
        listings: dict[int, list[ListingEntry]] = {}
        histories: dict[int, list[HistoryRow]] = {}
        for page in instant.inode_pages():
            for record in instant.inodes(page):
                inodes[record.number] = record
                if record.is_directory and (names := list(instant.names(record.number))):
                    listings[record.number] = names
            for number in instant.removed_directories(page):
                listings[number] = list(instant.names(number))
        for page in instant.history_pages():
            histories |= instant.histories(page)
        size_bytes = sum(record.size for record in inodes.values() if stat.S_ISREG(record.mode))
        return inodes, listings, histories, (instant.next_inode, instant.next_cookie, len(inodes), size_bytes)
    finally:
        instant.close()


def of_snapshot(tree: SnapshotTree) -> Picture:
    """The same as a snapshot has it."""
    inodes: dict[int, InodeRecord] = {}
    listings: dict[int, list[ListingEntry]] = {}
    for record in tree.inodes():
        if names := list(tree.listing(record.number) if record.listing is not None else ()):
            listings[record.number] = names
        if not record.is_ghost:
            inodes[record.number] = msgspec.structs.replace(record, listing=None)
    root = tree.root
    totals = (root.next_inode, root.next_cookie, root.inode_count, root.bytes)
    return inodes, listings, dict(tree.histories()), totals


def of_store(store: Store) -> Picture:
    """Of an open store, as of now."""
    store.commits.commit()
    return of_catalog(store.catalog.path)


def newest(store: Store) -> Picture:
    """Of the newest snapshot."""
    refs, bad = read_refs(store.tree.root)
    assert not bad
    return of_snapshot(SnapshotTree(store.tree, refs[0].root))


def refs_in(path: Path) -> list[str]:
    """Names of the snapshots of a store, newest first."""
    return [ref.name for ref in read_refs(str(path / "blobs"))[0]]
