"""What the catalog remembers of a staged draft: the columns of `draft`, of which `dirty` (msgpack) has two forms.

*Flushed*: a list of the dirty ranges, which an fsync has promised; they survive power loss.

*Closed*: what the draft was when its last writer closed it, not flushed, with checksums. It stands in for the
content until the seal has ended, which takes a second for some hundred MB: should the process die meanwhile, the
draft is taken up as it was; should the power fail, the checksums tell, and what had been flushed of it
before holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import msgspec

from mountstore.blobs.digest import checksum
from mountstore.blobs.opening import open_to_read
from mountstore.errors import CorruptError
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.ranges import RangeSet

Ranges = list[tuple[int, int]]

Sum = tuple[int, int, bytes]
"""Start, end, and the XXH3-128 checksum of the dirty bytes in between, one after the other."""

_SUMMED_BYTES = 1 << 20
"""So many dirty bytes get one checksum, if they did not arrive together."""


class _Flushed(msgspec.Struct, array_like=True, frozen=True):
    """What had been flushed of a draft before it was closed."""

    size: int
    base_limit: int
    dirty: Ranges


class Closed(msgspec.Struct, frozen=True):
    """The form of a draft that was closed; `sums` are sorted, disjoint, and have all of `dirty`."""

    dirty: Ranges
    sums: list[Sum]
    flushed: _Flushed | None


def decode(dirty: bytes) -> Ranges | Closed:
    """The column `dirty`. Raises: CorruptError."""
    try:
        return msgspec.msgpack.decode(dirty, type=Ranges | Closed)
    except msgspec.MsgspecError as exc:
        raise CorruptError(f"the record of a draft cannot be read: {exc}") from exc


def encode(ranges: Iterable[tuple[int, int]]) -> bytes:
    """The column `dirty` of a draft that was flushed."""
    return msgspec.msgpack.encode(list(ranges))


def dirty_ranges(record: Ranges | Closed) -> Ranges:
    """What the newest state in a record has in its staging file."""
    return record.dirty if isinstance(record, Closed) else record


def promised(row: DraftRow) -> DraftRow | None:
    """Of a recorded draft what survives power loss. Raises: CorruptError."""
    record = decode(row.dirty)
    if not isinstance(record, Closed):
        return row
    kept = record.flushed
    if kept is None:
        return None
    return row._replace(size=kept.size, base_limit=kept.base_limit, dirty=encode(kept.dirty))


def closed(row: DraftRow, sums: list[Sum], before: DraftRow | None) -> DraftRow:
    """The record of a draft that was closed and is not flushed.

    Args:
      row: What it would be if it were flushed.
      before: What it has been until now.

    Raises: CorruptError
    """
    safe = promised(before) if before is not None else None
    kept = _Flushed(safe.size, safe.base_limit, dirty_ranges(decode(safe.dirty))) if safe is not None else None
    record = Closed(dirty_ranges(decode(row.dirty)), sums, kept)
    return row._replace(dirty=msgspec.msgpack.encode(record))


def flushed(row: DraftRow, later: DraftRow) -> DraftRow:
    """The record `row`, of a draft that was closed, when `later` has been flushed of it. Raises: CorruptError."""
    record = decode(row.dirty)
    return closed(row, record.sums, later) if isinstance(record, Closed) else later


def resized(row: DraftRow, size: int) -> DraftRow:
    """The record of a draft that was flushed, after a truncation to `size`. Raises: CorruptError."""
    dirty = RangeSet(dirty_ranges(decode(row.dirty)))
    dirty.truncate(size)
    return row._replace(size=size, base_limit=min(row.base_limit, size), dirty=encode(dirty))


def sums_of(dirty: RangeSet, known: list[Sum], read: Callable[[int, int], bytes]) -> list[Sum]:
    """Checksums of all dirty bytes; blocks.

    Args:
      known: Those there are already: sorted, disjoint, not empty, and each of dirty bytes alone.
      read: Returns the bytes from a start to an end, all of them dirty.
    """
    sums: list[Sum] = []
    start = 0
    for known_start, known_end, known_sum in [*known, (dirty.end, dirty.end, b"")]:
        parts: list[bytes] = []
        length = 0
        for at, stop, included in dirty.split(start, known_start):
            while included and at < stop:
                parts.append(read(at, min(stop, at + _SUMMED_BYTES - length)))
                at += len(parts[-1])
                length += len(parts[-1])
                if length == _SUMMED_BYTES:
                    sums.append((start, at, checksum(b"".join(parts))))
                    start, parts, length = at, [], 0
        if parts:
            sums.append((start, known_start, checksum(b"".join(parts))))
        if known_sum:
            sums.append((known_start, known_end, known_sum))
        start = known_end
    return sums


def is_whole(row: DraftRow, record: Closed, staging: str, *, cold: bool) -> bool:
    """Whether the staging file of a closed draft still has what was written to it; blocks.

    Args:
      cold: What lies in the page cache is not to be believed.

    Raises: OSError: It cannot be read.
    """
    dirty = RangeSet(record.dirty)
    try:
        fd = open_to_read(os.path.join(staging, row.staging))
    except FileNotFoundError:
        return False
    try:
        if cold:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for start, end, expected in record.sums:
            parts = [
                os.pread(fd, stop - at, at) for at, stop, included in dirty.split(start, end) if included
            ]
            if checksum(b"".join(parts)) != expected:
                return False
        return True
    finally:
        os.close(fd)
