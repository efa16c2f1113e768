"""Sealed contents open for reading, and the worker threads for what blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakSet

import trio

from mountstore.blobs.content import Content
from mountstore.blobs.reader import ContentReader, DescriptorCache, VerifiedBlobs
from mountstore.blobs.tree import BalancedTree
from mountstore.namespace.inodes import Inode
from mountstore.namespace.ledger import Ledger

_T = TypeVar("_T")

_WORKERS = 4
"""Threads for contents; two would keep two cores busy, the others wait for the disk."""


class Contents:
    """Reads of one store's sealed contents.

    Args:
      ledger: Knows the checksums of single blobs; those of pieces stand in the manifests.
    """

    def __init__(self, tree: BalancedTree, ledger: Ledger) -> None:
        self._tree = tree
        self._ledger = ledger
        self._workers = trio.CapacityLimiter(_WORKERS)
        self._descriptors = DescriptorCache()
        self._readers: WeakSet[ContentReader] = WeakSet()
        self._additions: set[trio.Event] = set()
        self.verified = VerifiedBlobs()

    def open_reader(self, content: Content) -> ContentReader | None:
        """A reader of its own, to be closed by the caller; None for the empty content."""
        if content.digest is None:
            return None
        checksum = self._ledger.checksum(content.digest)
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
        data = reader.pread_nowait(offset, length)
        if data is None:
            data = await self.in_thread(reader.pread, offset, length)
        return data

    def close_reader(self, inode: Inode) -> None:
        """Let go of the inode's reader; reads under way end as usual."""
        if inode.reader is not None:
            inode.reader.close()
            inode.reader = None

    async def in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run what blocks on data that nobody else changes."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._workers)

    def close_idle(self) -> int:
        """Close descriptors that nobody uses, since there are too few; how many that were."""
        return self._descriptors.close_idle()

    def close(self) -> None:
        """Close all descriptors that nobody uses."""
        self._descriptors.close_idle()
