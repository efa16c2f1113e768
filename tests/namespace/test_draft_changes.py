"""An fsync of a few changed bytes puts them into the catalog, and the staging file is flushed once for many."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from mountstore.blobs import flush as flush_module
from mountstore.care.checking import check_store
from mountstore.care.repair import repair_store
from mountstore.errors import CorruptError
from mountstore.namespace import draft_changes, drafts
from mountstore.namespace.catalog import DraftRow
from mountstore.namespace.draft_changes import encode_change, replay, replayed
from mountstore.namespace.draft_record import decode, encode
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.store import Store

KIB = 1 << 10


class Disk:
    """What of the staging files has been flushed: all that power loss leaves of them."""

    def __init__(self, store_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store_path
        self._copies = tmp_path
        self._number = 0
        self.flushed: dict[str, bytes] = {}
        flush = StagedDraft.flush

        def note(draft: StagedDraft) -> None:
            flush(draft)
            self.flushed[os.path.basename(draft.path)] = Path(draft.path).read_bytes()

        flush_path = flush_module.fsync_path

        def note_path(path: str, *flags: int) -> None:
            flush_path(path, *flags)
            if os.path.isfile(path):
                self.flushed[os.path.basename(path)] = Path(path).read_bytes()

        monkeypatch.setattr(StagedDraft, "flush", note)
        monkeypatch.setattr(draft_changes, "fsync_path", note_path)

    def blobs(self) -> set[str]:
        """The names of the files of all blobs."""
        return {path.name for path in Path(self._store, "blobs").rglob("*") if path.is_file()}

    def after_power_loss(self, store_path: str | None = None, *, blobs: set[str] | None = None) -> str:
        """A copy of the store with all of the catalog, and of staging files what was flushed.

        Args:
          blobs: Of others nothing reached the disk but their names; default: all did.
        """
        self._number += 1
        copy = self._copies / f"cut{self._number}"
        shutil.copytree(store_path or self._store, copy, ignore=shutil.ignore_patterns("lock"))
        for path in (copy / "staging").glob("draft-*"):
            if path.name in self.flushed:
                path.write_bytes(self.flushed[path.name])
            else:
                path.unlink()
        for path in (copy / "blobs").rglob("*"):
            if blobs is not None and path.is_file() and path.name not in blobs:
                os.truncate(path, 0)
        return str(copy)


@pytest.fixture
def disk(store_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(drafts, "MEMORY_MAX", 16 * KIB)
    return Disk(store_path, tmp_path, monkeypatch)


async def written(store: Store, name: bytes, data: bytes) -> Handle:
    inode = store.namespace.create(ROOT, name, 0o100644, Caller(0, 0))
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, data)
    await store.files.release(handle)
    await store.commits.hard_sync()
    return store.files.open(inode, writable=True, privileged=True)


async def found(path: str, name: bytes = b"f") -> bytes:
    async with Store.open(path, commit_s=3600).running() as store:
        inode = store.namespace.find(ROOT, name)
        assert inode is not None
        assert store.catalog.draft_changes() == {}
        return await store.files.read(inode, 0, inode.size + 1)


@pytest.mark.trio
@pytest.mark.parametrize("seed", range(12))
async def test_each_fsync_holds_whatever_was_flushed(store_path: str, disk: Disk, seed: int) -> None:
    choice = random.Random(seed)
    model = bytearray(choice.randbytes(100 * KIB))
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", bytes(model))
        for _ in range(25):
            what = choice.randrange(10)
            if what < 6:
                offset, data = choice.randrange(130 * KIB), choice.randbytes(choice.choice([1, 100, 5000]))
                model.extend(bytes(max(offset - len(model), 0)))
                model[offset : offset + len(data)] = data
                await store.files.write(handle, offset, data)
            elif what < 7:
                size = choice.randrange(130 * KIB)
                model = model[:size].ljust(size, b"\0")
                await store.files.truncate(handle.inode, size, privileged=True)
            elif what < 8:
                await store.files.keep_open()
                store.commits.commit()
            else:
                await store.files.fsync(handle.inode)
                path = disk.after_power_loss()
                assert await found(path) == model
                assert not any(finding.is_error for finding in check_store(path).findings)
                shutil.rmtree(path)
        await store.files.release(handle)
    assert await found(store_path) == model


@pytest.mark.trio
async def test_only_small_changes_are_kept_from_a_flush(store_path: str, disk: Disk) -> None:
    async with Store.open(store_path, commit_s=3600).running() as store:
        handle = await written(store, b"f", bytes(range(256)) * 4000)
        for number in range(3):
            await store.files.write(handle, number * 5000, b"changed")
            await store.files.fsync(handle.inode)
        assert disk.flushed == {}
        for number in range(draft_changes.CHANGE_RANGES_MAX + 1):
            await store.files.write(handle, 100_000 + number * 5000, b"many places")
        await store.files.fsync(handle.inode)
        assert len(disk.flushed) == 1 and store.catalog.draft_changes() == {}
        disk.flushed.clear()
        for number in range(draft_changes.CHANGES_BYTES_MAX // (128 * KIB)):
            assert disk.flushed == {}
            await store.files.write(handle, 0, bytes([number]) * 128 * KIB)
            await store.files.fsync(handle.inode)
        assert len(disk.flushed) == 1
        await store.files.release(handle)
        await store.commits.sync_now()
        assert store.catalog.draft_changes() == {}


@pytest.mark.trio
async def test_what_was_fsynced_holds_when_the_name_is_taken_or_the_seal_is_lost(
    store_path: str, disk: Disk
) -> None:
    """The notes of what was replaced speak of drafts, whose changes are in the catalog alone."""
    promised = {}
    async with Store.open(store_path, commit_s=3600).running() as store:
        handles = {name: await written(store, name, os.urandom(50 * KIB)) for name in (b"sealed", b"taken")}
        for name, handle in handles.items():
            await store.files.write(handle, 10 * KIB, b"fsynced")
            await store.files.fsync(handle.inode)
            promised[name] = await store.files.read(handle.inode, 0, 100 * KIB)
        before = disk.blobs()
        await store.files.write(handles[b"sealed"], 20 * KIB, os.urandom(5 * KIB))
        await store.files.release(handles[b"sealed"])
        await written_over(store, b"taken")
        await store.files.release(handles[b"taken"])
        for inode in store.namespace.forget_all():
            await store.files.drop(inode)
        store.commits.commit()
        path = disk.after_power_loss(blobs=before)
        # By now nothing has to go back.
        await store.commits.sync_now()
        assert store.catalog.draft_changes() == {}
    again = shutil.copytree(path, path + "-again")
    for name, data in promised.items():
        assert await found(path, name) == data
    repair_store(str(again), approve=lambda report: True, automatic_only=True)
    for name, data in promised.items():
        assert await found(str(again), name) == data


async def written_over(store: Store, name: bytes) -> None:
    inode = store.namespace.create(ROOT, b"new", 0o100644, Caller(0, 0))
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, os.urandom(30 * KIB))
    await store.files.release(handle)
    store.namespace.rename(ROOT, b"new", ROOT, name)


@pytest.mark.trio
async def test_a_store_without_the_table_gets_it(store_path: str) -> None:
    async with Store.open(store_path).running() as store:
        store.catalog.say("DROP TABLE draft_change")
    assert check_store(store_path).findings == ()
    async with Store.open(store_path).running() as store:
        assert store.catalog.draft_changes() == {}


def test_replaying_again_comes_to_the_same(tmp_path: Path) -> None:
    row = DraftRow(1, "draft-1-0", 10, 10, encode([]))
    changes = [
        encode_change([(5, b"abc"), (20, b"xyz")]),
        encode_change(7),
        encode_change([(30, b"end")]),
        encode_change(31),
    ]
    once = replayed(row, changes)
    assert (once.size, once.base_limit, decode(once.dirty)) == (31, 7, [(5, 7), (30, 31)])
    for _ in range(2):
        replay(row, changes, str(tmp_path))
        data = (tmp_path / row.staging).read_bytes()
        assert (data[5:7], data[30:31]) == (b"ab", b"e")
    with pytest.raises(CorruptError):
        replay(row, [b"\xc1"], str(tmp_path))
