"""What makes a version, for the sequences of calls with which programs save."""

from __future__ import annotations

import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mountstore.blobs.seal import seal_small
from mountstore.namespace.draft_changes import replayed
from mountstore.namespace.draft_record import decode
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

pytestmark = pytest.mark.trio

CALLER = Caller(0, 0)


class Program:
    """A program that works in the root directory of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, name: bytes, parent: int = ROOT) -> Inode:
        inode = self.store.namespace.find(parent, name)
        assert inode is not None
        return inode

    async def save(self, name: bytes, data: bytes, *, parent: int = ROOT) -> Inode:
        """Truncate (or create), write, close."""
        inode = self.store.namespace.find(parent, name)
        if inode is None:
            inode = self.store.namespace.create(parent, name, stat.S_IFREG | 0o644, CALLER)
        handle = self.store.files.open(inode, writable=True, privileged=True)
        await self.store.files.truncate(inode, 0, privileged=True)
        if data:
            await self.store.files.write(handle, 0, data)
        await self.store.files.release(handle)
        return inode

    async def append(self, name: bytes, data: bytes) -> None:
        inode = self.find(name)
        handle = self.store.files.open(inode, writable=True, privileged=True)
        await self.store.files.write(handle, inode.size, data)
        await self.store.files.release(handle)

    def rename(self, name: bytes, new_name: bytes) -> None:
        self.store.namespace.rename(ROOT, name, ROOT, new_name)

    def age(self, name: bytes) -> None:
        """Let the file have been there for a second: longer than its name will be free."""
        inode = self.find(name)
        inode.btime_ns -= 10**9

    def unlink(self, name: bytes, parent: int = ROOT) -> None:
        self.store.namespace.unlink(parent, name)

    async def history(self, name: bytes, parent: int = ROOT) -> list[bytes]:
        """Every superseded content of the name, oldest first."""
        inode = self.store.namespace.find(parent, name)
        found = []
        for version in self.store.versions.superseded(parent, name, inode):
            content = version.content or (inode.content if inode else None)
            assert content is not None
            reader = self.store.contents.open_reader(content)
            assert reader is not None
            found.append(reader.pread(0, version.size_bytes))
            assert len(found[-1]) == version.size_bytes
        return found

    def names(self, parent: int = ROOT) -> list[bytes]:
        return [name for name, _ in self.store.versions.histories.names(parent)]


@asynccontextmanager
async def program(directory: Path) -> AsyncIterator[Program]:
    if not (directory / "store.toml").exists():
        create_store(str(directory))
    async with Store.open(str(directory)).running() as store:
        yield Program(store)


async def test_a_file_written_once_has_no_rows(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        assert await p.history(b"f") == []
        assert p.store.catalog.ask("SELECT count(*) FROM version").fetchone() == (0,)
        assert p.names() == []


async def test_each_overwrite_leaves_the_content_it_replaced(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        for data in (b"one", b"two", b"three"):
            await p.save(b"f", data)
        assert await p.history(b"f") == [b"one", b"two"]
    async with program(tmp_path) as p:
        assert await p.history(b"f") == [b"one", b"two"]


async def test_unchanged_content_makes_no_version(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"one")
        assert await p.history(b"f") == []


async def test_emptying_a_file_leaves_its_content_and_filling_it_leaves_nothing(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"")
        await p.save(b"f", b"two")
        assert await p.history(b"f") == [b"one"]


async def test_a_writer_who_comes_while_the_last_one_is_sealed_begins_a_change_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealing, opened = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        sealing.set()
        assert opened.wait(60)
        return seal_small(*arguments)

    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"one")
        files = p.store.files
        large = b"two" * 100_000
        first = files.open(inode, writable=True, privileged=True)
        await files.truncate(inode, 0, privileged=True)
        await files.write(first, 0, large)
        monkeypatch.setattr("mountstore.namespace.sealing.seal_small", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(files.release, first)
            assert await trio.to_thread.run_sync(sealing.wait, 60)
            second = files.open(inode, writable=True, privileged=True)
            opened.set()
        await files.truncate(inode, 0, privileged=True)
        await files.write(second, 0, b"three")
        await files.release(second)
        assert await p.history(b"f") == [b"one", large]


async def test_fsync_within_a_session_supersedes_once(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"one")
        files = p.store.files
        handle = files.open(inode, writable=True, privileged=True)
        for data in (b"two", b"six", b"ten"):
            await files.write(handle, 0, data)
            await files.fsync(inode)
        assert await p.history(b"f") == [b"one"]
        await files.release(handle)
        assert await p.history(b"f") == [b"one"]
        await p.save(b"f", b"last")
        assert await p.history(b"f") == [b"one", b"ten"]


async def test_a_rename_over_a_file_leaves_what_was_there(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        for data in (b"two", b"three"):
            await p.save(b".f.tmp", data)
            p.rename(b".f.tmp", b"f")
            # A temporary name is there shorter than it is not.
            for moved in p.store.versions._moved:
                p.store.versions._moved[moved] = p.store.versions._moved[moved]._replace(at_ns=0, born_ns=0)
        assert await p.history(b"f") == [b"one", b"two"]
        assert p.names() == [b"f"]


async def test_an_unlinked_file_keeps_its_history_and_a_new_one_goes_on_with_it(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        p.unlink(b"f")
        assert await p.history(b"f") == [b"one", b"two"]
        await p.save(b"f", b"three")
        await p.save(b"f", b"four")
        assert await p.history(b"f") == [b"one", b"two", b"three"]


async def test_a_backup_by_rename_shows_in_the_history_of_the_name(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        for data in (b"two", b"three"):
            p.age(b"f")
            p.rename(b"f", b"f~")
            await p.save(b"f", data)
            p.unlink(b"f~")
        assert await p.history(b"f") == [b"one", b"two"]
        assert p.names() == [b"f"]


async def test_a_backup_that_is_deleted_unchanged_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        p.age(b"f")
        p.rename(b"f", b"f~")
        await p.save(b"f", b"two")
        p.unlink(b"f~")
        assert p.names() == [b"f"]


async def test_a_renamed_file_takes_its_history_along_and_leaves_it(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        p.rename(b"f", b"g")
        assert await p.history(b"g") == [b"one"]
        assert await p.history(b"f") == [b"one", b"two"]
        await p.save(b"g", b"three")
        assert await p.history(b"g") == [b"one", b"two"]
        assert await p.history(b"f") == [b"one", b"two"]


async def test_a_file_renamed_over_another_goes_on_with_the_others_history(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"f1")
        await p.save(b"f", b"f2")
        await p.save(b"g", b"g1")
        await p.save(b"g", b"g2")
        p.rename(b"g", b"f")
        assert await p.history(b"f") == [b"f1", b"f2"]
        assert await p.history(b"g") == [b"g1", b"g2"]
        await p.save(b"f", b"f3")
        assert await p.history(b"f") == [b"f1", b"f2", b"g2"]


async def test_logs_rotated_for_long_keep_their_histories(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"log", b"0")
        for day in range(1, 300):
            await p.save(b"log", b"%d" % day)
            p.rename(b"log", b"log.%d" % (day % 2))
            await p.save(b"log", b"new %d" % day)
        history = await p.history(b"log")
        assert history[:2] == [b"0", b"1"]
        assert history[-1] == b"299"
        number = len(history)
        found = p.store.versions.histories.get(p.store.versions.histories.of_name(ROOT, b"log"), number)
        assert found.size_bytes == 3


async def test_appends_are_kept_as_lengths(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"log", b"0")
        expected = [b"0"]
        for line in range(1, 20):
            await p.append(b"log", b"%d" % line)
            expected.append(expected[-1] + b"%d" % line)
        assert await p.history(b"log") == expected[:-1]
        kinds = p.store.catalog.ask("SELECT DISTINCT kind FROM version").fetchall()
        assert kinds == [(3,)]
        p.unlink(b"log")
        assert await p.history(b"log") == expected


async def test_hard_links_share_what_happens_in_place_and_leave_alone(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"one")
        p.store.namespace.link(inode.id, ROOT, b"g")
        await p.save(b"g", b"two")
        assert await p.history(b"f") == [b"one"]
        assert await p.history(b"g") == [b"one"]
        p.unlink(b"g")
        assert p.names() == []
        assert await p.history(b"f") == [b"one"]


async def test_exchanged_names_keep_their_own_histories(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"f1")
        await p.save(b"g", b"g1")
        p.store.namespace.exchange(ROOT, b"f", ROOT, b"g")
        assert await p.history(b"f") == [b"f1"]
        assert await p.history(b"g") == [b"g1"]


async def test_a_removed_directory_is_found_with_its_names(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        made = p.store.namespace.create(ROOT, b"d", stat.S_IFDIR | 0o755, CALLER)
        await p.save(b"f", b"one", parent=made.id)
        p.unlink(b"f", made.id)
        p.store.namespace.rmdir(ROOT, b"d")
        (version,) = p.store.versions.superseded(ROOT, b"d", None)
        assert version.directory == made.id
        assert await p.history(b"f", version.directory) == [b"one"]


async def test_what_was_fsynced_before_a_crash_is_superseded_after_it(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        inode = p.find(b"f")
        files = p.store.files
        handle = files.open(inode, writable=True, privileged=True)
        await files.write(handle, 0, b"two")
        await files.fsync(inode)
        await files.write(handle, 0, b"ten")
        await files.fsync(inode)
        rows = p.store.catalog.ask("SELECT count(*) FROM version").fetchone()
        assert rows == (1,)
        await files.release(handle)
    async with program(tmp_path) as p:
        assert await p.history(b"f") == [b"one"]


@pytest.mark.parametrize("enabled", [True, False])
async def test_versions_can_be_switched_off(tmp_path: Path, enabled: bool) -> None:
    async with program(tmp_path) as p:
        p.store.versions.enabled = enabled
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        p.unlink(b"f")
        assert (await p.history(b"f") == [b"one", b"two"]) is enabled


async def test_what_was_recorded_stays_while_versions_are_off(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        directory = p.store.namespace.create(ROOT, b"d", stat.S_IFDIR | 0o755, CALLER)
        for name in (b"overwritten", b"removed", b"replaced"):
            await p.save(name, b"one")
            await p.append(name, b" two")
        await p.save(b"inside", b"one", parent=directory.id)
        await p.save(b"inside", b"two", parent=directory.id)
        p.store.versions.enabled = False
        await p.save(b"overwritten", b"something else")
        await p.save(b"overwritten", b"not recorded")
        await p.save(b"overwritten", b"not recorded either")
        p.unlink(b"removed")
        await p.save(b"new", b"new")
        p.rename(b"new", b"replaced")
        p.unlink(b"inside", directory.id)
        p.store.namespace.rmdir(ROOT, b"d")
        for name in (b"overwritten", b"removed", b"replaced"):
            # The appended one has the bytes of the first.
            assert await p.history(name) == [b"one", b"one two"]
        assert b"d" in p.names()
        assert await p.history(b"inside", directory.id) == [b"one"]
        assert b"new" not in p.names()


async def test_a_file_renamed_to_a_name_that_is_gone_goes_on_after_its_history(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"f1")
        await p.save(b"f", b"f2")
        p.unlink(b"f")
        await p.save(b"g", b"g1")
        await p.save(b"g", b"g2")
        p.rename(b"g", b"f")
        assert await p.history(b"f") == [b"f1", b"f2", b"g1"]
        assert await p.history(b"g") == [b"g1", b"g2"]


async def test_a_file_that_moves_away_and_back_has_the_history_it_had(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        for _ in range(3):
            p.rename(b"f", b"g")
            p.rename(b"g", b"f")
        assert await p.history(b"f") == [b"one"]


async def test_a_file_that_is_changed_while_away_loses_nothing_and_does_not_grow_out_of_bounds(
    tmp_path: Path,
) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"0")
        await p.save(b"f", b"1")
        for turn in range(2, 20, 2):
            p.rename(b"f", b"g")
            await p.save(b"g", b"%d" % turn)
            p.rename(b"g", b"f")
            await p.save(b"f", b"%d" % (turn + 1))
        history = await p.history(b"f")
        assert {b"%d" % turn for turn in range(19)} <= set(history)
        assert len(history) < 19 * 19


async def test_a_version_found_by_number_is_the_one_listed(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"log", b"0")
        for turn in range(1, 12):
            await p.append(b"log", b"%d" % turn)
            if turn % 4 == 0:
                p.rename(b"log", b"log.1")
                await p.save(b"log", b"new")
        histories = p.store.versions.histories
        for name in (b"log", b"log.1"):
            for history in (histories.of_name(ROOT, name), histories.of_inode(p.find(name).id)):
                listed = list(histories.numbered(history))
                assert [number for number, _ in listed] == list(range(1, histories.count(history) + 1))
                assert [histories.get(history, number) for number, _ in listed] == [v for _, v in listed]


async def test_what_was_appended_to_and_then_overwritten_in_one_session_is_kept_whole(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"A" * 100)
        files = p.store.files
        handle = files.open(inode, writable=True, privileged=True)
        await files.write(handle, 100, b"more")
        await files.fsync(inode)
        await files.write(handle, 0, b"XXXXX")
        await files.release(handle)
        assert await p.history(b"f") == [b"A" * 100]


async def test_appended_bytes_may_come_with_the_page_they_lie_in(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"log", b"one\n")
        handle = p.store.files.open(inode, writable=True, privileged=True)
        await p.store.files.write(handle, 0, b"one\ntwo\n")
        await p.store.files.release(handle)
        assert await p.history(b"log") == [b"one\n"]
        assert p.store.catalog.ask("SELECT kind FROM version").fetchall() == [(3,)]


async def test_times_beyond_what_the_catalog_holds_do_no_harm(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"one")
        p.store.namespace.set_attributes(inode, CALLER, mtime_ns=32503680000 * 10**9)
        await p.save(b"f", b"two")
        p.store.namespace.set_attributes(inode, CALLER, mtime_ns=-(1 << 70))
        p.unlink(b"f")
        assert await p.history(b"f") == [b"one", b"two"]


async def test_a_file_replaced_while_it_has_another_link_is_a_version_of_the_name(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"one")
        p.store.namespace.link(inode.id, ROOT, b"f.dpkg-tmp")
        await p.save(b"f.dpkg-new", b"two")
        p.rename(b"f.dpkg-new", b"f")
        p.unlink(b"f.dpkg-tmp")
        assert await p.history(b"f") == [b"one"]


async def test_a_truncation_promises_nothing_that_was_not_flushed(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"A" * 1000)
        files = p.store.files
        handle = files.open(inode, writable=True, privileged=True)
        for data in (b"B" * 100, b"C" * 100):
            await files.write(handle, 0, data)
            await files.fsync(inode)
        await files.write(handle, 400, b"D" * 100)
        await files.truncate(inode, 900, privileged=True)
        row = p.store.catalog.get_draft(inode.id)
        assert row is not None
        kept = replayed(row, p.store.catalog.draft_changes()[row.staging])
        assert kept.size == 900
        assert decode(kept.dirty) == [(0, 100)]
        await files.release(handle)


async def test_a_seal_that_ends_after_the_file_was_removed_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"first")
        handle = p.store.files.open(inode, writable=True, privileged=True)
        await p.store.files.write(handle, 0, bytes(range(256)) * 4000)
        sealing = threading.Event()
        removed = threading.Event()
        def slow(*arguments: Any) -> Any:
            sealing.set()
            assert removed.wait(60)
            return seal_small(*arguments)

        monkeypatch.setattr("mountstore.namespace.sealing.seal_small", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(p.store.files.fsync, inode)
            await trio.to_thread.run_sync(sealing.wait)
            p.unlink(b"f")
            removed.set()
        await p.store.files.release(handle)
        assert p.store.catalog.ask("SELECT * FROM inode_history").fetchall() == []
        assert await p.history(b"f") == [b"first"]


async def test_what_is_known_of_removed_files_is_forgotten(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        for number in range(5):
            name = b"f%d" % number
            await p.save(name, b"one")
            await p.save(name, b"two")
            p.rename(name, b"moved")
            p.unlink(b"moved")
        assert p.store.versions._kept == {}
