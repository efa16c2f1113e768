"""Idle cores are kept quick to wake during a burst of requests, and never longer."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fuse.served import PATIENCE_S, Served
from mountstore.fuse import quick_wake
from mountstore.fuse.quick_wake import QuickWake
from mountstore.fuse.request_loop import _BURST, _CLOSE_S, _LINGER_S, _FastWait

NO_BOUND_US = 1_000_000_000
"""The kernel's own is two thousand seconds."""


def bound_us() -> int:
    """What holds in the kernel now, of all processes that asked."""
    with open("/dev/cpu_dma_latency", "rb", buffering=0) as device:
        (bound,) = struct.unpack("i", device.read(4))
    assert isinstance(bound, int)
    return bound


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the device's stead, which keeps what is written."""
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    monkeypatch.setattr(quick_wake, "_DEVICE", str(path))
    return path


def written(device: Path) -> list[int]:
    return [number for (number,) in struct.iter_unpack("i", device.read_bytes())]


# --- the kernel's side ---


@pytest.mark.mount
def test_the_kernel_is_told_during_a_burst_only(mountpoint: Path) -> None:
    with Served(mountpoint) as served:
        assert not served.ask("quick wake")["held"]
        for number in range(10 * _BURST):
            assert not os.path.exists(mountpoint / f"quick{number}")
        # The burst may be over on a machine with other work: then it is tried again.
        for attempt in range(1000):
            for number in range(_BURST):
                assert not os.path.exists(mountpoint / f"quick{attempt}-{number}")
            if bound_us() < NO_BOUND_US:
                break
        else:
            raise AssertionError("no burst was noticed")
        assert not served.ask("let go")["held"]
        served.unmounted()


@pytest.mark.mount
def test_it_can_be_switched_off(mountpoint: Path) -> None:
    with Served(mountpoint, quick_wake=False) as served:
        for number in range(10 * _BURST):
            assert not os.path.exists(mountpoint / f"quick{number}")
        assert served.ask("quick wake") == {"open": False, "held": False}
        served.unmounted()


# --- what is written ---


@pytest.mark.parametrize(("driver", "bound"), [("haltpoll\n", 0), ("intel_idle\n", 10), (None, 10)])
def test_a_guest_wants_none_and_a_machine_a_little(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str | None, bound: int
) -> None:
    current = tmp_path / "current_driver"
    if driver is not None:
        current.write_text(driver)
    monkeypatch.setattr(quick_wake, "_DRIVER", str(current))
    wake = QuickWake()
    wake.open()
    wake.open()
    assert not wake.held
    wake.let_go()
    wake.hold()
    wake.hold()
    wake.let_go()
    wake.hold()
    wake.close()
    assert not wake.held
    wake.hold()
    assert written(device) == [bound, -1, bound]


def test_a_device_that_refuses_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quick_wake, "_DEVICE", "/dev/full")
    wake = QuickWake()
    wake.open()
    wake.hold()
    assert not wake.held
    wake.hold()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "/dev/full: No space left on device" in record.getMessage()


def test_without_the_device_nothing_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quick_wake, "_DEVICE", str(tmp_path / "absent"))
    wake = QuickWake()
    wake.open()
    wake.hold()
    wake.let_go()
    assert not wake.held
    wake.close()
    assert not caplog.records


# --- when: the loop, with gaps that the test chooses ---


class Gaps:
    """A wait that sleeps, on trio's own test clock, as long as it is told, and is never ready at once."""

    def __init__(self, gaps_s: Iterator[float]) -> None:
        self.gaps_s = gaps_s
        self.left_s = 0.0

    async def __call__(self) -> bool:
        if not self.left_s:
            self.left_s = next(self.gaps_s)
        began_s = trio.current_time()
        try:
            await trio.sleep(self.left_s)
        except trio.Cancelled:
            self.left_s -= trio.current_time() - began_s
            raise
        self.left_s = 0.0
        return True


def held_after(device: Path, monkeypatch: pytest.MonkeyPatch, *gaps_s: float) -> tuple[bool, list[int]]:
    """Let requests come so far apart; return whether it is held in the end, and what was written."""

    async def scenario() -> None:
        with trio.fail_after(PATIENCE_S):
            for _ in gaps_s:
                assert await wait()

    receiver, sender = os.pipe()
    wake = QuickWake()
    wait = _FastWait(Gaps(iter(gaps_s)), 0.0, wake)
    monkeypatch.setattr("mountstore.fuse.request_loop.perf_counter", trio.current_time)
    clock = trio.testing.MockClock(autojump_threshold=0)
    device.write_bytes(b"")

    async def main() -> None:
        wait.start(receiver)
        await scenario()

    trio.run(main, clock=clock)
    held = wake.held
    said = written(device)
    wait.stop()
    os.close(receiver)
    os.close(sender)
    return held, said


SOON = _CLOSE_S / 2
LATE = _CLOSE_S * 2
OVER = _LINGER_S * 2


def test_a_burst_is_requests_in_close_succession(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_wake, "_DRIVER", str(device.parent / "none"))
    assert held_after(device, monkeypatch, *[SOON] * (_BURST - 1)) == (False, [])
    assert held_after(device, monkeypatch, *[SOON] * _BURST) == (True, [10])
    assert held_after(device, monkeypatch, *[SOON] * 10 * _BURST) == (True, [10])
    # An fsync now and then does not end it, nor do requests come so rarely begin it.
    assert held_after(device, monkeypatch, *[SOON, SOON, SOON, LATE] * _BURST) == (True, [10])
    assert held_after(device, monkeypatch, *[LATE] * 10 * _BURST) == (False, [])


def test_a_burst_is_over_after_a_pause_or_when_requests_grow_rare(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_wake, "_DRIVER", str(device.parent / "none"))
    burst = [SOON] * _BURST
    assert held_after(device, monkeypatch, *burst, OVER) == (False, [10, -1])
    assert held_after(device, monkeypatch, *burst, OVER, *burst) == (True, [10, -1, 10])
    assert held_after(device, monkeypatch, *burst, *[LATE] * (_BURST - 1)) == (True, [10])
    assert held_after(device, monkeypatch, *burst, *[LATE] * _BURST) == (False, [10, -1])
