"""A store of somebody who wants root to read or write elsewhere, by links or by what the catalog says."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from care.garbage import work
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.notes import Notes, read_notes
from mountstore.care.repair import repair_store
from mountstore.care.snapshots import Snapshots
from mountstore.errors import CorruptError, StoreError
from mountstore.namespace.catalog import Catalog
from mountstore.store import Store
from mountstore.store.config import config_text, read_config, write_config
from mountstore.store.create import create_store
from mountstore.store.lock import StoreLock


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    create_store(str(path))
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("of root")
    path.chmod(0o600)
    os.chown(path, 0, 0)
    return path


def is_untouched(victim: Path) -> bool:
    status = victim.stat()
    return victim.read_text() == "of root" and (status.st_uid, status.st_mode & 0o777) == (0, 0o600)


def test_a_lock_that_is_a_link_is_not_followed(store: Path, victim: Path) -> None:
    (store / "lock").unlink(missing_ok=True)
    (store / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        StoreLock(str(store))
    assert is_untouched(victim)


def test_a_lock_that_is_a_file_of_somebody_else_is_not_written_to(store: Path, victim: Path) -> None:
    os.chown(store, 41001, 41001)
    (store / "lock").unlink(missing_ok=True)
    os.link(victim, store / "lock")
    with pytest.raises(StoreError, match="is not a file of the store"):
        StoreLock(str(store))
    (store / "lock").unlink()
    os.mkfifo(store / "lock")
    with pytest.raises(StoreError, match="is not a file of the store"):
        StoreLock(str(store))
    assert is_untouched(victim)


def test_nobody_but_the_owner_can_take_the_lock(store: Path) -> None:
    """flock(2) wants a descriptor only, and who may read the file gets one."""
    (store / "lock").unlink(missing_ok=True)
    StoreLock(str(store)).release()
    assert (store / "lock").stat().st_mode & 0o777 == 0o600
    (store / "lock").chmod(0o644)
    StoreLock(str(store)).release()
    assert (store / "lock").stat().st_mode & 0o777 == 0o600


def test_a_configuration_that_has_no_end_is_refused(store: Path) -> None:
    config = store / "store.toml"
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(OSError, match="is not a regular file"):
        read_config(str(store))
    config.unlink()
    config.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="is not a regular file"):
        read_config(str(store))
    config.unlink()
    with config.open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(OSError, match="File too large"):
        read_config(str(store))


def test_notes_that_have_no_end_are_none(store: Path) -> None:
    notes = store / "fsck.json"
    with notes.open("wb") as file:
        file.truncate(20 << 30)
    assert read_notes(str(notes)) == Notes()
    notes.unlink()
    os.mkfifo(notes)
    assert read_notes(str(notes)) == Notes()


def test_parts_lead_to_nothing_of_somebody_else(store: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "file").write_text("of root")
    (store / "staging").rmdir()
    (store / "staging").symlink_to(others)
    StoreLock(str(store)).release()
    os.chown(store, 41001, 41001)
    for act in (lambda: Store.open(str(store)), lambda: repair_store(str(store), approve=lambda report: True)):
        with pytest.raises(StoreError, match="does not belong to the owner"):
            act()
    assert (others / "file").read_text() == "of root"


def test_the_lock_that_root_makes_is_the_owners(store: Path) -> None:
    (store / "lock").unlink(missing_ok=True)
    os.chown(store, 41001, 41002)
    StoreLock(str(store)).release()
    status = (store / "lock").stat()
    assert (status.st_uid, status.st_gid) == (41001, 41002)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_what_is_written_anew_goes_nowhere_else(store: Path, victim: Path, link: object) -> None:
    assert callable(link)
    os.chown(store, 41001, 41001)
    for name in ("fsck.json.new", "store.toml.new"):
        link(victim, store / name)
    check_store(str(store), full=True)
    assert read_notes(str(store / "fsck.json")).full_s
    config = read_config(str(store))
    write_config(str(store), config_text(config))
    assert read_config(str(store)) == config
    assert is_untouched(victim)


@pytest.mark.trio
async def test_a_ref_goes_nowhere_else(tmp_path: Path, victim: Path) -> None:
    async with work(tmp_path / "store") as w:
        refs = Path(w.store.tree.root) / "refs"
        refs.mkdir(exist_ok=True)
        os.link(victim, refs / ".a.tmp")
        await w.save(b"f", b"f")
        await Snapshots(w.store).take("a")
    assert is_untouched(victim)


@pytest.mark.trio
async def test_a_draft_lies_in_staging(tmp_path: Path, victim: Path) -> None:
    """Else the file would be read into the store, and deleted."""
    async with work(tmp_path / "store") as w:
        await w.save(b"f", b"f")
        inode, path = w.find(b"f").id, Path(w.store.path)
    for name in (f"../../{victim.name}", str(victim), "..", ""):
        with sqlite3.connect(path / "catalog.db") as database:
            database.execute("DELETE FROM draft")
            database.execute("INSERT INTO draft VALUES (?, ?, 7, 0, ?)", (inode, name, b""))
            database.execute("UPDATE meta SET value = 0 WHERE key = 'clean'")
        database.close()
        catalog = Catalog(str(path / "catalog.db"))
        with pytest.raises(CorruptError, match="no file in staging"):
            catalog.drafts()
        catalog.close()
        assert Kind.DRAFT_LOST in check_store(str(path)).counts
        repair_store(str(path), approve=lambda report: True)
        assert check_store(str(path)).error_count == 0
        assert is_untouched(victim)
