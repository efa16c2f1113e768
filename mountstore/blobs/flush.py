"""Flushing a whole file system to its disk: syncfs(2), which the standard library lacks."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


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
