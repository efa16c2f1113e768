"""Opening files of a store that may belong to somebody else: nothing leads elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

__all__ = ["give_to_owner", "open_fresh", "open_to_read", "private", "read_limited"]

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_to_read(path: str | bytes) -> int:
    """A descriptor of a file, not of what a symbolic link leads to, and without waiting for whoever writes a FIFO.

    The time of access stays what it was, where open(2) allows that: to the owner and to root. Otherwise the first
    read of each blob, and one a day from then on (relatime), has its inode written to the disk.

    Raises: OSError
    """
    try:
        return os.open(path, _FLAGS | os.O_NOATIME)
    except PermissionError:
        return os.open(path, _FLAGS)


def read_limited(path: str, limit: int, *, follow: bool = False) -> bytes:
    """All of a regular file that has no business to be larger than `limit` bytes.

    Args:
      follow: It may be a symbolic link to one.

    Raises: OSError (EFBIG: it is larger; EINVAL: it is no regular file)
    """
    fd = os.open(path, _FLAGS & ~os.O_NOFOLLOW) if follow else open_to_read(path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    with open(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data


def private(path: str | bytes, flags: int) -> int:
    """An opener, for open(), of files that nobody but their owner may read or write."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def open_fresh(path: str, mode: int = 0o600) -> int:
    """A descriptor to write a new file with, in place of what was left there, which is not followed.

    Raises: OSError
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def give_to_owner(file: int | str, like: str) -> None:
    """Let what root has made belong to whom `like` belongs, or he could not use it; others change nothing.

    Args:
      file: A descriptor, or a path, of which a symbolic link is not followed.

    Raises: OSError
    """
    if os.geteuid() == 0:
        owner = os.stat(like)
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(file, int))
