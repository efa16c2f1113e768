"""The clock from which the kernel takes the times of files. It ticks every few milliseconds.

Other clocks run ahead of it: what was made after one of them was read can look older than that.
"""

from __future__ import annotations

import time

__all__ = ["end_ns", "now_ns"]

_CLOCK_REALTIME_COARSE = 5
"""Of <linux/time.h>; the time module has no name for it."""

_TICK_MAX_NS = 10_000_000
"""Of a kernel with 100 ticks a second."""


def now_ns() -> int:
    """The time by that clock: nothing that is made from now on is older.

    So it is also the time to put on an inode: a file that the kernel stamps at a write must not look older than
    one that was made before it.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def end_ns(began_ns: int, now: int) -> int:
    """When something ended that ends now, `now_ns`, and began at a time that the kernel took: later than that.

    The kernel's own clock may be ahead by a tick at most: since Linux 6.13 it never falls behind a time that it
    gave to a file with more precision.
    """
    return began_ns + 1 if now <= began_ns < now + _TICK_MAX_NS else now
