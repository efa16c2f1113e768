"""Staged drafts that were closed and are not sealed yet: what is remembered of them, and what a crash leaves."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mountstore.blobs.content import EMPTY
from mountstore.errors import CorruptError
from mountstore.namespace import arrivals, draft_record, drafts, sealing
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.draft_record import Closed, closed, decode, flushed, is_whole, promised, resized
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.sealing import Sealer
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.store import Store

KIB = 1 << 10

OFFSETS = st.integers(0, 400)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), OFFSETS, st.binary(min_size=1, max_size=100)),
        st.tuples(st.just("truncate"), OFFSETS, st.just(b"")),
        st.tuples(st.just("unmarked"), OFFSETS, st.binary(min_size=1, max_size=100)),
    ),
    min_size=1,
    max_size=20,
)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_SUMMED_MIN", 30)
    monkeypatch.setattr(arrivals, "_ENTRIES_MAX", 7)
    monkeypatch.setattr(draft_record, "_SUMMED_BYTES", 50)


# --- the record ---


@pytest.mark.usefixtures("small_limits")
def test_what_is_recorded_of_a_closed_draft_tells_each_byte() -> None:
    @settings(deadline=None, max_examples=200)
    @given(STEPS, st.integers(0, 1 << 30))
    def check(steps: list[tuple[str, int, bytes]], seed: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            draft = StagedDraft(f"{directory}/draft-1-0", EMPTY, None)
            for what, offset, data in steps:
                if what == "truncate":
                    draft.truncate(offset)
                else:
                    draft.put(offset, data)
                    # A put whose writer is interrupted changes the file, and no more.
                    if what == "write" or draft.dirty.overlaps(offset, offset + len(data)):
                        draft.mark(offset, len(data))
            row = closed(draft.to_row(1), draft.sums(), None)
            record = decode(row.dirty)
            assert isinstance(record, Closed)
            assert is_whole(row, record, directory, cold=False)
            again = StagedDraft.from_row(row, directory, EMPTY, None)
            assert again.pread(0, 1000) == draft.pread(0, 1000)
            again.close()
            draft.close()
            dirty = [byte for start, end in record.dirty for byte in range(start, end)]
            if dirty:
                changed = random.Random(seed).choice(dirty)
                with open(draft.path, "r+b") as file:
                    file.seek(changed)
                    value = file.read(1)[0]
                    file.seek(changed)
                    file.write(bytes([value ^ 1]))
                assert not is_whole(row, record, directory, cold=True)
            draft.discard()
            assert is_whole(row, record, directory, cold=False) is False

    check()


@pytest.mark.usefixtures("small_limits")
def test_what_arrived_in_large_parts_is_not_read_again(tmp_path: Path) -> None:
    draft = StagedDraft(f"{tmp_path}/draft-1-0", EMPTY, None)
    for offset in (100, 0, 50):
        draft.put(offset, os.urandom(50))
        draft.mark(offset, 50)
    read: list[tuple[int, int]] = []
    staged = draft._staged

    def note(start: int, end: int) -> bytes:
        read.append((start, end))
        return staged(start, end)

    sums = draft_record.sums_of(draft.dirty, draft._arrivals.known(), note)
    assert ([(start, end) for start, end, _ in sums], read) == ([(0, 50), (50, 100), (100, 150)], [])
    draft.put(60, b"small")
    draft.mark(60, 5)
    assert draft_record.sums_of(draft.dirty, draft._arrivals.known(), note) != sums
    assert read == [(50, 100)]
    draft.close()


def test_a_write_that_fails_half_way_spoils_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(arrivals._SUMMED_MIN)
    draft = StagedDraft(f"{tmp_path}/draft-1-0", EMPTY, None)
    draft.put(0, data)
    draft.mark(0, len(data))
    pwrite = os.pwrite
    written: list[int] = []

    def fail(fd: int, view: memoryview, offset: int) -> int:
        if written:
            raise OSError(5, "EIO")
        written.append(pwrite(fd, view[:10], offset))
        return written[0]

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="EIO"):
        draft.put(100, b"x" * 50)
    row = closed(draft.to_row(1), draft.sums(), None)
    record = decode(row.dirty)
    assert isinstance(record, Closed)
    assert is_whole(row, record, str(tmp_path), cold=False)
    draft.close()


def test_a_record_keeps_what_had_been_flushed() -> None:
    first = DraftRow(1, "draft-1-0", 10, 5, draft_record.encode([(5, 10)]))
    later = first._replace(size=20, dirty=draft_record.encode([(5, 20)]))
    row = closed(later, [(5, 20, bytes(16))], first)
    assert (row.size, promised(row), promised(first)) == (20, first, first)
    assert promised(closed(later, [], None)) is None
    # It is closed once more, or flushed at last.
    assert promised(closed(later._replace(size=30), [], row)) == first
    again = flushed(row, later)
    assert (promised(again), decode(again.dirty) == decode(row.dirty)) == (later, False)
    assert flushed(first, later) == later
    assert resized(first, 7) == DraftRow(1, "draft-1-0", 7, 5, draft_record.encode([(5, 7)]))
    with pytest.raises(CorruptError):
        decode(b"\xc1")


# --- crashes ---


class Hold:
    """Seals of staged drafts wait in their worker until let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        real = Sealer._seal_staged

        def seal(sealer: Sealer, draft: StagedDraft) -> object:
            self.begun.set()
            assert self.go_on.wait(60)
            return real(sealer, draft)

        monkeypatch.setattr(Sealer, "_seal_staged", seal)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    monkeypatch.setattr(drafts, "MEMORY_MAX", 64 * KIB)
    monkeypatch.setattr(sealing, "_LONG_SEAL_BYTES", 64 * KIB)
    return Hold(monkeypatch)


def opened(store: Store, name: bytes) -> Handle:
    inode = store.namespace.find(ROOT, name) or store.namespace.create(ROOT, name, 0o100644, Caller(0, 0))
    return store.files.open(inode, writable=True, privileged=True)


async def put_backwards(store: Store, handle: Handle, data: bytes) -> None:
    half = len(data) // 2
    await store.files.write(handle, half, data[half:])
    await store.files.write(handle, 0, data[:half])


async def close_unsealed(store: Store, patch: pytest.MonkeyPatch, data: bytes) -> None:
    """Make `f` and close it while there is no room for its seal, as long as `patch` holds."""

    def refuse(sealer: Sealer, draft: StagedDraft) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(Sealer, "_seal_staged", refuse)
    handle = opened(store, b"f")
    await put_backwards(store, handle, data)
    await store.files.release(handle)


async def content(store: Store, name: bytes) -> bytes:
    inode: Inode | None = store.namespace.find(ROOT, name)
    assert inode is not None
    return await store.files.read(inode, 0, inode.size + 1)


def crashed(store_path: str, tmp_path: Path, name: str, *, power: bool = False) -> str:
    """The store as the end of the process would leave it now, or as the power would, with all of the catalog and
    nothing of staging files."""
    copy = tmp_path / name
    shutil.copytree(store_path, copy, ignore=shutil.ignore_patterns("lock"))
    if power:
        for file in (copy / "staging").iterdir():
            os.truncate(file, 0)
            os.truncate(file, os.stat(Path(store_path, "staging", file.name)).st_size)
    return str(copy)


@pytest.mark.trio
async def test_what_was_closed_survives_a_crash_while_it_is_sealed(
    store_path: str, tmp_path: Path, hold: Hold
) -> None:
    """Promise 3, and after power loss the names have what they had before."""
    data = {name: os.urandom(300 * KIB) for name in (b"new", b"over", b"changed")}
    async with Store.open(store_path, commit_s=3600).running() as store:
        for name in (b"over", b"changed"):
            handle = opened(store, name)
            await store.files.write(handle, 0, b"old")
            await store.files.release(handle)
        await store.commits.hard_sync()
        async with trio.open_nursery() as nursery:
            for name in data:
                handle = opened(store, b"temporary" if name == b"over" else name)
                if name == b"over":
                    # While it is open, so that it is not sealed first.
                    store.namespace.rename(ROOT, b"temporary", ROOT, b"over")
                await put_backwards(store, handle, data[name])
                if name == b"changed":
                    await store.files.fsync(handle.inode)
                    data[name] = os.urandom(390 * KIB)
                    await put_backwards(store, handle, data[name])
                nursery.start_soon(store.files.release, handle)
                await trio.to_thread.run_sync(hold.begun.wait)
                hold.begun.clear()
            store.commits.commit()
            killed = crashed(store_path, tmp_path, "killed")
            cut = crashed(store_path, tmp_path, "cut", power=True)
            hold.go_on.set()
    async with Store.open(killed, commit_s=3600).running() as store:
        assert {name: await content(store, name) for name in data} == data
        # Once more, when it is sealed and nothing has been flushed.
        await store.sealer.settle()
        store.commits.commit()
        again = crashed(killed, tmp_path, "again")
    async with Store.open(again).running() as store:
        assert {name: await content(store, name) for name in data} == data
    async with Store.open(cut).running() as store:
        assert await content(store, b"new") == b""
        assert await content(store, b"over") == b"old"


@pytest.mark.trio
async def test_what_an_fsync_promised_outlasts_a_later_close(store_path: str, tmp_path: Path, hold: Hold) -> None:
    data = os.urandom(400 * KIB)
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = opened(store, b"f")
        await put_backwards(store, handle, data[: 200 * KIB])
        await store.files.fsync(handle.inode)
        promised = {name: Path(store_path, "staging", name).read_bytes() for name in drafts_in(store_path)}
        await store.files.write(handle, 200 * KIB, data[200 * KIB :])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.files.release, handle)
            await trio.to_thread.run_sync(hold.begun.wait)
            store.commits.commit()
            cut = crashed(store_path, tmp_path, "cut")
            for name, flushed_bytes in promised.items():
                Path(cut, "staging", name).write_bytes(flushed_bytes)
            # The flush of a draft while it is sealed (`keep_open`) does not undo the record of what is newer.
            await store.files.keep_open()
            await store.files.keep_open()
            store.commits.commit()
            kept = crashed(store_path, tmp_path, "kept")
            hold.go_on.set()
    async with Store.open(cut).running() as store:
        assert await content(store, b"f") == data[: 200 * KIB]
    async with Store.open(kept).running() as store:
        assert not any(isinstance(decode(row.dirty), Closed) for row in store.catalog.drafts())
        assert await content(store, b"f") == data


@pytest.mark.trio
async def test_a_closed_draft_that_is_changed_again_goes_back_to_nothing_older(
    store_path: str, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be sealed, was opened again and fsynced: that is what holds."""
    data = os.urandom(300 * KIB)

    async with Store.open(store_path, commit_s=3600).running() as store:
        with monkeypatch.context() as patch:
            await close_unsealed(store, patch, data)
            assert [isinstance(decode(row.dirty), Closed) for row in store.catalog.drafts()] == [True]
            handle = opened(store, b"f")
            await store.files.write(handle, len(data), b"more")
            flush = StagedDraft.flush
            token = trio.lowlevel.current_trio_token()

            def flush_slowly(draft: StagedDraft) -> None:
                trio.from_thread.run(store.files.write, handle, len(data) + 4, b" and more", trio_token=token)
                flush(draft)

            patch.setattr(StagedDraft, "flush", flush_slowly)
            await store.files.fsync(handle.inode)
            synced = crashed(store_path, tmp_path, "synced")
            await store.files.truncate(handle.inode, 100 * KIB, privileged=True)
            store.commits.commit()
            cut = crashed(store_path, tmp_path, "cut")
            hold.go_on.set()
        await store.files.release(handle)
    for path, expected in ((synced, data + b"more"), (cut, data[: 100 * KIB])):
        async with Store.open(path).running() as store:
            assert await content(store, b"f") == expected


@pytest.mark.trio
async def test_a_closed_draft_that_is_truncated_is_flushed_first(
    store_path: str, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        with monkeypatch.context() as patch:
            await close_unsealed(store, patch, os.urandom(300 * KIB))
            handle = opened(store, b"f")
            await store.files.truncate(handle.inode, 100 * KIB, privileged=True)
            assert [(row.size, decode(row.dirty)) for row in store.catalog.drafts()] == [
                (100 * KIB, [(0, 100 * KIB)])
            ]
        hold.go_on.set()
        expected = await content(store, b"f")
        await store.files.release(handle)
    async with Store.open(store_path).running() as store:
        assert await content(store, b"f") == expected
        assert drafts_in(store_path) == []


@pytest.mark.trio
async def test_small_drafts_are_not_recorded(store_path: str, hold: Hold) -> None:
    hold.go_on.set()
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = opened(store, b"f")
        await store.files.write(handle, 0, os.urandom(300 * KIB))
        await store.files.fsync(handle.inode)
        await store.files.write(handle, 100, b"changed")
        changes = store.catalog.changes()
        assert isinstance(handle.inode.draft, StagedDraft)
        await store.files.release(handle)
        assert store.catalog.changes() == changes


@pytest.mark.trio
async def test_an_odd_record_is_reported_and_its_file_kept(
    store_path: str, tmp_path: Path, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = opened(store, b"f")
        await put_backwards(store, handle, os.urandom(300 * KIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.files.release, handle)
            await trio.to_thread.run_sync(hold.begun.wait)
            store.commits.commit()
            killed = crashed(store_path, tmp_path, "killed")
            hold.go_on.set()
    database = sqlite3.connect(os.path.join(killed, "catalog.db"))
    with database:
        assert database.execute("UPDATE draft SET dirty = x'81a1'").rowcount == 1
    database.close()
    async with Store.open(killed).running() as store:
        assert await content(store, b"f") == b""
    assert "cannot be brought back" in caplog.text
    assert len(os.listdir(os.path.join(killed, "staging", "kept"))) == 1


def drafts_in(store_path: str) -> list[str]:
    return [name for name in os.listdir(os.path.join(store_path, "staging")) if name.startswith("draft-")]
