"""Garbage collection: what is collected, what never is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
import trio

from care.garbage import KEEP_NONE, NO_GRACE, PIECE_MAX, Work, bytes_like, check, picture, work
from mountstore.blobs.digest import Digest
from mountstore.care.gc import collect
from mountstore.care.gc_report import Options
from mountstore.care.sweep import Fate
from mountstore.care.trash_commands import purge, untrash
from mountstore.errors import BlobMissingError, BusyError, CorruptError, MisuseError
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.policy import ATTRIBUTE, KEEP_ALL, Policy

pytestmark = pytest.mark.trio

KEEP_TWO = Policy(keep_last=2, keep_days=0.0, thin="", short_lived_days=0.0)
LARGE = bytes_like(1, 5 * PIECE_MAX)


# --- what is collected ---


async def test_what_nothing_has_any_more_goes_to_the_trash(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.save(b"f", b"kept")
        await w.forget(b"gone")
        report = await w.collect()
        assert w.has(b"kept")
        assert not w.has(b"gone")
        assert report.collected[Fate.SUPERSEDED].blobs == 1
        assert (report.reclaimable.blobs, report.reclaimable.bytes) == (1, 4)
        assert (report.live.blobs, report.trash.blobs, report.trash.bytes) == (1, 1, 4)
        assert w.store.trash.find(Digest.of(b"gone")) is not None
        assert w.store.catalog.get_checksum(Digest.of(b"gone")) is None
        assert w.store.catalog.get_checksum(Digest.of(b"kept")) is not None


async def test_all_of_a_large_file_stays_and_all_of_one_that_nothing_has_goes(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.save(b"f", LARGE)
        needed = w.blobs()
        assert len(needed) > 3
        await w.forget(LARGE[: 3 * PIECE_MAX] + bytes_like(2, 2 * PIECE_MAX))
        assert len(w.blobs()) > len(needed)
        await w.collect()
        assert w.blobs() == needed
        assert await w.read(b"f") == LARGE


async def test_emptied_directories_go(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"gone")
        await w.collect()
        assert os.listdir(w.store.tree.root) == []


async def test_the_second_run_finds_nothing(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        w.keep(KEEP_TWO)
        for i in range(5):
            await w.save(b"f", b"%d" % i)
        await w.forget(b"gone")
        assert (await w.collect()).reclaimable.blobs == 3
        again = await w.collect()
        assert again.reclaimable.blobs == 0
        assert not sum(again.versions_dropped.values())


async def test_an_unfinished_write_leaves_nothing(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        w.store.tree.add_bytes(b"never recorded")
        report = await w.collect()
        assert report.collected[Fate.UNRECORDED].blobs == 1


async def test_what_was_placed_just_now_stays(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"gone")
        report = await w.collect(Options())
        assert w.has(b"gone")
        assert report.kept[Fate.RECENT].blobs == 1


async def test_what_lay_in_an_adopted_tree_stays_unless_it_was_used(tmp_path: Path) -> None:
    placed = tmp_path / "blobs" / Digest.of(b"old").name[0] / Digest.of(b"old").name
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"old")
    placed.chmod(0o444)
    async with work(tmp_path) as w:
        assert (await w.collect()).kept[Fate.ADOPTED].blobs == 1
        await w.collect(Options(grace_s=0.0, adopted=True))
        assert not w.has(b"old")


async def test_snapshots_that_nobody_can_read_are_not_ignored(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"needed by a snapshot")
        (tmp_path / "blobs" / "refs").mkdir()
        (tmp_path / "blobs" / "refs" / "1").write_bytes(b"?")
        with pytest.raises(CorruptError, match="snapshot 1"):
            await w.collect()
        assert w.has(b"needed by a snapshot")
        shutil.rmtree(tmp_path / "blobs" / "refs")


async def test_what_another_part_of_the_store_needs_stays(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"needed elsewhere")
        needed = Digest.of(b"needed elsewhere")
        await collect(w.store, NO_GRACE, roots=[lambda: [needed]])
        assert w.store.tree.find(needed) is not None


# --- versions ---


async def test_versions_are_dropped_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_TWO) as w:
        for i in range(6):
            await w.save(b"f", b"content %d" % i)
        report = await w.collect()
        assert w.versions(b"f") == {4: b"content 3", 5: b"content 4"}
        assert report.versions_kept == 2
        assert report.versions_dropped == {"old": 3}
        assert report.collected[Fate.DROPPED].blobs == 3
        assert report.versions.blobs == 2
        await w.save(b"f", b"content 6")
        assert w.versions(b"f")[6] == b"content 5"


async def test_a_number_is_not_used_again_when_all_versions_were_dropped(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        for i in range(4):
            await w.save(b"f", b"content %d" % i)
        await w.collect()
        assert w.versions(b"f") == {}
        await w.save(b"f", b"content 4")
        assert w.versions(b"f") == {4: b"content 3"}
    async with work(tmp_path) as w:
        assert w.versions(b"f") == {4: b"content 3"}
        w.keep(KEEP_NONE)
        await w.collect()
        await w.save(b"f", b"content 5")
        assert w.versions(b"f") == {5: b"content 4"}


async def test_a_name_that_is_gone_is_forgotten_with_its_last_version(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        await w.save(b"f", b"one")
        await w.save(b"f", b"two")
        await w.unlink(b"f")
        await w.collect()
        assert list(w.store.versions.histories.names(ROOT)) == []
        assert w.blobs() == set()
        await w.collect()
        assert w.store.catalog.ask("SELECT count(*) FROM version").fetchone() == (0,)


async def test_a_fork_keeps_what_the_other_lets_go(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        keeping = w.directory(b"keeping")
        w.store.attributes.set(keeping, ATTRIBUTE, b"keep_last=100")
        for i in range(4):
            await w.save(b"f", b"content %d" % i)
        await w.rename(b"f", b"f", ROOT, keeping.id)
        w.keep(KEEP_NONE)
        await w.collect()
        kept = {i + 1: b"content %d" % i for i in range(3)}
        assert w.versions(b"f", keeping.id) == kept
        await w.unlink(b"f", keeping.id)
        await w.collect()
        assert w.versions(b"f", keeping.id) == {**kept, 4: b"content 3"}


async def test_policies_that_are_nonsense_keep_everything_and_do_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        for number in range(30):
            directory = w.directory(b"d%d" % number)
            w.store.attributes.set(directory, ATTRIBUTE, b"nonsense" * 8000)
            for content in (b"one", b"two"):
                await w.save(b"f", content, directory.id)
        report = await w.collect()
        assert report.versions_kept == 30
        told = [record for record in caplog.records if "is not understood" in record.getMessage()]
        assert len(told) == len(report.flaws) == 11
        assert max(len(record.getMessage()) for record in told) < 500
        assert "there are more directories" in told[-1].getMessage()


async def test_a_log_keeps_all_its_versions_in_the_room_of_one(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.save(b"log", bytes_like(3, 3000))
        expected = {}
        for line in range(1, 300):
            expected[line] = await w.read(b"log")
            await w.append(b"log", b"%099d\n" % line)
        report = await w.collect()
        assert w.versions(b"log") == expected
        size = w.find(b"log").size
        assert sum(digest.size_bytes for digest in w.blobs()) < 3 * size
        assert report.versions_kept == len(expected)
        await w.unlink(b"log")
        await w.collect()
        assert len(w.versions(b"log")) == len(expected) + 1


async def test_a_version_stays_that_has_the_bytes_of_a_kept_one(tmp_path: Path) -> None:
    # The second thinning keeps the first of each hour only, which is a prefix of what is dropped.
    async with work(tmp_path, Policy(keep_last=0, keep_days=0.0, thin="1d:1y")) as w:
        await w.save(b"log", b"a")
        await w.append(b"log", b"b")
        await w.append(b"log", b"c")
        await w.save(b"log", b"rotated")
        report = await w.collect()
        found = w.versions(b"log")
        assert found[1] == b"a"
        assert found[3] == b"abc"
        assert report.versions_kept == len(found)
        assert (await w.collect()).versions_kept == len(found)


async def test_a_version_that_another_name_keeps_does_not_lose_its_bytes_here(tmp_path: Path) -> None:
    # The second version is a prefix that both names have, and what has its bytes differs.
    async with work(tmp_path) as w:
        keeping = w.directory(b"keeping")
        w.store.attributes.set(keeping, ATTRIBUTE, b"max_version_size=0")
        await w.save(b"f", b"first")
        await w.save(b"f", b"second")
        await w.append(b"f", b" and more")
        await w.rename(b"f", b"f", ROOT, keeping.id)
        assert w.versions(b"f") == {1: b"first", 2: b"second", 3: b"second and more"}
        w.keep(Policy(keep_last=100, keep_days=0.0, thin="", max_version_size=5))
        await w.collect()
        kept = w.versions(b"f", keeping.id)
        assert kept == {1: b"first", 2: b"second"}
        assert w.versions(b"f").items() >= kept.items()
        await w.save(b"f", b"something else that is longer")
        assert w.versions(b"f").items() >= kept.items()
        await w.collect()
        assert w.versions(b"f").items() >= kept.items()


async def test_policies_are_inherited_and_changed_on_the_way_down(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_TWO) as w:
        scratch = w.directory(b"scratch")
        below = w.directory(b"below", scratch.id)
        kept = w.directory(b"kept", below.id)
        flawed = w.directory(b"flawed")
        w.store.attributes.set(scratch, ATTRIBUTE, b"off")
        w.store.attributes.set(kept, ATTRIBUTE, b"on keep_last=3")
        w.store.attributes.set(flawed, ATTRIBUTE, b"keep_lats=1")
        parents = [ROOT, scratch.id, below.id, kept.id, flawed.id]
        for parent in parents:
            for i in range(6):
                await w.save(b"f", b"%d" % i, parent)
        report = await w.collect()
        assert [len(w.versions(b"f", parent)) for parent in parents] == [2, 0, 0, 3, 5]
        assert len(report.flaws) == 1


async def test_a_removed_directory_stays_as_long_as_something_in_it(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        outer = w.directory(b"outer")
        w.store.attributes.set(outer, ATTRIBUTE, b"keep_last=1 keep_days=0 thin=none short_lived_days=inf")
        inner = w.directory(b"inner", outer.id)
        await w.save(b"f", b"one", inner.id)
        await w.save(b"f", b"two", inner.id)
        await w.unlink(b"f", inner.id)
        w.store.namespace.rmdir(outer.id, b"inner")
        await w.collect()
        line = w.store.timeline.line(outer.id, b"inner")
        assert [version.directory for _, version in w.store.timeline.past(line)] == [inner.id]
        # The policy of the directory above still holds for what was in the removed one.
        assert w.versions(b"f", inner.id) == {2: b"two"}
        w.store.attributes.set(outer, ATTRIBUTE, b"off")
        await w.collect()
        assert list(w.store.versions.histories.names(outer.id)) == []
        assert list(w.store.versions.histories.names(inner.id)) == []
        assert w.blobs() == set()


async def test_what_short_lived_names_held_goes_first(tmp_path: Path) -> None:
    async with work(tmp_path, msgspec.structs.replace(KEEP_ALL, short_lived_days=0.0)) as w:
        for _ in range(3):
            await w.save(b"journal", b"pages")
            await w.unlink(b"journal")
        await w.save(b"document", b"one")
        w.find(b"document").btime_ns -= 120 * 10**9
        await w.save(b"document", b"two")
        await w.unlink(b"document")
        report = await w.collect()
        assert w.versions(b"journal") == {}
        assert w.versions(b"document") == {1: b"one", 2: b"two"}
        assert report.versions_dropped == {"short-lived name": 3}


async def test_a_new_file_written_over_a_moved_one_is_not_short_lived(tmp_path: Path) -> None:
    async with work(tmp_path, msgspec.structs.replace(KEEP_ALL, short_lived_days=0.0)) as w:
        await w.save(b"f", b"one")
        w.find(b"f").btime_ns -= 1000 * 10**9
        await w.rename(b"f", b"f~")
        await w.save(b"f", b"two")
        await w.unlink(b"f")
        await w.collect()
        assert w.versions(b"f") == {1: b"one", 2: b"two"}


async def test_a_content_that_moved_away_may_come_back_as_a_version(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        await w.save(b"f", b"one")
        w.find(b"f").btime_ns -= 1000 * 10**9
        await w.rename(b"f", b"f~")
        await w.unlink(b"f~")
        await w.collect()
        await w.save(b"f", b"two")
        assert w.versions(b"f") == {1: b"one"}


async def test_what_the_name_left_behind_no_longer_has_is_recorded_at_unlink(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.save(b"f", b"one")
        await w.save(b"f", b"two")
        await w.rename(b"f", b"g")
        w.keep(KEEP_NONE)
        await w.collect()
        assert w.versions(b"f") == {}
        await w.unlink(b"g")
        assert b"two" in w.versions(b"g").values()


# --- what is needed otherwise ---


async def test_lists_and_pins_keep_blobs_and_what_they_list(tmp_path: Path) -> None:
    async with work(tmp_path / "store") as w:
        await w.save(b"f", LARGE)
        content = w.find(b"f").content
        needed = w.blobs_of(content)
        for data in (b"pinned", b"listed", b"by path"):
            await w.forget(data)
        await w.forget(b"dropped")
        w.store.versions.enabled = False
        await w.unlink(b"f")
        assert content.digest is not None
        (tmp_path / "store" / "pins").mkdir()
        (tmp_path / "store" / "pins" / "a").write_text(f"# mine\n\n{Digest.of(b'pinned').name}\n")
        listed = tmp_path / "list"
        listed.write_text(
            f"{Digest.of(b'listed').sha256.hex()}\n/x/b/{Digest.of(b'by path').name}\n"
            f"{content.digest.sha256.hex()}\n"
        )
        report = await w.collect(Options(grace_s=0.0, keep_files=(str(listed),)))
        assert w.blobs() == needed | {Digest.of(data) for data in (b"pinned", b"listed", b"by path")}
        assert report.kept[Fate.LISTED].blobs == len(needed) + 3


@pytest.mark.parametrize("line", ["x", "../../etc/passwd", "ab" * 31, Digest.of(b"x").name + "0z"])
async def test_a_list_that_is_not_understood_stops_everything(tmp_path: Path, line: str) -> None:
    async with work(tmp_path / "store") as w:
        await w.forget(b"gone")
        (tmp_path / "list").write_text(f"{Digest.of(b'kept').name}\n{line}\n")
        with pytest.raises(MisuseError, match="list:2"):
            await w.collect(Options(grace_s=0.0, keep_files=(str(tmp_path / "list"),)))
        assert w.has(b"gone")


async def test_a_list_that_has_no_end_is_refused(tmp_path: Path) -> None:
    """A FIFO kept the mount waiting for ever, /dev/zero took all memory."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "line").write_text("a" * 100_000)
    async with work(tmp_path / "store") as w:
        for path, why in (
            (tmp_path / "fifo", "is no regular file"),
            (Path("/dev/zero"), "is no regular file"),
            (tmp_path, "is no regular file"),
            (tmp_path / "line", "line:1: is too long"),
        ):
            with pytest.raises(MisuseError, match=why):
                await w.collect(Options(grace_s=0.0, keep_files=(str(path),)))


async def test_a_file_being_written_keeps_what_was_sealed_of_it(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        files = w.store.files
        data = bytes_like(4, 12 << 20)
        inode = await w.save(b"f", b"")
        handle = files.open(inode, writable=True, privileged=True)
        half = 10 << 20
        for offset in range(0, half, 1 << 20):
            await files.write(handle, offset, data[offset : offset + (1 << 20)])
        placed = w.blobs()
        assert len(placed) > 20
        await w.collect()
        assert w.blobs() == placed
        for offset in range(half, len(data), 1 << 20):
            await files.write(handle, offset, data[offset : offset + (1 << 20)])
        await files.release(handle)
        assert await w.read(b"f") == data


async def test_an_old_version_that_is_open_can_be_read_to_its_end(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.save(b"f", LARGE)
        await w.save(b"f", b"small")
        timeline = w.store.timeline
        line = timeline.line(ROOT, b"f")
        reader = timeline.open(timeline.get(line, 1))
        assert reader.pread(0, 10) == LARGE[:10]
        w.keep(KEEP_NONE)
        await w.collect()
        assert w.versions(b"f") == {}
        assert reader.pread(0, len(LARGE)) == LARGE
        reader.close()
        del reader
        await w.collect()
        assert w.blobs() == {Digest.of(b"small")}


async def test_what_an_open_changed_file_had_becomes_a_version(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        inode = await w.save(b"f", LARGE)
        files = w.store.files
        handle = files.open(inode, writable=True, privileged=True)
        await files.truncate(inode, 0, privileged=True)
        await files.write(handle, 0, b"small")
        await w.collect()
        await files.release(handle)
        assert w.versions(b"f") == {1: LARGE}


async def test_an_unlinked_file_that_is_open_keeps_its_content(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        inode = await w.save(b"f", LARGE)
        handle = w.store.files.open(inode, writable=False, privileged=True)
        w.store.namespace.unlink(ROOT, b"f")
        w.store.namespace.forget([inode.id])
        await w.collect()
        assert await w.store.files.read(inode, 0, len(LARGE)) == LARGE
        await w.store.files.release(handle)
        await w.collect()
        assert w.blobs() == set()


async def test_nothing_is_collected_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    async with work(tmp_path / "store") as w:
        await w.save(b"f", LARGE)
        await w.forget(b"gone")
        digest = w.find(b"f").content.digest
        assert digest is not None
        w.store.tree.move_out(digest, str(tmp_path / "away"))
        before = w.blobs()
        with pytest.raises(CorruptError, match=r"fsck\.cas"):
            await w.collect()
        assert w.blobs() == before
        assert (await w.collect(Options(grace_s=0.0, dry_run=True))).flaws
        w.store.tree.publish(str(tmp_path / "away"), digest)


async def test_only_one_collects(tmp_path: Path) -> None:
    async with work(tmp_path) as w:

        async def again(done: str) -> None:
            with pytest.raises(BusyError):
                await w.collect()

        await w.collect(step=again)
        await w.collect()


# --- trash ---


async def test_trash_is_purged_when_it_is_old_enough(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"gone")
        await w.collect(Options(grace_s=0.0, purge=True))
        assert w.store.trash.find(Digest.of(b"gone")) is not None
        (day,) = os.listdir(tmp_path / "trash")
        os.rename(tmp_path / "trash" / day, tmp_path / "trash" / "2020-02-28")
        await w.forget(b"gone too")
        report = await w.collect(Options(grace_s=0.0, purge=True))
        assert (report.purged.blobs, report.purged.bytes, report.trash.blobs) == (1, 4, 1)
        assert (await purge(w.store, 0)).blobs == 1
        assert os.listdir(tmp_path / "trash") == []


async def test_what_is_in_the_trash_can_be_brought_back(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.save(b"f", LARGE)
        needed = w.blobs()
        digest = w.find(b"f").content.digest
        assert digest is not None
        w.store.versions.enabled = False
        await w.unlink(b"f")
        await w.collect()
        assert w.blobs() == set()
        assert set(await untrash(w.store, digest)) == needed
        assert w.blobs() == needed
        assert await untrash(w.store, digest) == []
        w.store.commits.commit()
        assert all(w.store.catalog.get_checksum(blob) is not None for blob in needed)
        await w.save(b"f", LARGE)
        assert await w.read(b"f") == LARGE
        with pytest.raises(BlobMissingError):
            await untrash(w.store, Digest.of(b"never"))


async def test_a_damaged_blob_is_not_brought_back(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"gone")
        await w.collect()
        path = w.store.trash.find(Digest.of(b"gone"))
        assert path is not None
        os.chmod(path, 0o644)
        Path(path).write_bytes(b"GONE")
        with pytest.raises(CorruptError):
            await untrash(w.store, Digest.of(b"gone"))


# --- a dry run ---


async def test_a_dry_run_tells_the_same_and_changes_nothing(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_TWO) as w:
        for i in range(6):
            await w.save(b"f", b"content %d" % i)
            await w.save(b"large", bytes_like(i, 3 * PIECE_MAX))
        await w.forget(b"gone")
        await w.unlink(b"large")
        await w.store.commits.hard_sync()
        tables = ("inode", "entry", "blob", "version", "name_history", "inode_history")
        rows = [w.store.catalog.ask(f"SELECT * FROM {table}").fetchall() for table in tables]
        files = picture(tmp_path)
        dry = await w.collect(Options(grace_s=0.0, dry_run=True, purge=True))
        assert picture(tmp_path) == files
        assert [w.store.catalog.ask(f"SELECT * FROM {table}").fetchall() for table in tables] == rows
        real = await w.collect()
        for field in ("live", "versions", "kept", "collected", "versions_kept", "versions_dropped"):
            assert getattr(dry, field) == getattr(real, field), field
        assert real.reclaimable.blobs > 5


# --- beside writers ---

STEPS = ("watched", "judged", "dropped", "synced", "marked", "moved", "forgotten", "swept")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("data", [b"condemned", LARGE], ids=["small", "large"])
async def test_condemned_content_that_is_written_again_is_there(tmp_path: Path, step: str, data: bytes) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        await w.forget(data)
        await w.save(b"other", b"a")
        await w.save(b"other", b"b")
        seen = set()

        async def write(done: str) -> None:
            seen.add(done)
            if done == step and not w.store.namespace.find(ROOT, b"again"):
                await w.save(b"again", data)

        await w.collect(step=write)
        assert seen == set(STEPS)
        assert await w.read(b"again") == data
        w.store.commits.commit()
        digest = w.find(b"again").content.digest
        assert digest is not None
        assert w.store.catalog.get_checksum(digest) is not None
        await w.collect()
        assert await w.read(b"again") == data
    async with work(tmp_path, KEEP_NONE) as w:
        assert await w.read(b"again") == data


@pytest.mark.parametrize("late", [False, True])
async def test_a_hit_just_before_and_just_after_the_move(
    tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the worker, between the decision and the move, and behind it."""
    async with work(tmp_path) as w:
        await w.forget(b"condemned")
        tree = w.store.tree
        retire = tree.retire
        added = []

        def interrupted(digest: Digest, destination: str) -> bool:
            if late:
                moved = retire(digest, destination)
                added.append(tree.add_bytes(b"condemned").new)
                return moved
            added.append(tree.add_bytes(b"condemned").new)
            return retire(digest, destination)

        monkeypatch.setattr(tree, "retire", interrupted)
        await w.collect()
        assert added[-1] is late
        assert w.has(b"condemned")


async def test_a_seal_that_began_before_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found a blob in the tree before anybody took notes, and is not through."""
    async with work(tmp_path, KEEP_NONE) as w:
        await w.forget(LARGE)
        reached, go_on = trio.Event(), trio.Event()
        in_thread = w.store.contents.in_thread

        async def slow(function, *arguments):  # type: ignore[no-untyped-def]
            result = await in_thread(function, *arguments)
            if function.__name__ == "_seal_memory":
                reached.set()
                await go_on.wait()
            return result

        monkeypatch.setattr(w.store.contents, "in_thread", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.save, b"again", LARGE)
            await reached.wait()
            nursery.start_soon(w.collect)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert w.store.trash.find(Digest.of(LARGE[:1])) is None
            assert list(w.store.trash.walk()) == []
            go_on.set()
        assert await w.read(b"again") == LARGE
        assert list(w.store.trash.walk()) == []


async def test_whoever_adds_outside_a_draft_is_waited_for(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await w.forget(b"wanted")
        async with trio.open_nursery() as nursery:
            with w.store.contents.adding():
                w.store.tree.add_bytes(b"wanted")
                nursery.start_soon(w.collect)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert w.has(b"wanted")
                inode = await w.save(b"f", b"")
                inode.content = inode.content._replace(
                    kind=type(inode.content.kind)(1), digest=Digest.of(b"wanted"), size_bytes=6
                )
                inode.size = inode.allocated = 6
                w.store.inodes.changed(inode)
        assert await w.read(b"f") == b"wanted"


# --- interruptions ---


class Interrupted(Exception):
    pass


async def _prepare(w: Work) -> dict[bytes, bytes]:
    """Files with versions, some to be dropped, and garbage; the contents that must survive."""
    for i in range(5):
        await w.save(b"f", b"content %d" % i)
        await w.save(b"large", bytes_like(i, 3 * PIECE_MAX))
    await w.forget(b"gone")
    await w.forget(bytes_like(9, 3 * PIECE_MAX))
    return {b"f": b"content 4", b"large": bytes_like(4, 3 * PIECE_MAX)}


@pytest.mark.parametrize("step", STEPS)
async def test_after_an_exception_everything_goes_on(tmp_path: Path, step: str) -> None:
    async with work(tmp_path) as w:
        expected = await _prepare(w)
        w.keep(KEEP_TWO)

        async def fail(done: str) -> None:
            if done == step:
                raise Interrupted

        with pytest.raises(Interrupted):
            await w.collect(step=fail)
        for name, data in expected.items():
            assert await w.read(name) == data
        await w.collect()
        assert {number: data for number, data in w.versions(b"f").items() if number > 2} == {
            3: b"content 2",
            4: b"content 3",
        }
        assert (await w.collect()).reclaimable.blobs == 0


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_kill_the_store_is_whole(tmp_path: Path, step: str) -> None:
    copy = tmp_path / "copy"
    async with work(tmp_path / "store") as w:
        expected = await _prepare(w)
        w.keep(KEEP_TWO)
        w.store.commits.commit()

        async def kill(done: str) -> None:
            # What a process leaves that dies here: the committed state, whatever is in the files.
            if done == step and not copy.exists():
                shutil.copytree(tmp_path / "store", copy, symlinks=True)

        await w.collect(step=kill)
    check(copy)
    async with work(copy, KEEP_TWO) as w:
        for name, data in expected.items():
            assert await w.read(name) == data
        for number, data in w.versions(b"f").items():
            assert data == b"content %d" % (number - 1)
        await w.collect()
        assert (await w.collect()).reclaimable.blobs == 0
        assert w.store.tree.find(Digest.of(b"gone")) is None


async def test_after_power_loss_the_catalog_needs_nothing_that_was_moved(tmp_path: Path) -> None:
    """The catalog goes back to what was flushed before the first move; the moves reached the disk."""
    flushed = tmp_path / "flushed"
    flushed.mkdir()
    async with work(tmp_path / "store") as w:
        expected = await _prepare(w)
        await w.store.commits.hard_sync()
        w.keep(KEEP_TWO)
        await w.unlink(b"large")
        flush_wal = w.store.catalog.flush_wal
        moved: list[str] = []

        def keep_copy() -> None:
            flush_wal()
            if not moved:
                for name in ("catalog.db", "catalog.db-wal"):
                    shutil.copy(tmp_path / "store" / name, flushed / name)

        w.store.catalog.flush_wal = keep_copy  # type: ignore[method-assign]

        async def step(done: str) -> None:
            if done == "moved":
                moved.append(done)

        await w.collect(step=step)
        assert moved
        await w.store.commits.hard_sync()
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
    for name in ("catalog.db", "catalog.db-wal"):
        shutil.copy(flushed / name, tmp_path / "store" / name)
    async with work(tmp_path / "store") as w:
        assert await w.read(b"f") == expected[b"f"]
        assert w.versions(b"f") == {3: b"content 2", 4: b"content 3"}
        assert len(w.versions(b"large")) == 2
