"""A stream of bytes taken apart into extents: pieces of data and holes.

A hole is a maximal run of at least `hole_min` zero bytes, wherever it begins; the data between two holes is a
stretch, and each stretch is cut into pieces by itself. Both follow from the bytes alone, not from how they
arrived or whether a hole was ever written to, so equal files have equal extents.

1. Extents come out in order, and none is empty.
2. No hole follows a hole.
3. An extent comes out only when no further input can change it.
4. Memory: at most `max_size` + `hole_min` bytes and what was fed last.
"""

from __future__ import annotations

from typing import Final

from mountstore.blobs.chunking import Chunker, ChunkingParameters

__all__ = ["Extent", "Segmenter"]

Extent = memoryview | int
"""The bytes of a piece, which nobody changes, or the length of a hole."""

# Zeros are compared in blocks, largest first: memcmp looks at some 10 GB/s, strip() at 0.3.
_ZEROS: Final = (bytes(1 << 16), bytes(1 << 12), bytes(1 << 6))


def _zeros_end(data: bytes | bytearray, start: int) -> int:
    """Where the run of zeros that begins at `start` ends."""
    for zeros in _ZEROS:
        step = len(zeros)
        while data.startswith(zeros, start):
            start += step
    tail = data[start : start + len(_ZEROS[-1])]
    return start + len(tail) - len(tail.lstrip(b"\0"))


def _zeros_start(data: bytes | bytearray, end: int, lowest: int) -> int:
    """Where the run of zeros that ends at `end` begins, looking back to `lowest`."""
    return lowest + len(data[lowest:end].rstrip(b"\0"))


class Segmenter:
    """Turns bytes that are fed in order into extents. For one thread at a time."""

    __slots__ = ("_chunker", "_hole", "_hole_min", "_pending", "_probe", "_settled")

    def __init__(self, parameters: ChunkingParameters) -> None:
        self._chunker = Chunker(parameters)
        self._hole_min = parameters.hole_min
        # Every run of hole_min zeros contains one of these at a multiple of its length, from any origin.
        self._probe = bytes(parameters.hole_min // 2)
        # Either inside a hole of so many bytes (then nothing is pending), or inside a stretch (then 0).
        self._hole = 0
        self._pending = bytearray()
        # pending[:_settled] has no hole and does not end in a zero; what follows are zeros, maybe of a hole.
        self._settled = 0

    def feed(self, *parts: bytes | bytearray) -> list[Extent]:
        """Take the next bytes; the extents that are certain now."""
        extents: list[Extent] = []
        for part in parts:
            if not self._hole:
                self._pending += part
                continue
            end = _zeros_end(part, 0)
            self._hole += end
            if end < len(part):
                extents.append(self._hole)
                self._hole = 0
                self._pending += memoryview(part)[end:]
        if self._hole:
            return extents
        while run := self._find_hole():
            start, end = run
            self._emit(extents, start, final=True)
            del self._pending[: end - start]
            self._settled = 0
            if not self._pending:
                self._hole = end - start
                return extents
            extents.append(end - start)
        self._emit(extents, self._settled, final=False)
        return extents

    def feed_zeros(self, length: int) -> list[Extent]:
        """Take `length` zero bytes; costs nothing however many they are."""
        extents: list[Extent] = []
        run = len(self._pending) - self._settled + length
        if self._hole:
            self._hole += length
        elif run >= self._hole_min:
            self._emit(extents, self._settled, final=True)
            self._pending.clear()
            self._hole = run
        else:
            self._pending += bytes(length)
        return extents

    def finish(self) -> list[Extent]:
        """The remaining extents: the input is complete. The segmenter is as new afterwards."""
        extents: list[Extent] = []
        if self._hole:
            extents.append(self._hole)
            self._hole = 0
        else:
            self._emit(extents, len(self._pending), final=True)
            self._settled = 0
        return extents

    def _find_hole(self) -> tuple[int, int] | None:
        """Start and end of the first run of hole_min zeros or more; without one, `_settled` is up to date."""
        pending, probe, step = self._pending, self._probe, len(self._probe)
        size = len(pending)
        lowest = position = self._settled
        while position + step <= size:
            if not pending.startswith(probe, position):
                position += step
                continue
            start = _zeros_start(pending, position, max(lowest, position - step))
            end = _zeros_end(pending, position + step)
            if end - start >= self._hole_min:
                return start, end
            if end == size:
                self._settled = start
                return None
            lowest = position = end
        self._settled = _zeros_start(pending, size, max(lowest, size - self._hole_min))
        return None

    def _emit(self, extents: list[Extent], end: int, *, final: bool) -> None:
        """Cut pending[:end] and take the certain pieces off it."""
        lengths = self._chunker.cut(self._pending, end, final=final)
        if not lengths:
            return
        offset = 0
        view = memoryview(self._pending).toreadonly()
        for length in lengths:
            extents.append(view[offset : offset + length])
            offset += length
        # The pieces stay where they are; what is left moves, which mostly is less.
        self._pending = self._pending[offset:]
        self._settled -= offset
