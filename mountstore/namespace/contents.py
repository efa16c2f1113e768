"""Sealed contents open for reading, and the worker threads for what blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar
from weakref import WeakSet

import trio

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.reader import (
    INLINE_READ_MAX,
    LONG_BYTES,
    ContentReader,
    DescriptorCache,
    VerifiedBlobs,
)
from mountstore.blobs.tree import BalancedTree
from mountstore.namespace.fetch_ahead import FetchAhead
from mountstore.namespace.inodes import Inode
from mountstore.namespace.workers import Workers

_T = TypeVar("_T")

_WORKERS = 4
"""Threads for contents; two would keep two cores busy, the others wait for the disk."""


class Checksums(Protocol):
    """Knows the checksums of single blobs."""

    def checksum(self, digest: Digest) -> bytes | None: ...


_AT_HAND_S = 0.00003
"""What the page cache had takes 10 us, the quickest disks 50."""

QUICK_S = 0.0005
"""A cold read that takes no longer than this costs less than the way to a worker and back, on a loaded machine."""

_QUICK_READS = 8

_HASHED_MAX = 8192
"""SHA-256 of so many bytes takes no longer than asking the catalog for their checksum; and what was verified is
hardly ever verified again."""


class ReadPace:
    """Whether the disk has lately been so quick that small reads need no worker: fast flash, in a quiet moment.

    One slow read ends that, until several in a row, made by workers, were quick again. So a rotating disk, a
    network or a busy disk holds up the owner's thread once in a while for one read, and no more.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _QUICK_READS

    @property
    def quick(self) -> bool:
        return self._left == 0

    def note(self, elapsed_s: float) -> None:
        """A small cold read took so long; any thread."""
        if elapsed_s > QUICK_S:
            self._left = _QUICK_READS
        elif self._left:
            self._left -= 1


class Contents:
    """Reads of one store's sealed contents.

    Args:
      ledger: Knows the checksums of single blobs; those of pieces stand in the manifests.
      list_small: Given a size, as of `FetchAhead`.
    """

    def __init__(
        self,
        tree: BalancedTree,
        ledger: Checksums,
        list_small: Callable[[int, int, int], Sequence[tuple[int, Digest]]] = lambda size, after, limit: (),
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._workers = Workers(_WORKERS)
        self._descriptors = DescriptorCache()
        self._readers: WeakSet[ContentReader] = WeakSet()
        self._additions: set[trio.Event] = set()
        self.verified = VerifiedBlobs()
        self._pace = ReadPace()
        self._ahead = FetchAhead(partial(list_small, INLINE_READ_MAX))
        # Reads that wait for the disk in workers: another beside them is best made beside them.
        self._waiting = 0

    def open_reader(self, content: Content) -> ContentReader | None:
        """A reader of its own, to be closed by the caller; None for the empty content."""
        if content.digest is None:
            return None
        digest = content.digest
        hashed = digest in self.verified or digest.size_bytes <= _HASHED_MAX
        checksum = None if hashed else self._ledger.checksum(digest)
        reader = ContentReader(self._tree, content, checksum, self.verified, self._descriptors)
        self._readers.add(reader)
        return reader

    def being_read(self) -> set[Content]:
        """Contents of all readers, which may be old versions that nothing else has any more."""
        return {reader.content for reader in self._readers}

    @contextmanager
    def adding(self) -> Iterator[None]:
        """The context in which a worker adds blobs that are no draft's, until something refers to them."""
        done = trio.Event()
        self._additions.add(done)
        try:
            yield
        finally:
            self._additions.discard(done)
            done.set()

    async def wait_added(self) -> None:
        """Return when all who are `adding` now have ended."""
        for done in list(self._additions):
            await done.wait()

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Bytes of the inode's sealed content, fewer than `length` only at its end.

        Raises:
          CorruptError, BlobMissingError: The store's bytes are not those that were written.
        """
        if offset >= inode.content.size_bytes:
            return b""
        reader = inode.reader
        if reader is None:
            reader = inode.reader = self.open_reader(inode.content)
            assert reader is not None
        parts = reader.parts(offset, length)
        little = parts is not None and reader.cost_bytes(parts) <= INLINE_READ_MAX
        if parts is not None and little and self._pace.quick and not self._waiting:
            started_s = time.perf_counter()
            try:
                # A stream is read ahead of.
                return reader.read(parts) if length < LONG_BYTES else reader.pread(offset, length)
            finally:
                elapsed_s = time.perf_counter() - started_s
                self._pace.note(elapsed_s)
                if inode.content.kind is ContentKind.BLOB:
                    self._fetch(self._ahead.note(inode.id, waited=elapsed_s > _AT_HAND_S))
        if reader.cold and length >= LONG_BYTES:
            # To look into the page cache first would cost a copy of what lies there.
            return await self.in_thread(reader.pread, offset, length)
        data = None if parts is None else reader.read_nowait(parts)
        if data is not None:
            return data
        if not little:
            return await self.in_thread(reader.pread, offset, length)
        single = inode.content.kind is ContentKind.BLOB
        ahead = self._ahead.note(inode.id, waited=True) if single else ()
        self._waiting += 1
        try:
            return await self.in_thread(self._timed_pread, reader, offset, length, ahead)
        finally:
            self._waiting -= 1

    def _timed_pread(self, reader: ContentReader, offset: int, length: int, ahead: Sequence[Digest]) -> bytes:
        started_s = time.perf_counter()
        try:
            # The disk can choose the order then.
            self._fetch(ahead)
            return reader.pread(offset, length)
        finally:
            self._pace.note(time.perf_counter() - started_s)

    def _fetch(self, digests: Sequence[Digest]) -> None:
        for digest in digests:
            self._descriptors.fetch(self._tree, digest)

    def close_reader(self, inode: Inode) -> None:
        """Let go of the inode's reader; reads under way end as usual."""
        if inode.reader is not None:
            inode.reader.close()
            inode.reader = None

    async def in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run what blocks on data that nobody else changes."""
        return await self._workers.run(function, *arguments)

    def close_idle(self) -> int:
        """Close descriptors that nobody uses, since there are too few; how many that were."""
        return self._descriptors.close_idle()

    def close(self) -> None:
        """Close all descriptors that nobody uses, and end the workers."""
        self._descriptors.close_idle()
        self._workers.close()
