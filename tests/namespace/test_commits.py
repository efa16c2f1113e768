"""When changes reach the catalog, and who is told that they are safe."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from mountstore.blobs.digest import Digest
from mountstore.blobs.flush import FlushFailedError
from mountstore.blobs.tree import BalancedTree
from mountstore.cli.fsck import main as fsck
from mountstore.errors import ExistsError, NoSpaceError, ReadOnlyError
from mountstore.namespace import commits as commits_module
from mountstore.namespace import replaced, transactions
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.commits import SOFT_INTERVAL_S
from mountstore.namespace.draft import MEMORY_MAX
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.replaced import from_row
from mountstore.store import Store

pytestmark = pytest.mark.trio

FILE = stat.S_IFREG | 0o644
USER = Caller(0, 0)

LARGE = b"more than the journal takes" * 20_000


def committed(store_path: str) -> list[bytes]:
    """The names another process would see."""
    database = sqlite3.connect(os.path.join(store_path, "catalog.db"))
    try:
        return [name for (name,) in database.execute("SELECT name FROM entry ORDER BY name")]
    finally:
        database.close()


def unsynced(store_path: str) -> int:
    database = sqlite3.connect(os.path.join(store_path, "catalog.db"))
    try:
        (count,) = database.execute("SELECT count(*) FROM unsynced").fetchone()
        return int(count)
    finally:
        database.close()


async def write_file(store: Store, name: bytes, data: bytes) -> Inode:
    inode = store.namespace.create(ROOT, name, FILE, USER)
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, data)
    await store.files.release(handle)
    return inode


async def test_a_soft_commit_comes_by_itself(
    store_path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        await trio.sleep(1)
        store.namespace.create(ROOT, b"f", FILE, USER)
        assert committed(store_path) == []
        await trio.sleep(SOFT_INTERVAL_S * 1.01)
        assert committed(store_path) == [b"f"]


async def test_what_the_journal_keeps_is_what_a_file_goes_back_to(store_path: str) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        await write_file(store, b"f", b"at the last flush of files")
        await store.commits.hard_sync()
        inode = await write_file(store, b"new", b"promised by the journal")
        store.namespace.rename(ROOT, b"new", ROOT, b"f")
        await store.commits.hard_sync()
        assert store.ledger.has_journaled
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.truncate(inode, 0, privileged=True)
        await store.files.write(handle, 0, b"not promised")
        await store.files.release(handle)
        store.commits.commit()
        (previous,) = store.catalog.previous()
        assert previous[0] == inode.id
        assert from_row(previous).content.digest == Digest.of(b"promised by the journal")


async def test_a_hard_sync_comes_by_itself_and_empties_unsynced(
    store_path: str, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = threading.Semaphore(0)
    monkeypatch.setattr(Catalog, "flush_wal", lambda _catalog: flushed.release())
    async with Store.open(store_path, commit_s=5).running() as store:
        assert flushed.acquire(blocking=False)  # of the recovery
        await store.commits.hard_sync()
        assert flushed.acquire(blocking=False)
        await write_file(store, b"f", b"content")
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert unsynced(store_path) == 1
        mock_clock.jump(6)
        assert await trio.to_thread.run_sync(flushed.acquire)
        assert unsynced(store_path) == 0
        # Nothing changed since, so nothing is synced.
        mock_clock.jump(100)
        await trio.testing.wait_all_tasks_blocked()
        assert not flushed.acquire(blocking=False)


async def test_the_order_of_a_hard_sync(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.commits.hard_sync()
    happened: list[str] = []
    for cls, name in ((BalancedTree, "fsync"), (Catalog, "commit"), (Catalog, "flush_wal")):
        method = getattr(cls, name)

        def noted(
            self: object, *arguments: object, _name: str = name, _method: object = method, **named: object
        ) -> object:
            happened.append(_name)
            return _method(self, *arguments, **named)  # type: ignore[operator]

        monkeypatch.setattr(cls, name, noted)
    await write_file(store, b"f", LARGE)
    await store.commits.hard_sync()
    assert [name for name in happened if name in ("fsync", "flush_wal")] == ["fsync", "flush_wal"]
    assert happened.index("fsync") < happened.index("commit") < happened.index("flush_wal")
    # What is small takes one flush.
    happened.clear()
    await write_file(store, b"g", b"content")
    await store.commits.hard_sync()
    assert [name for name in happened if name in ("fsync", "flush_wal")] == ["flush_wal"]


async def test_the_journal_is_emptied_by_the_next_sync_that_flushes_blobs(store: Store) -> None:
    await store.commits.hard_sync()
    for number in range(3):
        await write_file(store, b"f%d" % number, b"content %d" % number)
        await store.commits.hard_sync()
    assert sorted(store.catalog.journal().values()) == [b"content 0", b"content 1", b"content 2"]
    assert unsynced(store.path) == 3
    await write_file(store, b"large", LARGE)
    await store.commits.hard_sync()
    assert store.catalog.journal() == {}
    assert unsynced(store.path) == 0


@pytest.mark.parametrize("blob", ["absent", "empty", "zeros"])
async def test_a_journaled_content_outlives_its_blob(store: Store, tmp_path: Path, blob: str) -> None:
    await store.commits.hard_sync()
    inode = await write_file(store, b"f", b"content")
    await store.commits.hard_sync()
    left = str(tmp_path / "left")
    shutil.copytree(store.path, left)
    assert inode.content.digest is not None
    path = store.tree.find(inode.content.digest)
    assert path is not None
    path = left + path.removeprefix(store.path)
    os.unlink(path)
    if blob != "absent":
        Path(path).write_bytes(b"" if blob == "empty" else bytes(7))
    async with Store.open(left).running() as after:
        found = after.namespace.find(ROOT, b"f")
        assert found is not None
        assert await after.files.read(found, 0, 100) == b"content"
        await after.commits.hard_sync()
        assert after.catalog.journal() == {}


async def test_how_much_of_the_log_is_in_use(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    catalog.set_meta("a", 1)
    catalog.commit()
    catalog.flush_wal()
    log = tmp_path / "catalog.db-wal"
    for number in range(40):
        grown = log.stat().st_size
        assert catalog.wal_bytes() == grown
        catalog.set_meta("a", number)
        catalog.commit()
    catalog.extend_wal()
    used = catalog.wal_bytes()
    assert used < log.stat().st_size
    catalog.checkpoint()
    catalog.set_meta("b", 1)
    catalog.commit(pause=True)
    catalog.checkpoint()
    catalog.set_meta("c", 1)
    catalog.commit()
    # Begun anew, in a file that is as long as before.
    assert catalog.wal_bytes() < used
    catalog.close()
    again = Catalog(str(tmp_path / "catalog.db"))
    assert [again.get_meta(key) for key in "abc"] == [39, 1, 1]
    again.close()


async def test_the_log_is_bounded_although_the_changes_never_pause(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "_CHECKPOINT_BYTES", 1 << 14)
    monkeypatch.setattr(commits_module, "WAL_MAX", 1 << 16)
    used = []
    async with trio.open_nursery() as nursery:

        async def change() -> None:
            number = 0
            while True:
                number += 1
                store.namespace.create(ROOT, b"%d" % number, 0o100644, Caller(0, 0))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(change)
        for _ in range(12):
            await store.commits.hard_sync()
            store.commits.commit()
            used.append(store.catalog.wal_bytes())
        nursery.cancel_scope.cancel()
    assert any(later < earlier for earlier, later in pairwise(used)), used


async def test_all_who_wait_share_one_sync(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.commits.hard_sync()
    flushes = 0
    first, go_on = threading.Event(), threading.Event()

    def held(_catalog: Catalog) -> None:
        nonlocal flushes
        flushes += 1
        first.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Catalog, "flush_wal", held)
    store.namespace.create(ROOT, b"one", FILE, USER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commits.hard_sync)
        assert await trio.to_thread.run_sync(first.wait, 60)
        # What is done now is not covered by the sync that is going on.
        store.namespace.create(ROOT, b"two", FILE, USER)
        for _ in range(10):
            nursery.start_soon(store.commits.hard_sync)
        await trio.testing.wait_all_tasks_blocked()
        assert flushes == 1
        go_on.set()
    assert flushes == 2


async def test_who_waits_for_a_sync_that_is_cancelled_gets_another(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, go_on = threading.Event(), threading.Event()
    flush_wal = Catalog.flush_wal

    def held(catalog: Catalog) -> None:
        first.set()
        assert go_on.wait(60)
        flush_wal(catalog)

    monkeypatch.setattr(Catalog, "flush_wal", held)
    done: list[str] = []

    async def sync(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await store.commits.hard_sync()
            done.append(name)

    scopes = [trio.CancelScope() for _ in range(4)]
    store.namespace.create(ROOT, b"one", FILE, USER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync, "leads", scopes[0])
        assert await trio.to_thread.run_sync(first.wait, 60)
        store.namespace.create(ROOT, b"two", FILE, USER)
        for name, scope in zip(("asked first", "second", "third"), scopes[1:], strict=True):
            nursery.start_soon(sync, name, scope)
            await trio.testing.wait_all_tasks_blocked()
        # What is under way in a worker ends; what has not begun is left to the others who asked.
        scopes[0].cancel()
        scopes[1].cancel()
        go_on.set()
    assert done == ["leads", "second", "third"]
    assert not store.commits._is_unsafe()


async def test_who_wants_the_files_flushed_waits_for_a_sync_that_has_begun_to(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in the journal is not any more, and not in its file yet."""
    await store.commits.hard_sync()
    await write_file(store, b"f", b"small")
    await store.commits.hard_sync()
    assert store.ledger.has_journaled
    begun, go_on = threading.Event(), threading.Event()
    fsync = BalancedTree.fsync
    flushed: list[str] = []

    def held(tree: BalancedTree, *paths: str) -> None:
        begun.set()
        assert go_on.wait(60)
        fsync(tree, *paths)
        flushed.extend(paths)

    monkeypatch.setattr(BalancedTree, "fsync", held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(store.commits.hard_sync, files=True))
        assert await trio.to_thread.run_sync(begun.wait, 60)
        ended: list[int] = []

        async def ask() -> None:
            await store.commits.hard_sync(files=True)
            ended.append(len(flushed))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert ended == [1]


async def test_a_change_during_a_sync_is_not_taken_for_synced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commits.hard_sync()
    reached, go_on = threading.Event(), threading.Event()
    fsync = BalancedTree.fsync

    def held(tree: BalancedTree, *paths: str) -> None:
        reached.set()
        assert go_on.wait(60)
        fsync(tree, *paths)

    await write_file(store, b"one", LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(BalancedTree, "fsync", held)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.commits.hard_sync)
            assert await trio.to_thread.run_sync(reached.wait, 60)
            await write_file(store, b"two", LARGE[::-1])
            store.commits.commit()
            go_on.set()
    store.commits.commit()
    assert unsynced(store.path) > 0
    await store.commits.hard_sync()
    assert unsynced(store.path) == 0


@pytest.mark.parametrize("what", ["flush_wal", "fsync"])
async def test_a_failed_flush_ends_all_writing(
    store_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Promise 4: when data already acknowledged is in doubt, the mount takes no more writes and says so."""

    def broken(*_arguments: object) -> None:
        raise FlushFailedError(5, "Input/output error")

    with pytest.raises((OSError, ReadOnlyError, ExceptionGroup)):
        async with Store.open(store_path).running() as store:
            await store.commits.hard_sync()
            await write_file(store, b"f", LARGE)
            monkeypatch.setattr(Catalog if what == "flush_wal" else BalancedTree, what, broken)
            with pytest.raises(OSError):
                await store.commits.hard_sync()
            assert "no more writes are taken" in caplog.text
            with pytest.raises(ReadOnlyError):
                store.namespace.create(ROOT, b"g", FILE, USER)
            with pytest.raises(ReadOnlyError):
                await store.commits.hard_sync()
            # Reading goes on.
            found = store.namespace.find(ROOT, b"f")
            assert found is not None
            assert await store.files.read(found, 0, 100) == LARGE[:100]
    # The next mount is told, and can look at what was not flushed.
    database = sqlite3.connect(os.path.join(store_path, "catalog.db"))
    assert database.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone() == (0,)
    database.close()
    assert committed(store_path) == [b"f"]
    assert (unsynced(store_path) > 0) == (what == "fsync")


async def test_a_full_disk_at_a_commit_is_no_end(
    store_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        store.namespace.create(ROOT, b"f", FILE, USER)

        def full(_catalog: Catalog, *, pause: bool) -> None:
            raise NoSpaceError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "commit", full)
            for _ in range(3):
                store.commits._commit_or_keep()
            assert caplog.text.count("no room") == 1
            with pytest.raises(NoSpaceError):
                store.namespace.create(ROOT, b"g", FILE, USER)
        store.commits.commit()
        store.namespace.create(ROOT, b"g", FILE, USER)
        store.commits.commit()
        assert committed(store_path) == [b"f", b"g"]
        assert not store.namespace.read_only


async def test_an_fsynced_draft_is_brought_back_after_a_crash(store_path: str, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    at = 2 * MEMORY_MAX
    async with Store.open(store_path, commit_s=3600).running() as store:
        inode = await write_file(store, b"f", b"base" * 100_000)
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.write(handle, at, data)
        await store.files.fsync(inode)
        await store.files.write(handle, at + len(data), b"not fsynced")
        crashed = _copy_of(store_path, tmp_path)
        await store.files.release(handle)
        assert inode.size == at + len(data) + 11
    async with Store.open(crashed).running() as store:
        found = store.namespace.find(ROOT, b"f")
        assert found is not None
        assert found.size == at + len(data)
        assert await store.files.read(found, 0, 8) == b"basebase"
        assert await store.files.read(found, at - 10, len(data) + 100) == bytes(10) + data
    async with Store.open(crashed).running() as store:
        found = store.namespace.find(ROOT, b"f")
        assert found is not None
        assert await store.files.read(found, at - 10, len(data) + 100) == bytes(10) + data
        assert os.listdir(os.path.join(crashed, "staging")) == []


@pytest.mark.parametrize("end", ["fsync", "close"])
@pytest.mark.parametrize("size", [11, MEMORY_MAX + 5])
async def test_a_file_that_took_a_name_while_it_was_open_keeps_it_when_nothing_else_happens(
    store_path: str, tmp_path: Path, size: int, end: str
) -> None:
    """As programs save that rename first and close later; what it replaced is noted until it is safe."""
    new = os.urandom(size)
    async with Store.open(store_path, commit_s=3600).running() as store:
        await write_file(store, b"f", b"old")
        await store.commits.hard_sync()
        inode = store.namespace.create(ROOT, b"tmp", FILE, USER)
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.write(handle, 0, new)
        store.namespace.rename(ROOT, b"tmp", ROOT, b"f")
        # What stays open is kept as it is now, so that there is nothing left to do but for the note.
        for _ in range(2):
            await store.files.keep_open()
        await store.commits.hard_sync()
        if end == "fsync":
            await store.files.fsync(inode)
        else:
            await store.files.release(handle)
            assert store.commits.has_changes, "the next timed commit makes it survive the death of the process"
            store.commits.commit()
        assert not store.commits.has_changes
        crashed = _copy_of(store_path, tmp_path)
        if end == "fsync":
            await store.files.release(handle)
    async with Store.open(crashed).running() as store:
        found = store.namespace.find(ROOT, b"f")
        assert found is not None
        assert await store.files.read(found, 0, size + 1) == new


async def test_the_note_of_a_file_that_stays_open_lapses_when_nothing_else_happens(
    store_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that took the name of the last one is not to lose it for as long as it is written to."""
    async with Store.open(store_path, commit_s=3600).running() as store:
        await write_file(store, b"f", b"old")
        inode = store.namespace.create(ROOT, b"tmp", FILE, USER)
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.write(handle, 0, b"new")
        store.namespace.rename(ROOT, b"tmp", ROOT, b"f")
        for _ in range(2):
            await store.files.keep_open()
        await store.commits.hard_sync()
        (note,) = store.catalog.previous()
        assert note[-1], "it is open"
        monkeypatch.setattr(replaced, "LAPSE_S", -1.0)
        await store.commits.hard_sync()
        assert store.catalog.previous() == []
        crashed = _copy_of(store_path, tmp_path)
        await store.files.release(handle)
    async with Store.open(crashed).running() as store:
        found = store.namespace.find(ROOT, b"f")
        assert found is not None
        assert await store.files.read(found, 0, 10) == b"new"


async def test_what_was_private_when_a_draft_was_begun_is_private_after_a_crash(
    store_path: str, tmp_path: Path
) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        inode = await write_file(store, b"f", b"secret" * 100_000)
        store.namespace.set_attributes(inode, USER, mode=0o600)
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.truncate(inode, 0, privileged=True)
        await store.files.write(handle, 2 * MEMORY_MAX, b"public")
        store.namespace.set_attributes(inode, USER, mode=0o644)
        await store.files.fsync(inode)
        crashed = _copy_of(store_path, tmp_path)
        await store.files.release(handle)
        (kept,) = store.versions.superseded(ROOT, b"f", inode)
        assert kept.mode & 0o777 == 0o600
    async with Store.open(crashed).running() as store:
        found = store.namespace.find(ROOT, b"f")
        assert found is not None and found.mode & 0o777 == 0o644
    # Sealed by now.
    async with Store.open(crashed).running() as store:
        found = store.namespace.find(ROOT, b"f")
        (kept,) = store.versions.superseded(ROOT, b"f", found)
        assert kept.mode & 0o777 == 0o600


def _copy_of(store_path: str, tmp_path: Path) -> str:
    """The store as a crash of the process would leave it now."""
    import shutil

    copy = tmp_path / "crashed"
    shutil.copytree(store_path, copy, ignore=shutil.ignore_patterns("lock"))
    return str(copy)


async def test_what_is_undone_is_forgotten_and_what_came_before_is_not(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    catalog.add_entry(1, b"before", 10, 3)
    catalog.add_entry(1, b"moved", 11, 4)

    class GoneWrongError(Exception):
        pass

    with pytest.raises(GoneWrongError), catalog.savepoint():
        catalog.add_entry(1, b"within", 12, 5)
        catalog.move_entry(1, b"moved", 1, b"elsewhere", None)
        catalog.delete_entry(1, b"before")
        assert catalog.get_entry(1, b"elsewhere") == 11
        raise GoneWrongError
    assert [catalog.get_entry(1, name) for name in (b"before", b"moved", b"within", b"elsewhere")] == [
        *(10, 11, None, None)
    ]
    with pytest.raises(ExistsError), catalog.savepoint():
        catalog.add_entry(1, b"before", 13, 6)
    catalog.commit()
    catalog.close()
    again = Catalog(str(tmp_path / "catalog.db"))
    assert [row[1:3] for row in again.listing(1, 0)] == [(b"before", 10), (b"moved", 11)]
    again.close()


async def test_a_name_is_what_it_was_made_last(tmp_path: Path) -> None:
    """Names kept in memory follow every change."""
    catalog = Catalog(str(tmp_path / "catalog.db"))
    catalog.add_entry(1, b"a", 10, 3)
    catalog.add_entry(1, b"b", 11, 4)
    catalog.point_entry(1, b"a", 12)
    catalog.move_entry(1, b"b", 2, b"c", 5)
    names = [(1, b"a"), (1, b"b"), (2, b"c")]
    assert [catalog.get_entry(*name) for name in names] == [12, None, 11]
    catalog.delete_entry(2, b"c")
    catalog.add_entry(1, b"b", 14, 6)
    assert [catalog.get_entry(*name) for name in names] == [12, 14, None]
    catalog.commit()
    catalog.close()
    again = Catalog(str(tmp_path / "catalog.db"))
    assert [again.get_entry(*name) for name in names] == [12, 14, None]
    again.close()


async def test_a_read_only_store_has_nothing_to_sync(store_path: str) -> None:
    async with Store.open(store_path).running() as store:
        await write_file(store, b"f", b"kept")
    async with Store.open(store_path, read_only=True).running() as store:
        inode = store.namespace.find(ROOT, b"f")
        assert inode is not None
        with trio.fail_after(5):
            await store.files.fsync(inode)
            await store.commits.hard_sync(files=True)


async def test_an_fsync_is_done_also_if_the_log_cannot_be_folded_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Catalog.commit
    refused: list[bool] = []

    def full(catalog: Catalog, *, pause: bool = False) -> None:
        if pause:
            refused.append(True)
            raise NoSpaceError("no room")
        commit(catalog, pause=pause)

    monkeypatch.setattr(Catalog, "commit", full)
    monkeypatch.setattr(Catalog, "wants_checkpoint", lambda catalog: True)
    inode = await write_file(store, b"f", b"kept")
    with trio.fail_after(5):
        await store.files.fsync(inode)
    assert refused
    assert not store.commits._is_unsafe()


async def test_what_is_done_now_and_then_leaves_pauses_however_long_it_takes(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    begun: list[float] = []

    async def act() -> None:
        begun.append(trio.current_time())
        await trio.sleep(7)

    with trio.move_on_after(40):
        await store.commits._run_now_and_then(5, act)
    assert [later - earlier for earlier, later in pairwise(begun)] == [12, 12]


async def test_a_last_sync_that_fails_leaves_a_catalog_that_makes_sense(
    store_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Store.open(store_path).running() as store:
        await write_file(store, b"removed", b"1" * 100)
        await write_file(store, b"later", b"2" * 100)

    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        async with Store.open(store_path).running() as store:
            store.commits.commit()
            inode = store.namespace.unlink(ROOT, b"removed")
            for unused in store.namespace.forget([inode.id]):
                await store.files.drop(unused)
            await write_file(store, b"new", b"3" * 100)
            monkeypatch.setattr(store.commits, "_flush_blobs", no_descriptor)
    assert await trio.to_thread.run_sync(fsck, ["-n", "-f", store_path]) == 0, capsys.readouterr().out
    async with Store.open(store_path).running() as store:
        assert store.namespace.find(ROOT, b"removed") is None
        new = store.namespace.find(ROOT, b"new")
        assert new is not None
        assert await store.files.read(new, 0, 200) == b"3" * 100
        # Histories get numbers that were never used.
        store.namespace.unlink(ROOT, b"later")
        histories = store.versions.histories
        assert histories.of_name(ROOT, b"later") != histories.of_name(ROOT, b"removed") != 0
