"""What a content consists of: for garbage collection, which must know every blob, and for the dedup report.

Only manifests are read, verified by SHA-256 or, if given, their checksum. Everything here blocks; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import Entry, Manifest, load_manifest
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob

__all__ = ["Description", "describe", "references"]


@dataclass(frozen=True, slots=True)
class Description:
    """One content, taken apart."""

    content: Content
    logical_bytes: int
    """The size of the file."""
    hole_bytes: int
    unique_bytes: int
    """Of its pieces, each counted once. At most logical_bytes - hole_bytes."""
    manifest_bytes: int
    """Of the manifests of all levels, which come on top."""
    pieces: int
    unique_pieces: int
    shared_pieces: int
    """Unique pieces that the file has more than once."""
    _manifest: Manifest | None = field(repr=False)

    def entries(self) -> Iterator[Entry]:
        """The pieces and holes in order. The checksum of the single piece of a small file is not known: None."""
        if self._manifest is not None:
            yield from self._manifest
        elif self.content.digest is not None:
            yield Entry(0, self.logical_bytes, self.content.digest, None)


def describe(tree: BalancedTree, content: Content, checksum: bytes | None = None) -> Description:
    """Take a content apart.

    Args:
        checksum: XXH3-128 of the manifest blob, if known.

    Raises:
        BlobMissingError, CorruptError: A manifest is not there or not what was written. Pieces are not
            looked at.
    """
    if content.kind is not ContentKind.MANIFEST:
        n = content.kind.value
        return Description(content, content.size_bytes, 0, content.size_bytes, 0, n, n, 0, None)
    assert content.digest is not None
    loaded = load_manifest(partial(read_blob, tree), content.digest, checksum, content.size_bytes)
    pieces = hole_bytes = 0
    sizes: dict[bytes, int] = {}
    shared: set[bytes] = set()
    for entry in loaded.manifest:
        if entry.digest is None:
            hole_bytes += entry.length
            continue
        pieces += 1
        if entry.digest.sha256 in sizes:
            shared.add(entry.digest.sha256)
        sizes[entry.digest.sha256] = entry.length
    return Description(
        content=content,
        logical_bytes=content.size_bytes,
        hole_bytes=hole_bytes,
        unique_bytes=sum(sizes.values()),
        manifest_bytes=sum(digest.size_bytes for digest in set(loaded.blobs)),
        pieces=pieces,
        unique_pieces=len(sizes),
        shared_pieces=len(shared),
        _manifest=loaded.manifest,
    )


def references(tree: BalancedTree, content: Content, checksum: bytes | None = None) -> Iterator[Digest]:
    """Every blob without which the content cannot be read, some perhaps repeatedly: manifests, then pieces.

    Raises: as `describe`, before or between the digests.
    """
    if content.digest is None:
        return
    if content.kind is ContentKind.BLOB:
        yield content.digest
        return
    loaded = load_manifest(partial(read_blob, tree), content.digest, checksum, content.size_bytes)
    yield from loaded.blobs
    for entry in loaded.manifest:
        if entry.digest is not None:
            yield entry.digest
