"""Where trees are that are not to be seen: those in the making, and those on their way out.

A hidden directory of the root, made when it is needed and removed when it is empty. It is a directory like any
other for whatever reads the catalog (the checker, snapshots), so every commit is consistent; only who shows names
leaves it out. What is in it says by its name what is to become of it after a crash:

    making-N          nobody has seen it yet: it goes without a trace
    removing-TIME-N   it was removed at that time (nanoseconds), and goes with the histories that rm -r would leave

Everything runs on the owner's thread without an await, so each method happens whole or not at all.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mountstore.blobs.clock import now_ns
from mountstore.errors import AbsentError, ExistsError, MisuseError, WantsDirectoryError, shown
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import ROOT, Inode, InodeTable
from mountstore.namespace.namespace import Caller, Namespace
from mountstore.namespace.versions import Versions

LIMBO: Final = b".mountstore-limbo"
"""Name of the directory in the root. Nothing else can be called so there, and nobody sees it."""

_MAKING: Final = b"making-"
_REMOVING: Final = b"removing-"


def is_limbo(parent: int, name: bytes) -> bool:
    """Whether a name in a directory is that of the hidden one."""
    return parent == ROOT and name == LIMBO


def removed_at(name: bytes) -> int | None:
    """When a tree in limbo was removed, in nanoseconds; None for one that was in the making."""
    if not name.startswith(_REMOVING):
        return None
    try:
        return int(name.removeprefix(_REMOVING).partition(b"-")[0])
    except ValueError:
        return None


class Limbo:
    """The hidden directory of one store."""

    def __init__(self, catalog: Catalog, inodes: InodeTable, namespace: Namespace, versions: Versions) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._namespace = namespace
        self._versions = versions

    def directory(self) -> Inode | None:
        """The directory, if it is there."""
        return self._namespace.find(ROOT, LIMBO)

    def names(self) -> list[bytes]:
        """What is in it."""
        directory = self.directory()
        return [] if directory is None else [row.name for row in self._catalog.listing(directory.id, 0)]

    # --- what is made ---

    def begin(self) -> tuple[Inode, bytes]:
        """The directory, and a name in it for a tree that is to be made.

        Raises: ReadOnlyError, NoSpaceError
        """
        return self._made(), _MAKING + b"%d" % self._inodes.next_id()

    def reveal(self, made: bytes, parent: int, name: bytes, *, replace: bool = False) -> bytes | None:
        """Let a tree that was made have a name, in one step.

        A file takes the name of another file, whose content becomes a version; a directory that of an empty one.

        Args:
          replace: A directory also takes that of one with something in it, which is removed.

        Returns: The name in limbo of a directory that was replaced.

        Raises:
          ExistsError: The name is taken by what may not be replaced.
          AbsentError, WantsDirectoryError, NameTooLongError, ReadOnlyError: As `Namespace.rename`.
        """
        namespace = self._namespace
        limbo = self._made()
        inode = namespace.find(limbo.id, made)
        if inode is None:
            raise AbsentError(shown(made))
        taken = namespace.find(parent, name)
        if taken is not None and taken.is_directory != inode.is_directory:
            what = "a directory" if taken.is_directory else "no directory"
            raise ExistsError(f"{shown(name)} is there, and is {what}")
        namespace.require_place(parent, name)
        removed = None
        if taken is not None and taken.is_directory and self._catalog.has_entries(taken.id):
            if not replace:
                raise ExistsError(f"{shown(name)} is a directory, and is not empty")
            removed = self.take_out(parent, name)
        namespace.rename(limbo.id, made, parent, name)
        return removed

    # --- what goes ---

    def take_out(self, parent: int, name: bytes) -> bytes:
        """Move a directory out of sight; its name keeps the history that rm -r would leave.

        Returns: Its name in limbo.

        Raises:
          AbsentError, WantsDirectoryError, ReadOnlyError
          MisuseError: It is the root.
        """
        inode = self._namespace.find(parent, name)
        if inode is None:
            raise AbsentError(shown(name))
        if not inode.is_directory:
            raise WantsDirectoryError(shown(name))
        if inode.id == ROOT or name in (b"", b".", b".."):
            raise MisuseError("the root cannot be removed")
        limbo = self._made()
        now = now_ns()
        moved = _REMOVING + b"%d-%d" % (now, self._inodes.next_id())
        self._versions.directory_leaves(parent, name, inode, now)
        self._namespace.rename(parent, name, limbo.id, moved)
        return moved

    def settle(self) -> None:
        """Remove the directory if it is empty."""
        directory = self.directory()
        if directory is not None and not self._catalog.has_entries(directory.id):
            with self._root_unchanged():
                self._namespace.rmdir(ROOT, LIMBO)
            for inode in self._namespace.forget([directory.id]):
                self._inodes.remove(inode)

    def _made(self) -> Inode:
        directory = self.directory()
        if directory is None:
            with self._root_unchanged() as root:
                owner = Caller(root.uid, root.gid)
                directory = self._namespace.create(ROOT, LIMBO, stat.S_IFDIR | 0o700, owner)
        return directory

    @contextmanager
    def _root_unchanged(self) -> Iterator[Inode]:
        """Nobody has to see by the root's times that something hidden comes or goes."""
        root = self._inodes.get(ROOT)
        times = root.mtime_ns, root.ctime_ns
        yield root
        root.mtime_ns, root.ctime_ns = times
        self._inodes.changed(root)
