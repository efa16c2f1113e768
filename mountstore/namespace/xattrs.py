"""Extended attributes, as xattr(7) says; names and values are bytes."""

from __future__ import annotations

import time

from mountstore.errors import (
    AttributeTooLargeError,
    ExistsError,
    NameTooLongError,
    NoAttributeError,
    NotSupportedError,
)
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import Inode, InodeTable
from mountstore.namespace.namespace import Namespace

VALUE_MAX = 65536
"""Bytes of one value (XATTR_SIZE_MAX of linux/limits.h)."""

LIST_MAX = 65536
"""Bytes of all names with their ends (XATTR_LIST_MAX): more could not be listed."""

_NAME_MAX = 255

_SPACES = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


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
        # The kernel asks for security.capability all the time: no query for what has no attributes.
        if inode.xattrs:
            value = self._catalog.get_xattr(inode.id, name)
            if value is not None:
                return value
        self._require_known(name)
        raise NoAttributeError(repr(name))

    def set(self, inode: Inode, name: bytes, value: bytes, *, create: bool = False) -> None:
        """Set or, with `create`, make an attribute.

        Raises:
          ExistsError (create), AttributeTooLargeError, NameTooLongError, NotSupportedError, ReadOnlyError
        """
        self._namespace.require_writable()
        self._require_known(name)
        if len(name) > _NAME_MAX:
            raise NameTooLongError(f"{len(name)} bytes")
        if len(value) > VALUE_MAX:
            raise AttributeTooLargeError(f"{len(value)} bytes")
        names = [known for known, _ in self._catalog.list_xattrs(inode.id)] if inode.xattrs else []
        if name in names:
            if create:
                raise ExistsError(repr(name))
        elif sum(map(len, names)) + len(names) + len(name) + 1 > LIST_MAX:
            raise AttributeTooLargeError(f"{len(names)} attributes are all that can be listed")
        self._catalog.put_xattr(inode.id, name, value)
        if name not in names:
            inode.xattrs += 1
        self._changed(inode)

    def remove(self, inode: Inode, name: bytes) -> None:
        """Raises: NoAttributeError, NotSupportedError, ReadOnlyError"""
        self._namespace.require_writable()
        self._require_known(name)
        if not inode.xattrs or not self._catalog.delete_xattr(inode.id, name):
            raise NoAttributeError(repr(name))
        inode.xattrs -= 1
        self._changed(inode)

    def names(self, inode: Inode, *, trusted: bool) -> list[bytes]:
        """All names; those of the trusted space only if the caller may see them."""
        if not inode.xattrs:
            return []
        return [
            name
            for name, _ in self._catalog.list_xattrs(inode.id)
            if trusted or not name.startswith(b"trusted.")
        ]

    def _require_known(self, name: bytes) -> None:
        if name.startswith(_SPACES) and not name.endswith(b"."):
            return
        if not (self._acl and name in _ACLS):
            raise NotSupportedError(repr(name))

    def _changed(self, inode: Inode) -> None:
        inode.ctime_ns = time.time_ns()
        self._inodes.changed(inode)
