"""Which blobs a content consists of, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mountstore.blobs.chunking import PIECE_SIZE_LIMIT
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import LEVEL_LIMIT, MAGIC, Manifest, decode_manifest
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.errors import BlobMissingError, CorruptError

__all__ = ["blobs_below", "blobs_of", "require_blobs"]


def blobs_of(tree: BalancedTree, content: Content) -> Iterator[Digest]:
    """All that a content consists of; blocks.

    Raises: BlobMissingError, CorruptError: A manifest cannot be read.
    """
    if content.digest is None:
        return
    yield content.digest
    if content.kind is ContentKind.MANIFEST:
        yield from blobs_below(tree, content.digest)


def blobs_below(tree: BalancedTree, digest: Digest) -> Iterator[Digest]:
    """All blobs that a manifest lists, of every level, those of a level before it is read itself; blocks.

    Raises: BlobMissingError, CorruptError: A manifest cannot be read; what was yielded is needed all the same.
    """
    waiting = [digest]
    level = LEVEL_LIMIT + 1
    while waiting:
        manifest = _read_manifest(tree, waiting, digest.name)
        if manifest.level >= level:
            raise CorruptError(f"{digest.name}: level {manifest.level} below level {level}")
        level = manifest.level
        pieces = [entry.digest for entry in manifest if entry.digest is not None]
        yield from pieces
        waiting = pieces if level else []


def _read_manifest(tree: BalancedTree, parts: Sequence[Digest], name: str) -> Manifest:
    """The manifest of any level that these blobs hold, one after the other; blocks.

    Args:
      name: Says in errors which one it is.

    Raises: BlobMissingError, CorruptError: It cannot be read, or is none; of what is none, not all is read.
    """
    read: list[bytes] = []
    for part in parts:
        if part.size_bytes > PIECE_SIZE_LIMIT:
            raise CorruptError(f"{part.name}: is too large for a manifest")
        read.append(read_blob(tree, part, None))
        if not read[0].startswith(MAGIC):
            break
    return decode_manifest(b"".join(read), name)


def require_blobs(tree: BalancedTree, content: Content) -> None:
    """See that every blob of a content is there and of the right size, and that garbage collection, should one be
    under way, leaves it alone; blocks.

    Raises: BlobMissingError, CorruptError: As `blobs_of`, or one is not.
    """
    for digest in blobs_of(tree, content):
        if not tree.want(digest):
            raise BlobMissingError(f"blob {digest.name} is missing or damaged")
