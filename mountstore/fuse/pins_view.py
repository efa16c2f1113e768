"""`.cas/pins`: lists of blobs, written like any other file; what a list has to be, `mountstore.care.pins`.

A list is saved when the last writer closes it, and at fsync(2). A line that is no blob is refused by the write
that ends it (EINVAL); what is wrong with a last line that was never ended shows at fsync, or in the log: close(2)
returns before the daemon is told of it.
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
            return _List(self._pins, name, ("open", id(opened)), len(opened.data), now, self._owner)
        status = self._pins.status(name)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        version = status.st_ino, status.st_mtime_ns
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
        self._pins.remove(name)

    async def rename(self, name: bytes, new_name: bytes, *, noreplace: bool) -> None:
        await self._pins.rename(name, new_name, noreplace=noreplace)


class _List(Stream):
    """One list. What is saved anew is another inode, since the kernel never asks for a size it knows."""

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
        opened = self._pins.open(self._name)
        if flags & os.O_TRUNC:
            opened.truncate(0)
        return _Writing(self._pins, opened)

    async def truncate(self, size_bytes: int) -> None:
        opened = self._pins.open(self._name)
        try:
            opened.truncate(size_bytes)
        finally:
            await self._pins.release(opened)


class _Reading(Channel):
    """A list that is read: as it was saved, or as its writers have it by now."""

    def __init__(self, pins: Pins, name: bytes) -> None:
        opened = pins.opened(name)
        self._data = pins.read(name) if opened is None else opened.data

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])


class _Writing(Channel):
    """A list that is written."""

    def __init__(self, pins: Pins, opened: PinList) -> None:
        self._pins = pins
        self._opened = opened

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self._opened.data[offset : offset + length])

    async def write(self, offset: int, data: bytes) -> None:
        self._opened.write(offset, data)

    async def fsync(self) -> None:
        await self._pins.keep(self._opened)

    async def close(self) -> None:
        try:
            await self._pins.release(self._opened)
        except MountstoreError as exc:
            log.error("pins/%s is as it was before: %s", os.fsdecode(self._opened.name), exc)
