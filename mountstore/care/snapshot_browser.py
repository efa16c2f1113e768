"""Looking around in a tree of records, of a snapshot or of one instant of the catalog: the names that exist.

Blocks; for workers. Errors: as `mountstore.care.snapshot_tree`, or `mountstore.namespace.instant`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Final

from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import AbsentError, CorruptError, StaleError, WantsDirectoryError, shown
from mountstore.namespace.grafting import Twig
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.instant import Instant
from mountstore.namespace.limbo import LIMBO
from mountstore.namespace.page_map import find_page
from mountstore.namespace.pages import InodeRecord, ListingEntry
from mountstore.namespace.stale import PAGE_SHIFT

__all__ = ["Records", "find", "follow", "records_of_instant", "records_of_snapshot"]

_BATCH: Final = 500
_PAGES_MAX: Final = 256


class Records:
    """Directories with what is in them. To be used by one thread at a time.

    Args:
      what: It is, for errors.
      names: The entries of a directory in byte order, gone ones too.
      page: The records of a page of inodes.
    """

    def __init__(
        self,
        what: str,
        names: Callable[[InodeRecord], Iterable[ListingEntry]],
        page: Callable[[int], Iterable[InodeRecord]],
    ) -> None:
        self._what = what
        self._names = names
        self._page = page
        # Files that were made together have neighbouring numbers, whatever their names.
        self._pages: dict[int, dict[int, InodeRecord]] = {}

    def inode(self, number: int) -> InodeRecord:
        """Raises: CorruptError if there is none."""
        page = self._pages.get(number >> PAGE_SHIFT)
        if page is None:
            if len(self._pages) >= _PAGES_MAX:
                self._pages.clear()
            page = {record.number: record for record in self._page(number >> PAGE_SHIFT)}
            self._pages[number >> PAGE_SHIFT] = page
        record = page.get(number)
        if record is None or record.is_ghost:
            raise CorruptError(f"{self._what} has a name for inode {number}, and no such inode")
        return record

    def children(self, directory: InodeRecord) -> Iterator[list[tuple[bytes, InodeRecord]]]:
        """Names of a directory in byte order, with what they stand for, some at a time."""
        hidden = LIMBO if directory.number == ROOT else b""
        entries = (entry for entry in self._names(directory) if entry.inode and entry.name != hidden)
        while batch := list(islice(entries, _BATCH)):
            yield [(entry.name, self.inode(entry.inode)) for entry in batch]

    def walk(self, name: bytes, top: InodeRecord) -> Generator[Twig, None, None]:
        """Everything from `top` down, directories before what is in them; memory for the directories on the way.

        Raises: CorruptError if a directory lies in itself, or not where it says.
        """
        yield Twig(0, name, top)
        if not top.is_directory:
            return
        way = [(top.number, chain.from_iterable(self.children(top)))]
        while way:
            directory, children = way[-1]
            found = next(children, None)
            if found is None:
                way.pop()
                continue
            child = found[1]
            if child.is_directory and (child.parent != directory or child.number in (ROOT, top.number)):
                # So there is one way to each, and an end.
                raise CorruptError(f"{self._what} has directory {child.number} in {directory}, where it is not")
            yield Twig(len(way), *found)
            if child.is_directory:
                way.append((child.number, chain.from_iterable(self.children(child))))


def records_of_snapshot(tree: SnapshotTree) -> Records:
    """What a snapshot has."""

    def page(number: int) -> Iterable[InodeRecord]:
        digest = find_page(tree, tree.root.inodes, number)
        return () if digest is None else tree.inode_page(number, digest)

    return Records(f"snapshot {tree.root.name}", tree.names_of, page)


def records_of_instant(instant: Instant) -> Records:
    """What the catalog had at an instant."""
    return Records("the catalog", lambda directory: instant.names(directory.number), instant.inodes)


def find(tree: SnapshotTree, directory: InodeRecord, name: bytes) -> InodeRecord | None:
    """What a name in a directory of a snapshot stands for."""
    if not name or (name == LIMBO and directory.number == ROOT):
        return None
    entry = tree.lookup(directory.number, name)
    return None if entry is None or not entry.inode else _inode(tree, entry.inode)


def follow(tree: SnapshotTree, path: bytes) -> InodeRecord:
    """What a path from the root of a snapshot leads to; symbolic links are not followed.

    Raises: AbsentError, WantsDirectoryError; as above.
    """
    record = _inode(tree, ROOT)
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if not record.is_directory:
            raise WantsDirectoryError(f"{shown(path)} in snapshot {tree.root.name}")
        found = find(tree, record, part)
        if found is None:
            raise AbsentError(f"{shown(path)} is not in snapshot {tree.root.name}")
        record = found
    return record


def _inode(tree: SnapshotTree, number: int) -> InodeRecord:
    try:
        record = tree.inode(number)
    except StaleError:
        record = None
    if record is None or record.is_ghost:
        raise CorruptError(f"snapshot {tree.root.name} has a name for inode {number}, and no such inode")
    return record
