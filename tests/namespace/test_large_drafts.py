"""Drafts of large files: their three forms, what leads from one to the next, and failures on the way."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from mountstore.blobs.content import ContentKind
from mountstore.blobs.seal import StreamingSeal
from mountstore.blobs.staging import Staging
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import CorruptError
from mountstore.namespace import drafts, files
from mountstore.namespace.draft import MEMORY_MAX, MemoryDraft
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.sealing import INLINE_WRITE_MAX
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.namespace.streamed_draft import StreamedDraft
from mountstore.store import Store
from namespace.conftest import PIECE_MAX

pytestmark = pytest.mark.trio

PART = 1 << 20


def opened(store: Store, name: bytes = b"f") -> Handle:
    inode = store.namespace.create(ROOT, name, 0o100644, Caller(0, 0))
    return store.files.open(inode, writable=True, privileged=True)


async def append(store: Store, handle: Handle, data: bytes, at: int = 0) -> None:
    for start in range(0, len(data), PART):
        await store.files.write(handle, at + start, data[start : start + PART])


async def content(store: Store, inode: Inode) -> bytes:
    return b"".join([await store.files.read(inode, at, PART) for at in range(0, inode.size, PART)])


class FullDisk:
    """While `full`, no blob finds room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        real = Staging.write

        def write(staging: Staging, data: Any) -> str:
            # As in the real one, a view of the data is held where it fails.
            with memoryview(data):
                if self.full:
                    raise OSError(errno.ENOSPC, "full")
                return real(staging, data)

        monkeypatch.setattr(Staging, "write", write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    yield FullDisk(monkeypatch)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drafts in memory together hold less than one of them may, a stream next to nothing."""
    monkeypatch.setattr(drafts, "MEMORY_TOTAL", 1_000_000)
    monkeypatch.setattr(drafts, "STREAM_BYTES", 1000)


async def test_a_stream_whose_seal_failed_takes_further_bytes(store: Store, disk: FullDisk) -> None:
    data = os.urandom(MEMORY_MAX + 3 * PART)
    handle = opened(store)
    await append(store, handle, data[:-PART])
    assert type(handle.inode.draft) is StreamedDraft
    disk.full = True
    with pytest.raises(OSError):
        await store.files.fsync(handle.inode)
    disk.full = False
    await store.files.write(handle, len(data) - PART, data[-PART:])
    await store.files.release(handle)
    assert handle.inode.content.size_bytes == len(data)
    assert await content(store, handle.inode) == data


async def test_a_draft_in_memory_whose_seal_failed_can_grow_and_shrink(store: Store, disk: FullDisk) -> None:
    data = os.urandom(5 * PART)
    handle = opened(store)
    await append(store, handle, data)
    assert type(handle.inode.draft) is MemoryDraft
    disk.full = True
    kept: list[BaseException] = []
    try:
        await store.files.fsync(handle.inode)
    except OSError as exc:
        kept.append(exc)
    assert kept
    await store.files.write(handle, len(data), b"more")
    await store.files.truncate(handle.inode, len(data) + 2, privileged=True)
    disk.full = False
    await store.files.release(handle)
    assert await content(store, handle.inode) == data + b"mo"


async def test_a_short_stream_that_is_changed_keeps_the_change(store: Store, small_memory: None) -> None:
    """When memory is scarce, short files are streamed too; what then does not continue one must not be lost."""
    first, second = opened(store, b"first"), opened(store, b"second")
    await append(store, first, bytes(900_000))
    data = os.urandom(500_000)
    await append(store, second, data)
    assert type(second.inode.draft) is StreamedDraft
    await store.files.release(first)
    await store.files.write(second, 1000, b"change")
    await store.files.release(second)
    assert await content(store, second.inode) == data[:1000] + b"change" + data[1006:]


async def test_a_short_stream_can_be_truncated(store: Store, small_memory: None) -> None:
    first, second = opened(store, b"first"), opened(store, b"second")
    await append(store, first, bytes(900_000))
    data = os.urandom(500_000)
    await append(store, second, data)
    assert type(second.inode.draft) is StreamedDraft
    await store.files.release(first)
    await store.files.truncate(second.inode, 1000, privileged=True)
    await store.files.release(second)
    assert await content(store, second.inode) == data[:1000]


async def test_opening_drafts_keeps_to_the_limit_of_memory(store: Store, small_memory: None) -> None:
    handles = []
    for number in range(4):
        handle = opened(store, b"%d" % number)
        await append(store, handle, os.urandom(600_000))
        await store.files.release(handle)
        handles.append(store.files.open(handle.inode, writable=True, privileged=True))
    for handle in handles:
        await store.files.write(handle, 5, b"change")
    kinds = [type(handle.inode.draft) for handle in handles]
    assert kinds == [MemoryDraft, StagedDraft, StagedDraft, StagedDraft]
    for handle in handles:
        await store.files.release(handle)
        assert await store.files.read(handle.inode, 5, 6) == b"change"


async def test_what_was_parked_ahead_of_a_stream_survives_a_seal_without_room_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(MEMORY_MAX + 6 * PART)
    handle = opened(store)
    await append(store, handle, data[: MEMORY_MAX + PART])
    await store.files.write(handle, MEMORY_MAX + 3 * PART, data[MEMORY_MAX + 3 * PART : MEMORY_MAX + 4 * PART])
    await store.files.write(handle, MEMORY_MAX + 5 * PART, data[MEMORY_MAX + 5 * PART :])
    assert type(handle.inode.draft) is StreamedDraft and len(handle.inode.draft.parked) == 2

    def put(self: StagedDraft, offset: int, data: bytes) -> None:
        if offset > MEMORY_MAX + 3 * PART:
            raise OSError(errno.ENOSPC, "full")
        real(self, offset, data)

    real = StagedDraft.put
    monkeypatch.setattr(StagedDraft, "put", put)
    with pytest.raises(OSError):
        await store.files.fsync(handle.inode)
    monkeypatch.undo()
    assert [name for name in os.listdir(store.path + "/staging") if name.startswith("draft-")] == []
    await store.files.release(handle)
    for hole in (MEMORY_MAX + PART, 2 * PART), (MEMORY_MAX + 4 * PART, PART):
        data = data[: hole[0]] + bytes(hole[1]) + data[sum(hole) :]
    assert await content(store, handle.inode) == data


async def test_a_stream_that_cannot_be_placed_takes_no_more_into_memory(store: Store, disk: FullDisk) -> None:
    data = os.urandom(MEMORY_MAX + 8 * PART)
    handle = opened(store)
    await append(store, handle, data[: MEMORY_MAX + PART])
    stream = handle.inode.draft
    assert type(stream) is StreamedDraft
    disk.full = True
    for _ in range(5):
        with pytest.raises(OSError):
            await store.files.write(handle, stream.end, data[stream.end : stream.end + PART])
    assert stream.end <= MEMORY_MAX + 2 * PART
    disk.full = False
    await append(store, handle, data[stream.end :], stream.end)
    await store.files.release(handle)
    assert await content(store, handle.inode) == data


async def test_writers_go_on_while_one_places_until_too_much_is_waiting(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a stream are placed while it goes on, and it must not fill the memory."""
    ahead = files._AHEAD_BYTES
    data = os.urandom(MEMORY_MAX + ahead + 3 * PART)
    handle = opened(store)
    await append(store, handle, data[: MEMORY_MAX + PART])
    stream = handle.inode.draft
    assert type(stream) is StreamedDraft
    reached, opened_again = threading.Event(), threading.Event()
    real = StreamingSeal.feed

    def feed(self: StreamingSeal, *parts: bytes) -> None:
        reached.set()
        assert opened_again.wait(60)
        real(self, *parts)

    monkeypatch.setattr(StreamingSeal, "feed", feed)
    async with trio.open_nursery() as nursery:
        start = stream.end
        nursery.start_soon(append, store, handle, data[start : start + PART], start)
        assert await trio.to_thread.run_sync(reached.wait, 60)
        # These are answered although nothing is placed.
        await append(store, handle, data[start + PART : start + ahead], start + PART)
        end = start + ahead
        assert stream.end == end
        # From here on each takes its bytes, or those behind would overtake them, and waits.
        waiting = []
        for offset in range(end, len(data), PART):
            nursery.start_soon(append, store, handle, data[offset : offset + PART], offset)
            await trio.testing.wait_all_tasks_blocked()
            waiting.append(stream.end - end)
        assert waiting == [PART, 2 * PART]
        opened_again.set()
    await store.files.release(handle)
    assert await content(store, handle.inode) == data


async def test_many_streams_are_less_far_ahead_of_what_is_placed(store: Store) -> None:
    rooms = []
    for number in range(40):
        opened_one = opened(store, b"%d" % number)
        await store.files.write(opened_one, 0, b"x")
        rooms.append(store.files._room_ahead())
    assert rooms[0] == rooms[1] == files._AHEAD_BYTES
    assert rooms == sorted(rooms, reverse=True)
    assert all(room * (number + 1) <= files._AHEAD_TOTAL for number, room in enumerate(rooms))


async def test_many_open_files_hold_no_more_memory_than_allowed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones that there is no memory for are no streams, which would hold all of them."""
    monkeypatch.setattr(drafts, "MEMORY_TOTAL", 32 << 20)
    short = [os.urandom(3 * PART + number) for number in range(20)]
    handles = [opened(store, b"%d" % number) for number in range(20)]
    for handle, data in zip(handles, short, strict=True):
        await append(store, handle, data)
        assert store.drafts.memory_bytes <= drafts.MEMORY_TOTAL
    kinds = Counter(type(handle.inode.draft) for handle in handles)
    assert kinds == {MemoryDraft: 10, StagedDraft: 10}
    long = os.urandom(MEMORY_MAX + 3 * PART)
    longer = [opened(store, b"long %d" % number) for number in range(8)]
    for handle in handles[:8]:
        await store.files.release(handle)
    for handle in longer:
        await append(store, handle, long)
        assert store.drafts.memory_bytes <= drafts.MEMORY_TOTAL
    # What is left of the memory is for four of them, of 6 MiB each.
    assert [type(handle.inode.draft) for handle in longer] == [StreamedDraft] * 4 + [StagedDraft] * 4
    for handle, data in zip(handles[8:] + longer, short[8:] + [long] * 8, strict=True):
        await store.files.release(handle)
        assert await content(store, handle.inode) == data
    assert store.drafts.memory_bytes == 0


async def test_what_is_parked_counts_as_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "MEMORY_TOTAL", PART + PART // 2)
    monkeypatch.setattr(drafts, "STREAM_BYTES", 1000)
    data = os.urandom(MEMORY_MAX + 3 * PART)
    handles = []
    for number in range(3):
        handle = opened(store, b"%d" % number)
        await append(store, handle, data[: -2 * PART])
        await store.files.write(handle, len(data) - PART, data[-PART:])
        handles.append(handle)
    # The first leaves no room for what the others would park.
    kinds = [type(handle.inode.draft) for handle in handles]
    assert kinds == [StreamedDraft, StagedDraft, StagedDraft]
    for handle in handles:
        await store.files.write(handle, len(data) - 2 * PART, data[-2 * PART : -PART])
        await store.files.release(handle)
        assert await content(store, handle.inode) == data
    assert store.drafts.memory_bytes == 0


async def test_a_damaged_blob_that_is_written_again_is_not_trusted(store: Store) -> None:
    """Only bytes that were just written are known to be good; those found in place may not be."""
    data = os.urandom(3 * PART)
    first = opened(store, b"first")
    await append(store, first, data)
    await store.files.release(first)
    # Until it is recorded, a blob found in place is not taken for good.
    store.commits.commit()
    tree: BalancedTree = store.tree
    victim = max((path for _, path in tree.walk()), key=os.path.getsize)
    os.chmod(victim, 0o644)
    with open(victim, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    for digest, _ in tree.walk():
        store.contents.verified.discard(digest)
    second = opened(store, b"second")
    await append(store, second, data)
    await store.files.release(second)
    with pytest.raises(CorruptError):
        await content(store, second.inode)
    # Now that it is known to be damaged, the same bytes replace it.
    third = opened(store, b"third")
    await append(store, third, data)
    await store.files.release(third)
    for handle in (first, second, third):
        assert await content(store, handle.inode) == data


async def test_allocated_bytes_do_not_count_holes_after_a_change(store: Store) -> None:
    size = 1 << 40
    handle = opened(store)
    await store.files.write(handle, 0, b"x" * PART)
    await store.files.write(handle, size - PART, b"y" * PART)
    await store.files.release(handle)
    inode = handle.inode
    assert inode.allocated == 2 * PART
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, size // 2, b"z" * 1000)
    assert inode.draft is not None and inode.draft.allocated_bytes <= 3 * PART
    await store.files.release(handle)
    assert inode.size == size and 2 * PART < inode.allocated < 3 * PART
    await store.files.truncate(inode, size // 4, privileged=True)
    assert inode.allocated == PART


async def test_zeros_in_a_small_store_are_holes_whatever_the_draft_was(store: Store) -> None:
    handle = opened(store)
    await append(store, handle, b"x" * PART + bytes(3 * PART))
    await store.files.release(handle)
    assert handle.inode.allocated <= PART + 1000


@pytest.mark.parametrize("size", [PIECE_MAX, PIECE_MAX + 1, INLINE_WRITE_MAX, 1_000_000])
async def test_equal_files_have_equal_contents_whatever_their_drafts_were(
    store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = os.urandom(size)
    memory = opened(store, b"memory")
    await append(store, memory, data)
    assert type(memory.inode.draft) is MemoryDraft
    await store.files.release(memory)
    staged = opened(store, b"staged")
    await store.files.write(staged, 3 * MEMORY_MAX, b"x")
    await store.files.truncate(staged.inode, 0, privileged=True)
    await append(store, staged, data)
    assert type(staged.inode.draft) is StagedDraft
    await store.files.release(staged)
    monkeypatch.setattr(drafts, "MEMORY_TOTAL", 10_000)
    monkeypatch.setattr(drafts, "STREAM_BYTES", 0)
    streamed = opened(store, b"streamed")
    await append(store, streamed, data)
    assert type(streamed.inode.draft) is StreamedDraft
    await store.files.release(streamed)
    assert memory.inode.content == staged.inode.content == streamed.inode.content
    assert (memory.inode.content.kind is ContentKind.MANIFEST) == (size > PIECE_MAX)


async def test_room_is_claimed_once_for_what_is_written_again_and_again(store: Store) -> None:
    """Or a database that is open for days would be told that the disk is full."""
    before = store.space.claimed_bytes
    staged = opened(store, b"staged")
    await store.files.write(staged, 3 * MEMORY_MAX, b"x")
    for number in range(100):
        await store.files.write(staged, number % 3 * 5000, bytes(100_000))
    assert store.space.claimed_bytes - before < 200_000
    memory = opened(store, b"memory")
    for _ in range(100):
        await store.files.write(memory, 0, bytes(100_000))
        await store.files.truncate(memory.inode, 0, privileged=True)
    assert store.space.claimed_bytes - before < 400_000
    await store.files.release(staged)
    await store.files.release(memory)
    assert store.space.claimed_bytes == before


@pytest.mark.parametrize("size", [3 * PART, MEMORY_MAX + 3 * PART])
async def test_what_cannot_be_sealed_at_unmount_is_a_draft_again_at_the_next_mount(
    store_path: str, disk: FullDisk, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    data = os.urandom(size)
    with pytest.raises(ExceptionGroup):
        async with Store.open(store_path, commit_s=0.05).running() as store:
            handle = opened(store)
            await append(store, handle, data)
            await store.files.release(handle)
            handle = store.files.open(handle.inode, writable=True, privileged=True)
            await store.files.write(handle, PART, b"changed")
            disk.full = True
            await store.files.release(handle)
            await trio.sleep(0.3)
    assert len([record for record in caplog.records if "kept as a draft" in record.message]) == 1
    disk.full = False
    async with Store.open(store_path).running() as store:
        inode = store.namespace.find(ROOT, b"f")
        assert inode is not None
        assert await content(store, inode) == data[:PART] + b"changed" + data[PART + 7 :]
    async with Store.open(store_path).running() as store:
        inode = store.namespace.find(ROOT, b"f")
        assert inode is not None and inode.draft is None
        assert await content(store, inode) == data[:PART] + b"changed" + data[PART + 7 :]


async def test_parked_bytes_join_the_stream(store: Store) -> None:
    data = os.urandom(MEMORY_MAX + 4 * PART)
    handle = opened(store)
    await append(store, handle, data[: MEMORY_MAX + PART])
    await store.files.write(handle, MEMORY_MAX + 2 * PART, data[MEMORY_MAX + 2 * PART : MEMORY_MAX + 3 * PART])
    await store.files.write(handle, MEMORY_MAX + 3 * PART, data[MEMORY_MAX + 3 * PART :])
    await store.files.write(handle, MEMORY_MAX + PART, data[MEMORY_MAX + PART : MEMORY_MAX + 2 * PART])
    assert type(handle.inode.draft) is StreamedDraft and not handle.inode.draft.parked
    await store.files.release(handle)
    assert await content(store, handle.inode) == data




@pytest.mark.parametrize("kind", ["bytes", "holes"])
async def test_a_stream_that_cannot_be_finished_at_unmount_is_a_draft_again_at_the_next_mount(
    store_path: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = os.urandom(MEMORY_MAX + 3 * PART)
    if kind == "holes":
        data = data[:PART] + bytes(2 * PART) + data[PART:] + bytes(PART)
    disk = FullDisk(monkeypatch)
    with pytest.raises(ExceptionGroup) as caught:
        async with Store.open(store_path).running() as store:
            handle = opened(store)
            await append(store, handle, data)
            assert isinstance(handle.inode.draft, StreamedDraft)
            # A little that came too early, as the kernel's write-back does it.
            await store.files.write(handle, len(data) + 5000, b"early")
            disk.full = True
    assert len(caught.value.exceptions) == 1
    disk.full = False
    async with Store.open(store_path).running() as store:
        inode = store.namespace.find(ROOT, b"f")
        assert inode is not None
        assert isinstance(inode.draft, StagedDraft)
        assert await content(store, inode) == data + bytes(5000) + b"early"
    async with Store.open(store_path).running() as store:
        inode = store.namespace.find(ROOT, b"f")
        assert inode is not None
        assert inode.content.kind is ContentKind.MANIFEST and inode.draft is None
        assert await content(store, inode) == data + bytes(5000) + b"early"


async def test_what_an_fsync_records_of_many_small_changes_is_bounded(
    store_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a write that comes while they are gathered is not lost."""
    monkeypatch.setattr("mountstore.namespace.staged_draft.SCATTERED_MAX", 64)
    expected = bytearray(os.urandom(MEMORY_MAX + 100 * 4096))
    filling, written = threading.Event(), threading.Event()
    fill = StagedDraft.fill

    def slow(draft: StagedDraft, gaps: list[tuple[int, int]]) -> None:
        filling.set()
        assert written.wait(60)
        fill(draft, gaps)

    monkeypatch.setattr(StagedDraft, "fill", slow)
    async with Store.open(store_path).running() as store:
        handle = opened(store)
        await append(store, handle, bytes(expected))
        await store.files.release(handle)
        handle = store.files.open(handle.inode, writable=True, privileged=True)

        async def change(offset: int, data: bytes) -> None:
            await store.files.write(handle, offset, data)
            expected[offset : offset + len(data)] = data

        for number in range(200):
            await change(number * 8192 + number % 3, b"%d" % number * 100)
        # A gap that is too long to be copied.
        await change(len(expected) - 10, b"at the end")
        draft = handle.inode.draft
        assert isinstance(draft, StagedDraft) and len(draft.dirty) == 201
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.files.fsync, handle.inode)
            await trio.to_thread.run_sync(filling.wait)
            nursery.start_soon(change, 1000, b"meanwhile")
            await trio.testing.wait_all_tasks_blocked()
            written.set()
        # With what was written meanwhile.
        assert len(draft.dirty) <= 33
        assert await content(store, handle.inode) == expected
        await store.files.fsync(handle.inode)
        row = store.catalog.get_draft(handle.inode.id)
        assert row is not None and len(row.dirty) < 1000
        await store.files.release(handle)
        assert await content(store, handle.inode) == expected
