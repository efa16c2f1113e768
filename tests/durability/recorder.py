"""A disk that remembers every write and every flush, so that it can be put back to any instant.

A process of its own serves one file through FUSE, and a loop device makes a disk of it: what the file system on
that disk writes, and when it flushes the disk's cache, arrives here in order and is appended to a log. From
the log follows what any power cut could have left: everything up to the last flush, and of what was
written after it any part, since a disk with a volatile cache may have written that in any order.

The log is a sequence of records: time (CLOCK_MONOTONIC, ns), offset, length; the bytes follow. A flush has the
offset 2^64 - 1 and no bytes. Its time is taken before it is answered: who learnt that a flush
succeeded did so later.
"""

from __future__ import annotations

import mmap
import os
import select
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyfuse3
import trio

RECORD = struct.Struct("<QQI")
FLUSH = (1 << 64) - 1

_DISK = b"disk"
_INODE = pyfuse3.InodeT(2)


class Record(NamedTuple):
    """One write, or a flush (`data` is None)."""

    time_ns: int
    offset: int
    data: bytes | None


def read_log(path: Path) -> Iterator[Record]:
    """The records of a log, in order."""
    with path.open("rb") as log:
        while header := log.read(RECORD.size):
            time_ns, offset, length = RECORD.unpack(header)
            yield Record(time_ns, offset, None if offset == FLUSH else log.read(length))


class _Disk(pyfuse3.Operations):
    def __init__(self, size_bytes: int, log: Path) -> None:
        super().__init__()
        self._content = mmap.mmap(-1, size_bytes)
        self._log = log.open("wb", buffering=1 << 20)

    def close(self) -> None:
        self._log.close()

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        directory = inode == pyfuse3.ROOT_INODE
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o700 if directory else stat.S_IFREG | 0o600)
        entry.st_size = 0 if directory else len(self._content)
        entry.entry_timeout = entry.attr_timeout = 1000.0
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != _DISK:
            raise pyfuse3.FUSEError(2)
        return self._attributes(_INODE)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return self._content[off : off + size]

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        self._content[off : off + len(buf)] = buf
        self._log.write(RECORD.pack(time.monotonic_ns(), off, len(buf)))
        self._log.write(buf)
        return len(buf)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        self._log.write(RECORD.pack(time.monotonic_ns(), FLUSH, 0))


def main(argv: list[str]) -> None:
    """Serve: mount point, size in bytes, log."""
    mountpoint, size, log = argv
    disk = _Disk(int(size), Path(log))
    pyfuse3.init(disk, mountpoint, {*pyfuse3.default_options, "fsname=recorder"})
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        disk.close()
        pyfuse3.close()


@contextmanager
def recorded_disk(base: Path, size_bytes: int) -> Iterator[tuple[str, Path]]:
    """A loop device whose writes are recorded, and the log, which is whole when the context has ended.

    Whatever is mounted on the device is to be unmounted inside.
    """
    mountpoint = base / "recorder"
    mountpoint.mkdir()
    log = base / "writes"
    process = subprocess.Popen(
        [sys.executable, "-m", "durability.recorder", mountpoint, str(size_bytes), log],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        assert poll.poll(60_000)
        assert process.stdout.readline() == b"ready\n"
        device = run("losetup", "--find", "--show", str(mountpoint / "disk")).strip()
        try:
            yield device, log
        finally:
            run("losetup", "--detach", device)
    finally:
        subprocess.run(["umount", "--lazy", mountpoint], check=False, stdin=subprocess.DEVNULL)
        process.wait(60)
        process.stdout.close()


def run(*command: str | Path) -> str:
    """Run a program that has to end well; returns what it printed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
