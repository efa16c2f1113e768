"""A catalog that is not the store's latest, or not its own, is not used as if nothing were wrong."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from care.garbage import bytes_like, work
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.rebuild import rebuild_store
from mountstore.care.snapshots import Snapshots
from mountstore.errors import CorruptError, MountstoreError, StoreError
from mountstore.store import Store
from mountstore.store.config import config_text, parse_config, read_config

pytestmark = pytest.mark.trio

EARLIER, LATER = bytes_like(1, 5000), bytes_like(2, 5000)


def seen(path: Path) -> list[Kind]:
    return list(check_store(str(path)).counts)


@pytest.fixture
async def outdated(tmp_path: Path) -> Path:
    """A store whose catalog was put back from a copy that was made before its last snapshot."""
    path = tmp_path / "store"
    async with work(path) as w:
        await w.save(b"earlier", EARLIER)
        await Snapshots(w.store).take("first")
    shutil.copy(path / "catalog.db", tmp_path / "catalog.db")
    async with work(path) as w:
        await w.save(b"later", LATER)
        await Snapshots(w.store).take("second")
    assert not (path / "catalog.db-wal").exists()
    shutil.copy(tmp_path / "catalog.db", path / "catalog.db")
    return path


async def test_an_older_catalog_is_refused(outdated: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = sorted(os.listdir(outdated / "blobs/refs"))
    with pytest.raises(StoreError, match=r"catalog is older than snapshot second .*fsck\.cas --rebuild"):
        Store.open(str(outdated))
    assert seen(outdated) == [Kind.CATALOG_OUTDATED, Kind.BLOB_UNRECORDED]
    with caplog.at_level(logging.WARNING):
        async with Store.open(str(outdated), read_only=True).running() as store:
            assert store.namespace.find(1, b"earlier") and not store.namespace.find(1, b"later")
    assert "older than snapshot second" in caplog.text
    # Nothing was done about the snapshots meanwhile.
    assert sorted(os.listdir(outdated / "blobs/refs")) == before


@pytest.mark.parametrize("snapshot", [None, "first"])
async def test_one_that_is_made_from_a_snapshot_is_not_older(outdated: Path, snapshot: str | None) -> None:
    rebuild_store(str(outdated), snapshot=snapshot)
    async with work(outdated) as w:
        assert await w.read(b"earlier") == EARLIER
        assert (w.store.namespace.find(1, b"later") is None) == (snapshot == "first")
    assert Kind.CATALOG_OUTDATED not in seen(outdated)


async def test_without_the_snapshot_it_can_be_used(outdated: Path, tmp_path: Path) -> None:
    os.rename(outdated / "blobs/refs/second", tmp_path / "second")
    async with work(outdated) as w:
        assert await w.read(b"earlier") == EARLIER


async def test_a_lost_wal_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with work(path) as w:
        await w.save(b"f", EARLIER)
        await Snapshots(w.store).take("first")
        # As a crash leaves it.
        shutil.copytree(path, tmp_path / "crashed")
        shutil.copytree(path, tmp_path / "without")
    os.unlink(tmp_path / "without/catalog.db-wal")
    with pytest.raises(StoreError, match="older than snapshot first"):
        Store.open(str(tmp_path / "without"))
    async with work(tmp_path / "crashed") as w:
        assert await w.read(b"f") == EARLIER


async def test_a_clock_that_is_put_back_makes_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    async with work(path) as w:
        await w.save(b"a", EARLIER)
        await Snapshots(w.store).take("today")
    yesterday_ns = time.time_ns() - 86_400_000_000_000
    async with work(path) as w:
        await w.save(b"b", LATER)
        monkeypatch.setattr(time, "time_ns", lambda: yesterday_ns)
        await Snapshots(w.store).take("yesterday")
        monkeypatch.undo()
    async with work(path) as w:
        assert await w.read(b"b") == LATER


async def test_the_catalog_of_another_store_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        async with work(tmp_path / name) as w:
            await w.save(b"f", EARLIER)
    shutil.copy(tmp_path / "other/catalog.db", tmp_path / "one/catalog.db")
    with pytest.raises(StoreError, match=read_config(str(tmp_path / "other")).uuid):
        Store.open(str(tmp_path / "one"))
    assert Kind.CATALOG_OUTDATED in seen(tmp_path / "one")


async def test_blobs_that_are_elsewhere_are_not_taken_for_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a file system of their own that was not mounted."""
    path = tmp_path / "store"
    async with work(path) as w:
        await w.save(b"f", EARLIER)
    os.rename(path / "blobs", tmp_path / "elsewhere")
    for there in (False, True):
        with pytest.raises(StoreError, match="has no blobs, but the catalog speaks of some"):
            Store.open(str(path))
        assert (path / "blobs").exists() is there
        (path / "blobs").mkdir(exist_ok=True)
    async with Store.open(str(path), read_only=True).running() as store:
        assert store.namespace.find(1, b"f") is not None
    assert "has no blobs" in caplog.text
    (path / "blobs").rmdir()
    os.rename(tmp_path / "elsewhere", path / "blobs")
    async with work(path) as w:
        assert await w.read(b"f") == EARLIER


async def test_after_a_crash_there_may_be_no_blob_yet(tmp_path: Path) -> None:
    """What of them is in the catalog is made from that, when the store has been opened."""
    path = tmp_path / "store"
    async with work(path) as w:
        inode = await w.save(b"f", EARLIER)
        await w.store.files.fsync(inode)
        shutil.copytree(path, tmp_path / "crashed", ignore=shutil.ignore_patterns("[0-9a-f]"))
    assert not [name for name in os.listdir(tmp_path / "crashed/blobs") if len(name) == 1]
    async with Store.open(str(tmp_path / "crashed")).running() as store:
        assert store.catalog.has_blobs()


async def test_a_catalog_without_a_root_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with work(path):
        pass
    with sqlite3.connect(path / "catalog.db") as db:
        db.execute("DELETE FROM inode WHERE id = 1")
    with pytest.raises(CorruptError, match=r"no root directory; fsck\.cas"):
        Store.open(str(path))


@pytest.mark.parametrize("uuid", ["", "hello", "8A3D4C2E-5D6F-4B1A-9C7E-0F1E2D3C4B5A", "8a3d4c2e"])
async def test_what_is_no_uuid_is_refused(tmp_path: Path, uuid: str) -> None:
    async with work(tmp_path / "store"):
        pass
    config = read_config(str(tmp_path / "store"))
    text = config_text(config)
    assert parse_config(text, "store.toml") == config
    with pytest.raises(StoreError, match=r"store\.toml: uuid must be one"):
        parse_config(text.replace(config.uuid, uuid), "store.toml")


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
async def test_whatever_page_of_a_catalog_is_damaged_opening_says_so_or_works(
    tmp_path: Path, filling: bytes
) -> None:
    path = tmp_path / "store"
    async with work(path) as w:
        await w.save(b"f", EARLIER)
        await w.save(b"f", LATER)
        await Snapshots(w.store).take("first")
    catalog = path / "catalog.db"
    sound = catalog.read_bytes()
    refused = 0
    for at in range(0, len(sound), 4096):
        catalog.write_bytes(sound[:at] + filling * 4096 + sound[at + 4096 :])
        try:
            async with Store.open(str(path)).running():
                pass
        except* MountstoreError:
            refused += 1
        for name in ("catalog.db-wal", "catalog.db-shm"):
            (path / name).unlink(missing_ok=True)
    assert refused > 3


async def test_what_is_no_store_but_part_of_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with work(path) as w:
        await w.save(b"f", EARLIER)
        await Snapshots(w.store).take("first")
    with pytest.raises(StoreError, match=r"the blobs of one: they belong into a directory blobs"):
        Store.open(str(path / "blobs"))
    os.unlink(path / "store.toml")
    with pytest.raises(StoreError, match=r"bring that back .* fsck\.cas --rebuild"):
        Store.open(str(path))
    with pytest.raises(StoreError, match=r"mkfs\.cas makes one"):
        Store.open(str(tmp_path))
