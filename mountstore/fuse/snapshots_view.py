"""`.cas/snapshots/NAME/…`: the whole tree as it was when a snapshot was taken.

Read from the snapshot's blobs as one goes, in workers; what was read once the kernel keeps, for nothing in a
snapshot ever changes. What names stand for is the same inode in all places, as it was, while it is known.

Owners, permissions and times are as they were, so everybody sees what they could see then. Only setuid and setgid
of files, and their capabilities, are left out: an old program that was replaced for its holes is not to come back
to life. (A snapshot that is mounted alone has them, and nosuid can be said there.)

A snapshot that is deleted while somebody looks around in it goes on as long as its blobs are there; then its files
answer ESTALE.
"""

from __future__ import annotations

import os
import stat
import threading
from abc import ABC
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import trio

from mountstore.blobs.digest import Digest
from mountstore.blobs.reader import ContentReader
from mountstore.blobs.refs import REFS_NAME, Ref, read_ref, read_refs
from mountstore.blobs.tree import BalancedTree
from mountstore.care.snapshot_browser import find, records_of_snapshot
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import BlobMissingError, CorruptError, MisuseError, MountstoreError, StaleError
from mountstore.fuse.virtual import Appearance, Directory, File, Link, NextBatch, Node, Reader
from mountstore.namespace.contents import Contents
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.pages import InodeRecord

__all__ = ["SNAPSHOTS_KEY", "SnapshotsDirectory", "SnapshotsView"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

SNAPSHOTS_KEY: Final = "snapshots"
"""What the virtual inode of `.cas/snapshots` stands for."""

_TREES_MAX: Final = 8
_TREE_CACHE_BYTES: Final = 4 << 20
"""So much of each of so many snapshots is kept."""

_NAME_CACHE_S: Final = 1.0
"""How long the kernel may keep the name of a snapshot: with none, it would ask at every path below."""

_CAPABILITY: Final = b"security.capability"


class _Known(NamedTuple):
    """A snapshot's name, as its ref was when it was looked at last."""

    signature: tuple[int, int, int]
    ref: Ref
    top: InodeRecord


class SnapshotsView:
    """Makes the nodes. On the trio thread, but for what is said to block.

    Args:
      cache_s: How long the kernel may keep what never changes.
      alone: There is nothing else in the mount: nodes have the inode numbers of then, and all of their rights.
    """

    def __init__(self, tree: BalancedTree, contents: Contents, cache_s: float, *, alone: bool = False) -> None:
        self.cache_s = cache_s
        self.alone = alone
        self._contents = contents
        self._blobs = tree
        self._trees: OrderedDict[Digest, SnapshotTree] = OrderedDict()
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    async def named(self, name: bytes, above: Directory) -> Node | None:
        """The node of a snapshot, if there is one of that name."""
        text = os.fsdecode(name)
        try:
            status = os.stat(os.path.join(self._blobs.root, REFS_NAME, text))
        except (OSError, ValueError):
            self._known.pop(text, None)
            return None
        known = self._known.get(text)
        if known is None or known.signature != _signature(status):
            try:
                known = await trio.to_thread.run_sync(self._look, text, _signature(status))
            except (MisuseError, BlobMissingError):
                return None
            self._known[text] = known
        return self._top(known, above)

    async def all(self, above: Directory) -> list[tuple[bytes, Node]]:
        """Names and nodes of all snapshots that can be read."""
        found = await trio.to_thread.run_sync(self._look_at_all)
        self._known = {known.ref.name: known for known in found}
        return [(os.fsencode(known.ref.name), self._top(known, above)) for known in found]

    def top(self, ref: Ref) -> Directory:
        """The root directory of a snapshot that is alone in its mount; blocks."""
        return _SnapshotDirectory(_Moment(self, ref), _root_of(ref.name, self.tree(ref.root)), ROOT)

    def _top(self, known: _Known, above: Directory) -> Node:
        return _Top(_Moment(self, known.ref), known.top, above)

    def _look_at_all(self) -> list[_Known]:
        refs, _ = read_refs(self._blobs.root)
        found = []
        for ref in sorted(refs):
            try:
                status = os.stat(os.path.join(self._blobs.root, REFS_NAME, ref.name))
                found.append(_Known(_signature(status), ref, self.tree(ref.root).inode(ROOT)))
            except (MountstoreError, OSError):
                # `snapshots` and fsck.cas say what is wrong with it, and so does looking it up.
                continue
        return found

    def _look(self, name: str, signature: tuple[int, int, int]) -> _Known:
        """Blocks."""
        ref = read_ref(self._blobs.root, name)
        return _Known(signature, ref, _root_of(ref.name, self.tree(ref.root)))

    def tree(self, root: Digest) -> SnapshotTree:
        """A snapshot for reading; blocks; any thread."""
        with self._lock:
            tree = self._trees.get(root)
            if tree is not None:
                self._trees.move_to_end(root)
                return tree
        tree = SnapshotTree(self._blobs, root, cache_bytes=_TREE_CACHE_BYTES)
        with self._lock:
            self._trees[root] = tree
            if len(self._trees) > _TREES_MAX:
                self._trees.popitem(last=False)
        return tree

    def open(self, record: InodeRecord) -> ContentReader | None:
        return self._contents.open_reader(record.content)

    def explained(self, ref: Ref, exc: BlobMissingError) -> MountstoreError:
        """What to answer when a blob of a snapshot is not there; blocks."""
        try:
            if read_ref(self._blobs.root, ref.name).root == ref.root:
                return exc
        except BlobMissingError:
            pass
        except (CorruptError, OSError):
            return exc
        return StaleError(f"snapshot {ref.name} was deleted")

    async def in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await self._contents.in_thread(function, *arguments)


def _root_of(name: str, tree: SnapshotTree) -> InodeRecord:
    """The root directory of a snapshot; blocks. Raises: CorruptError if it has none; as `SnapshotTree`."""
    try:
        top = tree.inode(ROOT)
    except StaleError:
        raise CorruptError(f"snapshot {name} has no root directory") from None
    if not top.is_directory:
        raise CorruptError(f"snapshot {name}: its root is no directory")
    return top


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Moment:
    """One snapshot, while anything of it is known."""

    __slots__ = ("ref", "view")

    def __init__(self, view: SnapshotsView, ref: Ref) -> None:
        self.view = view
        self.ref = ref

    async def read(
        self, function: Callable[Concatenate[SnapshotTree, _P], _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """What a function of the tree says, in a worker.

        Raises: StaleError if the snapshot was deleted, and its blobs are gone; as `SnapshotTree`.
        """

        def run() -> _T:
            try:
                return function(self.view.tree(self.ref.root), *args, **kwargs)
            except BlobMissingError as exc:
                raise self.view.explained(self.ref, exc) from exc

        return await self.view.in_thread(run)

    def node(self, record: InodeRecord, above: Directory) -> Node:
        kind = stat.S_IFMT(record.mode)
        if kind == stat.S_IFREG:
            return _SnapshotFile(self, record)
        if kind == stat.S_IFDIR:
            return _SnapshotDirectory(self, record, above)
        if kind == stat.S_IFLNK:
            return _SnapshotLink(self, record)
        return _Special(self, record)


class SnapshotsDirectory(Directory):
    """`snapshots`."""

    __slots__ = ("_above", "_appearance", "_view")

    def __init__(self, view: SnapshotsView, appearance: Appearance, above: Directory) -> None:
        self._view = view
        self._appearance = appearance
        self._above = above

    @property
    def key(self) -> Hashable:
        return SNAPSHOTS_KEY

    @property
    def above(self) -> Directory:
        return self._above

    def appearance(self) -> Appearance:
        return self._appearance

    async def lookup(self, name: bytes) -> Node | None:
        return await self._view.named(name, self)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return iter(await self._view.all(self))


class _Shown(Node, ABC):
    """Something in a snapshot."""

    __slots__ = ("_key", "moment", "record")

    def __init__(self, moment: _Moment, record: InodeRecord) -> None:
        self.moment = moment
        self.record = record
        self._key = moment.ref.root, record.number

    @property
    def key(self) -> Hashable:
        return self._key

    def appearance(self) -> Appearance:
        record = self.record
        mode = record.mode
        if mode & 0o6000 and stat.S_ISREG(mode) and not self.moment.view.alone:
            mode &= ~0o6000
        cache_s = self.moment.view.cache_s
        return Appearance(
            mode,
            record.uid,
            record.gid,
            record.size,
            record.mtime_ns,
            record.ctime_ns,
            cache_s,
            cache_s,
            record.atime_ns,
            record.nlink,
            record.rdev,
            record.allocated,
        )

    @property
    def number(self) -> int | None:
        return self.record.number if self.moment.view.alone else None

    def xattrs(self) -> Sequence[tuple[bytes, bytes]]:
        if self.moment.view.alone:
            return self.record.xattrs
        return [(name, value) for name, value in self.record.xattrs if name != _CAPABILITY]


class _SnapshotDirectory(_Shown, Directory):
    __slots__ = ("_above",)

    def __init__(self, moment: _Moment, record: InodeRecord, above: Directory | int) -> None:
        super().__init__(moment, record)
        self._above = above

    @property
    def above(self) -> Directory | int:
        return self._above

    async def lookup(self, name: bytes) -> Node | None:
        record = await self.moment.read(find, self.record, name)
        return None if record is None else self.moment.node(record, self)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        next_batch = await self.batches()
        found: list[tuple[bytes, Node]] = []
        while batch := await next_batch():
            found += batch
        return iter(found)

    async def batches(self) -> NextBatch:
        parts = await self.moment.read(lambda tree: records_of_snapshot(tree).children(self.record))

        async def next_batch() -> Sequence[tuple[bytes, Node]]:
            part = await self.moment.read(lambda tree: next(parts, ()))
            return [(name, self.moment.node(record, self)) for name, record in part]

        return next_batch


class _Top(_SnapshotDirectory):
    """The root directory of a snapshot."""

    __slots__ = ()

    def appearance(self) -> Appearance:
        # Somebody may delete its ref, and another snapshot get the name.
        return super().appearance()._replace(entry_timeout_s=_NAME_CACHE_S)


class _SnapshotFile(_Shown, File):
    __slots__ = ()

    async def open(self) -> tuple[Reader, bool]:
        return _SnapshotReader(self.moment, self.moment.view.open(self.record)), True


class _SnapshotReader:
    """An open file."""

    def __init__(self, moment: _Moment, reader: ContentReader | None) -> None:
        self._moment = moment
        self._reader = reader

    async def read(self, offset: int, length: int) -> bytes:
        if self._reader is None:
            return b""
        try:
            data = self._reader.pread_nowait(offset, length)
            if data is None:
                data = await self._moment.view.in_thread(self._reader.pread, offset, length)
        except BlobMissingError as exc:
            view = self._moment.view
            raise await view.in_thread(view.explained, self._moment.ref, exc) from exc
        return data

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _SnapshotLink(_Shown, Link):
    __slots__ = ()

    @property
    def target(self) -> bytes:
        assert self.record.target is not None, "checked when it was decoded"
        return self.record.target


class _Special(_Shown):
    """A device, fifo or socket: the kernel needs no more than to see it."""

    __slots__ = ()
