"""Long work in workers, a stretch at a time: between two stretches it can be cancelled, and told of.

A worker is not kept longer than a stretch, because a cancelled task waits until its worker is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

import trio

__all__ = ["STRETCH_S", "Progress", "Stretch", "in_stretches", "no_progress"]

STRETCH_S: Final = 0.05
"""How long a worker is kept busy at a time."""

Progress = Callable[[int, int | None, str], None]
"""Told how much is done, of how much in all if that is known, and what is counted."""

_T = TypeVar("_T")


def no_progress(done: int, total: int | None, unit: str) -> None:
    """Told of progress, for nobody."""


class Stretch(Generic[_T]):
    """The next items, as many as are worked on within some time, at least one; the others are left in `items`.

    Attributes:
      more: Whether there may be others.
    """

    def __init__(self, items: Iterator[_T], length_s: float = STRETCH_S) -> None:
        self.more = True
        self._items = items
        self._length_s = length_s

    def __iter__(self) -> Iterator[_T]:
        end = time.monotonic() + self._length_s
        for item in self._items:
            yield item
            if time.monotonic() >= end:
                return
        self.more = False


async def in_stretches(
    items: Iterator[_T], work: Callable[[_T], object], after: Callable[[], None] = lambda: None
) -> None:
    """Do the work for all items in workers; `after` each stretch but the last, something on this thread.

    Cancellation: After a stretch; the items that are left are not worked on.
    """

    def work_a_stretch() -> bool:
        stretch = Stretch(items)
        for item in stretch:
            work(item)
        return stretch.more

    while await trio.to_thread.run_sync(work_a_stretch):
        after()
