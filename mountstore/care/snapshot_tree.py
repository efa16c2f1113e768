"""A snapshot, read as one goes: inodes, names and histories as they were, from the blobs alone.

Only what is asked for is read, and checked by its SHA-256, so what is shown is what was taken; decoded objects are
kept within bounds. Needs no catalog.

Any thread; blocks. Objects are immutable, so several threads may use one tree.

Errors: BlobMissingError, CorruptError and OSError by everything that reads.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import Any, Final, TypeVar, cast

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.errors import CorruptError, StaleError
from mountstore.namespace import listing, page_map
from mountstore.namespace.pages import (
    MAGIC_BYTES,
    MAGICS,
    UNREADABLE,
    HistoryRecord,
    HistoryRow,
    InodeRecord,
    ListingEntry,
    OnBad,
    Root,
    decode_histories,
    decode_inodes,
    decode_root,
    decode_segment,
)
from mountstore.namespace.stale import PAGE_SHIFT

T = TypeVar("T")

_CACHE_BYTES: Final = 16 << 20
_LARGE_BYTES: Final = 16 << 20
_OBJECT_MAX_BYTES: Final = 1 << 30
"""The largest are leaves of listings: as a rule they have 256 names, but nothing keeps them from having more."""


class SnapshotTree:
    """One snapshot.

    Args:
      root: Digest of its root, as a ref has it.
      cache_bytes: Encoded size of the objects that are kept; what they take in memory is some four times that.
      on_read: Told the bytes of every object that is read.
      on_bad: Told of objects that cannot be read, by `inodes`, `histories` and `names_of`, which leave out what
        those lead to; default: the error is raised, as by all else.

    Attributes:
      root: Its record.
      digest: Of the root.

    Raises: as above.
    """

    def __init__(
        self,
        tree: BalancedTree,
        root: Digest,
        *,
        cache_bytes: int = _CACHE_BYTES,
        on_read: Callable[[Digest, bytes], None] | None = None,
        on_bad: OnBad | None = None,
    ) -> None:
        self._tree = tree
        self._on_read = on_read
        self._on_bad = on_bad
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[tuple[Digest, Callable[..., object]], Any] = OrderedDict()
        self._lock = threading.Lock()
        self.digest = root
        self.root: Root = self.load(root, decode_root)

    def load(self, digest: Digest, decode: Callable[[bytes, str], T]) -> T:
        """The object in a blob, which `decode` reads."""
        key = digest, decode
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                return cast(T, found)
        data = _read_object(self._tree, digest)
        if self._on_read is not None:
            self._on_read(digest, data)
        loaded = decode(data, digest.name)
        with self._lock:
            if key not in self._cache and digest.size_bytes <= self._cache_bytes:
                self._cache[key] = loaded
                self._cached_bytes += digest.size_bytes
                while self._cached_bytes > self._cache_bytes:
                    (dropped, _), _ = self._cache.popitem(last=False)
                    self._cached_bytes -= dropped.size_bytes
        return loaded

    # --- inodes and names ---

    def inode(self, number: int) -> InodeRecord:
        """The record of an inode, or of a removed directory.

        Raises:
          StaleError: There was none.
        """
        digest = page_map.find_page(self, self.root.inodes, number >> PAGE_SHIFT)
        if digest is not None:
            records = self.inode_page(number >> PAGE_SHIFT, digest)
            i = bisect_left(records, number, key=_number_of)
            if i < len(records) and records[i].number == number:
                return records[i]
        raise StaleError(f"inode {number} is not in snapshot {self.root.name}")

    def lookup(self, directory: int, name: bytes) -> ListingEntry | None:
        """What a directory says of a name; `inode` is 0 if it only has a history.

        Raises:
          StaleError: There was no such directory.
        """
        return listing.lookup(self, self.inode(directory).listing, name)

    def listing(self, directory: int, after: bytes = b"") -> Iterator[ListingEntry]:
        """The names of a directory beyond `after` in byte order, also those that only have a history.

        Raises:
          StaleError: There was no such directory.
        """
        return listing.entries(self, self.inode(directory).listing, after)

    def inodes(self) -> Iterator[InodeRecord]:
        """All records in ascending order, of removed directories too."""
        for page, digest in page_map.walk(self, self.root.inodes, on_bad=self._on_bad):
            if page is not None:
                yield from self._readable(self.inode_page, page, digest)

    def names_of(self, record: InodeRecord) -> Iterator[ListingEntry]:
        """As `listing`, of a record at hand."""
        return listing.entries(self, record.listing, on_bad=self._on_bad)

    def inode_page(self, page: int, digest: Digest) -> list[InodeRecord]:
        """The records of a page of the map of inodes."""
        records = self.load(digest, decode_inodes)
        if records[0].number >> PAGE_SHIFT != page:
            raise CorruptError(f"{digest.name}: inode page {records[0].number >> PAGE_SHIFT} instead of {page}")
        return records

    # --- histories ---

    def history(self, number: int) -> list[HistoryRow]:
        """The rows of a history in order; none if there was none."""
        digest = page_map.find_page(self, self.root.histories, number >> PAGE_SHIFT)
        if digest is None:
            return []
        records = self.history_page(number >> PAGE_SHIFT, digest)
        i = bisect_left(records, number, key=_number_of)
        return self._rows(records[i]) if i < len(records) and records[i].number == number else []

    def histories(self) -> Iterator[tuple[int, list[HistoryRow]]]:
        """All histories in ascending order."""
        for page, digest in page_map.walk(self, self.root.histories, on_bad=self._on_bad):
            if page is not None:
                for record in self._readable(self.history_page, page, digest):
                    yield record.number, self._rows(record)

    def history_page(self, page: int, digest: Digest) -> list[HistoryRecord]:
        """The histories of a page of the map of histories."""
        records = self.load(digest, decode_histories)
        if records[0].number >> PAGE_SHIFT != page:
            raise CorruptError(f"{digest.name}: history page {records[0].number >> PAGE_SHIFT} instead of {page}")
        return records

    def _rows(self, record: HistoryRecord) -> list[HistoryRow]:
        parts = [self._readable(self.load, Digest(*segment), decode_segment) for segment in record.segments]
        rows = list(chain(*parts, record.rows))
        if any(a.number >= b.number for a, b in pairwise(rows)):
            raise CorruptError(f"history {record.number}: segments out of order")
        return rows

    def _readable(self, read: Callable[..., list[T]], *arguments: object) -> list[T]:
        try:
            return read(*arguments)
        except UNREADABLE as exc:
            if self._on_bad is None:
                raise
            self._on_bad(exc)
            return []

    # --- what it needs ---

    def references(self, skip: set[bytes] | None = None) -> Iterator[Content]:
        """Everything the snapshot needs: its own objects as contents of the kind BLOB, and the contents of files
        and their versions, as often as they are found. Of a manifest the caller looks up the pieces.

        Args:
          skip: What earlier calls found, for this snapshot or others: shared pages are left out with all below.
            It is added to, and nobody else may (a file's content may be equal to a page). An error makes it void.
        """
        for digest, contents in self._objects(skip):
            yield Content(ContentKind.BLOB, digest, digest.size_bytes)
            yield from contents

    def pages(self, skip: set[bytes] | None = None) -> Iterator[Digest]:
        """The snapshot's own objects; `skip` as for `references`, but not the same set."""
        for digest, _ in self._objects(skip):
            yield digest

    def _objects(self, skip: set[bytes] | None) -> Iterator[tuple[Digest, list[Content]]]:
        """Objects, with the contents that stand in each."""
        if skip is not None:
            if self.digest.sha256 in skip:
                return
            skip.add(self.digest.sha256)
        yield self.digest, []
        for page, digest in page_map.walk(self, self.root.inodes, skip):
            if page is None:
                yield digest, []
                continue
            records = self.inode_page(page, digest)
            yield digest, [record.content for record in records if record.kind]
            for record in records:
                for part in listing.objects(self, record.listing, skip):
                    yield part, []
        for page, digest in page_map.walk(self, self.root.histories, skip):
            if page is None:
                yield digest, []
                continue
            histories = self.history_page(page, digest)
            for history in histories:
                for segment in map(Digest._make, history.segments):
                    if skip is not None:
                        if segment.sha256 in skip:
                            continue
                        skip.add(segment.sha256)
                    yield segment, _contents_of(self.load(segment, decode_segment))
            yield digest, [content for history in histories for content in _contents_of(history.rows)]


def _read_object(tree: BalancedTree, digest: Digest) -> bytes:
    """An object's blob; of what is far too large for one, only the beginning is read."""
    if digest.size_bytes > _LARGE_BYTES:
        fd = tree.open(digest)
        try:
            begin = os.pread(fd, MAGIC_BYTES, 0)
        finally:
            os.close(fd)
        if begin not in MAGICS or digest.size_bytes > _OBJECT_MAX_BYTES:
            raise CorruptError(f"{digest.name}: is no part of a snapshot")
    return read_blob(tree, digest, None)


def _contents_of(rows: list[HistoryRow]) -> list[Content]:
    return [row.content for row in rows if row.sha256 is not None]


def _number_of(record: InodeRecord | HistoryRecord) -> int:
    return record.number
