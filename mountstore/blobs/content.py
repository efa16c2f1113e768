"""What an inode points to: nothing, one blob, or a manifest that lists the pieces of a larger file.

A content is a value: it names immutable blobs and is complete without a catalog. The same bytes sealed with
the same `ChunkingParameters` always give the same content, however they were written
(`mountstore.blobs.seal`), so contents may be compared with `==` to tell whether two files are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from mountstore.blobs.digest import Digest

__all__ = ["EMPTY", "Content", "ContentKind", "Sealed", "SealedBlob"]


class ContentKind(IntEnum):
    """How a content is stored. Values are on disk: never renumber."""

    EMPTY = 0
    BLOB = 1
    MANIFEST = 2


class Content(NamedTuple):
    """The bytes of one file.

    `digest` names the blob or the manifest blob and is None only for EMPTY. `size_bytes` is the size of the
    file: for a manifest that is not the size of the manifest blob.
    """

    kind: ContentKind
    digest: Digest | None
    size_bytes: int


EMPTY = Content(ContentKind.EMPTY, None, 0)


class SealedBlob(NamedTuple):
    """A blob that a seal put into the tree (`new`) or found there.

    `checksum` is the 16-byte XXH3-128 of its bytes, `path` where it lies.
    """

    digest: Digest
    checksum: bytes
    path: str
    new: bool


class Sealed(NamedTuple):
    """The result of a seal.

    `blobs` has every blob that the seal wrote or met, each once: pieces, manifest pieces and manifests.
    Pieces taken over from the base unread are not in it, since what refers to the base refers to them.
    Of the content, `hole_bytes` lie in holes.
    """

    content: Content
    blobs: Sequence[SealedBlob]
    hole_bytes: int = 0
