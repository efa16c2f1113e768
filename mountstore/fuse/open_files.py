"""Files of the store that the kernel has open, by the numbers it knows them by."""

from __future__ import annotations

import itertools
import logging
import os

import trio
from pyfuse3 import FileHandleT, FileInfo, RequestContext

from mountstore.fuse.answers import keeps_setgid
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import Inode
from mountstore.namespace.paths import find_paths
from mountstore.store import Store

__all__ = ["OpenFiles"]

log = logging.getLogger(__name__)


class OpenFiles:
    """The open files of one mount; belongs to the trio thread.

    Attributes:
      handles: By number; for handlers that cannot spare a call. Who takes one out releases it.
    """

    def __init__(self, store: Store) -> None:
        self.handles: dict[int, Handle] = {}
        self._store = store
        self._files = store.files
        self._numbers = itertools.count(1)
        # Somebody else changes what a read-only mount shows.
        self._keep_cache = not store.read_only
        # Damage that was logged; bounded by how many inodes are damaged.
        self._reported: set[tuple[int, str]] = set()

    def open(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a regular file with the flags of open(2), of which O_TRUNC is left to the caller."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        handle = self._files.open(
            inode,
            writable=writable,
            privileged=ctx.uid == 0,
            member=writable and keeps_setgid(ctx, inode),
        )
        number = next(self._numbers)
        self.handles[number] = handle
        return FileInfo(fh=FileHandleT(number), keep_cache=self._keep_cache)

    async def report_damage(self, inode: Inode, exc: Exception) -> None:
        """Say once which blob is bad and which files that makes unreadable."""
        if (inode.id, str(exc)) in self._reported:
            return
        self._reported.add((inode.id, str(exc)))
        paths = await trio.to_thread.run_sync(find_paths, self._store.catalog.path, inode.id)
        names = ", ".join(os.fsdecode(path) for path in paths) or f"inode {inode.id}"
        log.error("%s: %s; reading there answers EIO", names, exc)

    async def find_written(self) -> list[bytes]:
        """A path, from the mount's root, of every file that somebody has open for writing."""
        inodes = {handle.inode.id for handle in self.handles.values() if handle.writable}
        if inodes:
            # The paths are looked up as of the last commit.
            self._store.commits.commit()
        paths = []
        for inode in inodes:
            found = await trio.to_thread.run_sync(find_paths, self._store.catalog.path, inode)
            paths += found[:1]
        return paths

    async def release_all(self) -> None:
        """Close what the kernel left open when the connection ended."""
        while self.handles:
            _, handle = self.handles.popitem()
            await self._files.release(handle)
