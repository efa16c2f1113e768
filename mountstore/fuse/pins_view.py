"""`.cas/pins`: lists of blobs, written like any other file; what a list has to be, `mountstore.care.pins`.

What is appended to a list that is not long counts when the write that ends its line returns; a line that is no
blob, that write refuses (EINVAL). Anything else counts from fsync(2) on, or when the last writer has closed the
list; what is wrong with it shows at fsync, or in the log: close(2) returns before the daemon is told of it.

The kernel takes itself for the authority on a file's size and never asks again (docs/architecture.md), while here
several inodes stand for one list, and a list may stay as it was. So an inode is not shown again once its list has
been changed through it, and where the end is, for O_APPEND, is decided here.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Hashable, Iterator

from mountstore.care.pins import PinList, Pins
from mountstore.errors import AbsentError, ExistsError, MountstoreError
from mountstore.fuse.virtual import Appearance, Channel, Directory, Node, OpenDirectory, Stream

__all__ = ["PinsDirectory"]

log = logging.getLogger(__name__)


class PinsDirectory(OpenDirectory):
    """`pins`."""

    __slots__ = ("_above", "_owner", "_pins")

    def __init__(self, pins: Pins, owner: tuple[int, int], above: Directory) -> None:
        self._pins = pins
        self._owner = owner
        self._above = above

    @property
    def key(self) -> Hashable:
        return "pins"

    @property
    def above(self) -> Directory:
        return self._above

    def appearance(self) -> Appearance:
        now = time.time_ns()
        return Appearance(stat.S_IFDIR | 0o700, *self._owner, 4096, now, now, 0.0, 0.0)

    def _node(self, name: bytes) -> _List | None:
        opened = self._pins.opened(name)
        if opened is not None:
            now = time.time_ns()
            return _List(self._pins, name, ("open", opened.serial), len(opened.data), now, self._owner)
        status = self._pins.status(name)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        version = status.st_ino, status.st_mtime_ns, self._pins.dropped
        return _List(
            self._pins, name, version, status.st_size, status.st_mtime_ns, self._owner
        )

    async def lookup(self, name: bytes) -> Node | None:
        return self._node(name)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        nodes = [(name, self._node(name)) for name in self._pins.names()]
        return iter([(name, node) for name, node in nodes if node is not None])

    async def create(self, name: bytes, *, exclusive: bool) -> Stream:
        try:
            self._pins.create(name)
        except ExistsError:
            if exclusive:
                raise
        node = self._node(name)
        if node is None:
            raise AbsentError(os.fsdecode(name))
        return node

    async def unlink(self, name: bytes) -> None:
        await self._pins.remove(name)

    async def rename(self, name: bytes, new_name: bytes, *, noreplace: bool) -> None:
        await self._pins.rename(name, new_name, noreplace=noreplace)


class _List(Stream):
    """One list. `version` tells apart what has to be different inodes."""

    writable = True

    __slots__ = ("_mtime_ns", "_name", "_owner", "_pins", "_size_bytes", "_version")

    def __init__(
        self, pins: Pins, name: bytes, version: Hashable, size_bytes: int, mtime_ns: int, owner: tuple[int, int]
    ) -> None:
        self._pins = pins
        self._name = name
        self._version = version
        self._size_bytes = size_bytes
        self._mtime_ns = mtime_ns
        self._owner = owner

    @property
    def key(self) -> Hashable:
        return "pins", self._name, self._version

    def appearance(self) -> Appearance:
        times = self._mtime_ns, self._mtime_ns
        return Appearance(stat.S_IFREG | 0o600, *self._owner, self._size_bytes, *times, 0.0, 0.0)

    async def open(self, flags: int, pid: int) -> Channel:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return _Reading(self._pins, self._name)
        opened = await self._pins.open(self._name)
        if flags & os.O_TRUNC:
            opened.truncate(0)
        return _Writing(self._pins, opened, appends=bool(flags & os.O_APPEND))

    async def truncate(self, size_bytes: int) -> None:
        opened = await self._pins.open(self._name)
        try:
            await self._pins.truncate(opened, size_bytes)
        finally:
            await self._pins.release(opened)
        # The kernel is told the size with the answer, and takes that.
        self._size_bytes = size_bytes


class _Reading(Channel):
    """A list that is read: as it was saved, or as its writers have it by now."""

    def __init__(self, pins: Pins, name: bytes) -> None:
        self._pins = pins
        self._name = name
        opened = pins.opened(name)
        self._data = pins.read(name) if opened is None else opened.data

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    async def fsync(self) -> None:
        """sync(1): whoever wrote the list may have closed it a moment ago."""
        opened = self._pins.opened(self._name)
        if opened is not None:
            await self._pins.keep(opened)


class _Writing(Channel):
    """A list that is written."""

    def __init__(self, pins: Pins, opened: PinList, *, appends: bool) -> None:
        self._pins = pins
        self._opened = opened
        self._appends = appends
        self._written = False

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self._opened.data[offset : offset + length])

    async def write(self, offset: int, data: bytes) -> None:
        first, self._written = not self._written, True
        await self._pins.write(self._opened, None if self._appends else offset, data, first=first)

    async def fsync(self) -> None:
        await self._pins.keep(self._opened)

    async def close(self) -> None:
        try:
            await self._pins.release(self._opened)
        except (MountstoreError, OSError) as exc:
            log.error("pins/%s is as it was before: %s", os.fsdecode(self._opened.name), exc)
