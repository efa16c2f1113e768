"""Answers that wait to be read, and whatever is written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from control.conftest import answers
from mountstore.control.answers import QUEUE_MAX_BYTES, AnswerQueue
from mountstore.control.basics import COMMANDS
from mountstore.control.command import Registry
from mountstore.control.context import Services
from mountstore.control.conversation import CommandFailedError, Conversation
from mountstore.control.jobs import Jobs
from mountstore.store import Store
from mountstore.store.create import create_store


def test_progress_that_nobody_read_gives_way() -> None:
    queue = AnswerQueue()
    queue.put(b"first\n")
    for number in range(10):
        queue.put(b"%d\n" % number, progress=True)
    assert queue.take(6) == b"first\n"
    assert queue.take(1) == b"9"
    # What has been read in part is not taken away.
    queue.put(b"10\n", progress=True)
    assert queue.take(100) == b"\n10\n"
    assert queue.take(100) == b""


def test_answers_that_nobody_reads_are_bounded() -> None:
    queue = AnswerQueue()
    line = b"x" * ((1 << 20) - 1) + b"\n"
    for _ in range(QUEUE_MAX_BYTES // len(line) + 5):
        queue.put(line)
    size = 0
    while part := queue.take(10 << 20):
        size += len(part)
    assert size == QUEUE_MAX_BYTES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One that is not at work."""
    path = str(tmp_path_factory.mktemp("any bytes") / "store")
    create_store(path)
    opened = Store.open(path, read_only=True)
    yield opened
    opened.catalog.close()


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_answered_or_refused(store: Store, parts: list[bytes]) -> None:
    async def body() -> None:
        registry = Registry(COMMANDS)
        services = Services(store)
        jobs = Jobs(services, registry)
        async with trio.open_nursery() as nursery:
            await nursery.start(jobs.run)
            conversation = Conversation(services, registry, jobs)
            for part in parts:
                try:
                    await conversation.write(part)
                except CommandFailedError as exc:
                    assert exc.error == "MisuseError"
            answers(conversation)
            conversation.close()
            nursery.cancel_scope.cancel()

    trio.run(body)
