"""The exceptions that the store raises on purpose, in one family.

Not in it: `FlushFailedError` (mountstore.blobs.flush), which is an `OSError`, and what images and conversations
with a daemon say of themselves.

Nothing here knows errno: `mountstore.fuse.errnos` holds the one table that turns these into what a
system call returns. An `OSError` of the operating system (a full disk, a bad sector) is passed on as it
is, since its errno is already the right answer.
"""

from __future__ import annotations

import os


class MountstoreError(Exception):
    """Base of all; what it says is meant for the user."""


# --- the caller asked for something that is not possible; nothing was changed ---


class MisuseError(MountstoreError):
    """An argument is outside what the operation accepts."""


class AbsentError(MountstoreError):
    """The name, inode or handle does not exist."""


class ExistsError(MountstoreError):
    """The name is taken."""


class NotEmptyError(MountstoreError):
    """A directory that must be empty is not."""


class WantsDirectoryError(MountstoreError):
    """A directory was needed, something else was found."""


class FoundDirectoryError(MountstoreError):
    """A directory was found where none may be."""


class NameTooLongError(MountstoreError):
    """A name has more than 255 bytes, or a symbolic link target more than 4095."""


class TooManyLinksError(MountstoreError):
    """The inode has as many hard links as it may have."""


class NoAttributeError(MountstoreError):
    """The extended attribute does not exist."""


class AttributeTooLargeError(MountstoreError):
    """An extended attribute exceeds its limit in size or number."""


class NotSupportedError(MountstoreError):
    """The operation does not exist here (an unknown attribute namespace, a flag)."""


class NotPermittedError(MountstoreError):
    """The caller may not do this."""


class TooLargeError(MountstoreError):
    """A file would become larger than a file may be."""


class ReadOnlyError(MountstoreError):
    """The mount or the store takes no writes (any more)."""


class NoSpaceError(MountstoreError):
    """The disk below has no room for it; what was there is as before."""


class QuotaError(NoSpaceError):
    """The disk below has room, but a quota keeps it from the store; what was there is as before."""


class StaleError(MountstoreError):
    """The inode that was asked for existed once and is gone."""


class CancelledError(MountstoreError):
    """The caller asked for long work to be given up; what it did so far harms nothing."""


class ImageError(MountstoreError):
    """A file is not an image that can be resized: of an unknown format, damaged, or hostile."""


# --- the state of the store ---


class BusyError(MountstoreError):
    """Somebody else holds what is needed (the store's lock, a mount point)."""


class StoreError(MountstoreError):
    """The directory is not a usable store: absent, of another format, or misconfigured."""


class BlobMissingError(MountstoreError):
    """A blob that something refers to is not in the tree."""


class CorruptError(MountstoreError):
    """Bytes on disk are not what was written: a checksum, a digest or a format does not hold."""


# --- the platform ---


class MountError(MountstoreError):
    """The kernel or fusermount3 refused the mount or the unmount; nothing was changed."""


def shown(name: bytes) -> str:
    """A name or path as it stands in a message: in quotes, whatever bytes it has."""
    return repr(os.fsdecode(name))
