"""Where a path of the mount leads. What a command changes, the kernel has to forget by directory and name."""

from __future__ import annotations

from typing import NamedTuple

from mountstore.errors import AbsentError, WantsDirectoryError, shown
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.limbo import LIMBO
from mountstore.store import Store

__all__ = ["Place", "find_inode", "find_place"]


class Place(NamedTuple):
    """A path, taken apart. The root has no name, and is in itself."""

    parent: int
    name: bytes
    inode: int
    """What it stands for, or stood for last as a directory; 0 for a file that is gone."""
    is_directory: bool


def find_place(store: Store, path: bytes, *, gone: bool = False) -> Place:
    """Follow a path from the root; symbolic links are not followed.

    Args:
      gone: Directories that were removed, and names that had versions, are found too.

    Raises: AbsentError, WantsDirectoryError, MisuseError.
    """
    parts = [part for part in path.split(b"/") if part and part != b"."]
    place = Place(ROOT, b"", ROOT, True)
    for part in parts:
        if not place.is_directory:
            raise WantsDirectoryError(shown(path))
        place = _below(store, place.inode, part, path, gone)
    return place


def _below(store: Store, parent: int, name: bytes, path: bytes, gone: bool) -> Place:
    inode: Inode | None
    if name == LIMBO and parent == ROOT:
        raise AbsentError(shown(path))
    if not gone:
        inode = store.namespace.find(parent, name)
        if inode is None:
            raise AbsentError(shown(path))
        return Place(parent, name, inode.id, inode.is_directory)
    line = store.timeline.line(parent, name)
    inode = line.inode
    if inode is not None:
        return Place(parent, name, inode.id, inode.is_directory)
    latest = store.timeline.latest(line)
    if not latest:
        raise AbsentError(shown(path))
    directory = store.timeline.get(line, latest).directory
    return Place(parent, name, directory, bool(directory))


def find_inode(store: Store, path: bytes) -> Inode:
    """What a path stands for now. Raises: as `find_place`."""
    return store.namespace.get(find_place(store, path).inode)
