"""Backups of a damaged store: what is whole in the copy stays so, and what is whole in the store gets there.

And backups of a store on a disk that has gone read-only, while there is time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from durability.conftest import in_memory
from durability.disks import small_disk
from mount.live import LiveMount, let_everybody_reach, run

from casctl.backups import check, fill
from casctl.program import Ended, answers, casctl, casctl_as, done
from mountstore.blobs.refs import read_refs
from mountstore.care.verify import verify_blobs

__all__ = ["in_memory"]

FSCK = Path(sys.executable).parent / "fsck.cas"


def blobs_of(directory: Path) -> list[Path]:
    """Those of the files that `fill` makes, from `directory`."""
    return sorted(path.relative_to(directory) for path in (directory / "blobs").rglob("*_c350"))


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def rot(path: Path) -> None:
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    overwrite(path, bytes(data))


@pytest.fixture
def store(mount: LiveMount) -> LiveMount:
    """A mount with some files, of which the store is going to be damaged."""
    fill(mount.path / "d", 1, 10)
    mount.checked = False
    return mount


@pytest.fixture
def backup(store: LiveMount, tmp_path: Path) -> Path:
    """A good copy of it."""
    done("backup", tmp_path / "backup", cwd=store.path)
    return tmp_path / "backup"


def backed_up(store: LiveMount, backup: Path, *arguments: str, code: int = 1) -> Ended:
    ended = casctl("backup", backup, *arguments, cwd=store.path)
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    return ended


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["quick", "full"])
def test_a_blob_cut_short_never_replaces_a_whole_one(
    store: LiveMount, backup: Path, full: list[str], tmp_path: Path
) -> None:
    cut, emptied, *_ = blobs_of(store.store)
    whole = (backup / cut).read_bytes()
    overwrite(store.store / cut, (store.store / cut).read_bytes()[:1000])
    overwrite(store.store / emptied, b"")
    later = fill(store.path / "later", 2, 3)
    ended = backed_up(store, backup, *full)
    assert cut.name in ended.stderr and emptied.name in ended.stderr and "whole in the copy" in ended.stderr
    assert (backup / cut).read_bytes() == whole
    check(backup)
    assert len(blobs_of(backup)) == 10 + len(later)
    # As the message says.
    (store.path / "mended").write_bytes(whole)
    (store.path / "mended too").write_bytes((backup / emptied).read_bytes())
    os.sync()
    store.remount()
    files = fill(tmp_path / "files", 1, 10)
    assert {path.name: path.read_bytes() for path in (store.path / "d").iterdir()} == files
    done("backup", backup, *full, cwd=store.path)


def test_a_blob_cut_short_that_the_copy_lacks_keeps_nothing_else_from_it(store: LiveMount, backup: Path) -> None:
    cut, rotten, *_ = blobs_of(store.store)
    overwrite(store.store / cut, b"short")
    (backup / cut).unlink()
    rot(store.store / rotten)
    rot(backup / rotten)
    later = fill(store.path / "later", 2, 3)
    done("snapshot", "later", cwd=store.path)
    ended = backed_up(store, backup, "--full")
    assert "not whole in the copy" in ended.stderr
    assert cut.name in ended.stderr and rotten.name in ended.stderr and "fsck.cas" in ended.stderr
    assert not (backup / cut).exists()
    assert len(blobs_of(backup)) == 9 + len(later)
    assert (backup / "blobs" / "refs" / "later").exists()


def test_rot_in_the_store_stays_there(store: LiveMount, backup: Path) -> None:
    rotten = blobs_of(store.store)[0]
    rot(store.store / rotten)
    # Nothing is wrong with the copy.
    done("backup", backup, "--full", cwd=store.path)
    check(backup)
    overwrite(backup / rotten, b"short")
    ended = backed_up(store, backup)
    assert rotten.name in ended.stderr and "not whole in the copy" in ended.stderr
    assert (backup / rotten).read_bytes() == b"short"


def test_rot_that_a_scrub_has_found_is_told_and_not_copied(
    store: LiveMount, backup: Path, tmp_path: Path
) -> None:
    rotten, noted_and_mended, *_ = blobs_of(store.store)
    for path in (rotten, noted_and_mended):
        rot(store.store / path)
    for path in (rotten, noted_and_mended):
        store.announce(rf"{path.name} is damaged")
    assert casctl("scrub", cwd=store.path).returncode == 1
    overwrite(store.store / noted_and_mended, (backup / noted_and_mended).read_bytes())
    ended = backed_up(store, backup)
    assert rotten.name in ended.stderr and "whole in the copy" in ended.stderr
    assert noted_and_mended.name not in ended.stderr
    check(backup)
    ended = backed_up(store, tmp_path / "another")
    assert rotten.name in ended.stderr and "not whole in the copy" in ended.stderr
    assert not (tmp_path / "another" / rotten).exists()
    assert (tmp_path / "another" / noted_and_mended).exists()


def test_a_damaged_ref_never_replaces_a_good_one(store: LiveMount, backup: Path) -> None:
    done("snapshot", "named", cwd=store.path)
    done("backup", backup, cwd=store.path)
    good = (backup / "blobs" / "refs" / "named").read_bytes()
    overwrite(store.store / "blobs" / "refs" / "named", good[:-10] + b"0000000000")
    fill(store.path / "later", 2, 3)
    ended = backed_up(store, backup)
    assert "ref named: is damaged" in ended.stderr
    assert (backup / "blobs" / "refs" / "named").read_bytes() == good
    check(backup)
    assert len(blobs_of(backup)) == 13
    # With every one of them damaged there is nothing that a copy could be had back by.
    store.unmount()
    for path in (store.store / "blobs" / "refs").iterdir():
        overwrite(path, b"x")
    ended = casctl("backup", "--store", store.store, backup)
    assert ended.returncode == 1 and "is not a ref" in ended.stderr
    assert not read_refs(str(backup / "blobs"))[1]
    store.start()


@pytest.mark.parametrize("lost", ["a blob", "all blobs", "a ref"])
def test_a_mirror_removes_nothing_that_the_store_has_lost(store: LiveMount, backup: Path, lost: str) -> None:
    done("snapshot", "named", cwd=store.path)
    done("backup", backup, cwd=store.path)
    before = blobs_of(backup)
    refs = {path.name for path in (backup / "blobs" / "refs").iterdir()}
    if lost == "a ref":
        overwrite(store.store / "blobs" / "refs" / "named", b"x")
    for blob in {"a blob": before[:1], "all blobs": before, "a ref": []}[lost]:
        (store.store / blob).unlink()
    ended = backed_up(store, backup, "--mirror")
    assert "nothing was removed" in ended.stderr and "named" in ended.stderr
    assert blobs_of(backup) == before
    assert refs <= {path.name for path in (backup / "blobs" / "refs").iterdir()}
    check(backup)


def test_rot_in_the_copy_of_what_the_store_let_go_of(store: LiveMount, backup: Path) -> None:
    store.unmount()
    rotten = blobs_of(store.store)[0]
    # As after a collection: the store has neither the blob nor the snapshots that need it.
    for path in (store.store / "blobs" / "refs").iterdir():
        path.unlink()
    store.start()
    for path in (store.path / "d").iterdir():
        path.unlink()
    done("prune", "--all", store.path)
    (store.path / "kept").write_bytes(b"kept")
    done("snapshot", "kept", cwd=store.path)
    done("gc", "--grace=0", cwd=store.path)
    assert not (store.store / rotten).exists()
    rot(backup / rotten)
    ended = backed_up(store, backup, "--full")
    assert rotten.name in ended.stderr and "not in the store any more" in ended.stderr
    assert (backup / "blobs" / "refs" / "kept").exists()
    done("backup", backup, "--full", "--mirror", cwd=store.path)
    assert not blobs_of(backup)
    check(backup)


def test_a_blob_that_cannot_be_read_keeps_nothing_else_from_the_copy(store: LiveMount, tmp_path: Path) -> None:
    store.unmount()
    let_everybody_reach(tmp_path)
    run("chown", "-R", "65534:65534", store.store)
    unreadable = store.store / blobs_of(store.store)[0]
    os.chown(unreadable, 0, 0)
    unreadable.chmod(0)
    backup = tmp_path / "backup"
    backup.mkdir()
    os.chown(backup, 65534, 65534)
    ended = casctl_as(65534, "backup", "--store", store.store, backup)
    assert ended.returncode == 1 and unreadable.name in ended.stderr, ended.stderr
    found = verify_blobs(str(backup))
    assert len(blobs_of(backup)) == 9 and not found.damaged and found.snapshots
    unreadable.chmod(0o400)
    run("chown", "-R", "0:0", store.store)
    done("backup", "--store", store.store, backup)
    check(backup)
    store.start()


def test_what_is_wrong_is_told_to_programs(store: LiveMount, backup: Path) -> None:
    assert all("flaws" not in answer or answer["ok"] for answer in answers("backup", backup, cwd=store.path))
    cut = blobs_of(store.store)[0]
    overwrite(store.store / cut, b"short")
    ended = casctl("--json", "backup", backup, cwd=store.path)
    assert ended.returncode == 1
    assert '"ok": false' in ended.stdout and cut.name in ended.stdout


@pytest.fixture
def on_disk(in_memory: Path) -> Iterator[tuple[LiveMount, Path]]:
    """A mount with three files whose store is on a disk of its own, and where that is mounted."""
    with small_disk(in_memory, 64) as disk:
        base = in_memory / "m"
        base.mkdir()
        (base / "store").symlink_to(disk / "store")
        mount = LiveMount(base, checked=False)
        fill(mount.path / "d", 1, 3)
        yield mount, disk


@pytest.mark.parametrize("how", ["remount,ro", "remount,abort"])
def test_a_store_on_a_disk_gone_read_only(
    on_disk: tuple[LiveMount, Path], tmp_path: Path, how: str
) -> None:
    """As ext4 goes read-only after an error (`abort`), statvfs(2) need not tell it."""
    mount, disk = on_disk
    backup = tmp_path / "backup"
    mount.finish()
    run("mount", "-o", how, disk)
    done("backup", "--store", mount.store, backup, "--full", "--mirror")
    check(backup)
    assert len(blobs_of(backup)) == 3
    repair = subprocess.run([FSCK, "-y", mount.store], capture_output=True, text=True, check=False)
    assert repair.returncode == 8 and "read-only" in repair.stderr.lower()
    mount.options = ("ro",)
    mount.start()
    try:
        done("--mount", mount.path, "backup", backup)
    finally:
        mount.finish()
    check(backup)


def test_a_mounted_store_whose_disk_goes_read_only(on_disk: tuple[LiveMount, Path], tmp_path: Path) -> None:
    mount, disk = on_disk
    backup = tmp_path / "backup"
    try:
        done("snapshot", "last", cwd=mount.path)
        fill(mount.path / "later", 2, 3)
        run("mount", "-o", "remount,abort", disk)
        ended = casctl("--mount", mount.path, "backup", backup)
    finally:
        mount.kill()
    assert ended.returncode == 0 and "as of the last one" in ended.stderr, ended.stderr
    check(backup)
    assert len(blobs_of(backup)) >= 3
