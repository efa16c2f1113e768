"""A full disk: whoever writes is told, nothing acknowledged is lost, and the mount goes on (promise 4)."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mount.consistency import check_store
from mount.live import LiveMount

from durability.disks import fill, small_disk, use_up_inodes

MOUNT = Path(sys.executable).parent / "mount.cas"
KIB = 1 << 10
FULL = (errno.ENOSPC, errno.EDQUOT)


def write(path: Path, data: bytes, *, sync: bool = True) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    write(path.with_suffix(".new"), data)
    os.rename(path.with_suffix(".new"), path)


def append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def mount_on(disk: Path, base: Path, *, checked: bool = True) -> LiveMount:
    """A mount whose store is on the small disk, and nothing else of it."""
    (base / "m").mkdir()
    (base / "m/store").symlink_to(disk / "store")
    return LiveMount(base / "m", checked=checked)


def refused(operation: Callable[[], object]) -> bool:
    """Run what may fail for want of room, and in no other way."""
    try:
        operation()
    except OSError as exc:
        assert exc.errno in FULL, exc
        return True
    return False


@pytest.fixture
def announced() -> tuple[str, ...]:
    return (
        "no room",
        "No space left on device",
        "there is room again",
        "database or disk is full",
    )


def test_every_operation_on_a_full_disk_fails_well_and_succeeds_when_there_is_room(
    in_memory: Path, announced: tuple[str, ...]
) -> None:
    choice = random.Random(1)
    with small_disk(in_memory, 64) as disk:
        mount = mount_on(disk, in_memory)
        try:
            root = mount.path
            kept = {f"kept-{i}": choice.randbytes(50 * KIB) for i in range(20)}
            for name, data in kept.items():
                write(root / name, data)
            (root / "old").write_bytes(b"old")
            (root / "grows").write_bytes(b"begin")
            for number in range(3000):
                (root / f"empty-{number}").touch()
            sync(root)

            fill(disk)
            operations: dict[str, Callable[[], object]] = {
                "small": lambda: write(root / "small", choice.randbytes(10 * KIB)),
                "large": lambda: write(root / "large", choice.randbytes(12_000 * KIB)),
                "replace": lambda: replace(root / "old", choice.randbytes(KIB)),
                "append": lambda: append(root / "grows", choice.randbytes(100 * KIB)),
                "tiny": lambda: write(root / "tiny", b"tiny"),
            }
            assert [name for name, operation in operations.items() if not refused(operation)] == []
            # A program that does not fsync is told at the latest by close.
            assert refused(lambda: write(root / "unsynced", choice.randbytes(10 * KIB), sync=False))
            # What needs no room goes on, and for as long as the catalog has some, so do names.
            for number in range(1500):
                os.unlink(root / f"empty-{number}")
            # An fsync of the directory would rightly say that not all that was closed could be sealed.
            sync(root / "kept-0")
            made = 0
            while made < 20_000 and not refused(partial(os.mkdir, root / f"{'d' * 200}{made}")):
                made += 1
                if made % 500 == 0 and refused(lambda: sync(root / "kept-0")):
                    break
            assert made < 20_000
            time.sleep(0.6)  # two timed commits, which may fail
            assert (root / "old").read_bytes() == b"old"
            for name, data in kept.items():
                assert (root / name).read_bytes() == data
            refused(lambda: os.unlink(root / "empty-1500"))

            os.unlink(disk / "filler")
            deadline = time.monotonic() + 20
            while refused(lambda: write(root / "again", b"again")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert [name for name, operation in operations.items() if refused(operation)] == []
            names = {name for name in os.listdir(root) if name.startswith("d")}
            assert len(names) >= made
            for number in range(1501, 3000):
                os.unlink(root / f"empty-{number}")
            sync(root)
            mount.announce_logged(*announced)
            mount.remount()
            for name, data in kept.items():
                assert (root / name).read_bytes() == data
            assert (root / "tiny").read_bytes() == b"tiny" and len((root / "old").read_bytes()) == KIB
            assert (root / "large").stat().st_size == 12_000 * KIB
        finally:
            mount.announce_logged(*announced)
            mount.finish()
            check_store(disk / "store")


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
done = 0
try:
    while done < 4096:
        done += os.write(fd, os.urandom(1 << 20)) >> 20
except OSError as exc:
    print(done, exc.errno, flush=True)
    sys.stdin.read()
"""


def test_a_program_that_only_writes_is_told_before_it_closes(in_memory: Path, announced: tuple[str, ...]) -> None:
    """The kernel takes what is written and sends it later: dd went on for 84 GB on a disk of 107 MB."""
    with small_disk(in_memory, 64) as disk:
        mount = mount_on(disk, in_memory)
        try:
            endless = mount.path / "endless"
            command: list[str | Path] = [sys.executable, "-c", WRITER, endless]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None
                written, number = map(int, writer.stdout.readline().split())
                assert number == errno.ENOSPC
                assert written < 1024
                # Nobody else is told when he looks at the file.
                assert endless.stat().st_size > 0
            # A shell has opened what its programs write to.
            shell = f"head -c 4G /dev/urandom > '{mount.path}/redirected'"
            done = subprocess.run(["sh", "-c", shell], check=False, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            assert "error writing" in done.stderr and "No space left" in done.stderr
        finally:
            mount.announce_logged(*announced)
            mount.finish()


def test_who_watches_the_store_is_told_that_there_is_no_room(in_memory: Path, announced: tuple[str, ...]) -> None:
    def alarm() -> bool:
        status = json.loads((root / ".cas/status").read_bytes())["no_room"]
        metric = "\nmountstore_no_room 1\n" in (root / ".cas/metrics").read_text()
        assert status is metric
        return status

    choice = random.Random(3)
    with small_disk(in_memory, 96) as disk:
        mount = mount_on(disk, in_memory)
        try:
            root = mount.path
            assert not alarm()
            fill(disk, leave_bytes=40 << 20)
            assert not alarm()
            # The disk itself is never full: some of it is not given to contents.
            assert refused(lambda: write(root / "big", choice.randbytes(48 << 20)))
            number = 0
            while not refused(partial(write, root / f"f{number}", choice.randbytes(300 * KIB))):
                number += 1
            assert alarm()
            assert refused(lambda: write(root / "more", choice.randbytes(300 * KIB))) and alarm()
            os.unlink(disk / "filler")
            assert not alarm()
            write(root / "more", choice.randbytes(300 * KIB))
            assert not alarm()
            use_up_inodes(disk)
            assert alarm()
            shutil.rmtree(disk / "files")
            assert not alarm()
            # Nothing is written to what is mounted read-only.
            mount.announce_logged(*announced)
            mount.unmount()
            fill(disk, leave_bytes=1 << 20)
            mount.options = ("ro",)
            mount.start()
            assert not alarm()
            mount.unmount()
            os.unlink(disk / "filler")
            mount.options = ()
            mount.start()
        finally:
            mount.announce_logged(*announced)
            mount.finish()


@pytest.mark.parametrize("option", ["rw", "ro"])
def test_a_mount_that_finds_no_room_says_so(in_memory: Path, option: str) -> None:
    """Not that the catalog is damaged and should be made anew: SQLite calls its shared memory an I/O error."""
    with small_disk(in_memory, 96) as disk:
        mount = mount_on(disk, in_memory)
        write(mount.path / "f", b"content")
        mount.finish()
        mount.path.mkdir(exist_ok=True)
        fill(disk, leave_bytes=0)
        done = subprocess.run(
            [MOUNT, "-o", option, disk / "store", mount.path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 32
        assert "no room" in done.stderr and "rebuild" not in done.stderr
        os.unlink(disk / "filler")
        mount.start()
        assert (mount.path / "f").read_bytes() == b"content"
        mount.finish()


def test_what_was_acknowledged_before_the_disk_was_full_survives_a_crash(
    in_memory: Path, announced: tuple[str, ...]
) -> None:
    with small_disk(in_memory, 64) as disk:
        mount = mount_on(disk, in_memory, checked=False)
        try:
            root = mount.path
            for number in range(300):
                write(root / f"f{number}", b"%d" % number * 1000, sync=False)
            sync(root)
            fill(disk)
            for number in range(0, 300, 2):
                os.unlink(root / f"f{number}")
            sync(root)
            for _ in range(50):
                refused(lambda: write(root / "more", b"x" * 30_000))
            mount.announce_logged(*announced)
            mount.kill()
            mount.start()
            assert sorted(name for name in os.listdir(root) if name != "more") == sorted(
                f"f{number}" for number in range(1, 300, 2)
            )
            assert (root / "f7").read_bytes() == b"7" * 1000
            assert refused(lambda: write(root / "more", b"x" * 30_000))
            os.unlink(disk / "filler")
            write(root / "more", b"x" * 30_000)
        finally:
            mount.announce_logged(*announced)
            mount.finish()
        check_store(disk / "store")


def test_a_disk_without_inodes_is_a_full_disk(in_memory: Path, announced: tuple[str, ...]) -> None:
    with small_disk(in_memory, 64, "-N", "400") as disk:
        mount = mount_on(disk, in_memory)
        try:
            root = mount.path
            (root / "before").write_bytes(b"before")
            sync(root)
            use_up_inodes(disk)
            assert refused(lambda: write(root / "after", b"after"))
            assert refused(lambda: write(root / "unsynced", b"unsynced", sync=False))
            os.mkdir(root / "a name needs none")
            sync(root / "before")
            shutil.rmtree(disk / "files")
            write(root / "after", b"after")
            # The store uses them up by itself.
            told = 0
            for number in range(1000):
                told += refused(partial(write, root / f"n{number}", b"%d" % number, sync=False))
            assert told > 500
            # The kernel shows what it could not write until it lets go of it.
            mount.announce_logged(*announced)
            mount.remount()
            whole = {
                name: data
                for name in os.listdir(root)
                if name.startswith("n") and (data := (root / name).read_bytes())
            }
            assert len(whole) == 1000 - told
            assert all(data == name[1:].encode() for name, data in whole.items())
            assert (root / "before").read_bytes() == b"before" and (root / "after").read_bytes() == b"after"
        finally:
            mount.announce_logged(*announced)
            mount.finish()


def test_the_reserve_is_not_given_to_contents(in_memory: Path, announced: tuple[str, ...]) -> None:
    with small_disk(in_memory, 64) as disk:
        mount = mount_on(disk, in_memory)
        try:
            choice = random.Random(2)
            number = 0
            while not refused(partial(write, mount.path / f"f{number}", choice.randbytes(300 * KIB))):
                number += 1
            status = os.statvfs(disk)
            assert status.f_bavail * status.f_frsize > 12 << 20
            for name in os.listdir(mount.path):
                os.unlink(mount.path / name)
            sync(mount.path)
        finally:
            mount.announce_logged(*announced)
            mount.finish()
        database = sqlite3.connect(disk / "store/catalog.db")
        (entries,) = database.execute("SELECT count(*) FROM entry").fetchone()
        database.close()
        assert entries == 0
