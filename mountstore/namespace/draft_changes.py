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

from mountstore.blobs.flush import fsync, fsync_path
from mountstore.errors import CorruptError
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.draft_record import decode, dirty_ranges, encode
from mountstore.namespace.ranges import RangeSet

Written = list[tuple[int, bytes]]
"""Offsets, and what was written there."""

Change = Written | int
"""What was written, or the size after a truncation."""


CHANGE_BYTES_MAX = 256 << 10
"""So much may one fsync put into the catalog: beyond, flushing the staging file is as cheap."""

CHANGE_RANGES_MAX = 32
"""And so many places."""

CHANGES_BYTES_MAX = 4 << 20
"""What may lie there of one staging file."""


def encode_change(change: Change) -> bytes:
    """The column `change`."""
    return msgspec.msgpack.encode(change)


def replay(row: DraftRow, changes: Iterable[bytes], staging: str) -> DraftRow:
    """Bring the changes into the staging file and flush it; returns the record of the draft with them; blocks.

    Doing it again comes to the same.

    Args:
      row: What survives power loss of the draft without them.
      staging: The directory.

    Raises: OSError; CorruptError: A record or a change cannot be read.
    """
    path = os.path.join(staging, row.staging)
    dirty = RangeSet(dirty_ranges(decode(row.dirty)))
    size, base_limit = row.size, row.base_limit
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for encoded in changes:
            try:
                change = msgspec.msgpack.decode(encoded, type=Change)
            except msgspec.MsgspecError as exc:
                raise CorruptError(f"{path}: a change of the draft cannot be read: {exc}") from exc
            if isinstance(change, int):
                size, base_limit = change, min(base_limit, change)
                dirty.truncate(size)
                if os.fstat(fd).st_size > size:
                    os.ftruncate(fd, size)
                continue
            for offset, data in change:
                _pwrite(fd, data, offset)
                dirty.add(offset, offset + len(data))
                size = max(size, offset + len(data))
        fsync(fd, path)
        fsync_path(staging, os.O_DIRECTORY)
    finally:
        os.close(fd)
    return row._replace(size=size, base_limit=base_limit, dirty=encode(dirty))


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        length = os.pwrite(fd, view, offset)
        offset += length
        view = view[length:]
