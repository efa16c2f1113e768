"""Making trees of records: new inodes, with contents that are in the blobs already, some at a time.

Rows go straight into the catalog, so however many there are, few of them are in memory. Nobody may look at the new
inodes before all are there: they grow in limbo.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mountstore.blobs.clock import now_ns
from mountstore.namespace.catalog import Catalog, InodeRow
from mountstore.namespace.inodes import InodeTable
from mountstore.namespace.pages import InodeRecord

__all__ = ["Graft", "Twig"]


class Twig(NamedTuple):
    """One name of a tree."""

    depth: int
    """0: of the topmost."""
    name: bytes
    record: InodeRecord
    """What it stands for; what stands for several names has one number."""


class _Linked:
    """A file that has more names."""

    __slots__ = ("left", "number")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left


class Graft:
    """One tree in the making; on the owner's thread.

    Files keep their attributes, extended ones too; they are born now. Links within the tree remain links; a file
    with other names outside is another file.

    Args:
      directory: In which the topmost is made.
    """

    def __init__(self, catalog: Catalog, inodes: InodeTable, directory: int) -> None:
        self._catalog = catalog
        self._inodes = inodes
        # New numbers of the directories on the way to where it goes on.
        self._way = [directory]
        self._linked: dict[int, _Linked] = {}
        self.files = 0
        self.directories = 0
        self.bytes = 0

    def add(self, twigs: Sequence[Twig]) -> None:
        """Make the next names, each after the directory that it is in and before any that is not below that;
        about 20 us each."""
        now = now_ns()
        rows: list[InodeRow] = []
        entries: list[tuple[int, bytes, int, int]] = []
        links: Counter[int] = Counter()
        for depth, name, record in twigs:
            parent = self._way[depth]
            linked = self._linked.get(record.number)
            if linked is not None:
                number = linked.number
                links[number] += 1
                linked.left -= 1
                if not linked.left:
                    del self._linked[record.number]
            else:
                number = self._inodes.next_id()
                rows.append(_row(record, number, parent, now))
                for attribute, value in record.xattrs:
                    self._catalog.put_xattr(number, attribute, value)
                if record.is_directory:
                    self.directories += 1
                    del self._way[depth + 1 :]
                    self._way.append(number)
                    if depth:
                        links[parent] += 1
                    else:
                        self._enter(parent)
                else:
                    self.files += 1
                    if stat.S_ISREG(record.mode):
                        self.bytes += record.size
                    if record.nlink > 1:
                        self._linked[record.number] = _Linked(number, record.nlink - 1)
            entries.append((parent, name, number, self._inodes.next_cookie()))
        self._catalog.put_inodes(rows)
        self._catalog.add_entries(entries)
        if links:
            self._catalog.add_links(links)
            for number in links:
                self._inodes.forget_view(number)

    def _enter(self, directory: int) -> None:
        """The directory that the topmost is in, which is in memory, has another below it."""
        inode = self._inodes.get(directory)
        inode.nlink += 1
        self._inodes.changed(inode)


def _row(record: InodeRecord, number: int, parent: int, now: int) -> InodeRow:
    directory = record.is_directory
    return (
        *(number, record.mode, record.uid, record.gid, 2 if directory else 1, record.rdev, record.size),
        *(record.allocated, record.atime_ns, record.mtime_ns, now, now, parent if directory else 0),
        *(record.kind, record.sha256, record.blob_size, record.target, len(record.xattrs)),
    )
