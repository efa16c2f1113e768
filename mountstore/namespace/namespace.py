"""Names: the operations of a file system on directories, links and attributes.

In terms of inode numbers and byte names; what ext4 does is right, errors are those of `mountstore.errors`.
Every method runs from start to end on the thread that owns the namespace without awaiting, so each is
atomic; one that raises has changed nothing. Permissions are the kernel's business (default_permissions);
here stand only the rules of POSIX that are not: inheritance of groups, link counts, times.

Contents of regular files are `mountstore.namespace.files`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Generator
from typing import Any, NamedTuple

from mountstore.blobs.clock import now_ns
from mountstore.errors import (
    AbsentError,
    ExistsError,
    FoundDirectoryError,
    MisuseError,
    NameTooLongError,
    NoSpaceError,
    NotEmptyError,
    NotPermittedError,
    ReadOnlyError,
    TooManyLinksError,
    WantsDirectoryError,
    shown,
)
from mountstore.namespace import acl as acls
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import ROOT, TYPE_BITS, Inode, InodeTable, clamp_ns
from mountstore.namespace.versions import Versions

NAME_MAX = 255
"""Bytes of a name. The kernel does not check it for FUSE file systems."""

TARGET_MAX = 4095
"""Bytes of a symbolic link's target (PATH_MAX without its end)."""

LINK_MAX = (1 << 31) - 1
"""Hard links of one inode."""


class Caller(NamedTuple):
    """Who asks: effective ids of the process, its other groups only where they matter."""

    uid: int
    gid: int
    groups: Collection[int] = ()

    def belongs_to(self, gid: int) -> bool:
        """Whether the caller is in a group, or privileged as if it were."""
        return self.uid == 0 or self.gid == gid or gid in self.groups


class Namespace:
    """The names of one store.

    Args:
      catalog, inodes: Of the store, shared with its `Files`.
      acl: Access control lists are on: the umask is ours to apply, they are inherited and follow chmod(2).
    """

    def __init__(
        self,
        catalog: Catalog,
        inodes: InodeTable,
        versions: Versions,
        *,
        read_only: bool = False,
        acl: bool = False,
    ) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._versions = versions
        self._acl = acl
        self._orphans: dict[int, Inode] = {}
        # Told of a file that takes the name of another by a rename; set by the store.
        self.on_replaced: Callable[[Inode, Inode], None] = lambda inode, replaced: None
        # What lost its last name to a file that a command placed: the kernel, which was not asked, says that it
        # forgets those that it knows, and of the others nobody says anything.
        self.displaced: list[Inode] = []
        # Whether a name in a directory stands for something hidden, or that is not in the store; set by the store,
        # and by the mount, which knows more of them.
        self.is_reserved: Callable[[int, bytes], bool] = lambda parent, name: False
        # The disk is so full that not even names can be recorded: nothing new is accepted.
        self.no_room = False
        self.read_only = read_only

    def require_writable(self) -> None:
        """Raises: ReadOnlyError if nothing may be changed."""
        if self.read_only:
            raise ReadOnlyError("mounted read-only")

    def require_room(self) -> None:
        """Raises: NoSpaceError if nothing may be added."""
        if self.no_room:
            raise NoSpaceError("there is no room for the catalog")

    # --- finding ---

    def get(self, inode_id: int) -> Inode:
        """Raises: StaleError if there is no such inode."""
        return self._inodes.get(inode_id)

    def find(self, parent_id: int, name: bytes) -> Inode | None:
        """The inode that `name` stands for in a directory, or None; `.` and `..` are understood.

        Raises:
          NameTooLongError, StaleError, WantsDirectoryError
        """
        found = self._catalog.get_entry_and_inode(parent_id, name)
        if found is not None:
            return self._inodes.get(*found)
        if len(name) > NAME_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes; {NAME_MAX} is the most")
        if name == b".":
            return self._inodes.get(parent_id)
        if name == b"..":
            return self._inodes.get(self._directory(parent_id).parent)
        return None

    def find_view(self, parent_id: int, name: bytes) -> Any:
        """The view of what `name` stands for, if that is in memory."""
        number = self._catalog.known_entry(parent_id, name)
        return None if number is None else self._inodes.view_of(number)

    def listing(self, directory: Inode, after: int) -> Generator[tuple[int, bytes, Inode], None, None]:
        """Position, name and inode of each entry beyond position `after` (0 for all), `.` and `..` first.

        A listing continued from a position neither repeats nor skips an entry that was there all the
        time, whatever is created, removed or renamed within the directory meanwhile. The iterator is
        closed before the next commit.
        """
        if after < 1:
            yield 1, b".", directory
        if after < 2:
            yield 2, b"..", self._inodes.get(directory.parent)
        peek = self._inodes.peek
        for cookie, name, number, row in self._catalog.listing(directory.id, max(after, 2)):
            yield cookie, name, peek(number, row)

    def _directory(self, inode_id: int) -> Inode:
        inode = self._inodes.get(inode_id)
        if not inode.is_directory:
            raise WantsDirectoryError(f"inode {inode_id}")
        return inode

    def require_place(self, parent_id: int, name: bytes) -> None:
        """For whom no kernel has asked: a command.

        Raises: What keeps anything from being made under that name, but for what has it already.
        """
        self._writable_directory(parent_id, name)
        if name in (b"", b".", b".."):
            raise ExistsError(shown(name))
        if self.is_reserved(parent_id, name):
            raise ExistsError(f"{shown(name)}: this name is not free for use")

    def _writable_directory(self, inode_id: int, name: bytes) -> Inode:
        """The directory in which `name` is to be made or removed."""
        self.require_writable()
        directory = self._directory(inode_id)
        if len(name) > NAME_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes; {NAME_MAX} is the most")
        if directory.nlink == 0:
            raise AbsentError("the directory has been removed")
        return directory

    def _require(self, parent_id: int, name: bytes) -> Inode:
        number = self._catalog.get_entry(parent_id, name)
        if number is None:
            raise AbsentError(shown(name))
        return self._inodes.get(number)

    # --- making ---

    def create(
        self,
        parent_id: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        umask: int = 0,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Make anything: a regular file, directory, symbolic link (`target`), fifo, socket or device.

        Args:
          mode: Permissions with the file type.
          umask: Applied if access control lists are on and the directory has no default list; without
            them the kernel has applied it.

        Raises:
          ExistsError, AbsentError, NameTooLongError, WantsDirectoryError, ReadOnlyError
        """
        parent = self._writable_directory(parent_id, name)
        self.require_room()
        if target is not None and len(target) > TARGET_MAX:
            raise NameTooLongError(f"a target of {len(target)} bytes; {TARGET_MAX} is the most")
        if name in (b".", b".."):
            raise ExistsError(shown(name))
        directory = (mode & TYPE_BITS) == stat.S_IFDIR
        gid = caller.gid
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if directory:
                mode |= stat.S_ISGID
        attributes: dict[bytes, bytes] = {}
        if self._acl and target is None:
            default = self._catalog.get_xattr(parent_id, acls.DEFAULT) if parent.xattrs else None
            if default is None:
                mode &= ~umask
            else:
                mode, attributes = _inherit(default, mode, directory)
        inodes = self._inodes
        number = inodes.next_id()
        if attributes:
            with self._catalog.savepoint():
                self._catalog.add_entry(parent_id, name, number, inodes.next_cookie())
                for attribute, value in attributes.items():
                    self._catalog.put_xattr(number, attribute, value)
        else:
            self._catalog.add_entry(parent_id, name, number, inodes.next_cookie())
        inode = inodes.create(
            number, mode, caller.uid, gid, parent=parent_id if directory else 0, rdev=rdev, target=target
        )
        inode.xattrs = len(attributes)
        if directory:
            parent.nlink += 1
            self._catalog.begin_directory(number)
        self._versions.taken(parent_id, name, inode.btime_ns)
        self._touch(parent, inode.btime_ns)
        return inode

    def link(self, inode_id: int, parent_id: int, name: bytes) -> Inode:
        """Give an inode another name.

        Raises:
          NotPermittedError: It is a directory.
          TooManyLinksError, ExistsError, AbsentError, NameTooLongError, ReadOnlyError
        """
        self.require_room()
        parent = self._writable_directory(parent_id, name)
        inode = self._inodes.get(inode_id)
        if inode.is_directory:
            raise NotPermittedError("a directory has one name")
        if inode.nlink == 0:
            raise AbsentError("the file has been removed")
        if inode.nlink >= LINK_MAX:
            raise TooManyLinksError(f"{inode.nlink} links")
        self._catalog.add_entry(parent_id, name, inode_id, self._inodes.next_cookie())
        now = now_ns()
        self._versions.taken(parent_id, name, now)
        inode.nlink += 1
        inode.ctime_ns = now
        self._inodes.changed(inode)
        self._touch(parent, now)
        return inode

    def _touch(self, directory: Inode, now: int) -> None:
        """An entry of it was made, removed or changed."""
        directory.mtime_ns = directory.ctime_ns = now
        self._inodes.changed(directory)

    # --- removing ---

    def unlink(
        self, parent_id: int, name: bytes, *, at_ns: int | None = None, recorded: bool = True
    ) -> Inode:
        """Remove a name that is not a directory's; returns what it stood for.

        Args:
          at_ns: When its history says that it went; default: now.
          recorded: It may leave a history.

        Raises:
          AbsentError, FoundDirectoryError, ReadOnlyError
        """
        parent = self._writable_directory(parent_id, name)
        inode = self._require(parent_id, name)
        if inode.is_directory:
            raise FoundDirectoryError(shown(name))
        now = now_ns()
        with self._catalog.savepoint():
            if recorded:
                self._versions.removed(parent_id, name, inode, now if at_ns is None else at_ns)
            self._catalog.delete_entry(parent_id, name)
        self._unlinked(inode, now)
        self._touch(parent, now)
        return inode

    def rmdir(
        self, parent_id: int, name: bytes, *, at_ns: int | None = None, recorded: bool = True
    ) -> Inode:
        """Remove an empty directory; arguments as of `unlink`.

        Raises:
          AbsentError, WantsDirectoryError, NotEmptyError, MisuseError (`.`), ReadOnlyError
        """
        parent = self._writable_directory(parent_id, name)
        if name == b".":
            raise MisuseError("a directory cannot be removed by the name '.'")
        if name == b"..":
            raise NotEmptyError("'..'")
        inode = self._require(parent_id, name)
        self._require_empty_directory(inode, name)
        now = now_ns()
        with self._catalog.savepoint():
            if recorded:
                self._versions.removed(parent_id, name, inode, now if at_ns is None else at_ns)
            self._catalog.delete_entry(parent_id, name)
        parent.nlink -= 1
        self._unlinked(inode, now)
        self._touch(parent, now)
        return inode

    def _require_empty_directory(self, inode: Inode, name: bytes) -> None:
        if not inode.is_directory:
            raise WantsDirectoryError(shown(name))
        if self._catalog.has_entries(inode.id):
            raise NotEmptyError(shown(name))

    def _unlinked(self, inode: Inode, now: int) -> None:
        """One name of it is gone; a directory has but one."""
        inode.nlink = 0 if inode.is_directory else inode.nlink - 1
        inode.ctime_ns = now
        self._inodes.changed(inode)
        if inode.nlink == 0:
            self._orphans[inode.id] = inode

    def forget(self, inode_ids: list[int]) -> list[Inode]:
        """The kernel no longer knows these inodes; returns the orphans among them that nobody uses."""
        if not self._orphans:
            return []
        unused = []
        for number in inode_ids:
            inode = self._orphans.get(number)
            if inode is not None:
                del self._orphans[number]
                inode.forgotten = True
                if inode.handles == 0:
                    unused.append(inode)
        return unused

    def forget_all(self) -> list[Inode]:
        """At unmount: the kernel knows nothing any more, and has no directory open, also if it did not say so."""
        for inode in self._orphans.values():
            if inode.is_directory:
                inode.handles = 0
        return self.forget(list(self._orphans))

    # --- renaming ---

    def rename(
        self, parent_id: int, name: bytes, new_parent_id: int, new_name: bytes, *, noreplace: bool = False
    ) -> None:
        """Rename; what `new_name` stood for is replaced, as rename(2) says.

        Raises:
          AbsentError, ExistsError (noreplace), NotEmptyError, FoundDirectoryError, WantsDirectoryError,
          MisuseError (a directory into itself), NameTooLongError, ReadOnlyError
        """
        old_parent = self._writable_directory(parent_id, name)
        new_parent = self._writable_directory(new_parent_id, new_name)
        inode = self._require(parent_id, name)
        replaced_id = self._catalog.get_entry(new_parent_id, new_name)
        if replaced_id is not None and noreplace:
            raise ExistsError(shown(new_name))
        if replaced_id == inode.id:
            return
        directory = inode.is_directory
        if directory:
            self._require_not_below(inode, new_parent)
        now = now_ns()
        versions = self._versions
        if replaced_id is None:
            moved = None if parent_id == new_parent_id else self._inodes.next_cookie()
            if versions.concerned(parent_id, name, new_parent_id, new_name, inode):
                with self._catalog.savepoint():
                    versions.renamed(parent_id, name, new_parent_id, new_name, inode, now, replaced=False)
                    self._catalog.move_entry(parent_id, name, new_parent_id, new_name, moved)
            else:
                self._catalog.move_entry(parent_id, name, new_parent_id, new_name, moved)
                versions.moved_away(parent_id, name, inode, now)
        else:
            replaced = self._inodes.get(replaced_id)
            if directory:
                self._require_empty_directory(replaced, new_name)
            elif replaced.is_directory:
                raise FoundDirectoryError(shown(new_name))
            # The name that existed all the time keeps its place in a listing.
            with self._catalog.savepoint():
                versions.removed(new_parent_id, new_name, replaced, now, replaced=True)
                versions.renamed(parent_id, name, new_parent_id, new_name, inode, now, replaced=True)
                self._catalog.delete_entry(parent_id, name)
                self._catalog.point_entry(new_parent_id, new_name, inode.id)
            if directory:
                new_parent.nlink -= 1
            else:
                self.on_replaced(inode, replaced)
            self._unlinked(replaced, now)
        self._moved(inode, old_parent, new_parent, now)
        self._touch(old_parent, now)
        self._touch(new_parent, now)

    def exchange(self, parent_id: int, name: bytes, other_parent_id: int, other_name: bytes) -> None:
        """Swap what two names stand for (RENAME_EXCHANGE of rename(2)).

        Raises:
          AbsentError, MisuseError (a directory into itself), ReadOnlyError
        """
        parent = self._writable_directory(parent_id, name)
        other_parent = self._writable_directory(other_parent_id, other_name)
        inode = self._require(parent_id, name)
        other = self._require(other_parent_id, other_name)
        if inode is other:
            return
        if inode.is_directory:
            self._require_not_below(inode, other_parent)
        if other.is_directory:
            self._require_not_below(other, parent)
        now = now_ns()
        with self._catalog.savepoint():
            self._versions.removed(parent_id, name, inode, now, replaced=True)
            self._versions.removed(other_parent_id, other_name, other, now, replaced=True)
            self._catalog.point_entry(parent_id, name, other.id)
            self._catalog.point_entry(other_parent_id, other_name, inode.id)
        self._moved(inode, parent, other_parent, now)
        self._moved(other, other_parent, parent, now)
        self._touch(parent, now)
        self._touch(other_parent, now)

    def _moved(self, inode: Inode, old_parent: Inode, new_parent: Inode, now: int) -> None:
        inode.ctime_ns = now
        if inode.is_directory and old_parent is not new_parent:
            inode.parent = new_parent.id
            old_parent.nlink -= 1
            new_parent.nlink += 1
        self._inodes.changed(inode)

    def _require_not_below(self, inode: Inode, directory: Inode) -> None:
        """Raises: MisuseError if `directory` is `inode` or lies somewhere below it."""
        while directory.id != ROOT:
            if directory.id == inode.id:
                raise MisuseError("a directory cannot be moved into itself")
            directory = self._inodes.get(directory.parent)
        if inode.id == ROOT:
            raise MisuseError("the root cannot be moved")

    # --- attributes ---

    def set_attributes(
        self,
        inode: Inode,
        caller: Caller,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        owner_named: bool = False,
    ) -> None:
        """Change what is given; the change time becomes now unless given.

        Args:
          mode: Permission bits; a file type in it is ignored.
          owner_named: chown(2) was called, even if with the ids it has.
        """
        self.require_writable()
        if mode is not None:
            if self._acl and inode.xattrs:
                access = self._catalog.get_xattr(inode.id, acls.ACCESS)
                if access is not None:
                    changed = acls.encode(acls.chmod(acls.decode(access), mode))
                    self._catalog.put_xattr(inode.id, acls.ACCESS, changed)
            inode.mode = inode.mode & TYPE_BITS | mode & 0o7777
        elif (uid is not None or gid is not None or owner_named) and not inode.is_directory:
            # With FUSE_HANDLE_KILLPRIV_V2 this is ours to do (chown(2): the bits go, whoever calls).
            drop = stat.S_ISUID
            if inode.mode & stat.S_IXGRP or not caller.belongs_to(inode.gid):
                drop |= stat.S_ISGID
            inode.mode &= ~drop
        if uid is not None:
            inode.uid = uid
        if gid is not None:
            inode.gid = gid
        if atime_ns is not None:
            inode.atime_ns = clamp_ns(atime_ns)
        if mtime_ns is not None:
            inode.mtime_ns = clamp_ns(mtime_ns)
        inode.ctime_ns = now_ns() if ctime_ns is None else clamp_ns(ctime_ns)
        self._inodes.changed(inode)

    def set_times(self, inode: Inode, mtime_ns: int, ctime_ns: int) -> None:
        """Set the times of modification and change."""
        inode.mtime_ns = clamp_ns(mtime_ns)
        inode.ctime_ns = clamp_ns(ctime_ns)
        self._inodes.changed(inode)

    def resized(self, inode: Inode) -> None:
        """A truncation changed the file: its modification and change times are now."""
        inode.mtime_ns = inode.ctime_ns = now_ns()
        self._inodes.changed(inode)


def _inherit(default: bytes, mode: int, directory: bool) -> tuple[int, dict[bytes, bytes]]:
    """Mode and attributes of what is made in a directory with the default list `default`."""
    mode, access, passed_on = acls.inherit(acls.decode(default), mode, directory=directory)
    attributes = {}
    if access is not None:
        attributes[acls.ACCESS] = acls.encode(access)
    if passed_on is not None:
        attributes[acls.DEFAULT] = default
    return mode, attributes
