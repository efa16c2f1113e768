"""A set of byte ranges: sorted, disjoint, never touching each other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """Half-open ranges `[start, end)` of byte offsets; adding costs O(log n) plus the ranges swallowed."""

    __slots__ = ("_ends", "_starts", "_total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Include `[start, end)`; empty ranges change nothing."""
        if start >= end:
            return
        # Every range that overlaps or touches the new one is swallowed by it.
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
            self._total -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        self._total += end - start
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def truncate(self, size: int) -> None:
        """Drop everything from `size` on."""
        keep = bisect_left(self._starts, size)
        self._total -= sum(self._ends[keep:]) - sum(self._starts[keep:])
        del self._starts[keep:]
        del self._ends[keep:]
        if keep and self._ends[-1] > size:
            self._total -= self._ends[-1] - size
            self._ends[-1] = size

    def split(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The stretches of `[start, end)` in order, each with whether it is in the set."""
        index = bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                yield start, end, False
                return
            if start < self._starts[index]:
                yield start, self._starts[index], False
                start = self._starts[index]
            stop = min(self._ends[index], end)
            yield start, stop, True
            start = stop
            index += 1

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any byte of `[start, end)` is in the set."""
        return any(included for _, _, included in self.split(start, end))

    def includes(self, start: int, end: int) -> bool:
        """Whether all of `[start, end)` is in the set."""
        return all(included for _, _, included in self.split(start, end))

    @property
    def end(self) -> int:
        """Behind the last byte; 0 if there is none."""
        return self._ends[-1] if self._ends else 0

    def gaps(self, shorter_than: int, leave: int) -> list[tuple[int, int]]:
        """The shortest gaps between ranges, sorted, without which `leave` ranges would remain; only those that are
        `shorter_than` so many bytes."""
        gaps = sorted(
            (start - end, end)
            for end, start in zip(self._ends, self._starts[1:], strict=False)
            if start - end < shorter_than
        )
        return sorted((end, end + length) for length, end in gaps[: max(len(self._starts) - leave, 0)])

    def total(self) -> int:
        """Bytes in the set."""
        return self._total

    def total_with(self, start: int, end: int) -> int:
        """Bytes in the set if `[start, end)` were included."""
        return self._total + sum(stop - at for at, stop, included in self.split(start, end) if not included)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
