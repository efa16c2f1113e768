"""Turning changed bytes into blobs.

1. What a seal returns follows from the bytes and the parameters alone, whether the source is sparse, based
   on an older content, or neither: equal files get equal contents.
2. With a base only the surroundings of the changes are read, cut and written: from the piece before a change
   to the first cut point behind it that the base has too. From there on, the base's pieces are taken over.
3. Zeros that the source or the base vouches for are not read.
4. Memory: some pieces of at most `max_size`, and the manifest (some 100 bytes a piece, twice while encoding).

Why a common cut point is enough (2): cutting looks at the bytes since the last cut only, and where there is a
cut, no hole goes across it. So what follows a cut depends on the bytes behind it alone, and two files that are
equal behind a cut of both are cut alike there. Cutting starts over at the entry that contains the byte
`hole_min` before the change: a run of zeros that now is a hole, or has ceased to be one, cannot begin before
that entry.

A failed or cancelled seal leaves blobs that nothing refers to, for garbage collection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Final, Protocol, runtime_checkable

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.content import EMPTY, Content, ContentKind, Sealed
from mountstore.blobs.digest import Digest
from mountstore.blobs.extents import Extent, Segmenter
from mountstore.blobs.manifest import Manifest, load_manifest
from mountstore.blobs.pieces import PieceWriter, store_blob
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.errors import CancelledError, MisuseError

__all__ = ["Ranges", "Source", "SparseSource", "StreamingSeal", "seal", "seal_small"]

Ranges = Sequence[tuple[int, int]]
"""Offsets (start, end), half open."""

_READ_BYTES: Final = 1 << 20


class Source(Protocol):
    """Bytes to be sealed, which nobody changes meanwhile."""

    @property
    def size_bytes(self) -> int: ...

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, fewer only at the end; called in the thread of the seal."""


@runtime_checkable
class SparseSource(Source, Protocol):
    """A source that knows where it is zero."""

    def data_ranges(self) -> Iterable[tuple[int, int]]:
        """Ranges (start, end), sorted, outside which every byte is zero."""


def seal_small(tree: BalancedTree, data: bytes | bytearray) -> Sealed:
    """Seal the whole content of a small file, 1 to piece_max bytes, as one blob; blocks.

    Raises: as `BalancedTree.add_bytes`.
    """
    blob = store_blob(tree, data)
    return Sealed(Content(ContentKind.BLOB, blob.digest, len(data)), (blob,))


def seal(
    tree: BalancedTree,
    parameters: ChunkingParameters,
    source: Source,
    *,
    base: Content = EMPTY,
    dirty: Ranges | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Sealed:
    """Put the bytes of `source` into the tree; blocks, so it is for a worker thread.

    Args:
        source: Read in order, a part at a time. If it is a `SparseSource`, only where it has data.
        base: The content that the source was made from by changes; sealed with the same parameters.
        dirty: Where the source may differ from `base`, in any order; outside, it equals `base`, and is zero
            beyond the end of `base`. A change of the size need not be listed. None: nothing is known.
        cancelled: Asked between the parts.

    Raises:
        CancelledError: `cancelled` said so.
        BlobMissingError, CorruptError: The manifest of `base` cannot be read.
        MisuseError: The source ended before its size.
        Whatever `source` raises, and `BalancedTree.add_bytes`. Then nothing refers to what was written.
    """
    size = source.size_bytes
    if size == 0:
        return Sealed(EMPTY, ())
    if size <= parameters.piece_max:
        return seal_small(tree, _read(source, 0, size))
    old: Manifest | None = None
    changes: Ranges = [(0, size)]
    ranges: Iterable[tuple[int, int]] = changes
    if dirty is not None:
        if base.kind is ContentKind.MANIFEST:
            assert base.digest is not None
            old = load_manifest(partial(read_blob, tree), base.digest, None, base.size_bytes).manifest
            resized = [] if size == base.size_bytes else [(min(size, base.size_bytes), size)]
            changes = _merged(chain(dirty, resized), size, keep_empty=True)
            if not changes:
                return Sealed(base, (), sum(old_hole.length for old_hole in old if old_hole.digest is None))
        ranges = chain(old.data_ranges() if old is not None else [(0, base.size_bytes)], dirty)
    if isinstance(source, SparseSource):
        ranges = source.data_ranges()
    with PieceWriter(tree, parameters, threads=True) as writer:
        _Recut(parameters, source, _merged(ranges, size), old, changes, writer, cancelled).run()
        return writer.finish()


class _Recut:
    """One seal of a large source: alternately cutting around changes and taking over what is between them."""

    def __init__(
        self,
        parameters: ChunkingParameters,
        source: Source,
        ranges: Ranges,
        old: Manifest | None,
        changes: Ranges,
        writer: PieceWriter,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self._parameters = parameters
        self._source = source
        self._size = source.size_bytes
        self._ranges = ranges
        self._old = old
        self._changes = changes
        self._writer = writer
        self._cancelled = cancelled
        # The changes that cutting has not come to yet.
        self._next = 0

    def run(self) -> None:
        old = self._old
        if old is None:
            self._next = 1
            self._cut(0)
            return
        entry: int | None = 0
        while entry is not None:
            if self._next == len(self._changes):
                self._writer.take_over(old, entry, len(old))
                return
            first = self._restart()
            self._writer.take_over(old, entry, first)
            entry = self._cut(old.start(first))

    def _restart(self) -> int:
        """The entry of the base with which cutting has to start for the next change."""
        assert self._old is not None
        return self._old.find(max(0, self._changes[self._next][0] - self._parameters.hole_min))

    def _cut(self, position: int) -> int | None:
        """Cut from `position` to where the base can be taken over again: its entry, or None at the end."""
        segmenter = Segmenter(self._parameters)
        settled = 0
        for part in chain(_parts(self._source, self._ranges, position), [None]):
            if self._cancelled is not None and self._cancelled():
                raise CancelledError("the seal was cancelled")
            if part is None:
                extents = segmenter.finish()
            elif isinstance(part, int):
                extents = segmenter.feed_zeros(part)
            else:
                extents = segmenter.feed(part)
            for extent in extents:
                self._writer.put(extent)
                position += extent if isinstance(extent, int) else len(extent)
                if self._old is None:
                    continue
                while self._next < len(self._changes) and self._old.start(self._restart()) <= position:
                    settled = self._changes[self._next][1]
                    self._next += 1
                if settled <= position < self._size:
                    entry = self._old.entry_at(position)
                    if entry is not None:
                        return entry
        return None


class StreamingSeal:
    """A seal of bytes that arrive in order, while they arrive; blocks, for one worker thread at a time.

    The result is that of `seal` of the same bytes. To change what was fed, `finish`, and `seal` with the
    result as the base. To give up, drop the object. It takes up to piece_max + 2 * max_size bytes of memory.
    """

    def __init__(self, tree: BalancedTree, parameters: ChunkingParameters) -> None:
        self._tree = tree
        self._parameters = parameters
        self._head: bytearray | None = bytearray()
        self._segmenter = Segmenter(parameters)
        self._writer = PieceWriter(tree, parameters, threads=False)
        # Cut, but not stored yet: what is left of a call that failed comes first in the next.
        self._extents: deque[Extent] = deque()
        self._finished = False
        self.size_bytes = 0

    def feed(self, *parts: bytes | bytearray) -> None:
        """Take the next bytes; with none, only try again what failed.

        Raises: as `BalancedTree.add_bytes`. The bytes are taken all the same, and stored by a later call.
        """
        self.size_bytes += sum(map(len, parts))
        if self._head is not None:
            for part in parts:
                self._head += part
            if len(self._head) <= self._parameters.piece_max:
                return
            parts, self._head = (self._head,), None
        self._extents += self._segmenter.feed(*parts)
        self._store()

    def finish(self) -> Sealed:
        """The content of everything fed; nothing may be fed any more.

        Raises: as `BalancedTree.add_bytes`; it may be called again.
        """
        if self._head is not None:
            return seal_small(self._tree, self._head) if self._head else Sealed(EMPTY, ())
        if not self._finished:
            self._extents += self._segmenter.finish()
            self._finished = True
        self._store()
        return self._writer.finish()

    def contents(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """After a `finish` that failed: what holds the bytes [start, stop), with offsets, but for holes.

        Raises: CorruptError, BlobMissingError, OSError: A piece that was placed cannot be read.
        """
        if self._head is not None:
            yield 0, bytes(self._head)
            return
        offset = 0
        for entry in self._writer.entries():
            if entry.digest is not None and start < offset + entry.length and offset < stop:
                yield offset, read_blob(self._tree, entry.digest, entry.checksum)
            offset += entry.length
        for extent in self._extents:
            if isinstance(extent, int):
                offset += extent
            else:
                if start < offset + len(extent) and offset < stop:
                    yield offset, bytes(extent)
                offset += len(extent)

    def stored(self) -> list[Digest]:
        """Blobs placed so far, which the content will need; while nobody feeds it."""
        return self._writer.stored()

    def _store(self) -> None:
        while self._extents:
            self._writer.put(self._extents[0])
            self._extents.popleft()


def _read(source: Source, offset: int, length: int) -> bytes:
    data = source.pread(offset, length)
    if len(data) != length:
        raise MisuseError(f"the source gave {len(data)} bytes at {offset} instead of {length}")
    return data


def _parts(source: Source, ranges: Ranges, position: int) -> Iterator[bytes | int]:
    """The source from `position` on: bytes, or the length of a run of zeros."""
    size = source.size_bytes
    i = bisect_right(ranges, position, key=lambda found: found[1])
    while position < size:
        start, end = ranges[i] if i < len(ranges) else (size, size)
        if position < start:
            yield start - position
            position = start
        else:
            stop = min(end, position + _READ_BYTES)
            yield _read(source, position, stop - position)
            position = stop
            i += stop == end


def _merged(ranges: Iterable[tuple[int, int]], size: int, *, keep_empty: bool = False) -> Ranges:
    """Sorted, within `size`, and with a gap between any two."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        stop = min(end, size)
        if start > stop or (start == stop and not keep_empty):
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged
