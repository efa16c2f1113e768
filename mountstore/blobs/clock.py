"""The clock from which the kernel takes the times of files. It ticks every few milliseconds.

Other clocks run ahead of it: what was made after one of them was read can look older than that.
"""

from __future__ import annotations

import time

__all__ = ["next_tick_ns", "now_ns"]

_CLOCK_REALTIME_COARSE = 5
"""Of <linux/time.h>; the time module has no name for it."""


def now_ns() -> int:
    """The time to put on an inode.

    A file that the kernel stamps at a write must not look older than one that was made before it.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def next_tick_ns() -> int:
    """Wait for the clock to move on, and return the new time: files made before have older times, and those made
    from now on have not."""
    before = now_ns()
    while (now := now_ns()) == before:
        time.sleep(0.0005)
    return now
