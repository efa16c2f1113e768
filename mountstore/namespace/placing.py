"""Giving a name a content that is in the tree already, as a file of its own."""

from __future__ import annotations

import stat

from mountstore.blobs.content import Content
from mountstore.errors import AbsentError, FoundDirectoryError, MisuseError, WantsDirectoryError, shown
from mountstore.namespace.inodes import ROOT, Inode, InodeTable
from mountstore.namespace.namespace import Caller, Namespace


def place(
    namespace: Namespace,
    inodes: InodeTable,
    parent: int,
    name: bytes,
    content: Content,
    *,
    allocated: int,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
) -> Inode:
    """Make a new inode of a content and let it take a name; what the name stood for becomes a version.

    Without an await, so nobody sees it half done, and a blob that was found in the tree in the same breath is not
    collected. Whoever has the old file open keeps that, and so do its other names. The kernel is not told.

    Args:
      allocated: Bytes of the content that are not in holes.
      mode: Permissions, less what a default access control list of the directory takes; the type is that of a
        regular file.

    Raises:
      FoundDirectoryError: The name is a directory's.
      ExistsError: It is reserved.
      AbsentError, ReadOnlyError, NoSpaceError, NameTooLongError: As `Namespace.create`. Nothing was changed.
    """
    namespace.require_place(parent, name)
    taken = namespace.find(parent, name)
    if taken is not None and taken.is_directory:
        raise FoundDirectoryError(shown(name))
    made_as = name if taken is None else free_name(namespace, parent)
    inode = namespace.create(parent, made_as, stat.S_IFREG | mode & 0o7777, Caller(uid, gid))
    inode.gid = gid
    inode.content = content
    inode.size = content.size_bytes
    inode.allocated = allocated
    inode.mtime_ns = mtime_ns
    inodes.changed(inode)
    if taken is not None:
        namespace.rename(parent, made_as, parent, name)
        if taken.nlink == 0:
            namespace.displaced.append(taken)
    return inode


def place_of(namespace: Namespace, path: bytes) -> tuple[int, bytes]:
    """Directory and name of what is to be made at a path.

    Raises:
      MisuseError: It has no name that could be given.
      AbsentError, WantsDirectoryError: There is no such directory.
      ExistsError: The name is reserved.
    """
    *above, name = [part for part in path.split(b"/") if part] or [b""]
    if name in (b"", b".", b".."):
        raise MisuseError(f"{shown(path)}: is no name that can be given")
    parent = ROOT
    for part in above:
        inode = None if namespace.is_reserved(parent, part) else namespace.find(parent, part)
        if inode is None:
            raise AbsentError(shown(path))
        if not inode.is_directory:
            raise WantsDirectoryError(shown(path))
        parent = inode.id
    namespace.require_place(parent, name)
    return parent, name


def free_name(namespace: Namespace, parent: int) -> bytes:
    """A name that nothing in a directory has, for what is to get its own when it is whole."""
    number = 0
    while namespace.find(parent, name := b".restored-%d" % number) is not None:
        number += 1
    return name
