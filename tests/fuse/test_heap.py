"""The heap's settings and its giving back, each in a process of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import trio
import trio.testing

from mountstore.fuse import heap

CHURN = """
import resource
from mountstore.fuse import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def churn():
    for _ in range(100):
        [bytes([1]) * (1 << 20) for _ in range(4)]

{tuned}
churn()
before = faults()
churn()
print(faults() - before)
"""

KEPT = """
import trio, trio.testing
from mountstore.fuse import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

async def main():
    async with trio.open_nursery() as nursery:
        if {giving}:
            nursery.start_soon(heap.give_back)
        await trio.sleep(1)
        started = resident()
        # Small ones between the large: none of these is at the end of the heap.
        large, small = [], []
        for _ in range(200):
            large.append(b"1" * 1_000_000)
            small.append(b"2" * 10_000)
        await trio.sleep(3 * heap.CHECK_S)
        grown = resident()
        large.clear()
        await trio.sleep(heap.CHECK_S / 2)
        await trio.sleep(2 * heap.CHECK_S)
        print(grown - started, resident() - started)
        nursery.cancel_scope.cancel()

heap.tune()
trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
"""


def printed(program: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(word) for word in done.stdout.split()]


def test_buffers_that_come_and_go_do_not_fault_their_pages_in_each_time() -> None:
    assert printed(CHURN.format(tuned=""))[0] > 10_000, "this C library keeps them: is tune() still needed?"
    assert printed(CHURN.format(tuned="heap.tune()"))[0] < 1000


def test_what_is_free_amid_the_heap_is_given_back() -> None:
    grown, kept = printed(KEPT.format(giving=False))
    assert grown > 180 and kept > 180, "this C library gives it back: is give_back() still needed?"
    grown, kept = printed(KEPT.format(giving=True))
    assert grown > 180 and kept < 40


@pytest.mark.trio
async def test_a_heap_that_cannot_be_looked_at_does_not_end_the_mount(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = 0

    def out_of_descriptors(self: object) -> int:
        nonlocal asked
        asked += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/proc/self/statm")

    monkeypatch.setattr(heap._Trimmer, "unused_bytes", out_of_descriptors)
    with trio.move_on_after(3.5 * heap.CHECK_S):
        await heap.give_back()
    assert asked == 3
