"""Every form of draft against a plain bytearray."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.reader import ContentReader, DescriptorCache, VerifiedBlobs
from mountstore.blobs.seal import StreamingSeal
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import CorruptError
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.draft import MemoryDraft
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.namespace.streamed_draft import PARKED_MAX, TAIL_BYTES, StreamedDraft

SIZES = st.integers(0, 300)
WRITES = st.tuples(st.just("write"), SIZES, st.binary(min_size=1, max_size=100))
CUTS = st.tuples(st.just("truncate"), SIZES, st.just(b""))
STEPS = st.lists(st.one_of(WRITES, CUTS), max_size=20)


class Base:
    """A sealed content in memory, zero outside `ranges`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.closed = False

    @property
    def content(self) -> Content:
        digest = Digest.of(self.data)
        return Content(ContentKind.BLOB, digest, len(self.data)) if self.data else EMPTY

    def pread(self, offset: int, length: int) -> bytes:
        assert not self.closed
        return self.data[offset : offset + length]

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        half = len(self.data) // 2
        if self.data[:half].strip(b"\0"):
            yield 0, half
        if self.data[half:].strip(b"\0"):
            yield half, len(self.data)

    def close(self) -> None:
        self.closed = True


def put(model: bytearray, offset: int, data: bytes) -> None:
    model.extend(bytes(max(0, offset - len(model))))
    model[offset : offset + len(data)] = data


def cut(model: bytearray, size: int) -> None:
    del model[size:]
    model.extend(bytes(size - len(model)))


@settings(deadline=None)
@given(STEPS, SIZES, SIZES)
def test_a_memory_draft_is_the_bytes(steps: list[tuple[str, int, bytes]], offset: int, length: int) -> None:
    draft, model = MemoryDraft(EMPTY, bytearray()), bytearray()
    for what, where, data in steps:
        if what == "write":
            draft.write(where, data)
            put(model, where, data)
        else:
            draft.truncate(where)
            cut(model, where)
    assert bytes(draft.data) == model
    assert draft.pread(offset, length) == model[offset : offset + length]
    assert draft.size_bytes == len(model)


def staged(directory: str, data: bytes) -> tuple[StagedDraft, Base]:
    base = Base(data)
    return StagedDraft(f"{directory}/draft-1-0", base.content, base), base


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), STEPS, SIZES, SIZES, st.integers(0, 20))
def test_a_staged_draft_is_its_base_with_the_changes(
    data: bytes, steps: list[tuple[str, int, bytes]], offset: int, length: int, recorded_at: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        draft, base = staged(directory, data)
        model = bytearray(data)
        row: DraftRow | None = None
        recorded = bytes(model)
        for number, (what, where, more) in enumerate(steps):
            if what == "write":
                draft.put(where, more)
                draft.mark(where, len(more))
                put(model, where, more)
            else:
                draft.truncate(where)
                cut(model, where)
            if number == recorded_at:
                row, recorded = draft.to_row(1), bytes(model)
        assert draft.size_bytes == len(model)
        assert draft.pread(offset, length) == model[offset : offset + length]
        assert draft.pread(0, 1000) == model
        inside = {byte for start, end in draft.data_ranges() for byte in range(start, end)}
        assert not any(model[byte] for byte in range(len(model)) if byte not in inside)
        # Outside of what it calls dirty, it is the base.
        dirty = {byte for start, end in draft.dirty_ranges() for byte in range(start, end)}
        assert dirty <= set(range(len(model)))
        for byte in range(len(model)):
            assert byte in dirty or (byte < len(data) and data[byte] == model[byte])
        assert draft.allocated_bytes <= draft.size_bytes
        if row is not None and recorded_at == len(steps) - 1:
            # As after a crash: from the record and the file.
            again = StagedDraft.from_row(row, directory, base.content, Base(data))
            assert again.pread(0, 1000) == recorded
            again.close()
        draft.close()
        assert base.closed
        draft.discard()
        draft.discard()
        assert os.listdir(directory) == []


def test_a_recorded_draft_whose_file_is_gone_or_odd_is_refused(tmp_path: Path) -> None:
    draft, base = staged(str(tmp_path), b"base")
    draft.put(2, b"xyz")
    draft.mark(2, 3)
    row = draft.to_row(7)
    assert row.inode == 7
    draft.close()
    with pytest.raises(CorruptError):
        StagedDraft.from_row(row._replace(dirty=b"\xc1"), str(tmp_path), base.content, None)
    draft.discard()
    with pytest.raises(CorruptError):
        StagedDraft.from_row(row, str(tmp_path), base.content, None)


def test_a_staging_file_that_was_cut_is_noticed(tmp_path: Path) -> None:
    draft, _ = staged(str(tmp_path), b"")
    draft.put(0, b"0123456789")
    draft.mark(0, 10)
    os.truncate(draft.path, 5)
    assert draft.pread(0, 5) == b"01234"
    with pytest.raises(CorruptError):
        draft.pread(0, 10)
    draft.close()


def test_a_draft_in_use_is_closed_by_its_last_user(tmp_path: Path) -> None:
    draft, base = staged(str(tmp_path), b"base")
    draft.put(1, b"A")
    draft.mark(1, 1)
    with draft.in_use():
        with draft.in_use():
            stretches = draft.stretches(0, 10)
            draft.truncate(1)
            draft.close()
            assert draft.pread_stretches(stretches)[1:2] == b"A"
        assert not base.closed
    assert base.closed


PARAMETERS = ChunkingParameters(min_size=4096, avg_size=16384, max_size=65536, piece_max=65536)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=12), st.integers(0, 1 << 30), st.binary(max_size=100))
def test_a_stream_takes_bytes_a_little_out_of_order(
    tmp_path: Path, lengths: list[int], seed: int, head: bytes
) -> None:
    choice = random.Random(seed)
    tree = BalancedTree(str(tmp_path / "blobs"))
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(head))
    whole = bytearray(head)
    parts = []
    for length in lengths:
        parts.append((len(whole), choice.randbytes(length)))
        whole += parts[-1][1]
    # Each part is at most a few places off.
    parts = [part for _, part in sorted(enumerate(parts), key=lambda pair: pair[0] + choice.randrange(4))]
    for offset, data in parts:
        # A page that was not full comes again with what was added to it.
        again = choice.randrange(min(draft.end, TAIL_BYTES) + 1) if offset == draft.end else 0
        assert draft.write(offset - again, bytes(whole[offset - again : offset]) + data)
        if choice.random() < 0.3:
            draft.feed(choice.choice([1, len(whole) + 1]), draft.note_fed)
    assert draft.parked == {}
    assert draft.size_bytes == len(whole)
    sealed = draft.finish()
    assert sealed.content.size_bytes == len(whole)
    assert read(tree, sealed.content) == whole


def read(tree: BalancedTree, content: Content) -> bytes:
    if not content.size_bytes:
        return b""
    reader = ContentReader(tree, content, None, VerifiedBlobs(), DescriptorCache())
    return reader.pread(0, content.size_bytes)


def test_feeding_ends_where_it_was_told_to_and_goes_on_there(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"))
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(b"0123456789"))
    assert draft.write(10, b"abcdefghij")
    assert draft.write(20, b"ABCDEFGHIJ")
    told: list[int] = []
    draft.feed(11, told.append)
    # Whole parts, and no more than it takes.
    assert told == [10, 10]
    assert draft.pending_bytes == 30, "only the owner counts what a worker tells"
    draft.note_fed(20)
    assert draft.pending_bytes == 10

    # What comes while a worker is at it is fed, too.
    def go_on(length: int) -> None:
        told.append(length)
        if draft.end < 50:
            assert draft.write(draft.end, bytes(10))

    draft.feed(100, go_on)
    assert told == [10, 10, 10, 10, 10]
    draft.note_fed(30)
    assert (draft.pending_bytes, draft.end) == (0, 50)
    assert draft.finish().content.size_bytes == 50


def test_bytes_that_a_failed_feed_took_are_not_pending_and_not_lost(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"))
    choice = random.Random(7)
    parts = [choice.randbytes(PARAMETERS.piece_max) for _ in range(3)]
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(parts[0]))
    for part in parts[1:]:
        assert draft.write(draft.end, part)
    with mock.patch.object(BalancedTree, "add_bytes", side_effect=OSError(errno.ENOSPC, "full")):
        with pytest.raises(OSError):
            draft.feed(1 << 30, draft.note_fed)
        draft.note_taken()
        left = draft.pending_bytes
        assert 0 <= left < sum(map(len, parts))
        with pytest.raises(OSError):
            draft.feed(1 << 30, draft.note_fed)
        assert draft.pending_bytes == left, "a second failure takes nothing more"
    draft.feed(1 << 30, draft.note_fed)
    assert draft.pending_bytes == 0
    content = draft.finish().content
    reader = ContentReader(tree, content, None, VerifiedBlobs(), DescriptorCache())
    assert reader.pread(0, content.size_bytes + 1) == b"".join(parts)


@pytest.mark.trio
async def test_who_waits_for_a_stream_is_let_go_in_order(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"))
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(100))
    woken: list[int] = []

    async def wait(length: int) -> None:
        await draft.wait_fed(length)
        woken.append(length)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for length in (10, 20, 30, 40):
                nursery.start_soon(wait, length)
                await wait_all_tasks_blocked()
            draft.note_fed(20)
            await wait_all_tasks_blocked()
            assert sorted(woken) == [10, 20]
            draft.feeding = True
            draft.wake_next()
            await wait_all_tasks_blocked()
            assert len(woken) == 2, "whoever feeds sees to them"
            draft.feeding = False
            draft.wake_next()
            await wait_all_tasks_blocked()
            assert woken[2:] == [30]
            draft.note_fed(20)


def test_what_was_fed_is_not_counted_twice(tmp_path: Path) -> None:
    """A worker's word of it may come after the end of its call was seen."""
    tree = BalancedTree(str(tmp_path / "blobs"))
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(100))
    told: list[int] = []
    draft.feed(1000, told.append)
    draft.note_taken()
    for length in told:
        draft.note_fed(length)
    assert (told, draft.pending_bytes) == ([100], 0)


def test_a_stream_refuses_what_does_not_continue_it(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"))
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(b"0123456789"))
    assert not draft.write(9, b"back")
    assert not draft.write(10 + PARKED_MAX, b"far")
    assert draft.write(20, b"early")
    assert not draft.write(20, b"again")
    assert not draft.write(15, b"over what is early")
    assert draft.parked == {20: b"early"}
    assert draft.size_bytes == 25
    assert draft.write(10, b"abcdefghij")
    assert (draft.parked, draft.end) == ({}, 25)
    draft.finish()


def test_a_stream_takes_its_last_page_again_with_more(tmp_path: Path) -> None:
    """As the kernel sends it when a program writes on in the middle of a page."""
    tree = BalancedTree(str(tmp_path / "blobs"))
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(b"0123456789"))
    assert draft.write(8, b"89ab")
    assert draft.write(12, b"cdef")
    assert draft.write(6, b"6789abcdefgh"), "reaching over several writes"
    assert draft.write(16, b"gh"), "nothing new"
    assert not draft.write(16, b"gHij"), "changed"
    assert (draft.end, draft.pending_bytes) == (18, 18)
    assert draft.write(20, b"klm")
    assert draft.write(20, b"klmnop"), "also what was early"
    assert not draft.write(20, b"klmnoP")
    assert (draft.size_bytes, draft.parked_bytes) == (26, 6)
    assert draft.write(16, b"ghij")
    assert (draft.size_bytes, draft.parked, draft.parked_bytes, draft.end) == (26, {}, 0, 26)
    assert read(tree, draft.finish().content) == b"0123456789abcdefghijklmnop"


def test_the_end_of_a_stream_may_be_repeated_for_one_page(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"))
    data = random.Random(1).randbytes(3 * TAIL_BYTES)
    draft = StreamedDraft(EMPTY, StreamingSeal(tree, PARAMETERS), bytearray(data[:TAIL_BYTES]))
    for start in range(TAIL_BYTES, 2 * TAIL_BYTES, 100):
        assert draft.write(start, data[start : min(start + 100, 2 * TAIL_BYTES)])
    assert not draft.write(TAIL_BYTES - 1, data[TAIL_BYTES - 1 :])
    assert draft.write(TAIL_BYTES, data[TAIL_BYTES:])
    assert read(tree, draft.finish().content) == data
