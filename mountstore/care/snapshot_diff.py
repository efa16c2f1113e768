"""What differs between two snapshots, as paths.

Only pages that differ are compared, and listings of directories that do. A file that changed in a directory that
did not is found by looking through listings until all of them have a name.

Blocks; any thread. Memory grows with what differs. Errors: those of `SnapshotTree`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from mountstore.blobs.digest import Digest
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.limbo import LIMBO
from mountstore.namespace.listing import entries
from mountstore.namespace.page_map import walk
from mountstore.namespace.pages import InodeRecord, Reference

_DEPTH_MAX: Final = 1 << 16
"""Directories in a circle are in no tree."""


class Difference(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    REPLACED = "replaced"
    """The name stands for another file, or something of another kind."""
    CHANGED = "changed"
    """The content, or an attribute, of what the name stands for."""


class ChangedPath(NamedTuple):
    """A path from the root, without the first slash (b"" is the root itself), and what is different there."""

    path: bytes
    difference: Difference


def diff(old: SnapshotTree, new: SnapshotTree, check: Callable[[], None] = lambda: None) -> Differences:
    """Every path at which the newer snapshot shows something else than the older one.

    A path is told once: what was renamed is not told to have changed as well. What lies below a directory that
    was renamed, and did not change, is not told. Times of change and of access, the times of directories, numbers
    of links, and histories do not count.

    Args:
      check: Called now and then; what it raises ends the comparison.
    """
    comparison = _Comparison(old, new, check)
    comparison.run()
    return comparison.found


class _Name:
    """A name on the way to a difference, or the root."""

    __slots__ = ("below", "difference")

    def __init__(self) -> None:
        self.difference: Difference | None = None
        self.below: dict[bytes, _Name] = {}

    def at(self, name: bytes) -> _Name:
        found = self.below.get(name)
        if found is None:
            found = self.below[name] = _Name()
        return found


class Differences:
    """Differences in the order of a walk: a directory before what lies in it, names in byte order.

    They are kept as a tree of names, and a path is put together when it is asked for: paths may be far longer
    than PATH_MAX, and those of n directories in each other take n ** 2 bytes.
    """

    def __init__(self) -> None:
        self.root: Final = _Name()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ChangedPath]:
        if self.root.difference is not None:
            yield ChangedPath(b"", self.root.difference)
        way: list[bytes] = []
        walks = [(self.root, iter(sorted(self.root.below)))]
        while walks:
            directory, names = walks[-1]
            name = next(names, None)
            if name is None:
                walks.pop()
                if way:
                    way.pop()
                continue
            way.append(name)
            place = directory.below[name]
            if place.difference is not None:
                yield ChangedPath(b"/".join(way), place.difference)
            walks.append((place, iter(sorted(place.below))))

    def add(self, place: _Name | None, difference: Difference) -> bool:
        """Note what is different somewhere; nothing if something is known already, or nobody can get there."""
        if place is None or place.difference is not None:
            return False
        place.difference = difference
        self._count += 1
        return True


class _Comparison:
    def __init__(self, old: SnapshotTree, new: SnapshotTree, check: Callable[[], None]) -> None:
        self._old = old
        self._new = new
        self._check = check
        self.found = Differences()
        self._places_old = _Places(old, self.found.root)
        self._places_new = _Places(new, self.found.root)

    def run(self) -> None:
        # Inodes that differ and of which a name is still to be found, with how many there are.
        nameless: dict[int, int] = {}
        changed: list[int] = []
        directories: list[tuple[int, InodeRecord | None, InodeRecord | None]] = []
        for number, before, after in self._changed_records():
            if any(record is not None and record.is_directory for record in (before, after)):
                directories.append((number, before, after))
            if before is not None and after is not None and _facts(before) != _facts(after):
                if after.is_directory:
                    changed.append(number)
                else:
                    nameless[number] = after.nlink
        for number, before, after in directories:
            self._check()
            self._compare_listings(number, _names(self._old, before), _names(self._new, after), nameless)
        for number in changed:
            self.found.add(self._places_new.of(number), Difference.CHANGED)
        if nameless:
            self._find_names(nameless)

    def _changed_records(self) -> Iterator[tuple[int, InodeRecord | None, InodeRecord | None]]:
        old, new = _pages(self._old, self._old.root.inodes), _pages(self._new, self._new.root.inodes)
        for page in sorted(old.keys() | new.keys()):
            self._check()
            if old.get(page) == new.get(page):
                continue
            before = _records(self._old, page, old.get(page))
            after = _records(self._new, page, new.get(page))
            for number in sorted(before.keys() | after.keys()):
                if before.get(number) != after.get(number):
                    yield number, before.get(number), after.get(number)

    def _compare_listings(
        self, directory: int, before: dict[bytes, int], after: dict[bytes, int], nameless: dict[int, int]
    ) -> None:
        for name in before.keys() | after.keys():
            was, now = before.get(name), after.get(name)
            if now is None:
                self.found.add(self._places_old.below(directory, name), Difference.REMOVED)
            elif was is None:
                self.found.add(self._places_new.below(directory, name), Difference.ADDED)
            elif was != now:
                self.found.add(self._places_new.below(directory, name), Difference.REPLACED)
            elif now in nameless:
                self._named(directory, name, now, nameless)

    def _named(self, directory: int, name: bytes, number: int, nameless: dict[int, int]) -> None:
        if not self.found.add(self._places_new.below(directory, name), Difference.CHANGED):
            return
        nameless[number] -= 1
        if nameless[number] <= 0:
            del nameless[number]

    def _find_names(self, nameless: dict[int, int]) -> None:
        for record in self._new.inodes():
            if record.is_directory and record.listing is not None:
                self._check()
                for entry in self._new.listing(record.number):
                    if entry.inode in nameless:
                        self._named(record.number, entry.name, entry.inode, nameless)
                if not nameless:
                    return


class _Places:
    """Where the directories of one snapshot are."""

    def __init__(self, tree: SnapshotTree, root: _Name) -> None:
        self._tree = tree
        self._known: dict[int, _Name | None] = {ROOT: root}
        self._names: dict[int, dict[int, bytes]] = {}

    def of(self, directory: int) -> _Name | None:
        """None for one that was removed, or lies in one."""
        way: list[tuple[int, int]] = []
        while directory not in self._known:
            record = self._tree.inode(directory)
            if not record.is_directory or len(way) > _DEPTH_MAX:
                self._known[directory] = None
                break
            way.append((record.parent, directory))
            directory = record.parent
        for parent, number in reversed(way):
            self._known[number] = self._child(parent, number)
            directory = number
        return self._known[directory]

    def _child(self, parent: int, number: int) -> _Name | None:
        if parent not in self._names:
            self._names[parent] = {
                entry.inode: entry.name for entry in self._tree.listing(parent) if entry.inode
            }
        name = self._names[parent].get(number)
        return None if name is None else self.below(parent, name)

    def below(self, directory: int, name: bytes) -> _Name | None:
        place = self.of(directory)
        return None if place is None or (directory == ROOT and name == LIMBO) else place.at(name)


def _pages(tree: SnapshotTree, root: Reference | None) -> dict[int, Digest]:
    return {entry.page: entry.digest for entry in walk(tree, root) if entry.page is not None}


def _records(tree: SnapshotTree, page: int, digest: Digest | None) -> dict[int, InodeRecord]:
    if digest is None:
        return {}
    return {record.number: record for record in tree.inode_page(page, digest)}


def _names(tree: SnapshotTree, record: InodeRecord | None) -> dict[bytes, int]:
    if record is None or not record.is_directory:
        return {}
    return {entry.name: entry.inode for entry in entries(tree, record.listing) if entry.inode}


def _facts(record: InodeRecord) -> tuple[object, ...]:
    """What counts as a difference."""
    mtime = 0 if stat.S_ISDIR(record.mode) else record.mtime_ns
    attributes = (record.mode, record.uid, record.gid, record.rdev, record.target, record.xattrs, mtime)
    return (*attributes, record.content)
