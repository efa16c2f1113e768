"""Which blobs a content consists of, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterator

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import decode_manifest
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.errors import BlobMissingError

__all__ = ["blobs_of", "require_blobs"]


def blobs_of(tree: BalancedTree, content: Content) -> Iterator[Digest]:
    """All that a content consists of; blocks.

    Raises: BlobMissingError, CorruptError: A manifest cannot be read.
    """
    if content.digest is None:
        return
    yield content.digest
    waiting = [content.digest] if content.kind is ContentKind.MANIFEST else []
    while waiting:
        data = b"".join(read_blob(tree, part, None) for part in waiting)
        manifest = decode_manifest(data, content.digest.name)
        pieces = [entry.digest for entry in manifest if entry.digest is not None]
        yield from pieces
        waiting = pieces if manifest.level else []


def require_blobs(tree: BalancedTree, content: Content) -> None:
    """See that every blob of a content is there and of the right size; blocks.

    Raises: BlobMissingError, CorruptError: As `blobs_of`, or one is not.
    """
    for digest in blobs_of(tree, content):
        if tree.find(digest) is None:
            raise BlobMissingError(f"blob {digest.name} is missing or damaged")
