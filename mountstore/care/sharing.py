"""What a file or a directory tree costs, and how much of that it shares with the rest of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mountstore.blobs.content import Content
from mountstore.blobs.describe import references
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import load_manifest
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.errors import BlobMissingError, CorruptError
from mountstore.namespace.usage import Usage
from mountstore.store import Store
from mountstore.store.config import read_config
from mountstore.store.layout import BLOBS_NAME, CATALOG_NAME, STAGING_NAME

__all__ = ["Sharing", "report_sharing"]


@dataclass(frozen=True, slots=True)
class Sharing:
    """The files below a path, as of the last commit: each inode once, however many names it has.

    A blob is shared if a file elsewhere consists of it or has it as a piece or as its manifest; hard links to
    the same inode are not elsewhere. Versions, snapshots and drafts are not looked at.
    """

    files: int
    logical_bytes: int
    """The sum of the sizes that the files show."""
    stored_bytes: int
    """Of all blobs needed to read them, each counted once, manifests included."""
    unique_bytes: int
    """Of these, what nothing elsewhere needs."""
    shared_bytes: int
    """The rest."""
    pieces: int
    """Blobs with data of files, each counted once: pieces of large files, whole contents of small ones."""
    shared_pieces: int
    """Of these, how many something elsewhere needs."""
    unreadable_files: int
    """Contents, here or elsewhere, that could not be taken apart: damaged, so what they consist of, and share, is
    not known. Only `files` and `logical_bytes` count those here."""


def report_sharing(store: Store | str, path: bytes) -> Sharing:
    """Take apart the file or the directory tree at `path`, and compare it with everything else.

    Reads the manifest of every large file in the store, unless the path is all there is; some microseconds for
    every small one. Memory does not grow with the number of files.

    Args:
        store: An open store, or the path of one, mounted or not.
        path: From the root of the mount.

    Raises:
        AbsentError: There is nothing at `path`.
        CorruptError: The catalog cannot be read.
        StoreError: There is no store.

    Thread: any worker; blocks, so never the thread of an open store.
    """
    if isinstance(store, str):
        config = read_config(store)
        root, staging = os.path.join(store, BLOBS_NAME), os.path.join(store, STAGING_NAME)
        tree = BalancedTree(root, staging=staging, dir_limit=config.dir_limit)
        catalog_path = os.path.join(store, CATALOG_NAME)
    else:
        tree, catalog_path = store.tree, store.catalog.path
    unreadable = 0
    with Usage(catalog_path, path) as usage:
        for content, checksum in usage.manifests(inside=True):
            try:
                usage.add_used(_blobs(tree, content, checksum))
            except (BlobMissingError, CorruptError):
                unreadable += 1
        if not usage.everything_is_inside():
            usage.find_elsewhere()
            for content, checksum in usage.manifests(inside=False):
                try:
                    usage.add_elsewhere(references(tree, content, checksum))
                except (BlobMissingError, CorruptError):
                    unreadable += 1
        totals = usage.totals()
    return Sharing(
        files=totals.files,
        logical_bytes=totals.logical_bytes,
        stored_bytes=totals.stored_bytes,
        unique_bytes=totals.stored_bytes - totals.shared_bytes,
        shared_bytes=totals.shared_bytes,
        pieces=totals.pieces,
        shared_pieces=totals.shared_pieces,
        unreadable_files=unreadable,
    )


def _blobs(tree: BalancedTree, content: Content, checksum: bytes | None) -> Iterator[tuple[Digest, bool]]:
    """All blobs of a large file, and whether each is a piece."""
    assert content.digest is not None
    loaded = load_manifest(partial(read_blob, tree), content.digest, checksum, content.size_bytes)
    for digest in loaded.blobs:
        yield digest, False
    for entry in loaded.manifest:
        if entry.digest is not None:
            yield entry.digest, True
