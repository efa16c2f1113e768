"""Looking around in a snapshot: the names that exist in it, with what they stand for.

Blocks; for workers. Errors: as `mountstore.care.snapshot_tree`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import AbsentError, CorruptError, StaleError, WantsDirectoryError
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.limbo import LIMBO
from mountstore.namespace.page_map import find_page
from mountstore.namespace.pages import PAGE_SHIFT, InodeRecord

__all__ = ["children", "find", "follow"]

_BATCH = 500
_PAGES_MAX = 256


def find(tree: SnapshotTree, directory: InodeRecord, name: bytes) -> InodeRecord | None:
    """What a name in a directory stands for."""
    if not name or (name == LIMBO and directory.number == ROOT):
        return None
    entry = tree.lookup(directory.number, name)
    return None if entry is None or not entry.inode else _inode(tree, entry.inode)


def follow(tree: SnapshotTree, path: bytes) -> InodeRecord:
    """What a path from the root leads to; symbolic links are not followed.

    Raises: AbsentError, WantsDirectoryError; as above.
    """
    record = _inode(tree, ROOT)
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if not record.is_directory:
            raise WantsDirectoryError(f"{path!r} in snapshot {tree.root.name}")
        found = find(tree, record, part)
        if found is None:
            raise AbsentError(f"{path!r} is not in snapshot {tree.root.name}")
        record = found
    return record


def children(tree: SnapshotTree, directory: InodeRecord) -> Iterator[list[tuple[bytes, InodeRecord]]]:
    """Names of a directory in byte order, with what they stand for, some at a time."""
    hidden = LIMBO if directory.number == ROOT else b""
    entries = (entry for entry in tree.names_of(directory) if entry.inode and entry.name != hidden)
    # Files that were made together have neighbouring numbers, whatever their names.
    pages: dict[int, dict[int, InodeRecord]] = {}
    while batch := list(islice(entries, _BATCH)):
        found: list[tuple[bytes, InodeRecord]] = []
        for entry in batch:
            number = entry.inode
            page = pages.get(number >> PAGE_SHIFT)
            if page is None:
                if len(pages) >= _PAGES_MAX:
                    pages.clear()
                page = pages[number >> PAGE_SHIFT] = _page(tree, number >> PAGE_SHIFT)
            record = page.get(number)
            if record is None or record.is_ghost:
                raise CorruptError(_lacking(tree, number))
            found.append((entry.name, record))
        yield found


def _page(tree: SnapshotTree, page: int) -> dict[int, InodeRecord]:
    digest = find_page(tree, tree.root.inodes, page)
    return {} if digest is None else {record.number: record for record in tree.inode_page(page, digest)}


def _inode(tree: SnapshotTree, number: int) -> InodeRecord:
    try:
        record = tree.inode(number)
    except StaleError:
        raise CorruptError(_lacking(tree, number)) from None
    if record.is_ghost:
        raise CorruptError(_lacking(tree, number))
    return record


def _lacking(tree: SnapshotTree, number: int) -> str:
    return f"snapshot {tree.root.name} has a name for inode {number}, and no such inode"
