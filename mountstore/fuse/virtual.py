"""Virtual inodes: small trees that the daemon answers for by itself, beside the inodes of the store.

A tree is made of nodes: a `Directory` looks names up and lists them, a `File` is opened for reading, a `Stream` is
asked for every read and told every write, a `Link` has a target. Nodes are values made on demand; what makes two
of them the same inode is their `key`.

1. Numbers are from `VIRTUAL` on, far beyond those of the store, and never used twice; but for nodes that bring
   their own, in a mount that has no others.
2. A node has a number from the first answer that names it until the kernel forgets it: its look-ups are
   counted, so the table is as large as what the kernel knows, and a number is stable meanwhile.
3. Everything but streams and an `OpenDirectory` is read-only (EROFS), for root too.
4. A link never changes: the kernel keeps what it read. So its target is part of its key.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FUSEError, InodeT, ModeT, ReaddirToken

VIRTUAL = 1 << 62
"""The first number of a virtual inode, and of a handle of one."""

_WINDOW = 2048
"""Entries of a listing that the kernel may ask for again: it often goes back by part of a buffer."""

_BATCH = 128
"""Entries made at a time."""


class Appearance(NamedTuple):
    """What stat(2) shows of a node, and how long the kernel may keep that and the name that led to it."""

    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    entry_timeout_s: float
    attr_timeout_s: float
    atime_ns: int | None = None
    """None: as `mtime_ns`."""
    # Of a directory too, 1 is "not counted", so that nobody concludes from it how many directories are in it.
    nlink: int = 1
    rdev: int = 0
    allocated_bytes: int = -1
    """Without holes; -1: as `size_bytes`."""


class Reader(Protocol):
    """An open file."""

    async def read(self, offset: int, length: int) -> bytes: ...

    def close(self) -> None: ...


NextBatch = Callable[[], Awaitable[Sequence[tuple[bytes, "Node"]]]]
"""Gives the next names and nodes of a listing, none at its end."""


class Node(ABC):
    """Something with a virtual inode."""

    __slots__ = ()

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What it stands for."""

    @abstractmethod
    def appearance(self) -> Appearance: ...

    @property
    def number(self) -> int | None:
        """Its inode number, if it has one of its own, which nothing else may have."""
        return None

    def xattrs(self) -> Sequence[tuple[bytes, bytes]]:
        """Extended attributes."""
        return ()


class Directory(Node):
    """A directory; `above` is the one it is in, an inode number for one of the store's."""

    __slots__ = ()

    @property
    @abstractmethod
    def above(self) -> Directory | int: ...

    @abstractmethod
    async def lookup(self, name: bytes) -> Node | None:
        """What a name stands for, if anything."""

    @abstractmethod
    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        """Names and nodes, produced as they are asked for; the tree may change meanwhile."""

    async def batches(self) -> NextBatch:
        """The same in parts; what has to wait for each of them overrides this."""
        entries = await self.listing()

        async def next_batch() -> Sequence[tuple[bytes, Node]]:
            return list(islice(entries, _BATCH))

        return next_batch


class File(Node):
    """A regular file."""

    __slots__ = ()

    @abstractmethod
    async def open(self) -> tuple[Reader, bool]:
        """The open file, and whether the kernel may keep what it read of it before."""


class Channel(ABC):
    """An open stream. For reading only, unless it says otherwise."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes: ...

    async def write(self, offset: int, data: bytes) -> None:
        raise FUSEError(errno.EBADF)

    async def fsync(self) -> None:  # noqa: B027  # nothing to do for what is not written
        """Have on disk what was written."""

    async def close(self) -> None:  # noqa: B027  # most hold nothing
        """The last descriptor of it was closed."""


class Text(Channel):
    """Bytes that were there when the file was opened."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    async def read(self, offset: int, length: int) -> bytes:
        return self._text[offset : offset + length]


class Stream(Node):
    """A file that the kernel keeps nothing of: every read and write gets here."""

    __slots__ = ()

    writable = False
    """Whether it may be opened for writing (EACCES, also for root, if not)."""

    @abstractmethod
    async def open(self, flags: int, pid: int) -> Channel:
        """Open it for the thread `pid`, with the flags of open(2); 0 is a thread that cannot be seen from here."""

    async def truncate(self, size_bytes: int) -> None:
        """truncate(2) of one that is writable; does nothing to what has no size."""


class OpenDirectory(Directory):
    """A directory in which files can be made, removed and renamed."""

    __slots__ = ()

    @abstractmethod
    async def create(self, name: bytes, *, exclusive: bool) -> Stream:
        """An empty file, or the one that is there unless it has to be `exclusive`."""

    @abstractmethod
    async def unlink(self, name: bytes) -> None: ...

    @abstractmethod
    async def rename(self, name: bytes, new_name: bytes, *, noreplace: bool) -> None: ...


class Link(Node):
    """A symbolic link."""

    __slots__ = ()

    @property
    @abstractmethod
    def target(self) -> bytes: ...


class _Known:
    """A node the kernel knows, with how often it was told."""

    __slots__ = ("count", "node", "number")

    def __init__(self, number: int, node: Node) -> None:
        self.number = InodeT(number)
        self.node = node
        self.count = 0


class _Listing:
    """An open directory. Positions are ordinals; `.` and `..` are 1 and 2."""

    __slots__ = ("_base", "_entries", "_next_batch", "node")

    def __init__(self, node: Directory) -> None:
        self.node = node
        self._next_batch: NextBatch | None = None
        # Those from position `_base` + 1 on.
        self._base = 0
        self._entries: list[tuple[bytes, Node | int]] = []

    async def beyond(self, after: int) -> Sequence[tuple[bytes, Node | int]]:
        """Some entries from position `after` + 1 on; none at the end."""
        next_batch = self._next_batch
        if next_batch is None or not after or not self._base <= after <= self._base + len(self._entries):
            next_batch = self._next_batch = await self.node.batches()
            self._base = 0
            self._entries = [(b".", self.node), (b"..", self.node.above)]
        while after >= self._base + len(self._entries):
            batch = await next_batch()
            if not batch:
                return ()
            if len(self._entries) > 2 * _WINDOW:
                self._base += len(self._entries) - _WINDOW
                del self._entries[:-_WINDOW]
            self._entries += batch
        start = after - self._base
        return self._entries[start : start + _BATCH]


class VirtualInodes:
    """The virtual inodes of one mount, and their open handles."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, _Known] = {}
        self._known: dict[int, _Known] = {}
        self._next_number = VIRTUAL
        self._next_handle = VIRTUAL
        self._listings: dict[int, _Listing] = {}
        self._readers: dict[int, Reader] = {}
        self._channels: dict[int, Channel] = {}

    def __len__(self) -> int:
        return len(self._known)

    # --- inodes ---

    def known(self) -> dict[int, Node]:
        """What the kernel knows now, by number."""
        return {number: known.node for number, known in self._known.items()}

    def number_of(self, key: Hashable) -> int | None:
        """The number that the kernel knows the node of a key by."""
        known = self._numbers.get(key)
        return None if known is None else known.number

    def _know(self, node: Node) -> _Known:
        key = node.key
        known = self._numbers.get(key)
        if known is None:
            number = node.number
            if number is None:
                number = self._next_number
                self._next_number += 1
            known = self._numbers[key] = self._known[number] = _Known(number, node)
        else:
            # The newest knows best.
            known.node = node
        return known

    def present(self, node: Node) -> EntryAttributes:
        """The answer that names a node, which counts as a look-up."""
        known = self._know(node)
        known.count += 1
        return _attributes(known)

    def _node(self, number: int) -> Node:
        known = self._known.get(number)
        if known is None:
            raise FUSEError(errno.ESTALE)
        return known.node

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Numbers and how many look-ups of each the kernel forgets; others than virtual ones are passed over."""
        for number, count in forgotten:
            known = self._known.get(number)
            if known is not None:
                known.count -= count
                if known.count <= 0:
                    del self._known[number]
                    del self._numbers[known.node.key]

    def getattr(self, number: int) -> EntryAttributes:
        self._node(number)
        return _attributes(self._known[number])

    async def lookup(self, number: int, name: bytes) -> EntryAttributes | int:
        """The answer to a look-up; a number for a directory of the store. Absent names are not kept."""
        node = self._node(number)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        found: Node | int | None
        if name == b".":
            found = node
        elif name == b"..":
            found = node.above
        else:
            found = await node.lookup(name)
        if found is None:
            raise FUSEError(errno.ENOENT)
        return found if isinstance(found, int) else self.present(found)

    def xattrs(self, number: int) -> Sequence[tuple[bytes, bytes]]:
        return self._node(number).xattrs()

    def readlink(self, number: int) -> FileNameT:
        node = self._node(number)
        if not isinstance(node, Link):
            raise FUSEError(errno.EINVAL)
        return FileNameT(node.target)

    # --- directories ---

    def opendir(self, number: int) -> FileHandleT:
        node = self._node(number)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        self._next_handle += 1
        self._listings[self._next_handle] = _Listing(node)
        return FileHandleT(self._next_handle)

    async def readdir(self, handle: int, after: int, token: ReaddirToken) -> None:
        # A file may have ten thousand versions: one object for all answers, and no call that can be spared.
        reply = pyfuse3.readdir_reply
        listing = self._listings[handle]
        attributes = EntryAttributes()
        while entries := await listing.beyond(after):
            for name, node in entries:
                after += 1
                if after <= 2:
                    # Not a look-up: the kernel takes no more than the number from these.
                    attributes.st_ino = InodeT(node if isinstance(node, int) else self._peek(node))
                    attributes.st_mode = ModeT(stat.S_IFDIR | 0o555)
                    if not reply(token, name, attributes, after):  # a NewType costs a call
                        return
                    continue
                known = self._know(node)  # type: ignore[arg-type]  # a node, beyond `..`
                _fill(attributes, known)
                if not reply(token, name, attributes, after):
                    if known.count == 0:
                        del self._known[known.number]
                        del self._numbers[known.node.key]
                    return
                known.count += 1

    def _peek(self, node: Node) -> int:
        known = self._numbers.get(node.key)
        return known.number if known is not None else VIRTUAL - 1

    def releasedir(self, handle: int) -> None:
        del self._listings[handle]

    # --- files ---

    async def open(self, number: int, flags: int, pid: int) -> FileInfo:
        node = self._node(number)
        if isinstance(node, Stream):
            if flags & (os.O_ACCMODE | os.O_TRUNC) and not node.writable:
                raise FUSEError(errno.EACCES)
            return self._opened(await node.open(flags, pid))
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise FUSEError(errno.EROFS)
        if not isinstance(node, File):
            raise FUSEError(errno.EISDIR if isinstance(node, Directory) else errno.EINVAL)
        reader, keep = await node.open()
        self._next_handle += 1
        self._readers[self._next_handle] = reader
        return FileInfo(fh=FileHandleT(self._next_handle), keep_cache=keep)

    def _opened(self, channel: Channel) -> FileInfo:
        self._next_handle += 1
        self._channels[self._next_handle] = channel
        return FileInfo(fh=FileHandleT(self._next_handle), direct_io=True)

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        reader = self._readers.get(handle)
        return await (reader or self._channels[handle]).read(offset, length)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        await self._channels[handle].write(offset, data)
        return len(data)

    async def fsync(self, handle: int) -> None:
        channel = self._channels.get(handle)
        if channel is not None:
            await channel.fsync()

    async def release(self, handle: int) -> None:
        reader = self._readers.pop(handle, None)
        if reader is not None:
            reader.close()
        else:
            await self._channels.pop(handle).close()

    async def release_all(self) -> None:
        """Close what the kernel left open when the connection ended."""
        while self._readers:
            self._readers.popitem()[1].close()
        while self._channels:
            await self._channels.popitem()[1].close()

    # --- changes ---

    async def setattr(self, number: int, size_bytes: int | None) -> EntryAttributes:
        """What may be written takes any attribute and forgets it: programs that copy attributes are content."""
        node = self._node(number)
        if not isinstance(node, Stream) or not node.writable:
            raise FUSEError(errno.EROFS)
        if size_bytes is not None:
            await node.truncate(size_bytes)
        return _attributes(self._known[number])

    def refuse_attribute(self, number: int) -> FUSEError:
        """The answer to who sets an extended attribute: programs that copy files go on after this one."""
        node = self._node(number)
        writable = isinstance(node, Stream) and node.writable
        return FUSEError(errno.EOPNOTSUPP if writable else errno.EROFS)

    def _open_directory(self, number: int) -> OpenDirectory:
        node = self._node(number)
        if not isinstance(node, OpenDirectory):
            raise FUSEError(errno.EROFS)
        return node

    async def create(self, number: int, name: bytes, flags: int, pid: int) -> tuple[FileInfo, EntryAttributes]:
        stream = await self._open_directory(number).create(name, exclusive=bool(flags & os.O_EXCL))
        return self._opened(await stream.open(flags, pid)), self.present(stream)

    async def unlink(self, number: int, name: bytes) -> None:
        await self._open_directory(number).unlink(name)

    async def rename(self, number: int, name: bytes, new_number: int, new_name: bytes, flags: int) -> None:
        directory = self._open_directory(number)
        if new_number != number:
            raise FUSEError(errno.EXDEV)
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        await directory.rename(name, new_name, noreplace=bool(flags & pyfuse3.RENAME_NOREPLACE))


def _attributes(known: _Known) -> EntryAttributes:
    entry = EntryAttributes()
    _fill(entry, known)
    return entry


def _fill(entry: EntryAttributes, known: _Known) -> None:
    """Set all that stat(2) shows of a node."""
    (
        mode,
        uid,
        gid,
        size,
        mtime_ns,
        ctime_ns,
        entry_timeout,
        attr_timeout,
        atime_ns,
        nlink,
        rdev,
        allocated,
    ) = known.node.appearance()
    entry.st_ino = known.number
    entry.st_mode = mode  # a NewType costs a call
    entry.st_nlink = nlink
    entry.st_uid = uid
    entry.st_gid = gid
    entry.st_rdev = rdev
    entry.st_size = size
    entry.st_blocks = ((size if allocated < 0 else allocated) + 4095) // 4096 * 8
    entry.st_atime_ns = mtime_ns if atime_ns is None else atime_ns
    entry.st_mtime_ns = mtime_ns
    entry.st_ctime_ns = ctime_ns
    entry.entry_timeout = entry_timeout
    entry.attr_timeout = attr_timeout
