"""Calls in threads, and turns."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from mountstore.namespace.turn import Turn
from mountstore.namespace.workers import Workers

pytestmark = pytest.mark.trio


@pytest.fixture
def workers() -> Iterator[Workers]:
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    made = Workers(2)
    yield made
    made.close()
    # Those of trio stay for a while.
    assert not any(thread.name.startswith("worker") for thread in set(threading.enumerate()) - threads)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_call_has_its_result_or_its_exception(workers: Workers) -> None:
    owner = threading.get_ident()
    assert await workers.run(divmod, 7, 2) == (3, 1)
    assert await workers.run(threading.get_ident) not in (owner, None)
    with pytest.raises(ZeroDivisionError) as caught:
        await workers.run(lambda: 7 // 0)
    assert caught.traceback[-1].name == "<lambda>", "where it was raised"
    # All of that in one thread.
    assert len({await workers.run(threading.get_ident) for _ in range(20)}) == 1


async def test_many_calls_each_have_their_own_result(workers: Workers) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()
    found: list[int] = []

    def square(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        os.sched_yield()
        with lock:
            under_way -= 1
        return number * number

    async def ask(number: int) -> None:
        assert await workers.run(square, number) == number * number
        found.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(ask, number)
    assert (sorted(found), most) == (list(range(500)), 2)


async def test_those_for_whom_there_is_no_thread_wait_in_order(workers: Workers) -> None:
    began = [threading.Event() for _ in range(4)]
    events = [threading.Event() for _ in range(4)]

    def wait(number: int) -> None:
        began[number].set()
        assert events[number].wait(60)

    async def wait_begun(number: int) -> None:
        assert await trio.to_thread.run_sync(began[number].wait, 60)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(workers.run, wait, number)
            await wait_all_tasks_blocked()
        await wait_begun(0)
        await wait_begun(1)
        events[1].set()
        await wait_begun(2)
        assert not began[3].is_set()
        for event in events:
            event.set()
    assert began[3].is_set()


async def test_a_cancelled_call_is_waited_for(workers: Workers) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> str:
        begun.set()
        assert go_on.wait(60)
        ended.append("work")
        return "done"

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            ended.append(await workers.run(work))

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(ask, scope)
        assert await trio.to_thread.run_sync(begun.wait, 60)
        scope.cancel()
        await wait_all_tasks_blocked()
        assert ended == []
        go_on.set()
    # As with a thread of trio's, what it returned is not lost.
    assert ended == ["work", "done"]
    with trio.CancelScope() as scope:
        scope.cancel()
        await workers.run(ended.append, "begun although cancelled")
    assert len(ended) == 2


async def test_without_descriptors_the_threads_there_are_do(workers: Workers) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = threading.Event()
    done: list[str] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            await workers.run(done.append, "without any")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert await workers.run(abs, -1) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, first.wait, 60)
        await wait_all_tasks_blocked()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            nursery.start_soon(workers.run, done.append, "later")
            await wait_all_tasks_blocked()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert done == []
        await workers.run(done.append, "in another")
        first.set()
    assert done == ["in another", "later"]


async def test_a_free_turn_is_taken_at_once_and_others_come_in_order() -> None:
    turn = Turn()
    with assert_no_checkpoints():
        async with turn:
            pass
    order: list[int] = []

    async def take(number: int) -> None:
        async with turn:
            order.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery, turn:
        assert turn.taken
        for number in range(5):
            nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
        async with trio.open_nursery() as inner:
            inner.start_soon(take, 5)
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert order == []
    assert order == list(range(5)) and not turn.taken
