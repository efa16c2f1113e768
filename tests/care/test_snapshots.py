"""Taking snapshots: each shows one instant, whatever happened before, meanwhile and afterwards."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from mount.live import SCALE

from care.garbage import CALLER, KEEP_NONE, NO_GRACE, PIECE_MAX, Work, bytes_like, work
from care.pictures import Picture, newest, of_snapshot, of_store, refs_in
from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import Ref, read_ref, write_ref
from mountstore.care import snapshots as taking
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.snapshot_image import Image
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.snapshots import Snapshots
from mountstore.errors import AbsentError, ExistsError, MisuseError, NoSpaceError, ReadOnlyError
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.snapshot_policy import SnapshotPolicy
from mountstore.namespace.totals import read_totals
from mountstore.namespace.usage import Usage
from mountstore.store import Store

pytestmark = pytest.mark.trio

ODD_NAMES = [b"\xff\xfe", b"new\nline", b" ", b"-rf", b"a" * 255, "é".encode(), "e\u0301".encode(), b"\x01\x7f"]


async def picture_of(store: Store, name: str) -> Picture:
    tree = await Snapshots(store).open(name)
    return of_snapshot(tree)


async def content_of(store: Store, name: str, path: bytes) -> bytes:
    """A file's bytes as a snapshot has them, read by its blobs."""
    tree = await Snapshots(store).open(name)
    number = ROOT
    for part in path.split(b"/"):
        entry = tree.lookup(number, part)
        assert entry is not None
        number = entry.inode
    reader = store.contents.open_reader(tree.inode(number).content)
    if reader is None:
        return b""
    try:
        return reader.pread(0, tree.inode(number).size)
    finally:
        reader.close()


class Changer:
    """Does anything that can be done to names, attributes and contents, at random."""

    def __init__(self, w: Work, seed: int) -> None:
        self.w = w
        self.random = random.Random(seed)
        self.directories = [ROOT]
        self.names = [b"%d" % i for i in range(20)] + ODD_NAMES

    def _place(self) -> tuple[int, bytes]:
        return self.random.choice(self.directories), self.random.choice(self.names)

    async def act(self) -> None:
        w, (parent, name) = self.w, self._place()
        namespace = w.store.namespace
        found = namespace.find(parent, name)
        what = self.random.randrange(12)
        if found is None:
            await self._make(parent, name)
        elif found.is_directory:
            if what < 3 and not w.store.catalog.has_entries(found.id):
                namespace.rmdir(parent, name)
                self.directories.remove(found.id)
            elif what < 6:
                namespace.set_attributes(found, CALLER, mode=self.random.randrange(0o7777), uid=what)
            elif what < 8:
                w.store.attributes.set(found, b"user.%d" % what, bytes_like(what, what * 100))
        elif what < 2:
            await w.unlink(name, parent)
        elif what < 5:
            new_parent, new_name = self._place()
            at = namespace.find(new_parent, new_name)
            if at is None or not at.is_directory:
                await w.rename(name, new_name, parent, new_parent)
        elif what == 5:
            new_parent, new_name = self._place()
            if namespace.find(new_parent, new_name) is None:
                namespace.link(found.id, new_parent, new_name)
        elif what == 6:
            w.store.attributes.set(found, b"user.name", bytes_like(what, self.random.randrange(3000)))
        elif what == 7 and found.xattrs:
            w.store.attributes.remove(found, w.store.attributes.names(found, trusted=True)[0])
        elif found.is_regular:
            await w.save(name, self._bytes(), parent)

    def _bytes(self) -> bytes:
        size = self.random.choice([0, 1, 100, 100, PIECE_MAX, 3 * PIECE_MAX])
        return bytes_like(self.random.randrange(30), size)

    async def _make(self, parent: int, name: bytes) -> None:
        namespace = self.w.store.namespace
        what = self.random.randrange(10)
        if what < 2 and len(self.directories) < 30:
            self.directories.append(self.w.directory(name, parent).id)
        elif what == 2:
            namespace.create(parent, name, stat.S_IFLNK | 0o777, CALLER, target=b"to \xff" + name)
        elif what == 3:
            namespace.create(parent, name, stat.S_IFBLK | 0o600, CALLER, rdev=os.makedev(8, 1 << 10))
        elif what == 4:
            namespace.create(parent, name, stat.S_IFIFO | 0o600, CALLER)
        elif what == 5:
            many = self.random.randrange(1 << 60)
            for i in range(self.random.choice([0, 0, 0, 0, 0, 0, 400])):
                namespace.create(parent, b"%d-%d" % (many, i), stat.S_IFREG | 0o644, CALLER)
        else:
            await self.w.save(name, self._bytes(), parent)


# --- what they show ---


@pytest.mark.parametrize("seed", range(SCALE))
async def test_each_of_many_snapshots_shows_what_there_was(tmp_path: Path, seed: int) -> None:
    expected: dict[str, Picture] = {}
    changer: Changer | None = None
    numbers = itertools.count()
    for _ in range(2):
        async with work(tmp_path) as w:
            changer = changer or Changer(w, seed)
            changer.w = w
            taker = Snapshots(w.store)
            for _ in range(25):
                for _ in range(changer.random.randrange(1, 60)):
                    await changer.act()
                name = f"s{next(numbers)}"
                await taker.take(name)
                expected[name] = of_store(w.store)
            deleted = list(expected)[::7]
            with pytest.raises(AbsentError, match="there is no snapshot nope; none was deleted"):
                await taker.delete(*deleted, "nope")
            await taker.delete(*deleted)
            for name in deleted:
                del expected[name]
            w.keep(KEEP_NONE)
            await w.collect(NO_GRACE)
            for name, picture in expected.items():
                assert await picture_of(w.store, name) == picture
    async with work(tmp_path) as w:
        assert {info.name for info in await Snapshots(w.store).list()} == set(expected)
        for name, (inodes, _, histories, _) in expected.items():
            contents = [record.content for record in inodes.values() if record.kind]
            contents += [row.content for rows in histories.values() for row in rows if row.sha256 is not None]
            for content in set(contents):
                for digest in w.blobs_of(content):
                    assert w.store.tree.find(digest) is not None, name


async def test_a_snapshot_is_of_one_instant_whatever_writers_do(tmp_path: Path) -> None:
    """Programs rename two names at once, again and again: no snapshot has one without the other."""
    async with work(tmp_path) as w:
        for i in range(400):
            await w.save(b"file%d" % i, b"%d" % i)
        await w.save(b"left0", b"a")
        right = w.directory(b"right")
        await w.save(b"right0", b"b", right.id)
        taker = Snapshots(w.store)
        ended = False
        moves = 0

        async def move() -> None:
            nonlocal moves
            while not ended:
                await w.rename(b"left%d" % moves, b"left%d" % (moves + 1))
                await w.rename(b"right%d" % moves, b"right%d" % (moves + 1), right.id, right.id)
                moves += 1
                await trio.sleep(0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            before = 0
            for i in range(15):
                await taker.take(f"s{i}")
                if moves == before:
                    await trio.sleep(0.01)
                before = moves
            ended = True
        seen = set()
        for i in range(15):
            tree = await taker.open(f"s{i}")
            left = [e.name for e in tree.listing(ROOT) if e.name.startswith(b"left") and e.inode]
            right_names = [e.name for e in tree.listing(right.id) if e.inode]
            assert len(left) == len(right_names) == 1
            assert left[0][4:] == right_names[0][5:]
            seen.add(left[0])
        assert len(seen) > 5


async def test_files_that_are_open_are_as_they_were_sealed_last(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        inode = await w.save(b"open", b"sealed")
        handle = w.store.files.open(inode, writable=True, privileged=True)
        await w.store.files.write(handle, 0, b"being written now")
        await Snapshots(w.store).take("one")
        assert await content_of(w.store, "one", b"open") == b"sealed"
        await w.store.files.release(handle)
        await Snapshots(w.store).take("two")
        assert await content_of(w.store, "two", b"open") == b"being written now"
        assert await content_of(w.store, "one", b"open") == b"sealed"


async def test_removed_files_that_are_still_open_are_not_in_it(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        inode = await w.save(b"gone", b"bytes")
        handle = w.store.files.open(inode, writable=False, privileged=True)
        w.store.namespace.unlink(ROOT, b"gone")
        await Snapshots(w.store).take("one")
        inodes, listings, _, _ = await picture_of(w.store, "one")
        assert inode.id not in inodes
        assert [(entry.name, entry.inode) for entry in listings[ROOT]] == [(b"gone", 0)]
        await w.store.files.release(handle)
        for unused in w.store.namespace.forget([inode.id]):
            await w.store.files.drop(unused)


async def test_histories_of_names_in_removed_directories_are_in_it(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        directory = w.directory(b"d")
        for i in range(3):
            await w.save(b"f", b"%d" % i, directory.id)
        await w.unlink(b"f", directory.id)
        await Snapshots(w.store).take("before")
        w.store.namespace.rmdir(ROOT, b"d")
        w.store.namespace.forget([directory.id])
        await Snapshots(w.store).take("after")
        tree = await Snapshots(w.store).open("after")
        assert [entry.name for entry in tree.listing(directory.id)] == [b"f"]
        assert tree.inode(directory.id).is_ghost
        w.keep(KEEP_NONE)
        await w.collect(NO_GRACE)
        await Snapshots(w.store).take("collected")
        assert newest(w.store) == of_store(w.store)
        assert directory.id not in (await picture_of(w.store, "collected"))[1]


async def test_a_huge_directory_is_changed_a_leaf_at_a_time(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        huge = w.directory(b"huge").id
        for i in range(20_000):
            w.store.namespace.create(huge, b"name-%d" % i, stat.S_IFREG | 0o644, CALLER)
        taker = Snapshots(w.store)
        first = await taker.take("first")
        assert newest(w.store) == of_store(w.store)
        w.store.namespace.unlink(huge, b"name-777")
        w.store.namespace.forget([w.store.inodes.next_id()])
        w.store.namespace.create(huge, b"name-777x", stat.S_IFREG | 0o644, CALLER)
        w.store.namespace.rename(huge, b"name-5", huge, b"moved")
        second = await taker.take("second")
        assert newest(w.store) == of_store(w.store)
        assert second.new_bytes * 10 < first.new_bytes
        assert second.new_blobs < 20


# --- what is shared ---


async def test_what_did_not_change_is_shared(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        directories = [w.directory(b"d%d" % i).id for i in range(100)]
        for parent in directories:
            for i in range(50):
                w.store.namespace.create(parent, b"file-%d" % i, stat.S_IFREG | 0o644, CALLER)
        taker = Snapshots(w.store)
        first = await taker.take("first")
        await w.save(b"file-7", b"changed", directories[30])
        second = await taker.take("second")
        # The file's page, the directory's page, a history page, the nodes above, the root.
        assert second.new_blobs <= 6
        assert second.new_bytes * 20 < first.new_bytes
        third = await taker.take("third")
        assert third.new_blobs == 1
        assert await taker.take_automatic() is None


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), RuntimeError("no new thread")])
async def test_a_snapshot_that_fails_in_any_way_does_not_end_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def fail(self: Snapshots) -> None:
        raise error

    async with work(tmp_path) as w:
        monkeypatch.setattr(Snapshots, "take_automatic", fail)
        assert not await Snapshots(w.store).take_last()
    assert str(error) in caplog.text


async def test_without_any_snapshot_one_is_taken_though_nothing_changed(tmp_path: Path) -> None:
    """The refs may have been lost, and with them all that the blobs alone could bring back."""
    async with work(tmp_path / "store") as w:
        await w.save(b"file", b"content")
        taker = Snapshots(w.store)
        first = await taker.take_automatic()
        assert first is not None
        assert await taker.take_automatic() is None
        os.unlink(tmp_path / "store" / "blobs" / "refs" / first.info.name)
        shutil.copytree(tmp_path / "store", tmp_path / "copy", ignore=shutil.ignore_patterns("lock"))
        told = check_store(str(tmp_path / "copy")).findings
        assert [finding.kind for finding in told] == [Kind.SNAPSHOT_NONE]
        second = await taker.take_automatic()
        assert second is not None and second.info.inodes == first.info.inodes
        assert await taker.take_automatic() is None


async def test_sparse_files_that_are_more_in_sum_than_a_number_can_say(tmp_path: Path) -> None:
    most = (1 << 63) - 1
    async with work(tmp_path) as w:
        for name in (b"a", b"b", b"c"):
            file = await w.save(name, b"")
            await w.store.files.truncate(file, most - 1, privileged=True)
            await w.store.commits.hard_sync()
        taker = Snapshots(w.store)
        assert (await taker.take("all")).info.bytes == most
        assert read_totals(w.store.catalog.path).logical_bytes == most
        with Usage(w.store.catalog.path, b"/") as usage:
            assert usage.totals().logical_bytes == most
        for name in (b"a", b"b"):
            await w.unlink(name)
        await w.save(b"small", b"12345")
        assert (await taker.take("one")).info.bytes == pytest.approx(most)
        await w.unlink(b"c")
        assert (await taker.take("none")).info.bytes == 5


async def test_after_kill_nothing_that_changed_is_forgotten(tmp_path: Path) -> None:
    """What the catalog committed before it was killed is in the next snapshot."""
    async with work(tmp_path / "a") as w:
        for i in range(300):
            await w.save(b"%d" % i, b"%d" % i)
        await Snapshots(w.store).take("first")
        await w.save(b"7", b"other")
        await w.unlink(b"8")
        w.store.attributes.set(w.find(b"9"), b"user.a", b"b")
        w.store.commits.commit()
        w.store.catalog.flush_wal()
        copied = tmp_path / "b"
        os.mkdir(copied)
        for name in ("store.toml", "catalog.db", "catalog.db-wal", "blobs"):
            os.system(f"cp -a '{tmp_path}/a/{name}' '{copied}/'")
    async with work(copied) as w:
        assert w.store.catalog.stale.changed
        taken = await Snapshots(w.store).take("second")
        assert newest(w.store) == of_store(w.store)
        assert taken.new_blobs < 10
        assert w.store.namespace.find(ROOT, b"8") is None


# --- names, listing, deletion ---


async def test_names_are_checked(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        taker = Snapshots(w.store)
        for name in ("", ".", "..", "a/b", "a b", "-x", ".x", "é", "a" * 101, "auto-1"):
            with pytest.raises(MisuseError):
                await taker.take(name)
        await taker.take("a")
        with pytest.raises(ExistsError):
            await taker.take("a")
        with pytest.raises(AbsentError):
            await taker.delete("b")
        with pytest.raises(AbsentError):
            await taker.open("b")
        unnamed = await taker.take()
        assert {info.name for info in await taker.list()} == {"a", unnamed.info.name}
        assert not unnamed.info.automatic
        await taker.delete("a")
        assert [info.name for info in await taker.list()] == [unnamed.info.name]


async def test_a_store_without_writes_takes_none(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        w.store.namespace.read_only = True
        with pytest.raises(ReadOnlyError):
            await Snapshots(w.store).take("a")
        with pytest.raises(ReadOnlyError):
            await Snapshots(w.store).delete("a")
    assert refs_in(tmp_path) == []


async def test_a_deleted_snapshot_frees_what_only_it_had(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        only = bytes_like(1, 3 * PIECE_MAX)
        await w.save(b"a", only)
        taker = Snapshots(w.store)
        await taker.take("a")
        needed = w.blobs_of(w.find(b"a").content)
        await w.unlink(b"a")
        w.store.versions.moved()
        report = await w.collect(NO_GRACE)
        assert needed <= w.blobs()
        assert report.snapshots.blobs >= len(needed)
        await taker.delete("a")
        await w.collect(NO_GRACE)
        assert not needed & w.blobs()
        # What the next one is built on stays, and nothing else.
        await taker.take("b")
        await w.collect(NO_GRACE)
        assert newest(w.store) == of_store(w.store)
        tree = await taker.open("b")
        assert w.blobs() == set(tree.pages())


# --- failures ---


class FailsAt:
    """A call that fails for want of room once, at some time."""

    def __init__(self, number: int, call: Callable[..., object]) -> None:
        self._calls = itertools.count(1)
        self._number = number
        self._call = call

    def __call__(self, *arguments: object) -> object:
        if next(self._calls) == self._number:
            raise OSError(errno.ENOSPC, "no room")
        return self._call(*arguments)


async def test_a_full_disk_leaves_no_snapshot_and_the_next_one_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with work(tmp_path) as w:
        taker = Snapshots(w.store)
        for round_ in range(2):
            for i in range(200):
                await w.save(b"%d" % i, b"%d %d" % (i, round_))
            if round_:
                await taker.take("before")
                await w.save(b"1", b"changed")
            for fails_at in range(1, 5):
                with monkeypatch.context() as patch:
                    patch.setattr(w.store.tree, "add_bytes", FailsAt(fails_at, w.store.tree.add_bytes))
                    with pytest.raises(OSError, match="no room"):
                        await taker.take("full")
            assert "full" not in refs_in(tmp_path)
        await taker.take("after")
        assert newest(w.store) == of_store(w.store)


async def test_a_ref_that_cannot_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with work(tmp_path) as w:
        await w.save(b"a", b"a")

        def fail(blobs: str, ref: object) -> None:
            raise NoSpaceError("no room for the ref")

        with monkeypatch.context() as patch:
            patch.setattr(taking, "write_ref", fail)
            with pytest.raises(NoSpaceError):
                await Snapshots(w.store).take("one")
            assert not await Snapshots(w.store).take_last()
        assert w.store.catalog.stale.changed
        assert refs_in(tmp_path) == []
        await w.collect(NO_GRACE)
        await Snapshots(w.store).take("one")
        assert newest(w.store) == of_store(w.store)


async def test_when_a_ref_is_written_everything_below_it_survives_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with work(tmp_path) as w:
        written = 0

        def write(blobs: str, ref: Ref) -> None:
            nonlocal written
            tree = SnapshotTree(w.store.tree, ref.root)
            needed = {digest for content in tree.references() for digest in w.blobs_of(content)}
            catalog = sqlite3.connect(tmp_path / "catalog.db")
            unsynced = {Digest(*row) for row in catalog.execute("SELECT sha256, size FROM unsynced")}
            catalog.close()
            assert not needed & unsynced
            assert not w.store.ledger.has_journaled
            written += 1
            write_ref(blobs, ref)

        monkeypatch.setattr(taking, "write_ref", write)
        await w.store.commits.hard_sync()
        for i in range(4):
            # A few small blobs: an fsync would put them into the journal.
            await w.save(b"a", b"%d" % i)
            await w.store.commits.hard_sync()
            await w.save(b"b", b"and %d" % i)
            await Snapshots(w.store).take(f"s{i}")
        assert written == 4


async def test_automatic_snapshots_come_by_themselves_if_something_changed(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Snapshots(w.store).keep, 0.1)
            first = await _wait_for_another(tmp_path, [])
            # Nothing changes: only the clock could bring another one.
            await trio.sleep(0.5)
            assert refs_in(tmp_path) == first
            await w.save(b"a", b"a")
            # The first is of the same hour.
            assert len(await _wait_for_another(tmp_path, first)) == 1
            nursery.cancel_scope.cancel()
        assert newest(w.store) == of_store(w.store)
        w.store.config = msgspec.structs.replace(
            w.store.config, snapshots=SnapshotPolicy(keep_hourly=0, keep_daily=0, keep_monthly=0)
        )
        await Snapshots(w.store).take("by-hand")
        await w.save(b"a", b"b")
        assert await Snapshots(w.store).take_last()
        left = refs_in(tmp_path)
        assert len(left) == 2
        assert "by-hand" in left


@pytest.mark.parametrize(("ahead_s", "told"), [(30, False), (300, True), (10 * 365 * 86_400, True)])
async def test_after_the_clock_was_set_back_the_last_snapshot_is_still_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ahead_s: int, told: bool
) -> None:
    async with work(tmp_path) as w:
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + ahead_s * 10**9)
        await w.save(b"a", b"ahead")
        assert await Snapshots(w.store).take_last()
        (future,) = refs_in(tmp_path)
        monkeypatch.undo()
        await w.save(b"a", b"right")
        assert await Snapshots(w.store).take_last()
        assert newest(w.store) == of_store(w.store)
        assert refs_in(tmp_path) != [future]
        assert ("ahead of the clock" in caplog.text) is told
        for info in await Snapshots(w.store).list():
            await Snapshots(w.store).delete(info.name)
        caplog.clear()
        # Nothing of that time is left.
        taken = await Snapshots(w.store).take()
        assert abs(taken.info.time_ns - real()) < 60 * 10**9 and "ahead" not in caplog.text


async def _wait_for_another(path: Path, known: list[str]) -> list[str]:
    with trio.fail_after(20):
        while refs_in(path) == known or len(refs_in(path)) != 1:
            await trio.sleep(0.01)
    return refs_in(path)


async def test_when_the_last_snapshot_is_damaged_all_of_the_next_is_written(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        for i in range(200):
            await w.save(b"%d" % i, b"%d" % i)
        taker = Snapshots(w.store)
        await taker.take("first")
        tree = await taker.open("first")
        for page in list(tree.pages())[1:]:
            path = w.store.tree.find(page)
            assert path is not None
            os.chmod(path, 0o644)
            Path(path).write_bytes(bytes(page.size_bytes))
            os.chmod(path, 0o444)
        await w.save(b"5", b"changed")
        await taker.take("second")
        assert newest(w.store) == of_store(w.store)
        await taker.delete("first")
        await w.collect(NO_GRACE)


async def test_a_cancelled_snapshot_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with work(tmp_path) as w:
        for i in range(500):
            await w.save(b"%d" % i, b"%d" % i)
        taker = Snapshots(w.store)
        monkeypatch.setattr(taking, "_STRETCH_S", 0.0)
        with trio.CancelScope() as scope:
            write = Image.take_written

            def cancel(image: Image) -> object:
                scope.cancel()
                return write(image)

            monkeypatch.setattr(Image, "take_written", cancel)
            await taker.take("one")
        assert scope.cancelled_caught
        monkeypatch.setattr(Image, "take_written", write)
        assert refs_in(tmp_path) == []
        await taker.take("two")
        assert newest(w.store) == of_store(w.store)


# --- and garbage collection ---


@pytest.mark.parametrize("step", ["watched", "judged", "dropped", "synced", "marked", "moved", "swept"])
async def test_what_a_snapshot_needs_that_is_taken_meanwhile_is_not_collected(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage collection drops the versions that a snapshot shows, whose instant was before, and which is written
    as late as it can be: when the collection waits for it, or is over."""
    async with work(tmp_path, KEEP_NONE) as w:
        taker = Snapshots(w.store)
        over = False
        has_instant = trio.Event()
        write = Snapshots._write

        async def write_late(self: Snapshots, *arguments: Any) -> Any:
            has_instant.set()
            while not over and not w.store.snapshotting.statistics().tasks_waiting:
                await trio.sleep(0.001)
                if step == "watched":
                    # It waits for additions that have begun before.
                    break
            return await write(self, *arguments)

        await w.save(b"other", b"x" * 100)
        await taker.take("base")
        for i in range(4):
            await w.save(b"f", bytes_like(i, 1000))
        await w.forget(b"garbage")
        monkeypatch.setattr(Snapshots, "_write", write_late)
        async with trio.open_nursery() as nursery:

            async def begin(done: str) -> None:
                nonlocal over
                if done == step:
                    nursery.start_soon(taker.take, "meanwhile")
                    await has_instant.wait()
                over = over or done == "swept"

            await w.collect(NO_GRACE, step=begin)
        monkeypatch.setattr(Snapshots, "_write", write)
        await check_complete(w)
        await w.collect(NO_GRACE)
        await check_complete(w)


async def check_complete(w: Work) -> None:
    """Everything that any snapshot needs is there."""
    for info in await Snapshots(w.store).list():
        assert info.flaw is None
        tree = SnapshotTree(w.store.tree, read_ref(w.store.tree.root, info.name).root)
        of_snapshot(tree)
        for content in tree.references():
            for digest in w.blobs_of(content):
                assert w.store.tree.find(digest) is not None, info.name


async def test_a_snapshot_that_is_deleted_while_refs_are_read_hinders_no_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        await w.save(b"f", b"x" * 100)
        taker = Snapshots(w.store)
        for name in ("goes", "stays"):
            await taker.take(name)
        await w.forget(b"garbage")

        def read_late(blobs: str, name: str) -> Ref:
            (Path(blobs) / "refs" / "goes").unlink(missing_ok=True)
            return read_ref(blobs, name)

        monkeypatch.setattr("mountstore.blobs.refs.read_ref", read_late)
        report = await w.collect(NO_GRACE)
        assert report.flaws == []
        assert w.store.tree.find(Digest.of(b"garbage")) is None
        assert [info.name for info in await taker.list()] == ["stays"]


@pytest.mark.parametrize("seed", range(3))
async def test_snapshots_collections_and_changes_in_any_order(tmp_path: Path, seed: int) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        changer = Changer(w, seed)
        taker = Snapshots(w.store)
        ended = trio.Event()

        async def change() -> None:
            for _ in range(400):
                await changer.act()
                await trio.sleep(0)
            ended.set()

        async def take() -> None:
            names: list[str] = []
            for number in itertools.count():
                if ended.is_set():
                    return
                await taker.take(f"s{number}")
                names.append(f"s{number}")
                if number > 4:
                    await taker.delete(names.pop(changer.random.randrange(len(names))))

        async def collect() -> None:
            while not ended.is_set():
                await w.collect(NO_GRACE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            nursery.start_soon(take)
            nursery.start_soon(collect)
        await check_complete(w)
        await taker.take("last")
        assert newest(w.store) == of_store(w.store)
        await w.collect(NO_GRACE)
        await check_complete(w)
