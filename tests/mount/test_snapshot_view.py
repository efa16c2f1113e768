"""`.cas/snapshots`: the tree as it was, for ordinary programs."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import SCALE, LiveMount, run, run_as
from mount.picture import Sight, assert_same
from mount.snapshots import ask, fill, seen
from mount.test_versions import settle


@pytest.fixture
def filled(mount: LiveMount) -> LiveMount:
    """A mount with a snapshot `one` of a directory `d` that has been changed since."""
    top = mount.path / "d"
    top.mkdir()
    fill(top)
    ask(mount, "snapshot one")
    return mount


def in_view(mount: LiveMount, name: str = "one") -> Path:
    return mount.path / ".cas/snapshots" / name


def test_shows_everything_as_it_was(filled: LiveMount, tmp_path: Path) -> None:
    before = seen(filled.path / "d")
    run("cp", "-a", filled.path / "d", tmp_path / "copy")
    assert seen(in_view(filled) / "d") == before
    run("rm", "-r", filled.path / "d")
    (filled.path / "d").mkdir()
    (filled.path / "d/small").write_bytes(b"other bytes")
    assert seen(in_view(filled) / "d") == before
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert seen(in_view(filled) / "d") == before
    # diff does not compare what fifos and devices are.
    run("diff", "-r", "--no-dereference", "-x", "fifo", "-x", "device", tmp_path / "copy", in_view(filled) / "d")


@pytest.mark.parametrize("program", ["cp", "tar", "rsync"])
def test_programs_bring_it_back(filled: LiveMount, tmp_path: Path, program: str) -> None:
    old, target = in_view(filled) / "d", tmp_path / "back"
    before = seen(filled.path / "d", exact=False)
    target.mkdir()
    if program == "cp":
        run("cp", "-a", f"{old}/.", target)
    elif program == "tar":
        archive = tmp_path / "archive"
        run("tar", "-C", old, "--xattrs", "--xattrs-include=*", "-cf", archive, ".")
        run("tar", "-C", target, "--xattrs", "--xattrs-include=*", "-xpf", archive)
    else:
        run("rsync", "-aHX", f"{old}/", target)
    after = seen(target, exact=False)
    assert after == before
    times = {path: os.lstat(old / path).st_mtime_ns for path in ("small", "empty", "large")}
    assert {path: os.lstat(target / path).st_mtime_ns for path in times} == times


def test_links_are_one_inode_and_numbers_stay(filled: LiveMount) -> None:
    old = in_view(filled) / "d"
    links = [old / "small", old / "small as well", old / "deep/er/and/deeper/small too"]
    numbers = {path.stat().st_ino for path in links}
    assert len(numbers) == 1
    assert links[0].stat().st_nlink == 3
    with open(links[1], "rb") as held:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        assert {path.stat().st_ino for path in links} == numbers
        assert held.read() == b"some bytes"
    entries = {entry.name: entry.inode() for entry in os.scandir(old)}
    assert entries["small"] == entries["small as well"] == numbers.pop()
    assert os.path.realpath(old / "deep/../deep/er/..") == str(old / "deep")
    assert (old / "..").stat().st_ino == in_view(filled).stat().st_ino
    assert (in_view(filled) / "..").stat().st_ino == (filled.path / ".cas/snapshots").stat().st_ino


def test_is_read_only(filled: LiveMount) -> None:
    old = in_view(filled) / "d"
    attempts: list[Callable[[], object]] = [
        lambda: (old / "new").write_bytes(b""),
        lambda: (old / "small").write_bytes(b""),
        lambda: (old / "small").unlink(),
        lambda: (old / "hollow").rmdir(),
        lambda: (old / "new").mkdir(),
        lambda: (old / "small").rename(old / "other"),
        lambda: (old / "small").rename(filled.path / "other"),
        lambda: (filled.path / "d/small").rename(old / "other"),
        lambda: (old / "small").chmod(0o600),
        lambda: os.setxattr(old / "small", "user.new", b""),
        lambda: os.link(old / "small", filled.path / "link"),
        lambda: (in_view(filled).parent / "new").mkdir(),
        lambda: in_view(filled).rmdir(),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno in (errno.EROFS, errno.EXDEV), attempt


def test_permissions_are_those_of_then(mount: LiveMount) -> None:
    top = mount.path / "d"
    top.mkdir(mode=0o755)
    (top / "mine").write_bytes(b"of 1000")
    os.chown(top / "mine", 1000, 1000)
    (top / "mine").chmod(0o600)
    (top / "closed").mkdir(mode=0o700)
    (top / "closed/file").write_bytes(b"")
    (top / "program").write_bytes(b"#!/bin/sh\n")
    (top / "program").chmod(0o6755)
    (top / "shared").mkdir()
    (top / "shared").chmod(0o2770)
    ask(mount, "snapshot one")
    (top / "mine").chmod(0o644)
    (top / "closed").chmod(0o755)
    old = in_view(mount) / "d"
    read = "print(open(arguments[0], 'rb').read())"
    assert run_as(1000, read, old / "mine") == "b'of 1000'"
    assert run_as(1001, read, old / "mine") == "EACCES"
    assert run_as(1000, read, old / "closed/file") == "EACCES"
    assert run_as(1000, "print(os.listdir(arguments[0]))", old / "closed") == "EACCES"
    # An old program does not get its privileges back; what a directory hands down is no such thing.
    assert stat.S_IMODE((old / "program").stat().st_mode) == 0o755
    assert stat.S_IMODE((old / "shared").stat().st_mode) == 0o2770


def test_snapshots_come_and_go(mount: LiveMount) -> None:
    names = mount.path / ".cas/snapshots"
    assert os.listdir(names) == []
    (mount.path / "f").write_bytes(b"one")
    ask(mount, "snapshot one")
    (mount.path / "f").write_bytes(b"second")
    ask(mount, "snapshot two")
    (mount.path / "f").unlink()
    assert sorted(os.listdir(names)) == ["one", "two"]
    assert [(names / name / "f").read_bytes() for name in ("one", "two")] == [b"one", b"second"]
    assert not (names / "three").exists()
    assert not (names / ".one.tmp").exists()
    assert not (names / "one/.cas").exists()
    ask(mount, "snapshot-delete one")
    assert not (names / "one").exists()
    ask(mount, "snapshot one")
    assert os.listdir(names / "one") == []
    mount.remount()
    assert set(os.listdir(names)) >= {"one", "two"}
    assert (names / "two/f").read_bytes() == b"second"


def test_a_deleted_snapshot_answers_cleanly(mount: LiveMount) -> None:
    (mount.path / "d").mkdir()
    for name in ("held", "other", "third"):
        (mount.path / "d" / name).write_bytes(name.encode() * 100)
    ask(mount, "snapshot one")
    run("rm", "-r", mount.path / "d")
    old = in_view(mount) / "d"
    with open(old / "held", "rb", buffering=0) as held, open(old / "other", "rb", buffering=0) as other:
        assert held.read(4) == b"held"
        top = os.open(old, os.O_RDONLY)
        ask(mount, "snapshot-delete one")
        assert other.read() == b"other" * 100
        assert sorted(os.listdir(top)) == ["held", "other", "third"]
        ask(mount, "prune --all /d")
        ask(mount, "gc --grace 0 --purge --older-than 0")
        Path("/proc/sys/vm/drop_caches").write_text("3")
        # Open files are kept; what was not open is gone with the snapshot.
        assert held.read() == (b"held" * 100)[4:]
        with pytest.raises(OSError) as caught:
            Path(f"/proc/self/fd/{top}/third").read_bytes()
        os.close(top)
        assert caught.value.errno == errno.ESTALE
    assert not old.exists()


def test_each_snapshot_shows_its_own_time(mount: LiveMount) -> None:
    chance = random.Random(8)
    top = mount.path / "d"
    top.mkdir()
    pictures: dict[str, dict[bytes, Sight]] = {}
    for number in range(6 * SCALE):
        for _ in range(60):
            change(top, chance)
        settle(top)
        name = f"s{number}"
        ask(mount, f"snapshot {name}")
        pictures[name] = seen(top)
    for name, picture in pictures.items():
        assert_same(seen(in_view(mount, name) / "d"), picture)
    mount.remount()
    for name in chance.sample(list(pictures), 3):
        assert_same(seen(in_view(mount, name) / "d"), pictures[name])


def change(top: Path, chance: random.Random) -> None:
    """One random change somewhere below a directory."""
    places = [top, *(path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())]
    there = [path for path in top.rglob("*") if not path.is_dir()]
    new = chance.choice(places) / f"{chance.randrange(40)}"
    old = chance.choice(there) if there else None
    match chance.randrange(9):
        case 0 if not os.path.lexists(new) and len(places) < 20:
            new.mkdir()
        case 1 if not os.path.lexists(new):
            new.symlink_to(f"{chance.randrange(9)}")
        case 2 if old is not None and not new.is_dir():
            old.rename(new)
        case 3 if old is not None:
            old.unlink()
        case 4 if old is not None and not os.path.lexists(new):
            os.link(old, new, follow_symlinks=False)
        case 5 if old is not None and not old.is_symlink():
            os.setxattr(old, f"user.{chance.randrange(3)}", chance.randbytes(20))
        case 6:
            chance.choice(places).chmod(0o700 | chance.randrange(0o77))
        case 7 if len(places) > 5:
            shutil.rmtree(places[-1])
        case _ if not new.is_dir() and not new.is_symlink():
            new.write_bytes(chance.randbytes(chance.randrange(200)))
        case _:
            pass


def test_a_long_directory(mount: LiveMount) -> None:
    count = 10_000 * SCALE
    top = mount.path / "many"
    top.mkdir()
    for i in range(count):
        os.mknod(top / f"{i:x}")
    ask(mount, "snapshot one")
    run("rm", "-r", top)
    entries = os.listdir(in_view(mount) / "many")
    assert len(entries) == count
    assert set(entries) == {f"{i:x}" for i in range(count)}
    listed = subprocess.run(["ls", "-lf", in_view(mount) / "many"], capture_output=True, check=True, text=True)
    assert len(listed.stdout.splitlines()) == count + 2 + listed.stdout.startswith("total")
    # Going back within a listing.
    fd = os.open(in_view(mount) / "many", os.O_RDONLY)
    assert os.listdir(fd) == os.listdir(fd) == entries
    os.close(fd)


def test_read_only_mount_shows_snapshots(make_mount: MountMaker) -> None:
    mount = make_mount()
    (mount.path / "f").write_bytes(b"then")
    ask(mount, "snapshot one")
    (mount.path / "f").write_bytes(b"now")
    mount.unmount()
    mount.options = ("ro",)
    mount.start()
    assert (in_view(mount) / "f").read_bytes() == b"then"
    assert (mount.path / "f").read_bytes() == b"now"
