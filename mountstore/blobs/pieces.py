"""Storing extents as they are found: each piece hashed, put into the tree and listed in a manifest.

Hashing, writing and cutting all release the GIL, so with `threads` they overlap: sealing new data is then
limited by SHA-256 and FastCDC side by side instead of one after the other.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from mountstore.blobs.chunking import Chunker, ChunkingParameters
from mountstore.blobs.content import Content, ContentKind, Sealed, SealedBlob
from mountstore.blobs.digest import Buffer, Digest, digest_and_checksum
from mountstore.blobs.extents import Extent
from mountstore.blobs.manifest import Entry, Manifest, ManifestBuilder, decode_manifest
from mountstore.blobs.tree import BalancedTree

__all__ = ["PieceWriter", "store_blob"]

# A change to a large file makes one to three pieces, for which starting threads does not pay.
_PIECES_INLINE: Final = 3
_THREADS: Final = 2
_UNDER_WAY_MAX: Final = 3


def store_blob(tree: BalancedTree, data: Buffer) -> SealedBlob:
    """Put one blob into the tree, unless it is there; blocks. Raises: as `BalancedTree.add_bytes`."""
    digest, checksum = digest_and_checksum(data)
    added = tree.add_bytes(data, digest)
    return SealedBlob(digest, checksum, added.path, added.new)


class PieceWriter:
    """Collects a content. A context manager, for one thread at a time.

    Args:
        threads: Hash and write in threads of its own from the fourth piece on. An error then shows in a later
            call.
    """

    __slots__ = ("_blobs", "_builder", "_parameters", "_pieces", "_pool", "_threads", "_tree", "_under_way")

    def __init__(self, tree: BalancedTree, parameters: ChunkingParameters, *, threads: bool) -> None:
        self._tree = tree
        self._parameters = parameters
        self._threads = threads
        self._builder = ManifestBuilder()
        self._blobs: dict[Digest, SealedBlob] = {}
        self._pieces = 0
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[SealedBlob] | SealedBlob | int] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def put(self, extent: Extent) -> None:
        """Append a piece or a hole. Raises: as `store_blob`."""
        self._drain(_UNDER_WAY_MAX - 1)
        if isinstance(extent, int):
            self._under_way.append(extent)
            return
        self._pieces += 1
        if not self._threads or self._pieces <= _PIECES_INLINE:
            self._under_way.append(store_blob(self._tree, extent))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "seal")
        self._under_way.append(self._pool.submit(store_blob, self._tree, extent))

    def take_over(self, manifest: Manifest, first: int, end: int) -> None:
        """Append the entries [first, end) of an older content."""
        self._drain(0)
        self._builder.add_entries(manifest, first, end)

    def stored(self) -> list[Digest]:
        """Blobs placed so far; while nothing is under way in threads."""
        return [*self._blobs, *(blob.digest for blob in self._under_way if isinstance(blob, SealedBlob))]

    def entries(self) -> list[Entry]:
        """Pieces and holes so far; without threads."""
        self._drain(0)
        if not self._builder.size_bytes:
            return []
        manifest = decode_manifest(self._builder.encode(0))
        return [manifest.entry(i) for i in range(len(manifest))]

    def finish(self) -> Sealed:
        """Store the manifest. Raises: as `store_blob`."""
        self._drain(0)
        size_bytes, hole_bytes = self._builder.size_bytes, self._builder.hole_bytes
        level = 0
        data = self._builder.encode(level)
        while len(data) > self._parameters.piece_max:
            level += 1
            data = self._describe(data, level)
        blob = store_blob(self._tree, data)
        self._blobs.setdefault(blob.digest, blob)
        content = Content(ContentKind.MANIFEST, blob.digest, size_bytes)
        return Sealed(content, tuple(self._blobs.values()), hole_bytes)

    def _describe(self, data: bytes, level: int) -> bytes:
        """Store a manifest in pieces; the manifest of `level` that lists them."""
        builder = ManifestBuilder()
        view = memoryview(data)
        offset = 0
        for length in Chunker(self._parameters).cut(data, len(data), final=True):
            blob = store_blob(self._tree, bytes(view[offset : offset + length]))
            self._blobs.setdefault(blob.digest, blob)
            builder.add_piece(blob.digest, blob.checksum)
            offset += length
        return builder.encode(level)

    def _drain(self, leave: int) -> None:
        while len(self._under_way) > leave:
            blob = self._under_way.popleft()
            if isinstance(blob, int):
                self._builder.add_hole(blob)
                continue
            if isinstance(blob, Future):
                blob = blob.result()
            # Of two equal pieces either may have been the one that was new.
            known = self._blobs.get(blob.digest)
            if known is None or blob.new:
                self._blobs[blob.digest] = blob
            self._builder.add_piece(blob.digest, blob.checksum)
