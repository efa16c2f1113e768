"""The directory `.cas` at the root of the mount, docs/control.md.

    control          commands are written to it, answers are read from it        0600
    status, stats    JSON; metrics: the same numbers for Prometheus              0444
    jobs, log        what runs; the latest messages                              0400
    blobs/DIGEST     a blob by its name, or its SHA-256; not listed              0500
    pins/            lists of blobs to keep                                      0700
    snapshots/NAME/  the tree as it was                                          0555
    lost+found/      what recovery and fsck moved aside, and what fsck found     0500

All of it belongs to the user who runs the daemon; root may do everything as everywhere.

Every look-up of `control` gives another inode. A write to it may take long, and the kernel lets only one process
at a time write to an inode: the command that cancels a job could never be written.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import count
from typing import Final

import trio
from pyfuse3 import FUSEError

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.control.answers import encode
from mountstore.control.command import Registry, parse_digest
from mountstore.control.context import Services
from mountstore.control.conversation import CommandFailedError, Conversation
from mountstore.control.jobs import Jobs
from mountstore.control.messages import show
from mountstore.errors import AbsentError, MisuseError
from mountstore.fuse.answers import CACHE_S
from mountstore.fuse.lost_view import LostAndFound
from mountstore.fuse.pins_view import PinsDirectory
from mountstore.fuse.snapshots_view import SnapshotsDirectory, SnapshotsView
from mountstore.fuse.virtual import Appearance, Channel, Directory, File, Node, Reader, Stream, Text
from mountstore.namespace.blob_records import find_digests
from mountstore.namespace.history import Version
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.timeline import NOT_YET_NS, VersionReader

__all__ = ["ControlDirectory", "NodeMaker"]

_WATCH_S: Final = 0.25
"""How often it is looked whether the process that waits for a command was told to end."""

_ENDING: Final = sum(
    1 << number - 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT)
)

MakeText = Callable[[], bytes]
NodeMaker = Callable[[Directory], Node]
"""Makes the node of a name, given the directory it is in."""


class _Owned:
    """Whose everything is, and since when."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.since_ns = time.time_ns()

    def directory(self, permissions: int) -> Appearance:
        times = self.since_ns, self.since_ns
        return Appearance(stat.S_IFDIR | permissions, self.uid, self.gid, 4096, *times, CACHE_S, CACHE_S)

    def file(self, permissions: int, size_bytes: int = 0, *, entry_timeout_s: float = CACHE_S) -> Appearance:
        times = self.since_ns, self.since_ns
        mode = stat.S_IFREG | permissions
        return Appearance(mode, self.uid, self.gid, size_bytes, *times, entry_timeout_s, CACHE_S)


class ControlDirectory(Directory):
    """`.cas`.

    Args:
      texts: Files that say something: their permissions, and what makes the text when they are opened.
    """

    __slots__ = ("_children", "_owned")

    def __init__(
        self,
        services: Services,
        registry: Registry,
        jobs: Jobs,
        *,
        texts: Mapping[bytes, tuple[int, MakeText]],
    ) -> None:
        self._owned = _Owned()
        owned = self._owned
        owner = owned.uid, owned.gid
        serial = count(1)
        snapshots = SnapshotsView(services.store.tree, services.store.contents, CACHE_S)
        self._children: dict[bytes, NodeMaker] = {
            b"control": lambda above: _ControlFile(owned, services, registry, jobs, next(serial)),
            b"blobs": lambda above: _Blobs(owned, services, above),
            b"pins": lambda above: PinsDirectory(services.pins, owner, above),
            b"snapshots": lambda above: SnapshotsDirectory(snapshots, owned.directory(0o555), above),
            b"lost+found": lambda above: LostAndFound(services.store.path, owner, above),
            b"log": lambda above: _TextFile(owned, b"log", 0o400, lambda: show(services.messages)),
            b"jobs": lambda above: _TextFile(owned, b"jobs", 0o400, lambda: _show_jobs(jobs)),
        }
        for name, (permissions, text) in texts.items():
            self._children[name] = self._maker(name, permissions, text)

    def _maker(self, name: bytes, permissions: int, text: MakeText) -> NodeMaker:
        return lambda above: _TextFile(self._owned, name, permissions, text)

    def add(self, name: bytes, make: NodeMaker) -> None:
        """Have one more name here."""
        self._children[name] = make

    @property
    def key(self) -> Hashable:
        return "control directory"

    @property
    def above(self) -> int:
        return ROOT

    def appearance(self) -> Appearance:
        return self._owned.directory(0o555)

    async def lookup(self, name: bytes) -> Node | None:
        make = self._children.get(name)
        return None if make is None else make(self)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return iter([(name, make(self)) for name, make in sorted(self._children.items())])


def _show_jobs(jobs: Jobs) -> bytes:
    return b"".join(encode(job.describe()) for job in jobs.all())


class _ControlFile(Stream):
    """`control`."""

    writable = True

    __slots__ = ("_jobs", "_owned", "_registry", "_serial", "_services")

    def __init__(self, owned: _Owned, services: Services, registry: Registry, jobs: Jobs, serial: int) -> None:
        self._owned = owned
        self._services = services
        self._registry = registry
        self._jobs = jobs
        self._serial = serial

    @property
    def key(self) -> Hashable:
        return "control", self._serial

    def appearance(self) -> Appearance:
        return self._owned.file(0o600, entry_timeout_s=0.0)

    async def open(self, flags: int, pid: int) -> Channel:
        return _ControlChannel(Conversation(self._services, self._registry, self._jobs), pid)


class _ControlChannel(Channel):
    """`control`, open. Positions mean nothing: it is two streams."""

    def __init__(self, conversation: Conversation, pid: int) -> None:
        self._conversation = conversation
        self._pid = pid

    async def read(self, offset: int, length: int) -> bytes:
        return await self._conversation.read(length)

    async def write(self, offset: int, data: bytes) -> None:
        failed: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            try:
                await self._conversation.write(data)
            except CommandFailedError as exc:
                failed = exc.error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise FUSEError(getattr(errno, failed, errno.EIO))

    async def _watch(self) -> None:
        """Cancel the command when whoever waits for it has a signal that should end it.

        Until it is answered the kernel lets nobody out of a request, not even for SIGKILL, and pyfuse3 does not
        tell of interruptions. The one who waits is taken to be the one who opened the file.
        """
        while self._pid:
            await trio.sleep(_WATCH_S)
            if _has_to_end(self._pid):
                self._conversation.cancel()
                return

    async def close(self) -> None:
        self._conversation.close()


def _has_to_end(pid: int) -> bool:
    """Whether a thread has a signal waiting that ends it or that it handles; not if that cannot be known."""
    masks = {}
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                name, _, value = line.partition(b":")
                if name in (b"SigPnd", b"ShdPnd", b"SigBlk"):
                    masks[name] = int(value, 16)
    except (OSError, ValueError):
        return False
    pending = masks.get(b"SigPnd", 0) | masks.get(b"ShdPnd", 0)
    return bool(pending & ~masks.get(b"SigBlk", 0) & _ENDING)


class _TextFile(Stream):
    """A text that is made when it is opened."""

    __slots__ = ("_name", "_owned", "_permissions", "_text")

    def __init__(self, owned: _Owned, name: bytes, permissions: int, text: MakeText) -> None:
        self._owned = owned
        self._name = name
        self._permissions = permissions
        self._text = text

    @property
    def key(self) -> Hashable:
        return "text", self._name

    def appearance(self) -> Appearance:
        return self._owned.file(self._permissions)

    async def open(self, flags: int, pid: int) -> Channel:
        return Text(self._text())


class _Blobs(Directory):
    """`blobs`: far too many to list."""

    __slots__ = ("_above", "_owned", "_services")

    def __init__(self, owned: _Owned, services: Services, above: Directory) -> None:
        self._owned = owned
        self._services = services
        self._above = above

    @property
    def key(self) -> Hashable:
        return "blobs"

    @property
    def above(self) -> Directory:
        return self._above

    def appearance(self) -> Appearance:
        return self._owned.directory(0o500)

    async def lookup(self, name: bytes) -> Node | None:
        try:
            sha256, size_bytes = parse_digest(os.fsdecode(name))
        except MisuseError:
            return None
        store = self._services.store
        if size_bytes is None:
            if not store.read_only:
                # What was just placed has no row before the next commit.
                store.commits.commit()
            found = await trio.to_thread.run_sync(find_digests, store.catalog.path, [sha256])
            if sha256 not in found:
                return None
            digest = found[sha256]
        else:
            digest = Digest(sha256, size_bytes)
        if await trio.to_thread.run_sync(store.tree.find, digest) is None:
            return None
        return _Blob(self._owned, self._services, digest)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return iter(())


class _Blob(File):
    """One blob, verified when it is read."""

    __slots__ = ("_digest", "_owned", "_services")

    def __init__(self, owned: _Owned, services: Services, digest: Digest) -> None:
        self._owned = owned
        self._services = services
        self._digest = digest

    @property
    def key(self) -> Hashable:
        return self._digest

    def appearance(self) -> Appearance:
        # The name is not kept: the blob may be collected.
        return self._owned.file(0o400, self._digest.size_bytes, entry_timeout_s=0.0)

    async def open(self) -> tuple[Reader, bool]:
        digest = self._digest
        if self._services.store.tree.find(digest) is None:
            raise AbsentError(f"there is no blob {digest.name}")
        content = Content(ContentKind.BLOB, digest, digest.size_bytes)
        version = Version(content, digest.size_bytes, 0, 0, 0, 0, NOT_YET_NS)
        return VersionReader(self._services.store.contents, version), True
