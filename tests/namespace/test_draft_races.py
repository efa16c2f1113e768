"""Drafts that are flushed, truncated, closed and replaced at the same time, and crashes after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mountstore.namespace import commits
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.draft_record import Closed, decode
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.namespace.streamed_draft import StreamedDraft
from mountstore.namespace.workers import Workers
from mountstore.store import Store
from namespace.test_closed_drafts import Hold, close_unsealed, content, crashed, hold, opened, put_backwards
from namespace.test_draft_changes import Disk, disk, found, written

__all__ = ["disk", "hold"]

pytestmark = pytest.mark.trio

KIB = 1 << 10


async def read(store: Store, handle: Handle) -> bytes:
    return await store.files.read(handle.inode, 0, 1000 * KIB)


async def write_places(store: Store, handle: Handle, count: int = 40, data: bytes = b"y") -> None:
    """So many changes that an fsync flushes the staging file."""
    for number in range(count):
        await store.files.write(handle, number * 2000, data)


def during_flush(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have the next flush of a staging file act when it is through, in its worker."""
    flush = StagedDraft.flush

    def flush_and_act(draft: StagedDraft) -> None:
        flush(draft)
        monkeypatch.setattr(StagedDraft, "flush", flush)
        act()

    monkeypatch.setattr(StagedDraft, "flush", flush_and_act)


async def test_a_draft_that_is_sealed_while_somebody_waits_to_flush_it_is_not_flushed(
    store_path: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor may be somebody else's by then."""
    go_on = threading.Event()
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await store.files.write(handle, 0, b"x")
        await store.files.fsync(handle.inode)
        await store.files.keep_open()
        await write_places(store, handle)
        draft = handle.inode.draft
        assert isinstance(draft, StagedDraft)
        number = draft._fd
        let_go = StagedDraft._let_go
        others: list[int] = []

        def let_go_and_reuse(draft: StagedDraft) -> None:
            let_go(draft)
            while not others or others[-1] < number:
                others.append(os.open("/dev/null", os.O_RDONLY))

        monkeypatch.setattr(StagedDraft, "_let_go", let_go_and_reuse)
        during_flush(monkeypatch, lambda: go_on.wait(60))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.files.fsync, handle.inode)
            await wait_all_tasks_blocked()
            nursery.start_soon(store.files.keep_open)
            await wait_all_tasks_blocked()
            await store.files.release(handle)
            go_on.set()
        assert number in others
        for other in others:
            os.close(other)
        assert not store.commits.in_doubt


@pytest.mark.parametrize("size", [50 * KIB, 150 * KIB])
async def test_a_truncation_during_a_flush_is_promised_by_the_next(
    store_path: str, disk: Disk, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await write_places(store, handle)
        await store.files.keep_open()

        async def truncate() -> None:
            await store.files.truncate(handle.inode, size, privileged=True)

        token = trio.lowlevel.current_trio_token()

        def truncate_meanwhile() -> None:
            trio.from_thread.run_sync(nursery.start_soon, truncate, trio_token=token)
            trio.from_thread.run(wait_all_tasks_blocked, trio_token=token)

        during_flush(monkeypatch, truncate_meanwhile)
        async with trio.open_nursery() as nursery:
            await store.files.keep_open()
        await store.files.fsync(handle.inode)
        expected = await read(store, handle)
        path = disk.after_power_loss()
        await store.files.release(handle)
    assert len(expected) == size
    assert await found(path) == expected


async def test_a_flush_that_fails_leaves_nothing_fresh_that_is_not_dirty(
    store_path: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await write_places(store, handle)
        await store.files.write(handle, 60 * KIB, b"w" * 38 * KIB)
        await store.files.keep_open()

        async def change() -> None:
            for size in (50 * KIB, 100 * KIB):
                await store.files.truncate(handle.inode, size, privileged=True)

        token = trio.lowlevel.current_trio_token()

        def change_and_fail() -> None:
            trio.from_thread.run_sync(nursery.start_soon, change, trio_token=token)
            trio.from_thread.run(wait_all_tasks_blocked, trio_token=token)
            raise OSError(24, "EMFILE")

        during_flush(monkeypatch, change_and_fail)
        async with trio.open_nursery() as nursery:
            await store.files.keep_open()
        draft = handle.inode.draft
        assert isinstance(draft, StagedDraft)
        assert all(draft.dirty.includes(start, end) for start, end in draft.fresh)
        expected = await read(store, handle)
        await store.files.fsync(handle.inode)
        path = disk.after_power_loss()
        await store.files.release(handle)
    assert await found(path) == expected


async def test_changes_of_a_closed_draft_hold_through_a_second_crash(
    store_path: str, tmp_path: Path, disk: Disk, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery finds the draft whole and drops what fsyncs promised of it: by then it has to be flushed."""
    hold.go_on.set()
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await store.files.write(handle, 10 * KIB, b"promised")
        await store.files.fsync(handle.inode)
        assert disk.flushed == {}
        promised = await read(store, handle)
        await put_backwards(store, handle, os.urandom(90 * KIB))
        later = await read(store, handle)
        killed = await killed_while_sealing(store, handle, hold, tmp_path)
    async with Store.open(killed, commit_s=3600).running() as store:
        assert await content(store, b"f") == later
        cut = disk.after_power_loss(killed)
    assert await found(cut) in (promised, later)


async def killed_while_sealing(store: Store, handle: Handle, hold: Hold, tmp_path: Path) -> str:
    """Close a large file; a copy of the store while it is being sealed."""
    hold.begun.clear()
    hold.go_on.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.files.release, handle)
        await trio.to_thread.run_sync(hold.begun.wait)
        store.commits.commit()
        assert any(isinstance(decode(row.dirty), Closed) for row in store.catalog.drafts())
        killed = crashed(store.path, tmp_path, "killed")
        hold.go_on.set()
    return killed


async def test_a_truncation_that_was_not_committed_leaves_no_zeros(
    store_path: str, tmp_path: Path, disk: Disk
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", b"old")
        await store.files.write(handle, 0, os.urandom(100 * KIB))
        await store.files.keep_open()
        await store.files.keep_open()
        await store.files.write(handle, 90 * KIB, b"promised")
        await store.files.fsync(handle.inode)
        before = await read(store, handle)
        await store.files.truncate(handle.inode, 50 * KIB, privileged=True)
        killed = crashed(store_path, tmp_path, "killed")
        await store.files.release(handle)
    assert await found(killed) in (before, before[: 50 * KIB])


@pytest.mark.parametrize("how", ["write", "truncate"])
async def test_a_closed_draft_may_be_changed_without_being_lost(
    store_path: str, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data = os.urandom(300 * KIB)
    async with Store.open(store_path, commit_s=3600).running() as store:
        with monkeypatch.context() as patch:
            await close_unsealed(store, patch, data)
            await store.commits.hard_sync()
            handle = opened(store, b"f")
            if how == "write":
                await store.files.write(handle, 0, b"z")
            else:
                await store.files.truncate(handle.inode, 299 * KIB, privileged=True)
            killed = crashed(store_path, tmp_path, "killed")
        hold.go_on.set()
        await store.files.release(handle)
    assert await found(killed) in (data, b"z" + data[1:], data[: 299 * KIB])


async def test_what_a_note_speaks_of_is_not_brought_into_a_newer_draft(
    store_path: str, tmp_path: Path, disk: Disk, hold: Hold
) -> None:
    hold.go_on.set()
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        store.namespace.link(handle.inode.id, ROOT, b"g")
        await store.files.write(handle, 10 * KIB, b"first")
        await store.files.fsync(handle.inode)
        other = opened(store, b"other")
        await store.files.write(other, 0, b"other")
        await store.files.release(other)
        store.namespace.rename(ROOT, b"other", ROOT, b"g")
        await put_backwards(store, handle, os.urandom(90 * KIB))
        later = await read(store, handle)
        killed = await killed_while_sealing(store, handle, hold, tmp_path)
    assert await found(killed) == later


async def test_a_draft_that_is_brought_back_shorter_is_recorded_so(
    store_path: str, tmp_path: Path, disk: Disk
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(200 * KIB))
        await store.files.write(handle, 0, os.urandom(100 * KIB))
        await store.files.keep_open()
        await store.files.keep_open()
        store.commits.commit()
        killed = crashed(store_path, tmp_path, "killed")
        await store.files.release(handle)
    for path in Path(killed, "staging").glob("draft-*"):
        os.truncate(path, 50 * KIB)
    async with Store.open(killed, commit_s=3600).running() as store:
        handle = opened(store, b"f")
        assert handle.inode.size == 50 * KIB
        await store.files.write(handle, 150 * KIB, b"w" * 10 * KIB)
        await store.files.fsync(handle.inode)
        expected = await read(store, handle)
        again = crashed(killed, tmp_path, "again")
        await store.files.release(handle)
    assert await found(again) == expected


async def test_changes_of_a_removed_file_do_not_outlast_the_mount(store_path: str, disk: Disk) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await store.files.write(handle, 0, b"x")
        await store.files.fsync(handle.inode)
        store.namespace.unlink(ROOT, b"f")
    async with Store.open(store_path, commit_s=3600).running() as store:
        assert store.catalog.draft_changes() == {}


async def test_a_staging_file_that_is_gone_is_reported_and_not_zeros(
    store_path: str, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    base = os.urandom(10 * KIB)
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", base)
        await store.files.write(handle, 0, os.urandom(100 * KIB))
        await store.files.keep_open()
        await store.files.keep_open()
        await store.files.write(handle, 90 * KIB, b"x")
        await store.files.fsync(handle.inode)
        killed = crashed(store_path, tmp_path, "killed")
        await store.files.release(handle)
    for path in Path(killed, "staging").glob("draft-*"):
        path.unlink()
    assert await found(killed) == base
    assert "the file of the draft is gone" in caplog.text


@pytest.mark.parametrize("flushed", [False, True])
async def test_truncating_a_file_whose_name_was_taken_changes_nothing_of_the_note(
    store_path: str, disk: Disk, flushed: bool
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await store.files.write(handle, 0, os.urandom(40 * KIB))
        if flushed:
            await store.files.keep_open()
            await store.files.keep_open()
        await store.files.fsync(handle.inode)
        promised = await read(store, handle)
        before = disk.blobs()
        other = opened(store, b"other")
        await store.files.write(other, 0, os.urandom(30 * KIB))
        await store.files.release(other)
        store.namespace.rename(ROOT, b"other", ROOT, b"f")
        await store.files.truncate(handle.inode, 0, privileged=True)
        store.commits.commit()
        path = disk.after_power_loss(blobs=before)
        # A truncation of the staging file may have reached the disk.
        for staged in Path(path, "staging").glob("draft-*"):
            os.truncate(staged, os.stat(Path(store_path, "staging", staged.name)).st_size)
        await store.files.release(handle)
    assert await found(path) == promised


async def test_a_closed_draft_that_cannot_be_sealed_is_flushed_after_a_while(
    store_path: str, disk: Disk, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(300 * KIB)
    async with Store.open(store_path, commit_s=3600).running() as store:
        with monkeypatch.context() as patch:
            await close_unsealed(store, patch, data)
            for _ in range(3):
                await store.sealer.seal_closed()
                await store.files.keep_open()
                await store.commits.sync_now()
            path = disk.after_power_loss()
            changes = store.catalog.changes()
            await store.files.keep_open()
            assert store.catalog.changes() == changes, "once"
        hold.go_on.set()
    assert await found(path) == data


async def killed_unsealed(
    store_path: str, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> str:
    """A copy of a store in which `f` was closed and could not be sealed; seals are held again."""
    async with Store.open(store_path, commit_s=3600).running() as store:
        with monkeypatch.context() as patch:
            await close_unsealed(store, patch, data)
            await store.commits.hard_sync()
            killed = crashed(store_path, tmp_path, "killed")
        hold.go_on.set()
    hold.begun.clear()
    hold.go_on.clear()
    return killed


async def test_a_sync_does_not_wait_for_the_seal_of_what_a_crash_left(
    store_path: str, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(300 * KIB)
    killed = await killed_unsealed(store_path, tmp_path, hold, monkeypatch, data)
    async with Store.open(killed, commit_s=0.1).running() as store:
        assert await trio.to_thread.run_sync(hold.begun.wait, 60)
        for name in (b"a", b"b"):
            store.namespace.create(ROOT, name, 0o100644, Caller(0, 0))
            with trio.fail_after(30):
                await store.commits.hard_sync()
        flushed = threading.Event()
        flush_wal = Catalog.flush_wal

        def flush_and_tell(catalog: Catalog) -> None:
            flush_wal(catalog)
            flushed.set()

        monkeypatch.setattr(Catalog, "flush_wal", flush_and_tell)
        store.namespace.create(ROOT, b"c", 0o100644, Caller(0, 0))
        assert await trio.to_thread.run_sync(flushed.wait, 60), "the timed one neither"
        hold.go_on.set()
    assert await found(killed) == data


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("flushed", [False, True])
async def test_two_files_that_go_back_to_one_draft_have_one_each(
    store_path: str, disk: Disk, flushed: bool, older: bool
) -> None:
    """Two of the names of a file were taken by others, whose contents did not reach the disk."""
    async with Store.open(store_path, commit_s=3600).running() as store:
        others = [opened(store, b"other " + name) for name in (b"g", b"h")] if older else []
        handle = await written(store, b"f", os.urandom(100 * KIB))
        for name in (b"g", b"h"):
            store.namespace.link(handle.inode.id, ROOT, name)
        await store.files.write(handle, 10 * KIB, b"promised")
        await store.files.fsync(handle.inode)
        if flushed:
            await store.files.keep_open()
            await store.files.keep_open()
            await store.commits.sync_now()
        promised = await read(store, handle)
        before = disk.blobs()
        for name in (b"g", b"h"):
            other = others.pop(0) if others else opened(store, b"other " + name)
            await store.files.write(other, 0, b"other, over " + name)
            await store.files.release(other)
            store.namespace.rename(ROOT, b"other " + name, ROOT, name)
        if older:
            # It goes back to it itself, too.
            await store.files.write(handle, 20 * KIB, b"later")
            await store.files.release(handle)
        store.commits.commit()
        path = disk.after_power_loss(blobs=before)
        if not older:
            await store.files.release(handle)
    async with Store.open(path, commit_s=3600).running() as store:
        assert len(set(store.drafts.staging_in_use())) == 3
        for name in (b"f", b"g", b"h"):
            handle = opened(store, name)
            assert await read(store, handle) == promised
            await store.files.write(handle, 10 * KIB, b"written" + name)
            killed = disk.after_power_loss(path)
            await store.files.release(handle)
            await store.commits.sync_now()
    assert await found(killed, b"h") in (promised, promised.replace(b"promised", b"writtenh"))
    for name in (b"f", b"g", b"h"):
        assert await found(path, name) == promised.replace(b"promised", b"written" + name)


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("size", [150 * KIB, 300 * KIB])
async def test_a_truncation_records_no_zeros_for_what_was_not_flushed(
    store_path: str, tmp_path: Path, disk: Disk, flushed: bool, size: int
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", os.urandom(100 * KIB))
        await store.files.write(handle, 0, b"promised")
        if flushed:
            await store.files.keep_open()
            await store.files.keep_open()
        await store.files.fsync(handle.inode)
        old = await read(store, handle)
        await store.files.write(handle, 100 * KIB, os.urandom(100 * KIB))
        longer = await read(store, handle)
        await store.files.truncate(handle.inode, size, privileged=True)
        new = await read(store, handle)
        store.commits.commit()
        killed = crashed(store_path, tmp_path, "killed")
        await store.files.fsync(handle.inode)
        path = disk.after_power_loss()
        await store.files.release(handle)
    assert await found(killed) in (old, longer, new)
    assert await found(path) == new


async def test_what_stays_open_is_kept_although_a_seal_takes_long(
    store_path: str, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is what is being sealed."""
    killed = await killed_unsealed(store_path, tmp_path, hold, monkeypatch, os.urandom(300 * KIB))
    both = threading.Event()
    kept: set[str] = set()
    flush = StagedDraft.flush

    def flush_and_tell(draft: StagedDraft) -> None:
        flush(draft)
        kept.add(draft.path)
        if len(kept) == 2:
            both.set()

    monkeypatch.setattr(StagedDraft, "flush", flush_and_tell)
    async with Store.open(killed, commit_s=0.1).running() as store:
        assert await trio.to_thread.run_sync(hold.begun.wait, 60)
        handle = opened(store, b"open")
        await put_backwards(store, handle, os.urandom(90 * KIB))
        assert await trio.to_thread.run_sync(both.wait, 60)
        hold.go_on.set()
        await store.files.release(handle)


async def test_what_could_not_be_sealed_is_tried_again_soon_whatever_the_interval(
    store_path: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_RETRY_S", 0.05)
    hold.go_on.set()
    async with Store.open(store_path, commit_s=3600).running() as store:
        with monkeypatch.context() as patch:
            await close_unsealed(store, patch, os.urandom(300 * KIB))
        assert await trio.to_thread.run_sync(hold.begun.wait, 60)


async def test_a_stream_whose_end_finds_no_thread_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom((9 << 20) + 7)
    handle = opened(store, b"f")
    for start in range(0, len(data), 128 * KIB):
        await store.files.write(handle, start, data[start : start + 128 * KIB])
    draft = handle.inode.draft
    assert isinstance(draft, StreamedDraft) and draft.pending_bytes

    async def refuse(workers: Workers, function: object, *arguments: object) -> None:
        raise OSError(24, "EMFILE")

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "run", refuse)
        with pytest.raises(OSError, match="EMFILE"):
            await store.files.fsync(handle.inode)
        await store.files.release(handle)
    assert handle.inode.draft is draft, "kept"
    await store.sealer.seal_closed()
    assert not store.drafts.inodes
    assert await content(store, b"f") == data
