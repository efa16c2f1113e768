"""The request loop: fair, asleep when idle, ended cleanly, and only on a pyfuse3 that it fits."""

from __future__ import annotations

import errno
import os
import random
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing
from durability.tracing import traced

from fuse.served import PATIENCE_S, Served
from mountstore.fuse import mounts, request_loop
from mountstore.fuse.request_loop import _FastWait

LOOPS = pytest.mark.parametrize("fast", [True, False], ids=["fast loop", "original loop"])


@pytest.fixture
def connections(tmp_path: Path) -> Iterator[Path]:
    """The kernel's directory of FUSE connections, which a container may lack; at a place of this test's own."""
    path = tmp_path / "connections"
    path.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@contextmanager
def flood(mountpoint: Path) -> Iterator[None]:
    """Requests back to back from two threads, each waiting for nothing but its own last one."""
    over = threading.Event()
    under_way = threading.Barrier(3)

    def ask(thread: int) -> None:
        number = 0
        while not over.is_set():
            assert not os.path.exists(mountpoint / f"quick{thread}-{number}")
            number += 1
            if number == 100:
                under_way.wait(PATIENCE_S)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        under_way.wait(PATIENCE_S)
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def quarter(times_s: list[float]) -> float:
    """What the quicker quarter of them stays below."""
    return statistics.quantiles(times_s, n=4)[0]


@pytest.mark.mount
@LOOPS
@pytest.mark.parametrize("slow", [1, 20])
def test_a_thousand_quick_requests_pass_beside_slow_ones(mountpoint: Path, fast: bool, slow: int) -> None:
    with Served(mountpoint, fast=fast) as served:
        assert served.ready["fast"] == fast
        held = [subprocess.Popen(["stat", mountpoint / f"slow{n}"], stderr=-3) for n in range(slow)]
        assert {served.answer()["held"] for _ in held} == {f"slow{n}" for n in range(slow)}
        for number in range(1000):
            assert not os.path.exists(mountpoint / f"quick{number}")
        assert all(process.poll() is None for process in held)
        served.tell("release")
        assert [process.wait(PATIENCE_S) for process in held] == [1] * slow
        served.unmounted()


@pytest.mark.mount
@LOOPS
def test_handlers_that_wait_for_threads_pass_beside_quick_ones(mountpoint: Path, fast: bool) -> None:
    with Served(mountpoint, fast=fast) as served:
        with flood(mountpoint):
            for number in range(100):
                assert not os.path.exists(mountpoint / f"thread{number}")
        assert served.ask("asked")["lookup"] >= 300
        served.unmounted()


@pytest.mark.mount
@LOOPS
def test_timers_fire_on_time_while_requests_come_back_to_back(mountpoint: Path, fast: bool) -> None:
    with Served(mountpoint, fast=fast) as served:
        with flood(mountpoint):
            late_s = served.ask("timers")["late_s"]
        served.unmounted()
    # The scheduler gets a turn every millisecond. The slower ones are the machine's, which has other work.
    assert quarter(late_s) < 0.004, late_s


@pytest.mark.mount
@LOOPS
def test_results_of_threads_are_noticed_while_requests_come_back_to_back(
    mountpoint: Path, fast: bool
) -> None:
    with Served(mountpoint, fast=fast) as served:
        with flood(mountpoint):
            took_s = served.ask("threads")["took_s"]
        served.unmounted()
    assert quarter(took_s) < 0.005, took_s


@pytest.mark.mount
@LOOPS
def test_an_idle_mount_uses_no_cpu(mountpoint: Path, fast: bool) -> None:
    with Served(mountpoint, fast=fast) as served:
        for number in range(200):  # opens the window of the busy-poll
            assert not os.path.exists(mountpoint / f"quick{number}")
        cpu_s = served.ask("idle")["cpu_s"]
        served.unmounted()
    assert cpu_s < 0.005


@pytest.mark.mount
@LOOPS
def test_unmounting_from_outside_ends_serving(mountpoint: Path, fast: bool) -> None:
    with Served(mountpoint, fast=fast) as served:
        with flood(mountpoint):
            pass
        assert served.unmounted() == ""


@pytest.mark.mount
@LOOPS
def test_terminate_ends_serving_when_idle_and_when_busy(mountpoint: Path, fast: bool) -> None:
    with Served(mountpoint, fast=fast) as served:
        served.tell("terminate")
        assert served.ended() == (0, "")
    with (
        Served(mountpoint, fast=fast) as served,
        subprocess.Popen(["stat", mountpoint / "slow"], stderr=-3) as held,
    ):
        assert served.answer() == {"held": "slow"}
        served.tell("terminate")
        served.tell("release")
        assert served.ended() == (0, "")
        assert held.wait(PATIENCE_S) == 1
    assert mounts.mount_at(str(mountpoint)) is None


@pytest.mark.mount
@LOOPS
def test_an_aborted_connection_ends_serving(mountpoint: Path, connections: Path, fast: bool) -> None:
    with Served(mountpoint, fast=fast) as served:
        # A connection is named after the minor number of its mount's device.
        (connections / str(os.minor(served.ready["device"])) / "abort").write_text("1")
        assert served.ended() == (0, "")
    assert mounts.mount_at(str(mountpoint)) is None


@pytest.mark.mount
@LOOPS
def test_a_connection_that_ends_with_a_request_in_hand_is_an_ordinary_end(
    mountpoint: Path, tmp_path: Path, fast: bool
) -> None:
    """An unmount may overtake the RELEASE of a file: whoever is reading that request gets ECONNABORTED."""
    with Served(mountpoint, fast=fast) as served:
        with traced(
            served.process.pid, tmp_path / "trace", "read", path="/dev/fuse", inject="read:error=ECONNABORTED"
        ) as trace:
            with pytest.raises(OSError):
                os.stat(mountpoint / "any")
            assert served.ended() == (0, "")
        assert trace.injected >= 1
    assert mounts.mount_at(str(mountpoint)) is None


# --- without a mount: the wait itself, on a pipe ---


async def wait_as_pyfuse3_does(lock: trio.Lock, descriptor: int) -> bool:
    async with lock:
        await trio.lowlevel.wait_readable(descriptor)
    return True


def fast_wait(descriptor: int, bound_s: float = 0.0002) -> _FastWait:
    lock = trio.Lock()
    wait = _FastWait(lambda: wait_as_pyfuse3_does(lock, descriptor), bound_s)
    wait.start(descriptor)
    return wait


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_told_to_read_what_another_took(seed: int) -> None:
    chance = random.Random(seed)
    receiver, sender = os.pipe()
    os.set_blocking(receiver, False)
    wait = fast_wait(receiver)
    requests = 600
    taken = 0

    async def worker() -> None:
        nonlocal taken
        while await wait():
            os.read(receiver, 1)  # BlockingIOError if nothing is there
            taken += 1
            match chance.randrange(4):
                case 0:
                    await trio.lowlevel.checkpoint()
                case 1:
                    await trio.sleep(chance.random() / 2000)
                case 2:
                    await trio.to_thread.run_sync(int)

    async def scenario() -> None:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(worker)
                sent = 0
                while sent < requests:
                    sent += os.write(sender, b"x" * min(chance.randrange(1, 12), requests - sent))
                    await trio.sleep(chance.choice([0, 0, 0.0001, 0.001]))
                while taken < requests:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    trio.run(scenario)
    assert taken == requests
    os.close(receiver)
    os.close(sender)


@pytest.mark.parametrize(("cores", "opens"), [({0}, False), ({0, 1}, True)])
def test_the_window_opens_after_a_short_gap_unless_there_is_one_core(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], opens: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    receiver, sender = os.pipe()
    wait = fast_wait(receiver, bound_s=10.0)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            os.write(sender, b"x")

    trio.run(scenario)
    assert (wait._window_s == 10.0) == opens
    os.close(receiver)
    os.close(sender)


@pytest.mark.parametrize(("cores", "sleeps"), [({0}, False), ({0, 1}, True)])
def test_who_waits_for_this_very_core_gets_it_before_the_poller_sleeps(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], sleeps: bool
) -> None:
    receiver, sender = os.pipe()
    slept = []

    async def sleep() -> bool:
        slept.append(True)
        return True

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(os, "sched_yield", lambda: os.write(sender, b"x"))
    wait = _FastWait(sleep, 0.0)
    wait.start(receiver)
    assert wait._window_s == 0.0
    assert trio.run(wait)
    assert bool(slept) == sleeps
    os.close(receiver)
    os.close(sender)


def test_the_window_closes_when_requests_come_further_apart() -> None:
    receiver, sender = os.pipe()
    bound_s = 0.0002

    async def after_a_long_gap() -> bool:
        await trio.sleep(2 * bound_s)
        return True

    wait = _FastWait(after_a_long_gap, bound_s)
    wait.start(receiver)
    wait._window_s = bound_s

    async def scenario() -> None:
        for _ in range(6):
            assert await wait()

    trio.run(scenario)
    assert wait._window_s == 0.0
    os.close(receiver)
    os.close(sender)


# --- which pyfuse3 it fits ---


@pytest.fixture
def original() -> Iterator[object]:
    original = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    yield original
    request_loop.uninstall()


def test_install_replaces_the_wait_and_uninstall_puts_it_back(original: object) -> None:
    assert request_loop.install()
    assert request_loop.install(0.0)
    assert request_loop.installed()
    assert pyfuse3._wait_fuse_readable is not original  # type: ignore[attr-defined]
    request_loop.uninstall()
    assert not request_loop.installed()
    assert pyfuse3._wait_fuse_readable is original  # type: ignore[attr-defined]


async def _with_a_parameter(timeout: float) -> bool:
    return True


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("__version__", "3.6.0", "pyfuse3 3.6.0 is not known"),
        ("_wait_fuse_readable", None, "not a coroutine function"),
        ("_wait_fuse_readable", lambda: True, "not a coroutine function"),
        ("_wait_fuse_readable", _with_a_parameter, "without parameters"),
        ("trio", errno, "does not run on trio"),
    ],
)
def test_another_pyfuse3_keeps_its_own_wait(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    attribute: str,
    value: object,
    reason: str,
) -> None:
    monkeypatch.setattr(pyfuse3, attribute, value)
    before = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    assert not request_loop.install()
    assert not request_loop.installed()
    assert pyfuse3._wait_fuse_readable is before  # type: ignore[attr-defined]
    (record,) = caplog.records
    assert "own loop" in record.getMessage()
    assert reason in record.getMessage()


@pytest.mark.mount
def test_another_pyfuse3_serves_all_the_same(mountpoint: Path) -> None:
    with Served(mountpoint, pyfuse3_version="3.6.0") as served:
        assert not served.ready["fast"]
        assert not os.path.exists(mountpoint / "quick")
        assert "own loop" in served.unmounted()
