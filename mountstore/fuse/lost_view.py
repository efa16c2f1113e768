"""`.cas/lost+found`: what recovery and fsck.cas moved aside, to be looked at and copied.

    blobs/     damaged or foreign files that were in the tree (STORE/bad)
    drafts/    unsealed contents of files, which a crash left (STORE/staging/kept)
    findings   what the last fsck.cas found, one finding a line

Nothing here is verified: that something is wrong with it is why it is here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterator

import trio

from mountstore.care.notes import read_notes
from mountstore.errors import AbsentError
from mountstore.fuse.virtual import Appearance, Channel, Directory, Node, Stream, Text
from mountstore.store.layout import BAD_NAME, KEPT_NAME, NOTES_NAME, STAGING_NAME

__all__ = ["LostAndFound"]

_PLACES = {b"blobs": BAD_NAME, b"drafts": f"{STAGING_NAME}/{KEPT_NAME}"}


class LostAndFound(Directory):
    """`lost+found`."""

    __slots__ = ("_above", "_owner", "_store")

    def __init__(self, store: str, owner: tuple[int, int], above: Directory) -> None:
        self._store = store
        self._owner = owner
        self._above = above

    @property
    def key(self) -> Hashable:
        return "lost+found"

    @property
    def above(self) -> Directory:
        return self._above

    def appearance(self) -> Appearance:
        return Appearance(stat.S_IFDIR | 0o500, *self._owner, 4096, *_times(self._store), 0.0, 0.0)

    async def lookup(self, name: bytes) -> Node | None:
        if name == b"findings":
            return _Findings(f"{self._store}/{NOTES_NAME}", self._owner)
        if name in _PLACES:
            return _Aside(os.fsencode(f"{self._store}/{_PLACES[name]}"), self._owner, self)
        return None

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        nodes = [(name, await self.lookup(name)) for name in (*_PLACES, b"findings")]
        return iter([(name, node) for name, node in nodes if node is not None])


class _Aside(Directory):
    """A directory of the store; empty if it is not there."""

    __slots__ = ("_above", "_owner", "_path")

    def __init__(self, path: bytes, owner: tuple[int, int], above: Directory) -> None:
        self._path = path
        self._owner = owner
        self._above = above

    @property
    def key(self) -> Hashable:
        return "aside", self._path

    @property
    def above(self) -> Directory:
        return self._above

    def appearance(self) -> Appearance:
        return Appearance(stat.S_IFDIR | 0o500, *self._owner, 4096, *_times(self._path), 0.0, 0.0)

    async def lookup(self, name: bytes) -> Node | None:
        if b"/" in name:
            return None
        path = os.path.join(self._path, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return None
        if stat.S_ISDIR(mode):
            return _Aside(path, self._owner, self)
        return _AsideFile(path, self._owner) if stat.S_ISREG(mode) else None

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        try:
            names = sorted(await trio.to_thread.run_sync(os.listdir, self._path))
        except FileNotFoundError:
            names = []
        return self._list(names)

    def _list(self, names: list[bytes]) -> Iterator[tuple[bytes, Node]]:
        for name in names:
            path = os.path.join(self._path, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISDIR(mode):
                yield name, _Aside(path, self._owner, self)
            elif stat.S_ISREG(mode):
                yield name, _AsideFile(path, self._owner)


class _AsideFile(Stream):
    """A file of the store, as it is."""

    __slots__ = ("_owner", "_path")

    def __init__(self, path: bytes, owner: tuple[int, int]) -> None:
        self._path = path
        self._owner = owner

    @property
    def key(self) -> Hashable:
        return "aside", self._path

    def appearance(self) -> Appearance:
        try:
            size_bytes = os.lstat(self._path).st_size
        except OSError:
            size_bytes = 0
        return Appearance(stat.S_IFREG | 0o400, *self._owner, size_bytes, *_times(self._path), 0.0, 0.0)

    async def open(self, flags: int, pid: int) -> Channel:
        try:
            return _DiskChannel(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            raise AbsentError(os.fsdecode(self._path)) from None


class _DiskChannel(Channel):
    """An open file of the disk, for reading; its descriptor is owned."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self, offset: int, length: int) -> bytes:
        return await trio.to_thread.run_sync(os.pread, self._fd, length, offset)

    async def close(self) -> None:
        os.close(self._fd)


class _Findings(Stream):
    """`findings`."""

    __slots__ = ("_owner", "_path")

    def __init__(self, path: str, owner: tuple[int, int]) -> None:
        self._path = path
        self._owner = owner

    @property
    def key(self) -> Hashable:
        return "findings"

    def appearance(self) -> Appearance:
        return Appearance(stat.S_IFREG | 0o400, *self._owner, 0, *_times(self._path), 0.0, 0.0)

    async def open(self, flags: int, pid: int) -> Channel:
        notes = await trio.to_thread.run_sync(read_notes, self._path)
        lines = []
        for finding in notes.findings:
            line = f"{finding.kind}: {finding.what}" + (f" ({finding.change})" if finding.change else "")
            lines.append(" | ".join(line.splitlines()) + "\n")
        return Text("".join(lines).encode("utf-8", "surrogateescape"))


def _times(path: str | bytes) -> tuple[int, int]:
    """mtime and ctime in nanoseconds; zero for what is not there."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ctime_ns
