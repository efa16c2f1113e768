"""Contents of files under concurrent use: what the kernel may ask for at once."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from mountstore.namespace.draft import MEMORY_MAX, StagedDraft
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store

pytestmark = pytest.mark.trio

ROOT_USER = Caller(0, 0)


def new_file(store: Store, name: bytes = b"f") -> Inode:
    return store.namespace.create(ROOT, name, stat.S_IFREG | 0o644, ROOT_USER)


async def written(store: Store, inode: Inode, *parts: tuple[int, bytes]) -> None:
    """Open, write, close."""
    handle = store.files.open(inode, writable=True, privileged=True)
    for offset, data in parts:
        assert await store.files.write(handle, offset, data) == len(data)
    await store.files.release(handle)


async def content(store: Store, inode: Inode) -> bytes:
    """All of a file, read in parts that fit nothing."""
    return b"".join(
        [await store.files.read(inode, offset, 100_003) for offset in range(0, inode.size, 100_003)]
    )


class Gate:
    """Holds a method of a class back, in the worker that calls it, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        method: Callable[..., Any] = getattr(cls, name)

        def held(*arguments: Any, **named: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(60)
            return method(*arguments, **named)

        monkeypatch.setattr(cls, name, held)

    async def wait_reached(self) -> None:
        assert await trio.to_thread.run_sync(self.reached.wait, 60)


SPARSE_AT = 3 * MEMORY_MAX
"""A write here makes any file a staged draft."""


async def test_a_read_of_a_draft_goes_on_while_the_draft_is_sealed_and_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = new_file(store)
    data = os.urandom(5000)
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, SPARSE_AT, data)
    assert type(inode.draft) is StagedDraft
    gate = Gate(monkeypatch, StagedDraft, "pread_stretches")
    got: list[bytes] = []

    async def read() -> None:
        got.append(await store.files.read(inode, SPARSE_AT - 100, 10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await gate.wait_reached()
        monkeypatch.undo()
        await store.files.release(handle)
        assert store.inodes.drafted() == []
        gate.opened.set()
    assert got == [bytes(100) + data]
    assert await store.files.read(inode, SPARSE_AT, 5000) == data
