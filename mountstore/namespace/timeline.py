"""The versions of a name as one numbered line in time: superseded contents, then the current one.

A name's line is its own history followed by that of the inode it stands for (`mountstore.namespace.versions`). Its
versions are numbered from 1, oldest first; the highest number is the current content, if the name stands for a
regular file. A number never comes to stand for another content; garbage collection may take numbers away.

What was there at a time is derived from what is recorded, which are ends, not beginnings:

1. A superseded content was there until it was superseded; from when the one before it was, or from its own
   modification time, whichever is later. (A modification time that was set later hides it before that.)
2. What an inode holds or held in place was there since the inode was born or, if that is later, since the content
   before it was superseded. A file renamed to a name that was free is taken to have had that name from birth.
3. Empty contents are no versions: for a time at which a file was empty, what it was filled with next may show.
4. Directories and symbolic links are those that are there now, from their birth. A removed directory was there,
   as far as anything in it was.

Everything here runs on the owner's thread; only `VersionReader.pread` may block and be called from a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from mountstore.blobs.content import EMPTY, Content
from mountstore.blobs.reader import ContentReader
from mountstore.errors import AbsentError, shown
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.contents import Contents
from mountstore.namespace.history import Shown, Version
from mountstore.namespace.inodes import Inode, InodeTable
from mountstore.namespace.versions import Versions

_BATCH = 500
"""Names fetched at a time: no query stays open while others run."""

NOT_YET_NS = (1 << 63) - 1
"""`until_ns` of what is current."""


class Line(NamedTuple):
    """The versions of one name, as of now."""

    parent: int
    name: bytes
    inode: Inode | None
    """What the name stands for."""
    own: int
    """The name's history, of `own_count` versions; then its inode's, up to number `superseded`."""
    own_count: int
    in_place: int
    superseded: int

    @property
    def current(self) -> int:
        """Number of the current content; 0 if the name does not stand for a regular file."""
        return self.superseded + 1 if self.inode is not None and self.inode.is_regular else 0


class VersionReader:
    """One version, open for reading; `size_bytes` long. To be closed."""

    __slots__ = ("_contents", "_reader", "size_bytes")

    def __init__(self, contents: Contents, version: Version) -> None:
        self._contents = contents
        content = EMPTY if version.size_bytes == 0 else version.content
        assert content is not None, "resolved by Timeline"
        self._reader: ContentReader | None = contents.open_reader(content)
        self.size_bytes = version.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer than `length` only at the end; blocks.

        Raises:
          CorruptError, BlobMissingError: The store's bytes are not those that were written.
        """
        length = min(length, self.size_bytes - offset)
        if length <= 0 or self._reader is None:
            return b""
        return self._reader.pread(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """As `pread`, in a worker thread if it has to wait for the disk."""
        length = min(length, self.size_bytes - offset)
        if length <= 0 or self._reader is None:
            return b""
        data = self._reader.pread_nowait(offset, length)
        if data is None:
            data = await self._contents.in_thread(self._reader.pread, offset, length)
        return data

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Timeline:
    """Looks versions up."""

    def __init__(
        self, *, catalog: Catalog, inodes: InodeTable, versions: Versions, contents: Contents
    ) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._histories = versions.histories
        self._kept_mode = versions.kept_mode
        self._contents = contents

    # --- one name ---

    def line(self, parent: int, name: bytes) -> Line:
        """The line of a name in a directory, which may have been removed."""
        histories = self._histories
        number = self._catalog.get_entry(parent, name)
        inode = None if number is None else self._inodes.get(number)
        own = histories.of_name(parent, name)
        count = superseded = histories.count(own)
        in_place = 0
        if inode is not None and inode.is_regular:
            in_place = histories.of_inode(inode.id)
            superseded += histories.count(in_place)
        return Line(parent, name, inode, own, count, in_place, superseded)

    def get(self, line: Line, number: int) -> Version:
        """A version with the content that has its bytes, if it is not a directory's.

        Raises: AbsentError if there is none of that number.
        """
        if line.inode is not None and number == line.current:
            return self.current(line.inode)
        try:
            if not 1 <= number <= line.superseded:
                raise LookupError
            if number <= line.own_count:
                version = self._histories.get(line.own, number)
            else:
                version = self._histories.get(line.in_place, number - line.own_count)
        except LookupError:
            raise AbsentError(f"{shown(line.name)}: no version {number}") from None
        return _resolved(version, line.inode)

    def past(self, line: Line) -> Iterator[tuple[int, Version]]:
        """Superseded versions with their numbers, oldest first, as `get` returns them."""
        for number, version in self._histories.numbered(line.own):
            yield number, _resolved(version, line.inode)
        for number, version in self._histories.numbered(line.in_place):
            yield line.own_count + number, _resolved(version, line.inode)

    def all(self, line: Line) -> Iterator[tuple[int, Version]]:
        """`past`, and what is current."""
        yield from self.past(line)
        if line.inode is not None and line.current:
            yield line.current, self.current(line.inode)

    def shown(self, line: Line) -> Iterator[Shown]:
        """What a listing shows of all versions, the current one last."""
        yield from self._histories.shown(line.own)
        if not line.own_count:
            # Nearly always, and there may be thousands.
            yield from self._histories.shown(line.in_place)
        else:
            for number, directory, appearance in self._histories.shown(line.in_place):
                yield line.own_count + number, directory, appearance
        if line.inode is not None and line.current:
            yield line.current, False, self.current(line.inode)[1:6]

    def latest(self, line: Line) -> int:
        """The highest number there is; 0 for none."""
        if line.current or not line.superseded:
            return line.current
        try:
            self.get(line, line.superseded)
        except AbsentError:
            # Garbage collection took it.
            return max((number for number, _, _ in self.shown(line)), default=0)
        return line.superseded

    def at(self, line: Line, time_ns: int) -> int:
        """Number of the version that was current at a time, 0 if there was none (rules 1 to 3).

        A removed directory's version counts from when anything before it was superseded.
        """
        before = -NOT_YET_NS
        for number, mtime_ns, until_ns, directory in self._histories.times(line.own):
            since = before
            if not directory and (mtime_ns < until_ns or before == -NOT_YET_NS):
                since = max(before, mtime_ns)
            if since <= time_ns < until_ns:
                return number
            before = max(before, until_ns)
        inode = line.inode
        if inode is None or not line.current:
            return 0
        before = max(before, inode.btime_ns)
        for number, _, until_ns, _ in self._histories.times(line.in_place):
            if before <= time_ns < until_ns:
                return line.own_count + number
            before = max(before, until_ns)
        return line.current if before <= time_ns else 0

    def current(self, inode: Inode) -> Version:
        """The content a regular file has, as a version: what its last close, or first fsync since, left."""
        change = inode.change
        mtime_ns = inode.mtime_ns if change is None or inode.draft is None else change.mtime_ns
        content = inode.content
        mode = self._kept_mode(inode)
        return Version(content, content.size_bytes, mode, inode.uid, inode.gid, mtime_ns, NOT_YET_NS)

    def open(self, version: Version) -> VersionReader:
        """A reader of a version that `get` returned; not of a directory's."""
        return VersionReader(self._contents, version)

    # --- names of a directory ---

    def names(self, parent: int) -> Iterator[bytes]:
        """Names of a directory that have superseded versions; it may change meanwhile."""
        after = b""
        while batch := list(islice(self._histories.names(parent, after), _BATCH)):
            for name, _ in batch:
                yield name
            after = batch[-1][0]
        position = 0
        while rest := list(islice(self._histories.names_in_place(parent, position), _BATCH)):
            for _, name in rest:
                yield name
            position = rest[-1][0]

    def entries(self, parent: int) -> Iterator[tuple[bytes, Inode]]:
        """Names of a directory that exist, with their inodes; it may change meanwhile."""
        after = 0
        while True:
            listing = self._catalog.listing(parent, after)
            batch = list(islice(listing, _BATCH))
            listing.close()  # type: ignore[attr-defined]  # it is a generator
            if not batch:
                return
            for _, name, number, row in batch:
                yield name, self._inodes.peek(number, row)
            after = batch[-1].cookie

    def inhabited(self, parent: int, time_ns: int) -> bool:
        """Whether anything was in a removed directory at a time (rule 4)."""
        waiting = [parent]
        while waiting:
            directory = waiting.pop()
            for name in self.names(directory):
                line = self.line(directory, name)
                number = self.at(line, time_ns)
                if not number:
                    continue
                version = self.get(line, number)
                if not version.directory:
                    return True
                waiting.append(version.directory)
        return False


def _resolved(version: Version, inode: Inode | None) -> Version:
    """A prefix of the current content gets that as its content."""
    if version.content is not None or version.directory:
        return version
    content: Content = EMPTY if inode is None else inode.content
    if content.size_bytes < version.size_bytes:
        # Only a damaged catalog has such a row; what reads it fails, and nothing else.
        raise AbsentError(f"a version of {version.size_bytes} bytes has no content")
    return version._replace(content=content)
