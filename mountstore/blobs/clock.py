"""The clock from which the kernel takes the times of files. It ticks every few milliseconds.

Other clocks run ahead of it: what was made after one of them was read can look older than that.
"""

from __future__ import annotations

import time

__all__ = ["now_ns"]

_CLOCK_REALTIME_COARSE = 5
"""Of <linux/time.h>; the time module has no name for it."""


def now_ns() -> int:
    """The time by that clock: nothing that is made from now on is older.

    So it is also the time to put on an inode: a file that the kernel stamps at a write must not look older than
    one that was made before it.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
