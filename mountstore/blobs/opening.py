"""Opening the file of a blob to read it."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["open_to_read"]

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
