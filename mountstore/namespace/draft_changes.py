"""What fsyncs have promised of a draft since its staging file was last flushed (table `draft_change`).

Flushing a sparse file into which a few pages were written takes the file system two to three times as long as
flushing the catalog's WAL, and the WAL has to be flushed anyway. So an fsync of a little puts the changed bytes
into the catalog, and the staging file is flushed once for many of them. It is the journal of a file system with
`data=journal`, as `Ledger.journal` is for small blobs.

The changes count from the record of the draft (`draft_record.py`) that was made when the staging file was
flushed, or, if it never was, when the first of them was added. They belong to a staging file, and go with it: a
note of what was replaced may speak of it (`replaced.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from mountstore.blobs.flush import fsync_path
from mountstore.errors import CorruptError
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.draft_record import decode, dirty_ranges, encode
from mountstore.namespace.ranges import RangeSet

Written = list[tuple[int, bytes]]
"""Offsets, and what was written there."""

Change = Written | int
"""What was written, or the size after a truncation."""

CHANGE_BYTES_MAX = 256 << 10
"""So much may one fsync put into the catalog: beyond, flushing the staging file costs no more."""

CHANGE_RANGES_MAX = 32
"""And so many places."""

CHANGES_BYTES_MAX = 4 << 20
"""What may lie there of one staging file."""


def encode_change(change: Change) -> bytes:
    """The column `change`."""
    return msgspec.msgpack.encode(change)


def replayed(row: DraftRow, changes: Iterable[bytes]) -> DraftRow:
    """The record of a draft with the changes that came after it, when they are in its staging file.

    Args:
      row: What survives power loss of the draft without them.

    Raises: CorruptError: A record or a change cannot be read.
    """
    dirty = RangeSet(dirty_ranges(decode(row.dirty)))
    size, base_limit = row.size, row.base_limit
    for encoded in changes:
        change = _decode(encoded)
        if isinstance(change, int):
            size, base_limit = change, min(base_limit, change)
            dirty.truncate(size)
        else:
            for offset, data in change:
                dirty.add(offset, offset + len(data))
                size = max(size, offset + len(data))
    return row._replace(size=size, base_limit=base_limit, dirty=encode(dirty))


def replay(row: DraftRow, changes: Iterable[bytes], staging: str) -> None:
    """Bring the changes into the staging file and flush it; blocks. Doing it again comes to the same.

    Args:
      row: As of `replayed`.
      staging: The directory.

    Raises: OSError; CorruptError: A record or a change cannot be read, or the file is gone, which had more.
    """
    path = os.path.join(staging, row.staging)
    # What had nothing flushed need not have a file.
    made = 0 if dirty_ranges(decode(row.dirty)) else os.O_CREAT
    try:
        fd = os.open(path, os.O_RDWR | made | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError as exc:
        raise CorruptError(f"{path}: the file of the draft is gone") from exc
    try:
        for encoded in changes:
            change = _decode(encoded)
            # What is behind a truncation is in no range, and so never read.
            for offset, data in [] if isinstance(change, int) else change:
                _pwrite(fd, data, offset)
    finally:
        os.close(fd)
    flush(row, staging)


def flush(row: DraftRow, staging: str) -> None:
    """Make the staging file of a recorded draft survive power loss; blocks. Raises: As `fsync_path`."""
    fsync_path(os.path.join(staging, row.staging))
    fsync_path(staging, os.O_DIRECTORY)


def _decode(encoded: bytes) -> Change:
    try:
        change: Change = msgspec.msgpack.decode(encoded, type=Change)
    except msgspec.MsgspecError as exc:
        raise CorruptError(f"a change of a draft cannot be read: {exc}") from exc
    return change


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        length = os.pwrite(fd, view, offset)
        offset += length
        view = view[length:]
