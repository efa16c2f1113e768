"""What a directory tree looks like from outside: the one way in which tests compare two of them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

_WHOLE_BYTES = 64 << 20
_PART_BYTES = 1 << 20


class Sight(NamedTuple):
    """What is seen of one name."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    """Of everything but directories, for which every file system has its own idea."""
    content: str
    """SHA-256 of a regular file's bytes, or of its head and tail if it is very long."""
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: tuple[bytes, ...]
    """All names of the same file that were seen, for hard links."""
    times: tuple[int, int]
    """Modification and change time, if they were asked for."""
    number: int
    """The inode number, if asked for."""


def _content_of(path: bytes, size: int) -> str:
    with open(path, "rb", buffering=0) as file:
        if size <= _WHOLE_BYTES:
            digest = hashlib.sha256()
            while data := file.read(_PART_BYTES):
                digest.update(data)
            return digest.hexdigest()
        head = os.pread(file.fileno(), _PART_BYTES, 0)
        tail = os.pread(file.fileno(), _PART_BYTES, size - _PART_BYTES)
        return hashlib.sha256(head + tail).hexdigest()


def picture(root: str | Path, *, exact: bool = False) -> dict[bytes, Sight]:
    """Every name below `root`, with all that a program can see of it.

    Args:
      exact: With times and inode numbers, for the same tree before and after.
    """
    base = os.fsencode(root)
    found: dict[bytes, os.stat_result] = {}
    names: dict[int, list[bytes]] = {}
    pending = [b""]
    while pending:
        relative = pending.pop()
        path = base + b"/" + relative
        status = os.lstat(path)
        found[relative] = status
        if stat.S_ISDIR(status.st_mode):
            for name in os.listdir(path):
                pending.append(relative + b"/" + name if relative else name)
        else:
            names.setdefault(status.st_ino, []).append(relative)
    return {relative: _sight(base, relative, status, names, exact) for relative, status in found.items()}


def _sight(
    base: bytes, relative: bytes, status: os.stat_result, names: dict[int, list[bytes]], exact: bool
) -> Sight:
    path = base + b"/" + relative
    mode = status.st_mode
    return Sight(
        mode=mode,
        nlink=status.st_nlink,
        uid=status.st_uid,
        gid=status.st_gid,
        rdev=status.st_rdev,
        size=0 if stat.S_ISDIR(mode) else status.st_size,
        content=_content_of(path, status.st_size) if stat.S_ISREG(mode) else "",
        target=os.readlink(path) if stat.S_ISLNK(mode) else b"",
        xattrs=tuple(
            (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        links=tuple(sorted(names.get(status.st_ino, ()))),
        times=(status.st_mtime_ns, status.st_ctime_ns) if exact else (0, 0),
        number=status.st_ino if exact else 0,
    )


def assert_same(seen: dict[bytes, Sight], expected: dict[bytes, Sight]) -> None:
    """Assert that two pictures are the same, and say briefly where they differ."""
    if seen == expected:
        return
    said = []
    for name in sorted(seen.keys() | expected.keys()):
        ours, theirs = seen.get(name), expected.get(name)
        if ours is None or theirs is None:
            said.append(f"{name!r}: {'missing' if ours is None else 'too much'}")
        elif ours != theirs:
            fields = [
                f"{field} {getattr(ours, field)!r}, not {getattr(theirs, field)!r}"
                for field in Sight._fields
                if getattr(ours, field) != getattr(theirs, field)
            ]
            said.append(f"{name!r}: {'; '.join(fields)}")
    raise AssertionError("\n".join(said[:20]))
