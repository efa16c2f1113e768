"""The clock of files, beside times that the kernel took with more precision."""

from __future__ import annotations

from mountstore.blobs.clock import end_ns, now_ns

MS = 1_000_000


def test_what_ends_ends_after_it_began() -> None:
    now = now_ns()
    assert end_ns(now - 1, now) == now
    assert end_ns(now, now) == now + 1
    # The kernel may be ahead by a tick.
    assert end_ns(now + 6 * MS, now) == now + 6 * MS + 1
    # This was set to the future by somebody.
    assert end_ns(now + 60_000 * MS, now) == now
