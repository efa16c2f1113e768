#!/usr/bin/env python3
"""A file system that keeps nothing but a dict in memory: the ceiling for anything written on pyfuse3.

    nullfs.py MOUNTPOINT [--no-handshake] [--plain-loop] [--busy-poll US]
    [--no-quick-wake] [--max-tasks N]

Same handshake, request loop and cache policy as the real thing, and no work at all behind them. Prints
one JSON line when it is mounted; serves until it is unmounted.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from mountstore.fuse import handshake, heap, readahead, request_loop

TIMEOUT_S = 3600.0


class Node:
    """An inode: its attributes, ready to be handed out, and whatever its type holds."""

    __slots__ = ("attributes", "content", "entries", "target", "xattrs")

    def __init__(self, number: int, mode: int, context: RequestContext | None) -> None:
        now_ns = time.time_ns()
        attributes = EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(number)
        attributes.st_mode = pyfuse3.ModeT(mode)
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_uid = context.uid if context else os.getuid()
        attributes.st_gid = context.gid if context else os.getgid()
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now_ns
        attributes.attr_timeout = attributes.entry_timeout = TIMEOUT_S
        self.attributes = attributes
        self.entries: dict[bytes, Node] = {}
        self.content = bytearray()
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}


class NullFS(pyfuse3.Operations):
    """Everything in one dict of nodes; see pyfuse3.Operations for what each handler is asked."""

    supports_dot_lookup = True
    enable_writeback_cache = True

    def __init__(self, *, keep_content: bool = True) -> None:
        super().__init__()
        self.nodes: dict[int, Node] = {}
        self.keep_content = keep_content
        self.next_number = int(pyfuse3.ROOT_INODE)
        self.new_node(stat.S_IFDIR | 0o755, None)
        self.absent = EntryAttributes()
        self.absent.entry_timeout = TIMEOUT_S

    def new_node(self, mode: int, context: RequestContext | None) -> Node:
        node = Node(self.next_number, mode, context)
        self.nodes[self.next_number] = node
        self.next_number += 1
        return node

    def add(self, parent: int, name: bytes, mode: int, context: RequestContext) -> Node:
        node = self.nodes[parent].entries[name] = self.new_node(mode, context)
        return node

    async def lookup(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == b".":
            return self.nodes[parent_inode].attributes
        node = self.nodes[parent_inode].entries.get(name)
        # Inode 0 is a negative entry, which the kernel caches.
        return node.attributes if node is not None else self.absent

    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        return self.nodes[inode].attributes

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self.nodes[inode]
        known = node.attributes
        if fields.update_size:
            del node.content[attr.st_size :]
            known.st_size = attr.st_size
        if fields.update_mode:
            known.st_mode = attr.st_mode
        if fields.update_uid:
            known.st_uid = attr.st_uid
        if fields.update_gid:
            known.st_gid = attr.st_gid
        if fields.update_atime:
            known.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            known.st_mtime_ns = attr.st_mtime_ns
        if fields.update_ctime:
            known.st_ctime_ns = attr.st_ctime_ns
        return known

    async def create(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        attributes = self.add(parent_inode, name, stat.S_IFREG | mode, ctx).attributes
        return FileInfo(fh=pyfuse3.FileHandleT(attributes.st_ino)), attributes

    async def mknod(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        attributes = self.add(parent_inode, name, mode, ctx).attributes
        attributes.st_rdev = rdev
        return attributes

    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self.add(parent_inode, name, stat.S_IFDIR | mode, ctx).attributes

    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.add(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        node.attributes.st_size = len(target)
        return node.attributes

    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        return self.nodes[inode].target

    async def link(
        self, inode: pyfuse3.InodeT, new_parent_inode: pyfuse3.InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.nodes[new_parent_inode].entries[new_name] = self.nodes[inode]
        node.attributes.st_nlink += 1
        return node.attributes

    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        node = self.nodes[parent_inode].entries.pop(name)
        node.attributes.st_nlink -= 1

    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        entries = self.nodes[parent_inode].entries
        if entries[name].entries:
            raise FUSEError(errno.ENOTEMPTY)
        del entries[name]

    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: bytes,
        parent_inode_new: pyfuse3.InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        self.nodes[parent_inode_new].entries[name_new] = self.nodes[parent_inode_old].entries.pop(name_old)

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        node = self.nodes[fh]
        if self.keep_content:
            return bytes(node.content[off : off + size])
        return bytes(min(size, max(0, node.attributes.st_size - off)))

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        node = self.nodes[fh]
        end = off + len(buf)
        if self.keep_content:
            if len(node.content) < off:
                node.content.extend(bytes(off - len(node.content)))
            node.content[off:end] = buf
        if node.attributes.st_size < end:
            node.attributes.st_size = end
        return len(buf)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        pass

    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for position, (name, node) in enumerate(
            list(self.nodes[fh].entries.items())[start_id:], start_id + 1
        ):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), node.attributes, position):
                break

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, _ in inode_list:
            node = self.nodes.get(inode)
            if node is not None and node.attributes.st_nlink <= 0:
                del self.nodes[inode]

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        figures = pyfuse3.StatvfsData()
        figures.f_bsize = figures.f_frsize = 4096
        figures.f_blocks = figures.f_bfree = figures.f_bavail = 1 << 30
        figures.f_files = figures.f_ffree = figures.f_favail = 1 << 30
        figures.f_namemax = 255
        return figures

    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        value = self.nodes[inode].xattrs.get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    async def setxattr(self, inode: pyfuse3.InodeT, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self.nodes[inode].xattrs[name] = value

    async def listxattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> list[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name) for name in self.nodes[inode].xattrs]

    async def removexattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        if self.nodes[inode].xattrs.pop(name, None) is None:
            raise FUSEError(pyfuse3.ENOATTR)


async def serve(operations: NullFS, choices: argparse.Namespace) -> None:
    options = {"default_permissions", *choices.option}
    connection = await handshake.mount(
        operations,
        choices.mountpoint,
        options,
        fsname="nullfs",
        subtype="null",
        want_handshake=choices.handshake,
    )
    try:
        raised = readahead.raise_readahead(connection.device) if choices.readahead else False
        fast = choices.fast_loop and request_loop.install(
            choices.busy_poll / 1e6, quick_wake=choices.quick_wake
        )
        ready = {
            "pid": os.getpid(),
            "handshake": connection.handshake,
            "flags": connection.flags,
            "fast_loop": fast,
            "readahead": raised,
        }
        print(json.dumps(ready), flush=True)
        await request_loop.serve(max_tasks=choices.max_tasks)
    finally:
        handshake.close(connection)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mountpoint")
    parser.add_argument("-o", dest="option", action="append", default=[], help="a mount option; repeatable")
    parser.add_argument("--no-handshake", dest="handshake", action="store_false")
    parser.add_argument("--plain-loop", dest="fast_loop", action="store_false")
    parser.add_argument("--no-quick-wake", dest="quick_wake", action="store_false")
    parser.add_argument("--no-readahead", dest="readahead", action="store_false")
    parser.add_argument("--no-content", dest="content", action="store_false", help="drop data, read zeros")
    parser.add_argument("--busy-poll", type=float, default=200.0, metavar="US")
    parser.add_argument("--max-tasks", type=int, default=64)
    choices = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="nullfs: %(message)s")
    heap.tune()
    trio.run(serve, NullFS(keep_content=choices.content), choices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
