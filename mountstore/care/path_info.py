"""What stands behind one path: its content, the blobs it consists of and where they lie, its versions.

Made to be asked often, by a web server that serves blobs directly: what is not asked for is not looked at.
"""

from __future__ import annotations

import os
import stat
from typing import Final

import msgspec
import trio

from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.describe import describe
from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.care.sharing import Sharing, report_sharing
from mountstore.care.space_report import settle
from mountstore.errors import AbsentError, WantsDirectoryError
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.notation import parse_reference
from mountstore.namespace.paths import parts_of
from mountstore.store import Store
from mountstore.store.layout import BLOBS_NAME

__all__ = ["ContentInfo", "PathInfo", "Piece", "describe_path"]

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}


class Piece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stretch of a file, in order."""

    offset: int
    size_bytes: int
    digest: str | None = None
    """None: a hole."""
    blob: str | None = None


class ContentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How the bytes of a file are stored."""

    kind: str
    """`empty`; `blob`: one blob is the file; `manifest`: a blob that lists the pieces of a large file."""
    size_bytes: int
    digest: str | None = None
    """Name of the blob, or of the manifest; equal for equal contents."""
    sha256: str | None = None
    """Of the file's bytes, for a `blob`."""
    blob: str | None = None
    """Path of the blob, or of the manifest, from the store's directory: it stays there for as long as something
    needs it. None if it is missing."""
    blob_path: str | None = None
    """The same, absolute."""
    pieces: int = 0
    unique_pieces: int = 0
    stored_bytes: int = 0
    """Of the pieces, each once, and the manifests."""
    hole_bytes: int = 0
    entries: tuple[Piece, ...] | None = None
    """The pieces, if they were asked for."""


class PathInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One path."""

    path: str
    kind: str
    size_bytes: int
    mode: str
    """Permissions, in octal."""
    uid: int
    gid: int
    mtime_ns: int
    inode: int | None = None
    """None for a version."""
    links: int | None = None
    target: str | None = None
    """Of a symbolic link."""
    version: int | None = None
    """Its number: of what is asked for, as `path@N` names it."""
    older_versions: int | None = None
    """How many contents the name had before this one; garbage collection may have dropped some of them."""
    changing: bool = False
    """There are changes that are not sealed, since somebody has the file open: the content is what the last
    close, or fsync, left."""
    content: ContentInfo | None = None
    """Of a file."""
    sharing: Sharing | None = None
    """If it was asked for."""


async def describe_path(
    store: Store, path: bytes, *, pieces: bool = False, sharing: bool = False
) -> PathInfo:
    """Tell what stands behind a path, or behind `path@N`, `path@TIME` of an old version.

    Args:
      path: From the root of the mount.
      pieces: List the pieces of a large file.
      sharing: Compare with everything else in the store, which reads the whole catalog.

    Raises:
      AbsentError, WantsDirectoryError: There is nothing at `path`.
      BlobMissingError, CorruptError: The manifest of a large file cannot be read.
    """
    inode = _find(store, path)
    if inode is not None and inode.draft is not None and inode.writers == 0 and not store.read_only:
        # Closed, and about to be sealed.
        await store.sealer.seal(inode)
        inode = _find(store, path)
    if inode is None:
        # A version, or a name that is gone.
        return await _describe_version(store, path, pieces)
    version = older = None
    if inode.is_regular:
        *above, name = parts_of(path)
        directory = _find(store, b"/".join(above))
        assert directory is not None, "the path was found just now"
        line = store.timeline.line(directory.id, name)
        version, older = line.current, line.superseded
    info = _info(path, inode, version, older)
    content = await _content(store, inode.content, pieces) if inode.is_regular else None
    shared = None
    if sharing:
        await settle(store)
        shared = await trio.to_thread.run_sync(report_sharing, store, path)
    return msgspec.structs.replace(info, content=content, sharing=shared)


def _info(path: bytes, inode: Inode, version: int | None, older: int | None) -> PathInfo:
    return PathInfo(
        path=_shown(path),
        kind=_KINDS[stat.S_IFMT(inode.mode)],
        size_bytes=inode.size,
        mode=f"{inode.mode & 0o7777:04o}",
        uid=inode.uid,
        gid=inode.gid,
        mtime_ns=inode.mtime_ns,
        inode=inode.id,
        links=inode.nlink,
        target=None if inode.target is None else os.fsdecode(inode.target),
        version=version,
        older_versions=older,
        changing=inode.draft is not None,
    )


async def _describe_version(store: Store, path: bytes, pieces: bool) -> PathInfo:
    if parse_reference(path).selector is None:
        raise AbsentError(f"{_shown(path)}: there is nothing of that name")
    number, version = await store.recall.find_version(path)
    content = EMPTY if version.content is None else version.content
    return PathInfo(
        path=_shown(path),
        kind="version",
        size_bytes=version.size_bytes,
        mode=f"{version.mode & 0o7777:04o}",
        uid=version.uid,
        gid=version.gid,
        mtime_ns=version.mtime_ns,
        version=number,
        older_versions=number - 1,
        content=await _content(store, content, pieces),
    )


def _find(store: Store, path: bytes) -> Inode | None:
    """What a path leads to now."""
    inode = store.namespace.get(ROOT)
    for part in parts_of(path):
        if not inode.is_directory:
            raise WantsDirectoryError(f"{_shown(path)}: a part of this path is no directory")
        found = store.namespace.find(inode.id, part)
        if found is None:
            return None
        inode = found
    return inode


def _shown(path: bytes) -> str:
    return os.fsdecode(path)


async def _content(store: Store, content: Content, pieces: bool) -> ContentInfo:
    if content.digest is None:
        return ContentInfo(kind="empty", size_bytes=0)
    checksum = store.ledger.checksum(content.digest)
    return await store.contents.in_thread(_describe, store.path, store.tree, content, checksum, pieces)


def _describe(
    store: str, tree: BalancedTree, content: Content, checksum: bytes | None, pieces: bool
) -> ContentInfo:
    digest = content.digest
    assert digest is not None
    place = _place(store, tree, digest)
    described = describe(tree, content, checksum)
    whole = content.kind is ContentKind.BLOB
    listed = None
    if pieces:
        listed = tuple(
            Piece(
                offset=entry.offset,
                size_bytes=entry.length,
                digest=None if entry.digest is None else entry.digest.name,
                blob=None if entry.digest is None else _place(store, tree, entry.digest),
            )
            for entry in described.entries()
        )
    return ContentInfo(
        kind=content.kind.name.lower(),
        size_bytes=content.size_bytes,
        digest=digest.name,
        sha256=digest.sha256.hex() if whole else None,
        blob=place,
        blob_path=None if place is None else os.path.join(store, place),
        pieces=described.pieces,
        unique_pieces=described.unique_pieces,
        stored_bytes=described.unique_bytes + described.manifest_bytes,
        hole_bytes=described.hole_bytes,
        entries=listed,
    )


def _place(store: str, tree: BalancedTree, digest: Digest) -> str | None:
    """Where a blob lies, from the store's directory."""
    path = tree.find(digest)
    return None if path is None else f"{BLOBS_NAME}{path.removeprefix(tree.root)}"
