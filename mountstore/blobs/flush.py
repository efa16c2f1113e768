"""System calls about a file system's room and its disk that the standard library lacks."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE of <fcntl.h>."""

_BTRFS = 0x9123683E
"""BTRFS_SUPER_MAGIC of <linux/magic.h>."""

_ZEROS = memoryview(bytes(256 << 10))

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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


def takes_no_writes(directory: str) -> bool:
    """Whether a directory's file system is read-only: mounted so, or gone so after an error of its disk, of which
    statvfs(2) need not tell (ext4 since Linux 6.15). Blocks; leaves nothing.

    Raises: OSError if there is no such directory.
    """
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return True
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        return exc.errno == errno.EROFS
    return False


def room_refused(directory: str, length: int) -> OSError | None:
    """Why `length` bytes find no room in a directory's file system: it is full, or a quota is used up, which
    statvfs(2) does not tell. None if they do, or it cannot be found out. Blocks; leaves nothing.
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        return exc if exc.errno in _NO_ROOM else None
    try:
        # Written, not allocated: what is reserved for a write is given back at once, while btrfs counts
        # what was allocated, and freed, against the quota for half a minute.
        while length > 0:
            length -= os.write(fd, _ZEROS[:length])
    except OSError as exc:
        return exc if exc.errno in _NO_ROOM else None
    finally:
        os.close(fd)
    return None


def hold_room(directory: str, length: int) -> int:
    """A descriptor of a file without a name that holds so much room in a directory's file system until it is
    closed; -1 if there is not twice that much."""
    if room_refused(directory, 2 * length) is not None:
        return -1
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1
    if _libc.fallocate(fd, 0, 0, length) != 0:
        os.close(fd)
        return -1
    return fd


def copies_on_write(directory: str) -> bool:
    """Whether the file system (btrfs) needs room for changing what a file has already."""
    status = ctypes.create_string_buffer(256)
    known = _libc.statfs(os.fsencode(directory), status) == 0
    return known and int.from_bytes(status.raw[:4], sys.byteorder) == _BTRFS


def is_quota(refusal: OSError) -> bool:
    """Whether it is a quota that refused, not the disk."""
    return refusal.errno == errno.EDQUOT


def is_no_room(exc: BaseException) -> bool:
    """Whether the system says that the disk is full or a quota used up."""
    return isinstance(exc, OSError) and exc.errno in _NO_ROOM
