"""What every kind of mount answers alike: how long the kernel keeps it, statfs(2), who sees and may do what."""

from __future__ import annotations

import os
import stat
from typing import Final

import pyfuse3
from pyfuse3 import RequestContext, StatvfsData

from mountstore.namespace import acl as acls
from mountstore.namespace.inodes import Inode
from mountstore.namespace.namespace import NAME_MAX, Caller

__all__ = ["CACHE_S", "caller_of", "is_shown", "keeps_setgid", "statfs_answer"]

CACHE_S: Final = 86400.0
"""How long the kernel may keep what it was told: a day, as nobody but this daemon changes what it shows."""


def statfs_answer(below: os.statvfs_result) -> StatvfsData:
    """What statfs(2) shows: the file system that the blobs are on, and what a name may be."""
    answer = StatvfsData()
    answer.f_bsize = below.f_bsize
    answer.f_frsize = below.f_frsize
    answer.f_blocks = below.f_blocks
    answer.f_bfree = below.f_bfree
    answer.f_bavail = below.f_bavail
    answer.f_files = below.f_files
    answer.f_ffree = below.f_ffree
    answer.f_favail = below.f_favail
    answer.f_namemax = NAME_MAX
    return answer


def is_shown(name: bytes, ctx: RequestContext, *, acl: bool) -> bool:
    """Whether a caller may see an extended attribute of something virtual, in a mount with or without `acl`."""
    if name.startswith(b"trusted."):
        return ctx.uid == 0
    return acl or name not in (acls.ACCESS, acls.DEFAULT)


def caller_of(ctx: RequestContext, inode: Inode) -> Caller:
    """Who asks for a change to an inode, with all groups if its setgid bit depends on them."""
    if ctx.uid == 0 or not inode.mode & stat.S_ISGID or ctx.gid == inode.gid:
        return Caller(ctx.uid, ctx.gid)
    try:
        return Caller(ctx.uid, ctx.gid, pyfuse3.get_sup_groups(ctx.pid))
    except (OSError, RuntimeError):
        # It has ended, or lives out of sight in a namespace of its own.
        return Caller(ctx.uid, ctx.gid)


def keeps_setgid(ctx: RequestContext, inode: Inode) -> bool:
    """Whether the caller may change an inode that has the setgid bit without losing it."""
    return bool(inode.mode & stat.S_ISGID) and caller_of(ctx, inode).belongs_to(inode.gid)
