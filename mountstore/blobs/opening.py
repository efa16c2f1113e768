"""Opening files of a store that may belong to somebody else: nothing leads elsewhere."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

__all__ = ["give_to_owner", "open_fresh", "open_to_read"]

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_to_read(path: str) -> int:
    """A descriptor of a file, not of what a symbolic link leads to, and without waiting for whoever writes a FIFO.

    The time of access stays what it was, where open(2) allows that: to the owner and to root. Otherwise the first
    read of each blob, and one a day from then on (relatime), has its inode written to the disk.

    Raises: OSError
    """
    try:
        return os.open(path, _FLAGS | os.O_NOATIME)
    except PermissionError:
        return os.open(path, _FLAGS)


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
