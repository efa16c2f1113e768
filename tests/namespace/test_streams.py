"""Files that are sealed while they arrive: bytes that come early, twice, or while the disk is full."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mountstore.blobs.digest import Buffer, Digest
from mountstore.blobs.tree import Added, BalancedTree
from mountstore.errors import StoreError
from mountstore.namespace import drafts as drafts_module
from mountstore.namespace import files as files_module
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.streamed_draft import StreamedDraft
from mountstore.store import Store

pytestmark = pytest.mark.trio

KIB = 1 << 10
HEAD = 64 * KIB
"""What is drafted in memory before a file becomes a stream."""


@pytest.fixture(autouse=True)
def small_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "MEMORY_MAX", HEAD)
    monkeypatch.setattr(files_module, "_FEED_BYTES", 16 * KIB)
    monkeypatch.setattr(files_module, "_TURN_BYTES", 256 * KIB)
    monkeypatch.setattr(files_module, "_AHEAD_BYTES", 32 * KIB)
    monkeypatch.setattr(files_module, "_AHEAD_TOTAL", 64 * KIB)


class Disk:
    """The disk below the tree, as slow or full as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusal: Exception | None = None
        self.hold: Callable[[], None] = lambda: None
        add_bytes = BalancedTree.add_bytes

        def place(tree: BalancedTree, data: Buffer, digest: Digest | None = None) -> Added:
            self.hold()
            if self.refusal is not None:
                raise self.refusal
            return add_bytes(tree, data, digest)

        monkeypatch.setattr(BalancedTree, "add_bytes", place)

    def fill(self) -> None:
        self.refusal = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Writer:
    """A file open for writing, and what it should hold."""

    def __init__(self, store: Store, name: bytes) -> None:
        self._store = store
        self._random = random.Random(name)
        self.inode: Inode = store.namespace.create(ROOT, name, stat.S_IFREG | 0o644, Caller(0, 0))
        self.handle: Handle = store.files.open(self.inode, writable=True, privileged=True)
        self.expected = bytearray()

    async def write(self, offset: int, length: int) -> None:
        data = self._random.randbytes(length)
        if len(self.expected) < offset + length:
            self.expected.extend(bytes(offset + length - len(self.expected)))
        self.expected[offset : offset + length] = data
        await self._store.files.write(self.handle, offset, data)

    async def grow_to_stream(self) -> StreamedDraft:
        """Write more than is drafted in memory."""
        for _ in range(HEAD // (16 * KIB) + 1):
            await self.write(len(self.expected), 16 * KIB)
        return self.draft

    @property
    def draft(self) -> StreamedDraft:
        draft = self.inode.draft
        assert isinstance(draft, StreamedDraft)
        return draft

    async def content(self) -> bytes:
        return await self._store.files.read(self.inode, 0, len(self.expected) + 1)

    async def close(self) -> None:
        await self._store.files.release(self.handle)


# --- early bytes ---


async def test_what_was_early_is_overwritten_by_what_comes_later(store: Store) -> None:
    writer = Writer(store, b"f")
    await writer.grow_to_stream()
    end = len(writer.expected)
    await writer.write(end + 8 * KIB, 16 * KIB)
    for offset in range(end, end + 80 * KIB, 16 * KIB):
        await writer.write(offset, 16 * KIB)
    assert writer.inode.size == len(writer.expected)
    assert await writer.content() == writer.expected
    await writer.close()
    assert await writer.content() == writer.expected
    assert (store.drafts.memory_bytes, store.space.claimed_bytes) == (0, 0)


async def test_of_two_early_writes_to_the_same_place_the_later_counts(store: Store) -> None:
    writer = Writer(store, b"f")
    await writer.grow_to_stream()
    end = len(writer.expected)
    await writer.write(end + 32 * KIB, 16 * KIB)
    await writer.write(end + 24 * KIB, 16 * KIB)
    await writer.write(end + 36 * KIB, 4 * KIB)
    await writer.write(end, 24 * KIB)
    assert await writer.content() == writer.expected
    await writer.close()
    assert await writer.content() == writer.expected


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_order_writes_come_in_the_file_is_as_a_plain_one(store: Store, seed: int) -> None:
    choice = random.Random(seed)
    writer = Writer(store, b"f%d" % seed)
    await writer.grow_to_stream()
    for _ in range(60):
        end = len(writer.expected)
        ahead = choice.choice([0, 0, 0, -1, 1, 2, 5]) * 4 * KIB
        await writer.write(max(0, end + ahead), choice.randrange(1, 8) * 4 * KIB)
        assert writer.inode.size == len(writer.expected)
        if choice.random() < 0.05:
            await store.files.fsync(writer.inode)
    assert await writer.content() == writer.expected
    await writer.close()
    assert await writer.content() == writer.expected


# --- a full disk ---


async def test_nobody_waits_for_a_stream_that_nobody_feeds(store: Store, disk: Disk) -> None:
    writer = Writer(store, b"f")
    draft = await writer.grow_to_stream()
    answers: dict[int, object] = {}

    async def write(number: int, offset: int) -> None:
        try:
            await writer.write(offset, 16 * KIB)
            answers[number] = None
        except OSError as exc:
            answers[number] = exc.errno

    disk.fill()
    written = threading.Event()

    def wait_for_all() -> None:
        assert written.wait(10)

    # Were the first refused before the others come, none of those would be taken.
    disk.hold = wait_for_all
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(write, number, draft.end + number * 16 * KIB)
        await wait_all_tasks_blocked()
        written.set()
    assert draft.stuck
    assert draft.pending_bytes > 0
    answers.clear()
    # There is room for what failed; then the disk is slow, and then full again.
    disk.refusal = None
    reached, gate = threading.Event(), threading.Event()

    def hold() -> None:
        if not draft.stuck:
            reached.set()
            assert gate.wait(10)
            disk.fill()

    disk.hold = hold
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 0, draft.end)
            assert await trio.to_thread.run_sync(reached.wait, 10)
            # Others are written to as well, so that there is less room ahead.
            others = [Writer(store, b"other%d" % number) for number in range(7)]
            for other in others:
                await other.write(0, 1)
            for number in range(1, 4):
                nursery.start_soon(write, number, draft.end)
                await wait_all_tasks_blocked()
            gate.set()
    assert answers[0] == errno.ENOSPC
    assert set(answers) == {0, 1, 2, 3}
    disk.hold = lambda: None
    disk.refusal = None
    await writer.close()
    assert writer.inode.draft is None


async def test_a_stream_is_read_as_it_is_while_the_disk_is_full(store: Store, disk: Disk) -> None:
    writer = Writer(store, b"f")
    draft = await writer.grow_to_stream()
    await writer.write(draft.end + 40 * KIB, 8 * KIB)
    disk.fill()
    for _ in range(2):
        size = len(writer.expected)
        assert await writer.content() == writer.expected
        for offset, length in ((0, 1), (HEAD - 3, 20 * KIB), (size - 10 * KIB, 20 * KIB), (size, 5)):
            found = await store.files.read(writer.inode, offset, length)
            assert found == writer.expected[offset : offset + length]
        await writer.close()
        writer.handle = store.files.open(writer.inode, writable=False, privileged=True)
    disk.refusal = None
    assert await writer.content() == writer.expected
    await writer.close()


@pytest.mark.parametrize(
    "refusal", [OSError(errno.ENOSPC, "full"), StoreError("something is in the way of a directory")]
)
async def test_what_cannot_be_sealed_at_unmount_is_there_after_the_next_mount(
    store_path: str, disk: Disk, refusal: Exception
) -> None:
    with pytest.raises(ExceptionGroup):
        async with Store.open(store_path).running() as store:
            writer = Writer(store, b"f")
            draft = await writer.grow_to_stream()
            await writer.write(draft.end + 16 * KIB, 16 * KIB)
            await writer.write(draft.end, 4 * KIB)
            disk.refusal = refusal
            await writer.close()
    disk.refusal = None
    async with Store.open(store_path).running() as store:
        inode = store.namespace.find(ROOT, b"f")
        assert inode is not None
        assert await store.files.read(inode, 0, 1 << 20) == writer.expected


# --- room ---


async def test_a_stream_that_its_disk_keeps_up_with_is_promised_one_file(store: Store, disk: Disk) -> None:
    for name in (b"a", b"b"):
        writer = Writer(store, name)
        await writer.grow_to_stream()
        for _ in range(40):
            await writer.write(len(writer.expected), 16 * KIB)
            with trio.fail_after(5):
                while writer.draft.pending_bytes >= 16 * KIB:
                    await trio.sleep(0)
            assert store.space.claimed_files == 1
        # What is early is laid over the rest when that is sealed, and keeps the promise.
        await writer.write(len(writer.expected) + 8 * KIB, 8 * KIB)
        assert store.space.claimed_files == 1
        await writer.close()
        assert (store.space.claimed_bytes, store.space.claimed_files) == (0, 0)


async def test_memory_staged_and_removed_drafts_give_their_file_back(store: Store) -> None:
    kept = Writer(store, b"kept")
    await kept.write(0, 10)
    spilled = Writer(store, b"spilled")
    await spilled.write(0, 16 * KIB)
    await spilled.write(100 * KIB, 16 * KIB)
    empty = Writer(store, b"empty")
    await empty.write(0, 10)
    await store.files.truncate(empty.inode, 0, privileged=True)
    assert store.space.claimed_files == 3
    for writer in (kept, spilled, empty):
        await writer.close()
    assert (store.space.claimed_bytes, store.space.claimed_files) == (0, 0)
