"""A snapshot mounted alone (`-o ro,snapshot=NAME`): the tree as it was, from the blobs and nothing else.

Needs neither the catalog nor the store's lock. So it can stand beside a mount that writes, and be made of a backup
that nothing was restored from yet. Inode numbers are those of then. The blobs are verified by their SHA-256.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
    XAttrNameT,
)

from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import read_ref, read_refs
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import BlobMissingError, StoreError
from mountstore.fuse import serving
from mountstore.fuse.answers import CACHE_S, is_shown, statfs_answer
from mountstore.fuse.errnos import guarded
from mountstore.fuse.mount_options import MountOptions
from mountstore.fuse.snapshots_view import SnapshotsView
from mountstore.fuse.virtual import Directory, VirtualInodes
from mountstore.namespace.contents import Contents
from mountstore.store.layout import BLOBS_NAME

__all__ = ["serve_snapshot"]

_TOLD_MAX: Final = 10
"""Names of snapshots that an error lists."""


async def serve_snapshot(
    store_path: str, mountpoint: str, name: str, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    """Mount a snapshot, and serve it until it is unmounted, or SIGTERM or SIGINT arrives.

    Args:
      store_path: A directory with `blobs/` in it: a store, or a copy of one.
      on_ready: Called once, when requests are being served.

    Raises:
      StoreError: There is no such snapshot.
      MisuseError: Nothing can be called so.
      CorruptError, BlobMissingError, MountError, OSError: It cannot be read, or mounted.
    """
    blobs = os.path.join(os.path.abspath(store_path), BLOBS_NAME)
    if not os.path.isdir(blobs):
        raise StoreError(f"{store_path}: is not a store, nor a copy of one: there is no {BLOBS_NAME} in it")
    try:
        ref = read_ref(blobs, name)
    except BlobMissingError:
        raise StoreError(f"{store_path}: there is no snapshot {name}; {_those_there(blobs)}") from None
    tree = BalancedTree(blobs)
    contents = Contents(tree, _NoChecksums())
    view = SnapshotsView(tree, contents, CACHE_S, alone=True)
    operations = _Operations(view.top(ref), blobs, acl=options.acl, xattr=options.xattr)
    await serving.serve(_ServedSnapshot(operations, contents), mountpoint, options, on_ready, fsname=store_path)


class _ServedSnapshot(serving.Served):
    """Nobody writes, and nothing has to run beside the handlers."""

    def __init__(self, operations: _Operations, contents: Contents) -> None:
        super().__init__(operations)
        self._operations = operations
        self._contents = contents

    async def close(self) -> None:
        await self._operations.release_all()
        self._contents.close()


def _those_there(blobs: str) -> str:
    names = [ref.name for ref in read_refs(blobs)[0]]
    if not names:
        return "it has none"
    more = f" and {len(names) - _TOLD_MAX} older ones" if len(names) > _TOLD_MAX else ""
    return f"there are {', '.join(names[:_TOLD_MAX])}{more}"


class _NoChecksums:
    """Without a catalog nothing is known: a blob is verified by what it is called."""

    def checksum(self, digest: Digest) -> bytes | None:
        return None


class _Operations(pyfuse3.Operations):
    """Handlers of a mount in which everything is virtual. What would change anything the kernel refuses."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, top: Directory, blobs: str, *, acl: bool, xattr: bool) -> None:
        super().__init__()
        self.enable_acl = acl
        self._xattr = xattr
        self._blobs = blobs
        self._nodes = VirtualInodes()
        # The kernel knows the root from the beginning, and never forgets it.
        self._nodes.present(top)

    @guarded
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        found = await self._nodes.lookup(parent_inode, name)
        # A number: the directory above the root, which is the root.
        return self._nodes.getattr(found) if isinstance(found, int) else found

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self._nodes.forget((number, count) for number, count in inode_list if number != pyfuse3.ROOT_INODE)

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._nodes.getattr(inode)

    @guarded
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        return True

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return self._nodes.readlink(inode)

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return self._nodes.opendir(inode)

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        await self._nodes.readdir(fh, start_id, token)

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        self._nodes.releasedir(fh)

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return await self._nodes.open(inode, flags, ctx.pid)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return await self._nodes.read(fh, off, size)

    @guarded
    async def flush(self, fh: FileHandleT) -> None:
        raise FUSEError(errno.ENOSYS)

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        await self._nodes.release(fh)

    @guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        value = dict(self._shown_to(inode, ctx)).get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return [XAttrNameT(name) for name, _ in self._shown_to(inode, ctx)]

    def _shown_to(self, inode: int, ctx: RequestContext) -> list[tuple[bytes, bytes]]:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)
        return [
            (name, value)
            for name, value in self._nodes.xattrs(inode)
            if is_shown(name, ctx, acl=self.enable_acl)
        ]

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statfs_answer(os.statvfs(self._blobs))

    async def release_all(self) -> None:
        """Close what the kernel left open when the connection ended."""
        await self._nodes.release_all()
