"""The C heap of the process: how it gets memory from the kernel, and when it gives it back.

Of glibc, mallopt(3), mallinfo(3) and malloc_trim(3); with another C library nothing here does anything.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

import trio

__all__ = ["give_back", "tune"]

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_FREE_KEPT_BYTES: Final = 8 << 20
# Whoever sets one of the two thresholds ends glibc's own adjustment of both.
_MAPPED_BYTES: Final = 4 << 20

CHECK_S: Final = 10.0
"""How often `give_back` looks."""

_IN_VAIN_BYTES: Final = 32 << 20


class _Mallinfo2(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


class _Trimmer:
    """Raises: AttributeError: This is another C library, or glibc before 2.33."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.malloc_trim = library.malloc_trim
        self._mallinfo2 = library.mallinfo2
        self._mallinfo2.restype = _Mallinfo2

    def unused_bytes(self) -> int:
        """What is resident of memory that is no file's, less what the heap has given out; in less than a ms."""
        with open("/proc/self/statm", "rb") as statm:
            _, resident, shared, *_ = map(int, statm.read().split())
        heap = self._mallinfo2()
        return (resident - shared) * os.sysconf("SC_PAGESIZE") - int(heap.uordblks) - int(heap.hblkhd)


def tune() -> None:
    """Set how this process gets its memory, before it has threads.

    One heap for all threads: an arena of its own for each is of no use to the others, and eight writers of
    large files took 270 MB, 200 MB like this. Up to 8 MiB that are free at its end are not given back: streams
    allocate and free a MiB for each request, and a mount that gave back each of them had some 130 page faults
    a MiB, which took a tenth of the time of cold streams.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _FREE_KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


async def give_back() -> None:
    """Give the kernel what the heap keeps in vain, now and then, until cancelled.

    What is free amid the heap stays resident by itself: one small object above it is enough. So a mount kept the
    300 MB that 500 drafts of 2 MB had taken after all of them were sealed.
    """
    try:
        trimmer = _Trimmer()
    except AttributeError:
        return
    # What is resident but not of the heap, Python's small objects for one, is known only as what a trim leaves.
    least: int | None = None
    last = 0
    while True:
        await trio.sleep(CHECK_S)
        try:
            before, last = last, trimmer.unused_bytes()
            least = last if least is None else min(least, last)
            # Twice in a row: what is needed again at once is not given back.
            if min(before, last) > least + _IN_VAIN_BYTES:
                # 16 to 25 ms for 300 MB, in which nobody can allocate.
                await trio.to_thread.run_sync(trimmer.malloc_trim, 0)
                least = last = trimmer.unused_bytes()
        except (OSError, RuntimeError):
            # No descriptor or no thread to be had now: that is no reason to end the mount.
            continue
