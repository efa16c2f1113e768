"""Staged drafts: a sparse staging file holds the dirty extents at their own offsets, over the sealed base.

Invariants of a `StagedDraft`
  1. Bytes in `dirty` come from the staging file, all others from the base below `base_limit`, and are zero
     beyond it.
  2. `base_limit` only shrinks: what a truncation cut off never comes back.
  3. A byte of the staging file outside `dirty` is never read.

Who may change a draft, and when, stands in `draft.py`.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Protocol

import trio

from mountstore.blobs.content import Content
from mountstore.blobs.flush import fsync, fsync_path
from mountstore.errors import CorruptError
from mountstore.namespace.arrivals import Arrivals
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.draft_record import Closed, Ranges, Sum, decode, dirty_ranges, encode, sums_of
from mountstore.namespace.ranges import RangeSet
from mountstore.namespace.turn import Turn

SCATTERED_MAX = 8192
"""Dirty ranges of a draft that may be recorded: with every fsync all of them are written, some 10 bytes each."""

_GAP_MAX = 256 << 10
"""Longer gaps are not worth copying: the file is larger than 1 GiB then."""

SPARED = 16
"""Descriptors that drafts leave to others, or a quarter of all if there are few: sealing takes some, and only
sealing sets those of drafts free."""

_DRAFT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

Stretch = tuple[int, int, bool]
"""Start and end of bytes, and whether they lie in the staging file."""


class Recorded(Enum):
    """What the catalog has of a draft (`draft_record.py`)."""

    NOTHING = auto()
    FLUSHED = auto()
    """What had been flushed of it, and the changes since that fsyncs have promised."""
    CLOSED = auto()
    """All of it as it is now, not flushed, with checksums."""
    OUTRUN = auto()
    """More than its staging file has: it was truncated, and a crash came before that was committed."""


class BaseReader(Protocol):
    """The sealed content below a draft, open for reading; any thread."""

    def pread(self, offset: int, length: int) -> bytes: ...
    def data_ranges(self) -> Iterator[tuple[int, int]]: ...
    def close(self) -> None: ...


class StagedDraft:
    """Dirty extents in a sparse staging file over a sealed base.

    Args:
      path: Of the staging file, which this draft owns from now on.
      base: What was sealed before; `reader` reads it (None when it is empty), and is closed with the draft.
      sparing: Leave some of the process's descriptors to others.

    Raises:
      OSError: There is no draft, and no file; `reader` is as before.
    """

    __slots__ = (
        "_arrivals",
        "_closed",
        "_fd",
        "_named",
        "_puts",
        "_quiet",
        "_reader",
        "_users",
        "base",
        "base_allocated",
        "base_limit",
        "changes_bytes",
        "claimed",
        "dirty",
        "file_claimed",
        "fresh",
        "path",
        "recorded",
        "size_bytes",
        "turn",
    )

    def __init__(
        self, path: str, base: Content, reader: BaseReader | None, *, sparing: bool = False
    ) -> None:
        self._fd = open_sparingly(path, 0o600) if sparing else os.open(path, _DRAFT_FLAGS, 0o600)
        self.path = path
        self.base = base
        self._reader = reader
        self.base_limit = base.size_bytes
        self.size_bytes = base.size_bytes
        # How many bytes of the base are no holes, as far as known.
        self.base_allocated = base.size_bytes
        self.dirty = RangeSet()
        # Of that, what no fsync has promised yet.
        self.fresh = RangeSet()
        # So much lies in `draft_change`, since the staging file was last flushed.
        self.changes_bytes = 0
        # One flush at a time: who comes next relies on it.
        self.turn = Turn()
        self.claimed = 0
        self.file_claimed = False
        self.recorded = Recorded.NOTHING
        # What was written to the file, whether or not it was marked.
        self._arrivals = Arrivals()
        # Its name survives power loss.
        self._named = False
        # Writes under way in workers, and what to set when there are none left.
        self._puts = 0
        self._quiet = trio.Event()
        # What workers are doing with it; once closed, the last of them lets go of the descriptor.
        self._users = 0
        self._closed = False

    @property
    def allocated_bytes(self) -> int:
        return min(self.size_bytes, min(self.base_limit, self.base_allocated) + self.dirty.total())

    def lay_over(self, base: Content, reader: BaseReader | None) -> None:
        """Take the dirty extents, of a draft over nothing, as changes of `base`."""
        self.base = base
        self._reader = reader
        self.base_limit = base.size_bytes
        self.size_bytes = max(self.size_bytes, base.size_bytes)

    def mark(self, offset: int, length: int) -> None:
        """Take `[offset, offset + length)`, which `put` has written, as part of the draft."""
        self.dirty.add(offset, offset + length)
        self.fresh.add(offset, offset + length)
        if offset + length > self.size_bytes:
            self.size_bytes = offset + length

    def put(self, offset: int, data: bytes | bytearray) -> None:
        """Write bytes to the staging file, to be followed by `mark`; any thread."""
        view = memoryview(data)
        at = offset
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                at += written
                view = view[written:]
        except BaseException:
            self._arrivals.spoil(offset, offset + len(data))
            raise
        self._arrivals.note(offset, data)

    @contextmanager
    def put_begun(self) -> Iterator[None]:
        """The context of a `put` in a worker."""
        self._puts += 1
        try:
            yield
        finally:
            self._puts -= 1
            if self._puts == 0:
                self._quiet.set()
                self._quiet = trio.Event()

    @property
    def quiet(self) -> bool:
        """Whether no `put` is under way."""
        return self._puts == 0

    async def wait_quiet(self) -> None:
        while not self.quiet:
            await self._quiet.wait()

    def truncate(self, size: int) -> None:
        if size < self.size_bytes:
            self.dirty.truncate(size)
            self.fresh.truncate(size)
            self._arrivals.spoil(size)
            self.base_limit = min(self.base_limit, size)
            # Only to give the room back, by invariant 3; but not while a worker reads there, nor from what a
            # record speaks of: that is told of the truncation only with the next commit.
            if not self._users and self.recorded is Recorded.NOTHING:
                os.ftruncate(self._fd, size)
        self.size_bytes = size

    def pread(self, offset: int, length: int) -> bytes:
        return self.pread_stretches(self.stretches(offset, length))

    def stretches(self, offset: int, length: int) -> list[Stretch]:
        """Where the bytes asked for are now: for a worker's `pread_stretches`, while others go on writing."""
        return list(self.dirty.split(offset, min(offset + length, self.size_bytes)))

    def pread_stretches(self, stretches: list[Stretch]) -> bytes:
        """The bytes of all stretches; blocks, any thread that has the draft `in_use`."""
        parts = [
            self._staged(start, stop) if dirty else self._based(start, stop)
            for start, stop, dirty in stretches
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The context in which a worker uses this draft, which may be sealed and closed meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._closed and not self._users:
                self._let_go()

    def _staged(self, start: int, stop: int) -> bytes:
        data = os.pread(self._fd, stop - start, start)
        if len(data) < stop - start:
            data += self._rest_of(start + len(data), stop)
        return data

    def _rest_of(self, start: int, stop: int) -> bytes:
        data = bytearray()
        while start < stop:
            part = os.pread(self._fd, stop - start, start)
            if not part:
                raise CorruptError(f"{self.path}: shorter than what was written to it")
            data += part
            start += len(part)
        return bytes(data)

    def _based(self, start: int, stop: int) -> bytes:
        limit = min(stop, self.base_limit)
        if start >= limit or self._reader is None:
            return bytes(stop - start)
        data = self._reader.pread(start, limit - start)
        if len(data) != limit - start:
            raise CorruptError(f"{self.path}: its base is shorter than recorded")
        return data if limit == stop else data + bytes(stop - limit)

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Sorted ranges outside which every byte is zero."""
        ranges = RangeSet(self.dirty)
        if self._reader is not None:
            for start, end in self._reader.data_ranges():
                ranges.add(start, min(end, self.base_limit))
        return iter(ranges)

    def dirty_ranges(self) -> Ranges:
        """What may differ from the base, within the new size, sorted: for a seal that re-cuts only there."""
        ranges = RangeSet(self.dirty)
        if self.base_limit < self.base.size_bytes:
            ranges.add(self.base_limit, self.base.size_bytes)
        if self.size_bytes > self.base_limit:
            ranges.add(self.base_limit, self.size_bytes)
        ranges.truncate(self.size_bytes)
        return list(ranges)

    def flush(self) -> None:
        """Make the staging file survive power loss; blocks, any thread. Raises: As `fsync_path`."""
        fsync(self._fd, self.path, data_only=True)
        if not self._named:
            fsync_path(os.path.dirname(self.path), os.O_DIRECTORY)
            self._named = True

    @property
    def is_promised(self) -> bool:
        """Whether all of it has been flushed, and is recorded."""
        return self.recorded is Recorded.FLUSHED and not self.fresh and not self.changes_bytes

    @property
    def is_fixed(self) -> bool:
        """Whether it is to be flushed and recorded before it may be changed: its record has checksums of its
        bytes, or is of more than there is."""
        return self.recorded in (Recorded.CLOSED, Recorded.OUTRUN)

    def take_fresh(self) -> RangeSet:
        """What is fresh, which a flush is about to promise; `put_back_fresh` if that fails."""
        fresh, self.fresh = self.fresh, RangeSet()
        return fresh

    def put_back_fresh(self, fresh: RangeSet) -> None:
        for start, end in fresh:
            for at, stop, dirty in self.dirty.split(start, end):
                if dirty:
                    self.fresh.add(at, stop)

    def staged_bytes(self, ranges: RangeSet) -> list[tuple[int, bytes]]:
        """What the staging file has in these dirty ranges, with offsets; blocks.

        Raises: OSError, CorruptError
        """
        return [(start, self._staged(start, end)) for start, end in ranges]

    def gaps(self) -> list[tuple[int, int]]:
        """What `fill` would have to take over from the base for half of `SCATTERED_MAX` ranges to remain."""
        return self.dirty.gaps(_GAP_MAX, SCATTERED_MAX // 2) if len(self.dirty) > SCATTERED_MAX else []

    def fill(self, gaps: list[tuple[int, int]]) -> None:
        """Take bytes of the base over into the staging file; blocks, in a worker, while nobody changes the draft.

        Raises: OSError, CorruptError, BlobMissingError; then the draft is as before.
        """
        filled = RangeSet()
        added = iter([*gaps, (self.size_bytes + 1, 0)])
        start, end = next(added)
        for dirty_start, dirty_end in self.dirty:
            while start < dirty_start:
                self.put(start, self._based(start, end))
                filled.add(start, end)
                start, end = next(added)
            filled.add(dirty_start, dirty_end)
        self.dirty = filled

    def to_row(self, inode: int) -> DraftRow:
        """What the catalog has to remember of a draft that was flushed for `from_row` to bring it back."""
        return DraftRow(
            inode, os.path.basename(self.path), self.size_bytes, self.base_limit, encode(self.dirty)
        )

    def sums(self) -> list[Sum]:
        """Checksums of all dirty bytes; blocks, in a worker, while nobody changes the draft.

        Raises: OSError, CorruptError: The staging file cannot be read.
        """
        known = [
            arrival for arrival in self._arrivals.known() if self.dirty.includes(arrival[0], arrival[1])
        ]
        return sums_of(self.dirty, known, self._staged)

    @classmethod
    def from_row(cls, row: DraftRow, staging: str, base: Content, reader: BaseReader | None) -> StagedDraft:
        """A draft as it was recorded.

        Raises:
          CorruptError: The record or the staging file is not as it was recorded.
        """
        path = os.path.join(staging, row.staging)
        try:
            record = decode(row.dirty)
            ranges = dirty_ranges(record)
            length = os.stat(path).st_size
        except (CorruptError, FileNotFoundError) as exc:
            raise CorruptError(f"{path}: the recorded draft cannot be brought back: {exc}") from exc
        draft = cls(path, base, reader)
        draft.dirty = RangeSet(ranges)
        draft.size_bytes = row.size
        draft.base_limit = row.base_limit
        draft.recorded = Recorded.FLUSHED
        if isinstance(record, Closed):
            draft.recorded = Recorded.CLOSED
            draft.fresh = RangeSet(ranges)
        if any(end > length for _, end in ranges):
            # Cut off after it was recorded, and the crash came before that was committed.
            draft.truncate(length)
            draft.recorded = Recorded.OUTRUN
        return draft

    def close(self) -> None:
        """Let go of what is held, when nobody uses it any more; the staging file stays until `discard`."""
        self._closed = True
        if not self._users:
            self._let_go()

    def _let_go(self) -> None:
        assert self._fd >= 0, "in use after it was closed"
        os.close(self._fd)
        self._fd = -1
        if self._reader is not None:
            self._reader.close()

    def discard(self) -> None:
        """Delete the staging file."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


def open_sparingly(path: str, mode: int) -> int:
    """Make a file and open it, unless that would take one of the last descriptors.

    Raises: OSError (EMFILE); then no file is left.
    """
    fd = os.open(path, _DRAFT_FLAGS | os.O_EXCL, mode)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # The lowest number that is free is given: it tells how many are in use.
    if limit != resource.RLIM_INFINITY and fd >= limit - min(SPARED, limit // 4):
        os.close(fd)
        os.unlink(path)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
    return fd
