"""System calls that Python has no name for; each raises OSError."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_AT_FDCWD = -100
_HANDLE_BYTES = 128

AnyPath = str | bytes | Path


def _checked(result: int, path: AnyPath) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    return result


def renameat2(old: AnyPath, new: AnyPath, flags: int) -> None:
    """renameat2(2)."""
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags), old)


def write_back(fd: int) -> None:
    """Have the kernel write a file's dirty pages, without an fsync: sync_file_range(2)."""
    waiting, writing, waited = 1, 2, 4
    length = ctypes.c_longlong(0)
    _checked(_libc.sync_file_range(fd, length, length, waiting | writing | waited), str(fd))


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES),
    )


Handle = tuple[int, bytes]
"""Type and bytes of a file handle."""


def name_to_handle(path: AnyPath) -> Handle:
    """name_to_handle_at(2)."""
    handle = _FileHandle(handle_bytes=_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(
            _AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0
        ),
        path,
    )
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def open_by_handle(mount_fd: int, handle: Handle, flags: int) -> int:
    """open_by_handle_at(2); root only."""
    kind, data = handle
    raw = _FileHandle(handle_bytes=len(data), handle_type=kind)
    ctypes.memmove(raw.f_handle, data, len(data))
    return _checked(_libc.open_by_handle_at(mount_fd, ctypes.byref(raw), flags), f"handle {data.hex()}")


def getdents(fd: int, size: int) -> list[tuple[bytes, int]]:
    """Names and the positions after them, as many as fit into `size` bytes; see getdents64(2)."""
    buffer = ctypes.create_string_buffer(size)
    filled = _checked(_libc.getdents64(fd, buffer, size), f"fd {fd}")
    found = []
    start = 0
    while start < filled:
        _, position, length, _ = struct.unpack_from("=QqHB", buffer, start)
        name = ctypes.string_at(ctypes.addressof(buffer) + start + 19)
        found.append((name, position))
        start += length
    return found


def utimensat(path: AnyPath, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2); times are (seconds, nanoseconds), the latter also UTIME_NOW or UTIME_OMIT."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _checked(_libc.utimensat(_AT_FDCWD, os.fsencode(path), times, 0), path)


UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
