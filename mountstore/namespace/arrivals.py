"""Checksums of what is written to a staging file, taken while it is in the processor's cache."""

from __future__ import annotations

from mountstore.blobs.digest import checksum
from mountstore.namespace.draft_record import Sum
from mountstore.namespace.ranges import RangeSet

_SUMMED_MIN = 128 << 10
"""Smaller writes are read again when their checksum is needed."""

_ENTRIES_MAX = 16_384
"""Some 3 MB. What was written longer ago is read again."""

_END_OF_FILES = 1 << 63


class Arrivals:
    """The latest writes to one file. Any thread may `note`; those that overlap come one after the other."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, bytes | None]] = []

    def note(self, offset: int, data: bytes | bytearray) -> None:
        """These bytes were written."""
        large = len(data) >= _SUMMED_MIN
        if large or self._entries:
            if len(self._entries) >= _ENTRIES_MAX:
                self._entries.clear()
            self._entries.append((offset, offset + len(data), checksum(data) if large else None))

    def spoil(self, start: int, end: int = _END_OF_FILES) -> None:
        """Nobody knows what is there now."""
        if self._entries:
            self._entries.append((start, end, None))

    def known(self) -> list[Sum]:
        """The checksums of writes that nothing has changed since, sorted."""
        later = RangeSet()
        known: list[Sum] = []
        for start, end, found in reversed(self._entries):
            if found is not None and not later.overlaps(start, end):
                known.append((start, end, found))
            later.add(start, end)
        return sorted(known)
