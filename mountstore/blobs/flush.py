"""System calls about a file system's room and its disk that the standard library lacks."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE of <fcntl.h>."""

_KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE of <linux/falloc.h>."""


class FlushFailedError(OSError):
    """The system could not bring to the disk what it had accepted (fsync(2), EIO), and may have forgotten it: a
    later attempt that succeeds says nothing about these bytes."""


def fsync(fd: int, path: str, *, data_only: bool = False) -> None:
    """Make what was written to an open file survive power loss. Blocks.

    Raises:
      FlushFailedError: As the system says.
    """
    try:
        if data_only:
            os.fdatasync(fd)
        else:
            os.fsync(fd)
    except OSError as exc:
        raise FlushFailedError(exc.errno, exc.strerror, path) from exc


def fsync_path(path: str, flags: int = os.O_RDONLY) -> None:
    """`fsync` of a file or (O_DIRECTORY) directory, which is not followed if it is a symbolic link.

    Raises:
      OSError: It could not be opened; nothing was tried.
      FlushFailedError: As `fsync`.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fsync(fd, path)
    finally:
        os.close(fd)


def begin_flush(path: str) -> None:
    """Have the system start to write what a file holds, without waiting: of several files that are then flushed
    one after the other, the first flush does most for all. Only a hint; nothing is raised."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        _libc.sync_file_range(fd, 0, 0, _START_WRITING)
    finally:
        os.close(fd)


def syncfs(path: str) -> None:
    """Make everything written to the file system that holds `path` survive power loss. Blocks.

    Raises:
      OSError: `path` could not be opened; nothing was tried.
      FlushFailedError: As the system says; since Linux 5.8 also when writing back failed earlier on (syncfs(2)).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise FlushFailedError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def allocate_beyond_end(fd: int, offset: int, length: int) -> bool:
    """Have the file system set room aside for later writes to [offset, offset + length); the size stays.

    False if it cannot: no room, or not supported (fallocate(2)).
    """
    return bool(_libc.fallocate(fd, _KEEP_SIZE, offset, length) == 0)
