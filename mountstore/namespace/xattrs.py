"""Extended attributes, as xattr(7) says; names and values are bytes."""

from __future__ import annotations

import stat

from mountstore.blobs.clock import now_ns
from mountstore.errors import (
    AttributeTooLargeError,
    ExistsError,
    MisuseError,
    NameTooLongError,
    NoAttributeError,
    NotSupportedError,
    shown,
)
from mountstore.namespace import acl as acls
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import Inode, InodeTable
from mountstore.namespace.namespace import Namespace

VALUE_MAX = 65536
"""Bytes of one value (XATTR_SIZE_MAX of linux/limits.h)."""

VALUES_MAX = 262144
"""Bytes of all values of an inode. They stand in its record in a snapshot, and those are read a page at a time."""

LIST_MAX = 65536
"""Bytes of all names with their ends (XATTR_LIST_MAX): more could not be listed."""

_NAME_MAX = 255

_SPACES = (b"user.", b"trusted.", b"security.")
_ACLS = (acls.ACCESS, acls.DEFAULT)


class Attributes:
    """The extended attributes of one store's inodes.

    Args:
      acl: POSIX access control lists are on (`-o acl`); without them their attributes do not exist.
    """

    def __init__(
        self, catalog: Catalog, inodes: InodeTable, namespace: Namespace, *, acl: bool = False
    ) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._namespace = namespace
        self._acl = acl

    def get(self, inode: Inode, name: bytes) -> bytes:
        """Raises: NoAttributeError, NotSupportedError"""
        self._require_known(name)
        # The kernel asks for security.capability all the time: no query for what has no attributes.
        if inode.xattrs:
            value = self._catalog.get_xattr(inode.id, name)
            if value is not None:
                return value
        raise NoAttributeError(shown(name))

    def set(self, inode: Inode, name: bytes, value: bytes, *, create: bool = False) -> None:
        """Set or, with `create`, make an attribute; access control lists as `set_acl` does.

        Raises:
          ExistsError (create), AttributeTooLargeError, NameTooLongError, NotSupportedError, MisuseError,
          ReadOnlyError
        """
        self._namespace.require_writable()
        self._require_known(name)
        if len(name) > _NAME_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes; {_NAME_MAX} is the most")
        if len(value) > VALUE_MAX:
            raise AttributeTooLargeError(f"{len(value)} bytes")
        if name in _ACLS:
            self.set_acl(inode, name, value, keep_setgid=True)
            return
        self._put(inode, name, value, create=create)
        self._changed(inode)

    def set_acl(self, inode: Inode, name: bytes, value: bytes, *, keep_setgid: bool) -> None:
        """Set an access control list, and for that of access the mode that corresponds to it. One that says
        no more than the mode does is not kept.

        Args:
          name: `acl.ACCESS` or `acl.DEFAULT`.
          keep_setgid: The caller belongs to the inode's group or is privileged.

        Raises:
          MisuseError, AttributeTooLargeError, NotSupportedError, ReadOnlyError
        """
        self._namespace.require_writable()
        self._require_known(name)
        acl = acls.decode(value)
        mode = inode.mode
        if name == acls.ACCESS and acl:
            mode = acls.mode_of(acl, mode)
            if not keep_setgid:
                mode &= ~stat.S_ISGID
            if acls.is_minimal(acl):
                acl = ()
        elif acl and not inode.is_directory:
            raise MisuseError("a default access control list of something that is no directory")
        if acl:
            self._put(inode, name, acls.encode(acl))
        elif inode.xattrs and self._catalog.delete_xattr(inode.id, name):
            inode.xattrs -= 1
        inode.mode = mode
        self._changed(inode)

    def _put(self, inode: Inode, name: bytes, value: bytes, *, create: bool = False) -> None:
        sizes = dict(self._catalog.list_xattrs(inode.id)) if inode.xattrs else {}
        old = sizes.pop(name, None)
        if old is not None:
            if create:
                raise ExistsError(shown(name))
        elif sum(map(len, sizes)) + len(sizes) + len(name) + 1 > LIST_MAX:
            raise AttributeTooLargeError(f"{len(sizes)} attributes are all that can be listed")
        # A smaller value is taken in any case: a store may have more, of a release that knew no limit.
        if len(value) > (old or 0) and sum(sizes.values()) + len(value) > VALUES_MAX:
            raise AttributeTooLargeError(f"{VALUES_MAX} bytes are all that the values may have together")
        self._catalog.put_xattr(inode.id, name, value)
        if old is None:
            inode.xattrs += 1

    def remove(self, inode: Inode, name: bytes) -> None:
        """Raises: NoAttributeError (not for an access control list), NotSupportedError, ReadOnlyError"""
        self._namespace.require_writable()
        self._require_known(name)
        if inode.xattrs and self._catalog.delete_xattr(inode.id, name):
            inode.xattrs -= 1
        elif name not in _ACLS:
            raise NoAttributeError(shown(name))
        self._changed(inode)

    def names(self, inode: Inode, *, trusted: bool) -> list[bytes]:
        """All names that can be asked for; those of the trusted space only if the caller may see them."""
        if not inode.xattrs:
            return []
        return [
            name
            for name, _ in self._catalog.list_xattrs(inode.id)
            if (trusted or not name.startswith(b"trusted.")) and (self._acl or name not in _ACLS)
        ]

    def _require_known(self, name: bytes) -> None:
        if name.startswith(_SPACES):
            if name in _SPACES:
                raise MisuseError(f"attribute without a name: {shown(name)}")
        elif not (self._acl and name in _ACLS):
            raise NotSupportedError(shown(name))

    def _changed(self, inode: Inode) -> None:
        inode.ctime_ns = now_ns()
        self._inodes.changed(inode)
