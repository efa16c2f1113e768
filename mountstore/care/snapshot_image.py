"""Writing the image of an instant: pages of rows as blobs, of which those that did not change are shared.

Everything blocks; it runs in workers, a page at a time, beside whatever the owner's thread does meanwhile.
What is written is decoded before it is trusted.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from mountstore.blobs.content import SealedBlob
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.namespace.inodes import TYPE_BITS
from mountstore.namespace.instant import Instant
from mountstore.namespace.listing import Place, update_listing, write_listing
from mountstore.namespace.page_map import find_page, update_map
from mountstore.namespace.pages import (
    HISTORIES_MAGIC,
    INDEX_MAGIC,
    LEAF_MAGIC,
    NODE_MAGIC,
    ROOT_MAGIC,
    SEGMENT_MAGIC,
    InodeRecord,
    ListingEntry,
    Reference,
    Root,
    Source,
    decode_histories,
    decode_index,
    decode_inodes,
    decode_leaf,
    decode_node,
    decode_root,
    decode_segment,
    encode_inodes,
    encode_root,
    write_histories,
)
from mountstore.namespace.stale import PAGE_SHIFT, Changes

T = TypeVar("T")

_BYTES_MAX: Final = (1 << 63) - 1

_DECODERS: Final[dict[bytes, Callable[[bytes, str], object]]] = {
    HISTORIES_MAGIC: decode_histories,
    SEGMENT_MAGIC: decode_segment,
    NODE_MAGIC: decode_node,
    LEAF_MAGIC: decode_leaf,
    INDEX_MAGIC: decode_index,
    ROOT_MAGIC: decode_root,
}


class Labels(NamedTuple):
    """What a root says besides where the pages are."""

    uuid: str
    name: str
    time_ns: int
    settings: str


class Image:
    """One image in the making.

    Args:
      changes: Since `base`, up to the instant.
      base: The snapshot to build on; None if everything changed.
      heal: Something that was written before is damaged: every object is written anew.
    """

    def __init__(
        self,
        tree: BalancedTree,
        instant: Instant,
        changes: Changes,
        base: SnapshotTree | None,
        labels: Labels,
        *,
        heal: bool = False,
    ) -> None:
        self._tree = tree
        self._instant = instant
        self._changes = changes
        self._base = base
        self._labels = labels
        self._heal = heal
        self._source: Source = base if base is not None else _Objects(tree)
        self._written: list[SealedBlob] = []
        self.pages = 0
        self.new_blobs = 0
        self.new_bytes = 0

    def take_written(self) -> list[SealedBlob]:
        """The blobs of the objects written, or found, since the last call."""
        written, self._written = self._written, []
        return written

    def write(self) -> Generator[None, None, tuple[Digest, Root]]:
        """Write all objects, pausing after each page; returns the root.

        Raises:
          CorruptError: The catalog, or the base, holds what it may not.
          BlobMissingError: An object of the base is not there.
          NoSpaceError, OSError: It cannot be written.
        """
        base = self._base.root if self._base is not None else None
        inode_count, size_bytes = (base.inode_count, base.bytes) if base is not None else (0, 0)
        inode_pages: dict[int, Digest | None] = {}
        for page in self._inode_pages():
            old = self._old_records(page)
            new = self._new_records(page, old)
            # Those that are as before were checked when they were read, and are counted.
            changed = [record for record in new if record != old.get(record.number)]
            gone = [old[record.number] for record in changed if record.number in old]
            gone += [old[number] for number in old.keys() - {record.number for record in new}]
            inode_count += _count(changed) - _count(gone)
            size_bytes += _bytes(changed) - _bytes(gone)
            if changed:
                decode_inodes(encode_inodes(changed), "an inode page of the snapshot")
            inode_pages[page] = self._put_checked(encode_inodes(new)) if new else None
            self.pages += 1
            yield
        history_pages: dict[int, Digest | None] = {}
        for page in self._history_pages():
            histories = self._instant.histories(page)
            history_pages[page] = write_histories(self._put, histories) if histories else None
            self.pages += 1
            yield
        root = Root(
            uuid=self._labels.uuid,
            name=self._labels.name,
            time_ns=self._labels.time_ns,
            settings=self._labels.settings,
            adopted=self._instant.adopted,
            inodes=self._map(base.inodes if base is not None else None, inode_pages),
            histories=self._map(base.histories if base is not None else None, history_pages),
            next_inode=self._instant.next_inode,
            next_cookie=self._instant.next_cookie,
            inode_count=inode_count,
            bytes=self._bounded(base, size_bytes),
        )
        return self._put(encode_root(root)), root

    def _bounded(self, base: Root | None, size_bytes: int) -> int:
        """What sparse files say that they are may be more in sum than a root can say: then it is the most."""
        if base is not None and base.bytes == _BYTES_MAX:
            size_bytes = self._instant.file_bytes()
        return min(size_bytes, _BYTES_MAX)

    # --- inodes ---

    def _inode_pages(self) -> Iterable[int]:
        if self._base is None:
            return self._instant.inode_pages()
        # The listing of a directory stands in its record, or is named there.
        return sorted(self._changes.inodes | {number >> PAGE_SHIFT for number in self._changes.directories})

    def _old_records(self, page: int) -> dict[int, InodeRecord]:
        if self._base is None:
            return {}
        digest = find_page(self._base, self._base.root.inodes, page)
        if digest is None:
            return {}
        return {record.number: record for record in self._base.load(digest, decode_inodes)}

    def _new_records(self, page: int, old: dict[int, InodeRecord]) -> list[InodeRecord]:
        records = [
            msgspec.structs.replace(record, listing=self._listing(record.number, old))
            if record.is_directory
            else record
            for record in self._instant.inodes(page, old)
        ]
        removed = self._instant.removed_directories(page)
        if removed:
            records += [_ghost(number, self._listing(number, old)) for number in removed]
            records.sort(key=lambda record: record.number)
        return records

    def _listing(self, directory: int, old: dict[int, InodeRecord]) -> Place:
        before = old.get(directory)
        if before is not None:
            names = self._changes.directories.get(directory, frozenset())
            if names is not None:
                if not names:
                    return before.listing

                def read_range(low: bytes, high: bytes | None) -> Iterator[ListingEntry]:
                    return self._instant.names(directory, low, high)

                return update_listing(self._source, self._put, before.listing, sorted(names), read_range)
        return write_listing(self._put, self._instant.names(directory))

    # --- histories ---

    def _history_pages(self) -> Iterable[int]:
        if self._base is None:
            return self._instant.history_pages()
        return sorted(self._changes.histories)

    # --- objects ---

    def _map(self, base: Reference | None, pages: dict[int, Digest | None]) -> Reference | None:
        return update_map(self._source, self._put, base, pages)

    def _put(self, data: bytes) -> Digest:
        _DECODERS[data[:8]](data, "an object of the snapshot")
        return self._put_checked(data)

    def _put_checked(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        if self._heal:
            self._tree.distrust(digest)
        added = self._tree.add_bytes(data, digest)
        self._written.append(SealedBlob(digest, checksum(data), added.path, added.new))
        if added.new:
            self.new_blobs += 1
            self.new_bytes += digest.size_bytes
        return digest


class _Objects:
    """Objects that were just written."""

    def __init__(self, tree: BalancedTree) -> None:
        self._tree = tree

    def load(self, digest: Digest, decode: Callable[[bytes, str], T]) -> T:
        return decode(read_blob(self._tree, digest, None), digest.name)


def _ghost(number: int, listing: Place) -> InodeRecord:
    """A directory that was removed and in which names still have histories."""
    return InodeRecord(number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, b"", None, [], 0, listing)


def _count(records: Iterable[InodeRecord]) -> int:
    return sum(not record.is_ghost for record in records)


def _bytes(records: Iterable[InodeRecord]) -> int:
    return sum(record.size for record in records if record.mode & TYPE_BITS == stat.S_IFREG)
