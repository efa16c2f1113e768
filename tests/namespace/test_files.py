"""Contents of files under concurrent use: what the kernel may ask for at once."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from mountstore.blobs.reader import ContentReader
from mountstore.errors import NoSpaceError, TooLargeError
from mountstore.namespace.draft import MEMORY_MAX
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.staged_draft import StagedDraft
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
        assert store.drafts.inodes == set()
        gate.opened.set()
    assert got == [bytes(100) + data]
    assert await store.files.read(inode, SPARSE_AT, 5000) == data


async def test_fsync_goes_on_while_the_draft_is_sealed_and_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = new_file(store)
    handle = store.files.open(inode, writable=True, privileged=True)
    # More than fsync puts into the journal.
    data = os.urandom(1 << 20)
    await store.files.write(handle, SPARSE_AT, data)
    gate = Gate(monkeypatch, StagedDraft, "flush")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.files.fsync, inode)
        await gate.wait_reached()
        await store.files.release(handle)
        gate.opened.set()
    assert store.catalog.drafts() == []
    assert await store.files.read(inode, SPARSE_AT, len(data) + 1) == data


async def test_a_write_waits_for_the_seal_that_is_going_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = new_file(store)
    await written(store, inode, (0, b"x" * 300_000))
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, SPARSE_AT, b"one")
    gate = Gate(monkeypatch, StagedDraft, "data_ranges")
    second = store.files.open(inode, writable=True, privileged=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.sealer.seal, inode)
        await gate.wait_reached()
        nursery.start_soon(store.files.write, second, 5, b"two")
        nursery.start_soon(store.files.write, handle, SPARSE_AT + 1, b"three")
        # A reader does not wait.
        assert await store.files.read(inode, SPARSE_AT, 10) == b"one"
        gate.opened.set()
    assert await store.files.read(inode, 0, 10) == b"xxxxxtwoxx"
    assert await store.files.read(inode, SPARSE_AT, 10) == b"othree"
    await store.files.release(handle)
    await store.files.release(second)
    assert await store.files.read(inode, 0, 10) == b"xxxxxtwoxx"
    assert await store.files.read(inode, SPARSE_AT, 10) == b"othree"


async def test_a_seal_that_fails_keeps_the_draft_and_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (offset, data) in enumerate([(0, b"small"), (0, os.urandom(500_000)), (SPARSE_AT, b"staged")]):
        inode = new_file(store, b"%d" % number)

        def full(*_arguments: object, **_named: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(type(store.tree), "add_bytes", full)
            patch.setattr(type(store.tree), "publish", full)
            await written(store, inode, (offset, data))
            assert "cannot be sealed now" in caplog.text
            caplog.clear()
            assert await store.files.read(inode, offset, len(data)) == data
            assert inode.size == offset + len(data)
        await store.sealer.seal_closed()
        assert store.drafts.inodes == set()
        assert await store.files.read(inode, offset, len(data)) == data


async def test_every_way_to_grow_ends_in_the_same_content(store: Store) -> None:
    data = os.urandom(MEMORY_MAX + 3_000_000)
    half = len(data) // 2
    step = 131_072
    forward = [(offset, data[offset : offset + step]) for offset in range(0, len(data), step)]
    swapped = [part for pair in zip(forward[1::2], forward[::2], strict=False) for part in pair]
    if len(forward) % 2:
        swapped.append(forward[-1])
    digests = set()
    for number, parts in enumerate(
        [forward, forward[::-1], swapped, [(half, data[half:]), (0, data[:half])], [(0, data)]]
    ):
        inode = new_file(store, b"%d" % number)
        await written(store, inode, *parts)
        assert await content(store, inode) == data
        digests.add(inode.content)
    assert len(digests) == 1


async def test_memory_is_given_back(store: Store) -> None:
    drafts: Any = store.drafts
    for number in range(20):
        inode = new_file(store, b"%d" % number)
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.write(handle, 0, b"x" * 1_000_000)
        await store.files.truncate(inode, 10 * number, privileged=True)
        if number % 2:
            await store.files.write(handle, SPARSE_AT, b"x")
        elif number % 3 == 0:
            store.namespace.unlink(ROOT, b"%d" % number)
        await store.files.release(handle)
    for inode in store.namespace.forget_all():
        await store.files.drop(inode)
    assert drafts._memory_bytes == 0
    assert store.space.claimed_bytes == 0


async def test_an_orphan_goes_when_both_the_kernel_and_the_last_handle_are_done(store: Store) -> None:
    inode = new_file(store)
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, b"content")
    store.namespace.unlink(ROOT, b"f")
    assert store.namespace.forget([inode.id]) == []
    assert await store.files.read(inode, 0, 10) == b"content"
    await store.files.release(handle)
    store.commits.commit()
    assert store.catalog.get_inode(inode.id) is None
    assert store.tree.statistics().blobs == 0


async def test_a_failed_write_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = new_file(store)
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, b"content")
    with monkeypatch.context() as patch:

        def full(_path: str) -> os.statvfs_result:
            return os.statvfs_result((4096, 4096, 1000, 0, 0, 1000, 900, 900, 0, 255))

        patch.setattr(os, "statvfs", full)
        patch.setattr(store.space, "_unasked", 0)
        with pytest.raises(NoSpaceError):
            await store.files.write(handle, 3, b"x" * 100)
        with pytest.raises(NoSpaceError):
            await store.files.write(handle, SPARSE_AT, b"x")
    with pytest.raises(TooLargeError):
        await store.files.write(handle, (1 << 63) - 3, b"beyond")
    with pytest.raises(TooLargeError):
        await store.files.truncate(inode, 1 << 63, privileged=True)
    assert (inode.size, await store.files.read(inode, 0, 100)) == (7, b"content")
    await store.files.release(handle)
    assert store.space.claimed_bytes == 0


async def test_a_file_may_be_truncated_while_its_last_writer_closes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(300_000)
    inode = new_file(store)
    await written(store, inode, (0, data))
    handle = store.files.open(inode, writable=True, privileged=True)
    gate = Gate(monkeypatch, ContentReader, "pread")
    # The base is cold, so a worker has to read it.
    monkeypatch.setattr(ContentReader, "read_nowait", lambda *_arguments: None)
    async with trio.open_nursery() as nursery:

        async def truncate() -> None:
            await store.files.truncate(inode, 200_000, privileged=True)

        nursery.start_soon(truncate)
        await gate.wait_reached()
        await store.files.release(handle)
        gate.opened.set()
    assert await content(store, inode) == data[:200_000]
    assert store.drafts.inodes == set()
    assert inode.change is None
