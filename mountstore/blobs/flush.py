"""System calls about a file system's room and its disk that the standard library lacks."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE of <linux/falloc.h>."""


def syncfs(path: str) -> None:
    """Make everything written to the file system that holds `path` survive power loss. Blocks.

    Raises:
      OSError: As the system says; since Linux 5.8 also when writing back failed earlier on (syncfs(2)).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def allocate_beyond_end(fd: int, offset: int, length: int) -> bool:
    """Have the file system set room aside for later writes to [offset, offset + length); the size stays.

    False if it cannot: no room, or not supported (fallocate(2)).
    """
    return bool(_libc.fallocate(fd, _KEEP_SIZE, offset, length) == 0)
