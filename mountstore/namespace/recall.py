"""Versions by path, and getting them back: list, open, compare, restore, undelete. Works without a mount.

Paths are bytes from the root of the store, with or without a leading slash; a directory on the way may be one that
was removed. `path@N` and `path@TIME` (`mountstore.namespace.notation`) name a version wherever a path is taken,
unless there is a name like that.

What is brought back is a new inode that takes the name: a file that somebody has open, and its other hard links,
stay as they are, and what the name stood for becomes a version. The kernel is not told: whoever restores in a
store that is mounted invalidates the entry.

Everything runs on the owner's thread. Dropping versions is garbage collection's business.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.completeness import require_blobs
from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.reader import ContentReader
from mountstore.blobs.seal import seal, seal_small
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import (
    AbsentError,
    ExistsError,
    FoundDirectoryError,
    MisuseError,
    StaleError,
    WantsDirectoryError,
    shown,
)
from mountstore.namespace.contents import Contents
from mountstore.namespace.history import Version
from mountstore.namespace.inodes import ROOT, Inode, InodeTable
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.namespace import Namespace
from mountstore.namespace.notation import Instant, parse_reference
from mountstore.namespace.placing import place, place_of
from mountstore.namespace.sealing import Sealer
from mountstore.namespace.timeline import Line, Timeline, VersionReader

_COMPARED_BYTES = 1 << 20

Selector = int | Instant
"""Which version: its number, or the one that was current at a time."""


class Listed(NamedTuple):
    """One version of a path."""

    number: int
    version: Version
    current: bool


class Difference(NamedTuple):
    """How two versions differ; their attributes stand in their `Version`s."""

    old: Version
    new: Version
    first: int | None
    """Offset of the first byte that differs, which may be the end of the shorter; None if the bytes are equal."""


class Recall:
    """Versions of one store, by path."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        inodes: InodeTable,
        timeline: Timeline,
        contents: Contents,
        ledger: Ledger,
        sealer: Sealer,
        tree: BalancedTree,
        parameters: ChunkingParameters,
    ) -> None:
        self._namespace = namespace
        self._inodes = inodes
        self._timeline = timeline
        self._contents = contents
        self._ledger = ledger
        self._sealer = sealer
        self._tree = tree
        self._parameters = parameters

    # --- looking ---

    async def list_versions(self, path: bytes) -> list[Listed]:
        """All versions of a path, oldest first, the current content last.

        Raises: AbsentError if there is neither a file nor a history; FoundDirectoryError.
        """
        line = await self._line(path)
        current = line.current
        return [Listed(number, version, number == current) for number, version in self._timeline.all(line)]

    async def find_version(self, path: bytes, selector: Selector | None = None) -> tuple[int, Version]:
        """The number of a version, and what it was; without `selector`, what `path` itself says.

        Raises: AbsentError, FoundDirectoryError.
        """
        line, number = await self._select(path, selector)
        return number, self._get(line, number)

    async def open_version(self, path: bytes, selector: Selector | None = None) -> VersionReader:
        """Open a version for reading, to be closed by the caller; without `selector`, what `path` itself says.

        Raises: AbsentError, FoundDirectoryError.
        """
        line, number = await self._select(path, selector)
        return self._timeline.open(self._get(line, number))

    async def diff(self, path: bytes, old: Selector, new: Selector) -> Difference:
        """Compare two versions of a path.

        Raises: AbsentError, FoundDirectoryError; CorruptError, BlobMissingError.
        """
        versions = []
        for selector in (old, new):
            line, number = await self._select(path, selector)
            versions.append(self._get(line, number))
        first, second = versions
        if first.content == second.content and first.size_bytes == second.size_bytes:
            return Difference(first, second, None)
        readers = [self._timeline.open(version) for version in versions]
        try:
            offset = await self._contents.in_thread(_first_difference, readers[0].pread, readers[1].pread)
        finally:
            for reader in readers:
                reader.close()
        return Difference(first, second, offset)

    # --- getting back ---

    async def restore(
        self, path: bytes, selector: Selector | None = None, *, to: bytes | None = None
    ) -> Inode:
        """Let a path have the content, mode, owner and modification time that it had; returns the new inode.

        Nothing is done if it has them: that inode is returned.

        Its directory has to exist. Extended attributes are not recorded with versions, so it has none.

        Args:
          to: Another path, which gets the version instead.

        Raises:
          AbsentError: No such version, or no such directory.
          FoundDirectoryError: The path, the version, or the other path is a directory.
          WantsDirectoryError: Something on the way to the other path is no directory.
          ExistsError: The other path is reserved.
          MisuseError: That path has no name that a file may have.
          MisuseError: The path says no version, and is there as it was last.
          BlobMissingError, CorruptError: Some of that version's content is not there; nothing was changed.
          ReadOnlyError, NoSpaceError: Nothing was changed.
        """
        self._namespace.require_writable()
        line, number = await self._select(path, selector)
        if to is None and line.inode is not None and number == line.current:
            if selector is None and not _says_version(path, line):
                raise MisuseError(f"{shown(path)}: say which version of it, as PATH@N or PATH@TIME")
            if line.inode.draft is None:
                content = self._get(line, number).content
                if content is not None:
                    await self._contents.in_thread(require_blobs, self._tree, content)
                return line.inode
        version = self._get(line, number)
        if to is not None and to.endswith(b"/"):
            raise MisuseError(f"{shown(to)}: is no name that a file can have")
        parent, name = (line.parent, line.name) if to is None else place_of(self._namespace, to)
        self._require_directory(parent, path)
        with self._contents.adding():
            content, allocated = await self.content_of(version)
            replaced = self._namespace.find(parent, name)
            if to is not None and replaced is not None and replaced.is_directory:
                raise FoundDirectoryError(f"{shown(to)} is a directory: name the file in it that is to be made")
            if replaced is not None and replaced.draft is not None and replaced.writers == 0:
                await self._sealer.seal(replaced)
            # The name may stand for something else by now, but a number means what it meant, if it is still there.
            self._get(self._timeline.line(line.parent, line.name), number)
            return self.place(parent, name, version, content, allocated)

    async def undelete(self, path: bytes) -> Inode:
        """Bring a removed file back as it was last; returns the new inode.

        Raises: ExistsError if the path exists; else as `restore`.
        """
        line = await self._line(path)
        if line.inode is not None:
            raise ExistsError(shown(path))
        return await self.restore(path, self._timeline.latest(line))

    async def content_of(self, version: Version) -> tuple[Content, int]:
        """A content with exactly the version's bytes, and how many of them are not in holes; for who is
        `Contents.adding`.

        Raises: BlobMissingError, CorruptError: Some of it is not there.
        """
        content = EMPTY if version.size_bytes == 0 else version.content
        assert content is not None
        if content.size_bytes == version.size_bytes:
            await self._contents.in_thread(require_blobs, self._tree, content)
            if content.kind is not ContentKind.MANIFEST:
                return content, content.size_bytes
            return content, await self._allocated(content)
        # So far it is the beginning of a longer one only.
        reader = self._timeline.open(version)
        try:
            if version.size_bytes <= self._parameters.piece_max:
                data = await reader.read(0, version.size_bytes)
                sealed = await self._contents.in_thread(seal_small, self._tree, data)
            else:
                sealed = await self._contents.in_thread(seal, self._tree, self._parameters, reader)
        except BaseException:
            self._ledger.suspect = True
            raise
        finally:
            reader.close()
        self._ledger.record(sealed.blobs)
        return sealed.content, sealed.content.size_bytes - sealed.hole_bytes

    async def _allocated(self, content: Content) -> int:
        # Opened here, not in the worker: whose content is being read, and checksums, are the owner's to know.
        reader = self._contents.open_reader(content)
        assert reader is not None
        try:
            return await self._contents.in_thread(_allocated_of, reader)
        finally:
            reader.close()

    def _require_directory(self, parent: int, path: bytes) -> None:
        with suppress(StaleError):
            if self._inodes.get(parent).nlink:
                return
        raise AbsentError(
            f"{shown(path)}: its directory was removed: bring that back first (restore DIRECTORY@TIME), or restore"
            " to another path (--to)"
        )

    def place(self, parent: int, name: bytes, version: Version, content: Content, allocated: int) -> Inode:
        """Give a name what a version had, by a new inode; `content` and `allocated` as of `content_of`."""
        return place(
            self._namespace,
            self._inodes,
            parent,
            name,
            content,
            allocated=allocated,
            mode=version.mode,
            uid=version.uid,
            gid=version.gid,
            mtime_ns=version.mtime_ns,
        )

    # --- paths ---

    async def _select(self, path: bytes, selector: Selector | None) -> tuple[Line, int]:
        """The line of a path, and the number of the version that is meant; the current one by default."""
        if selector is None:
            reference = parse_reference(path)
            try:
                line = await self._line(path)
            except AbsentError:
                if reference.name == path:
                    raise
                path, selector = reference
                line = await self._line(path)
        else:
            line = await self._line(path)
        if isinstance(selector, Instant):
            number = self._timeline.at(line, selector.time_ns)
        else:
            number = self._timeline.latest(line) if selector is None else selector
        if not number:
            raise AbsentError(f"{shown(path)}: no version of that time")
        return line, number

    def _get(self, line: Line, number: int) -> Version:
        version = self._timeline.get(line, number)
        if version.directory:
            raise FoundDirectoryError(f"{shown(line.name)}: version {number} is a directory")
        return version

    async def _line(self, path: bytes) -> Line:
        *above, name = [part for part in path.split(b"/") if part] or [b""]
        parent = ROOT
        for part in above:
            parent = self._directory(self._timeline.line(parent, part))
        line = self._timeline.line(parent, name)
        inode = line.inode
        if inode is not None and inode.draft is not None and inode.writers == 0:
            await self._sealer.seal(inode)
            line = self._timeline.line(parent, name)
        if not name or (line.inode is not None and line.inode.is_directory):
            raise FoundDirectoryError(shown(path))
        if not self._timeline.latest(line):
            raise AbsentError(shown(path))
        return line

    def _directory(self, line: Line) -> int:
        """The directory that a name stands for, or stood for last."""
        if line.inode is not None:
            if not line.inode.is_directory:
                raise WantsDirectoryError(shown(line.name))
            return line.inode.id
        latest = self._timeline.latest(line)
        directory = self._timeline.get(line, latest).directory if latest else 0
        if not directory:
            raise AbsentError(shown(line.name))
        return directory


def _says_version(path: bytes, line: Line) -> bool:
    """Whether it was not the whole path that named the file."""
    return path.rpartition(b"/")[2] != line.name and parse_reference(path).selector is not None


def _allocated_of(reader: ContentReader) -> int:
    return sum(end - start for start, end in reader.data_ranges())


_Pread = Callable[[int, int], bytes]


def _first_difference(old: _Pread, new: _Pread) -> int | None:
    offset = 0
    while True:
        first, second = old(offset, _COMPARED_BYTES), new(offset, _COMPARED_BYTES)
        if first != second:
            shorter = min(len(first), len(second))
            # Halves, until one byte is left: comparing is fast, looking at each byte is not.
            low, high = 0, shorter
            while low < high:
                middle = (low + high + 1) // 2
                if first[:middle] == second[:middle]:
                    low = middle
                else:
                    high = middle - 1
            return offset + low
        if not first:
            return None
        offset += len(first)
