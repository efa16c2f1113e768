"""POSIX access control lists: their form as an extended attribute, and the rules of acl(5). Pure.

The form is that of `system.posix_acl_access` and `system.posix_acl_default`, version 2, which the kernel
and libacl speak (linux/posix_acl_xattr.h), little-endian: a u32 version, then eight bytes for each entry:
u16 tag, u16 permissions, u32 user or group id.

The kernel enforces access control lists (FUSE_POSIX_ACL). It leaves to the file system what is here: keeping
the mode and the list in step, and inheritance. Where acl(5) is silent, ext4 is right.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from mountstore.errors import MisuseError, NotSupportedError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

NO_ID = 0xFFFFFFFF
"""The id of an entry that is neither a named user's nor a named group's."""

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class Tag(IntEnum):
    """What an entry speaks of. The values are on disk: never renumber."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


class AclEntry(NamedTuple):
    """One entry; `permissions` are bits 4 (read), 2 (write) and 1 (execute)."""

    tag: int
    permissions: int
    id: int = NO_ID


Acl = tuple[AclEntry, ...]
"""A valid list, in the order of the tags' values."""


class Inherited(NamedTuple):
    """What an inode gets that is made in a directory with a default list."""

    mode: int
    access: Acl | None
    """None: the mode says it all."""
    default: Acl | None


# --- the form ---


def decode(value: bytes) -> Acl:
    """The list that an attribute's value holds; empty if it has no entries, which means: none.

    Raises:
      NotSupportedError: Another version.
      MisuseError: Not a list that acl(5) calls valid.
    """
    if len(value) < _HEADER.size:
        raise MisuseError(f"an access control list of {len(value)} bytes")
    (version,) = _HEADER.unpack_from(value)
    if version != _VERSION:
        raise NotSupportedError(f"access control list of version {version}")
    if (len(value) - _HEADER.size) % _ENTRY.size:
        raise MisuseError(f"an access control list of {len(value)} bytes")
    acl = tuple(
        AclEntry(tag, permissions, number if tag in (Tag.USER, Tag.GROUP) else NO_ID)
        for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :])
    )
    if acl:
        _require_valid(acl)
    return acl


def encode(acl: Acl) -> bytes:
    """The attribute's value for a list."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def _require_valid(acl: Acl) -> None:
    """acl(5), VALID ACLs, as the kernel's posix_acl_valid reads it: ids may repeat and need no order.

    Raises: MisuseError
    """
    tags = [entry.tag for entry in acl]
    if tags != sorted(tags) or not set(tags) <= set(Tag):
        raise MisuseError("access control list with unknown entries or out of order")
    for tag in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER):
        if tags.count(tag) != 1:
            raise MisuseError(f"access control list with {tags.count(tag)} entries {tag.name}")
    named = Tag.USER in tags or Tag.GROUP in tags
    if tags.count(Tag.MASK) > 1 or (named and Tag.MASK not in tags):
        raise MisuseError("access control list without its one mask")
    for entry in acl:
        if entry.permissions & ~7:
            raise MisuseError(f"permissions {entry.permissions:#x} in an access control list")
        if entry.tag in (Tag.USER, Tag.GROUP) and entry.id == NO_ID:
            raise MisuseError("entry of nobody in an access control list")


# --- the rules ---


def is_minimal(acl: Acl) -> bool:
    """Whether the permission bits of a mode say all that the list says."""
    return len(acl) == 3


def mode_of(acl: Acl, mode: int) -> int:
    """`mode` with the permissions that correspond to an access list (acl(5), CORRESPONDENCE): those of the
    group are the mask's if there is one."""
    group = _group_class(acl)
    bits = 0
    for tag, permissions, _ in acl:
        if tag == Tag.USER_OBJ:
            bits |= permissions << 6
        elif tag == group:
            bits |= permissions << 3
        elif tag == Tag.OTHER:
            bits |= permissions
    return mode & ~0o777 | bits


def chmod(acl: Acl, mode: int) -> Acl:
    """An access list after chmod(2) to `mode`."""
    classes = {Tag.USER_OBJ: mode >> 6 & 7, _group_class(acl): mode >> 3 & 7, Tag.OTHER: mode & 7}
    return tuple(
        AclEntry(tag, classes.get(Tag(tag), permissions), number) for tag, permissions, number in acl
    )


def inherit(default: Acl, mode: int, *, directory: bool) -> Inherited:
    """What something new gets from its directory's default list (acl(5), OBJECT CREATION).

    Args:
      mode: As given to open(2), mkdir(2) or mknod(2); the umask is not applied when there is such a list.
    """
    allowed = mode & mode_of(default, 0)
    access = chmod(default, allowed)
    return Inherited(
        mode & ~0o777 | allowed,
        None if is_minimal(access) else access,
        default if directory else None,
    )


def _group_class(acl: Acl) -> Tag:
    """The entry that corresponds to the group bits of the mode."""
    # The mask is the last but one.
    return Tag.MASK if acl[-2].tag == Tag.MASK else Tag.GROUP_OBJ
