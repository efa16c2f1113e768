"""kill -9 of the daemon, and what has to be there afterwards (docs/durability.md)."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.limits import SMALL_LIMITS
from mount.live import PATIENCE_S, SCALE, LiveMount
from mount.picture import assert_same, picture

MIB = 1 << 20


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def crash(mount: LiveMount) -> None:
    mount.kill()
    mount.start()


def test_what_was_fsynced_survives(mount: LiveMount) -> None:
    """Promise 1: content and name, when fsync, fdatasync or an O_SYNC write returned."""
    root = mount.path
    contents = {
        name: random.Random(size).randbytes(size)
        for name, size in [("tiny", 10), ("small", 100_000), ("medium", 6 * MIB), ("large", 20 * MIB)]
    }
    for name, data in contents.items():
        with open(root / name, "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
    for name, data in list(contents.items()):
        fd = os.open(root / f"{name}-sync", os.O_WRONLY | os.O_CREAT | os.O_SYNC, 0o640)
        contents[f"{name}-sync"] = data[: 3 * MIB]
        os.write(fd, data[: 3 * MIB])
        # Left open: the daemon dies with it.
    with open(root / "in-place", "w+b", buffering=0) as file:
        file.write(contents["large"])
        os.fsync(file.fileno())
        for offset in (0, 5 * MIB, 19 * MIB, 25 * MIB):
            os.pwrite(file.fileno(), b"changed", offset)
        os.fdatasync(file.fileno())
        expected = bytearray(contents["large"])
        expected.extend(bytes(5 * MIB + 7))
        for offset in (0, 5 * MIB, 19 * MIB, 25 * MIB):
            expected[offset : offset + 7] = b"changed"
        contents["in-place"] = bytes(expected)
        crash(mount)
    seen = {name: (root / name).read_bytes() for name in os.listdir(root)}
    assert sorted(seen) == sorted(contents)
    assert [name for name in contents if seen[name] != contents[name]] == []
    mount.remount()
    assert {name: (root / name).read_bytes() for name in os.listdir(root)} == seen


def test_fsync_of_a_directory_covers_all_that_was_done_before(mount: LiveMount) -> None:
    root = mount.path
    (root / "d/e").mkdir(parents=True)
    (root / "d/old").write_bytes(b"old")
    os.rename(root / "d/old", root / "d/e/new")
    os.link(root / "d/e/new", root / "linked")
    (root / "soft").symlink_to("linked")
    os.setxattr(root / "linked", "user.a", b"value")
    (root / "gone").touch()
    os.unlink(root / "gone")
    (root / "linked").chmod(0o751)
    before = picture(root, exact=True)
    fsync(root / "d")
    mount.kill()
    mount.start()
    assert_same(picture(root, exact=True), before)


def test_closed_files_survive_once_they_are_committed(mount: LiveMount) -> None:
    """Promise 3: at most the last quarter second of closed files is lost."""
    root = mount.path
    for number in range(200):
        (root / f"f{number}").write_bytes(b"%d" % number * number)
    (root / "large").write_bytes(random.Random(5).randbytes(15 * MIB))
    os.rename(root / "f7", root / "renamed")
    before = picture(root, exact=True)
    mount.wait_committed()
    crash(mount)
    assert_same(picture(root, exact=True), before)


_WORKER = """
import os, random, sys
root, number = sys.argv[1:]
# Not by its path: once the dead mount is taken away, that is the directory below.
os.chdir(root)
choice = random.Random(int(number))
done = 0
while True:
    done += 1
    name = f"{number}-{done % 20}"
    size = choice.choice([0, 10, 4096, 60_000, 300_000])
    data = b"%s %d %d " % (number.encode(), done, size) * (size // 12 + 1)
    try:
        fd = os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.rename(name + ".new", name)
        if done % 3 == 0:
            fd = os.open(".", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            print("safe", done % 20, done, size, flush=True)
        elif done % 7 == 0:
            os.unlink(name)
    except OSError:
        break
"""


@pytest.mark.parametrize("limits", ["", SMALL_LIMITS], ids=["ordinary", "small limits"])
def test_killed_at_work_it_keeps_what_it_acknowledged(make_mount: MountMaker, limits: str) -> None:
    """Promises 1 and 2: what was fsynced is there, and every file is one that somebody wrote, whole."""
    mount = make_mount(prelude=limits, piece_max=65536)
    choice = random.Random(limits)
    for _ in range(3 * SCALE):
        command = [sys.executable, "-c", _WORKER, str(mount.path)]
        workers = [
            subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(3)
        ]
        # The first of them has said so often that something is safe; then the daemon dies.
        stdout = workers[0].stdout
        assert stdout is not None
        said = [[stdout.readline() for _ in range(choice.randrange(1, 30))], [], []]
        mount.kill()
        for number, worker in enumerate(workers):
            rest, _ = worker.communicate(timeout=PATIENCE_S)
            said[number] += rest.splitlines()
        # A staged draft that was not fsynced may have been left.
        mount.start()
        for number, lines in enumerate(said):
            latest: dict[int, int] = {}
            for line in lines:
                _, index, count, _ = line.split()
                latest[int(index)] = int(count)
            for slot, done in latest.items():
                path = mount.path / f"{number}-{slot}"
                if not path.exists():
                    # Removed by a later round, which a crash may keep or not.
                    continue
                words = path.read_bytes().split()
                assert int(words[1]) >= done, f"{path} is of round {words[1]!r}, {done} was safe"
        for path in mount.path.iterdir():
            data = path.read_bytes()
            if path.suffix == ".new" and not data:
                continue
            words = data[:50].split(b" ")
            expected = b" ".join(words[:3]) + b" "
            assert data == expected * (int(words[2]) // 12 + 1), path
        before = picture(mount.path, exact=True)
        mount.remount()
        assert_same(picture(mount.path, exact=True), before)
        for path in mount.path.iterdir():
            path.unlink()


def test_files_without_a_name_are_gone_after_a_crash(mount: LiveMount) -> None:
    handles = []
    for number in range(5):
        fd = os.open(mount.path / f"{number}", os.O_RDWR | os.O_CREAT)
        os.write(fd, os.urandom(100_000))
        os.fsync(fd)
        os.unlink(mount.path / f"{number}")
        handles.append(fd)
    fsync(mount.path)
    mount.kill()
    for fd in handles:
        with contextlib.suppress(OSError):  # the daemon is dead
            os.close(fd)
    mount.start()
    assert os.listdir(mount.path) == []


def test_numbers_are_not_used_again_after_a_crash(mount: LiveMount) -> None:
    seen = set()
    for _ in range(3):
        for number in range(10):
            path = mount.path / f"{number}"
            path.touch()
            seen.add(path.stat().st_ino)
        crash(mount)
        for path in mount.path.iterdir():
            seen.discard(path.stat().st_ino)
            path.unlink()
        fresh = mount.path / "fresh"
        fresh.touch()
        assert fresh.stat().st_ino not in seen
        fresh.unlink()


_SLOW = """
import trio
from mountstore.namespace.files import Files
write = Files.write
async def slow(self, *arguments):
    await trio.sleep(0.1)
    return await write(self, *arguments)
Files.write = slow
"""
"""Leaves the kernel with more to write back than may be under way at once."""


@pytest.mark.parametrize("prelude", ["", _SLOW], ids=["ordinary", "slow"])
def test_sigterm_keeps_everything(make_mount: MountMaker, prelude: str) -> None:
    mount = make_mount(prelude=prelude)
    data = random.Random(6).randbytes(12 * MIB)
    (mount.path / "closed").write_bytes(data)
    (mount.path / "d").mkdir()
    fd = os.open(mount.path / "d/open", os.O_WRONLY | os.O_CREAT)
    for _ in range(10):
        os.write(fd, data)
    mount.announce("detaching it from those who use it")
    mount.terminate()
    with contextlib.suppress(OSError):  # nobody is there to hear of it
        os.close(fd)
    mount.start()
    assert (mount.path / "closed").read_bytes() == data
    assert (mount.path / "d/open").read_bytes() == data * 10


_SLOW_SEAL = """
import time
from mountstore.namespace import sealing
seal_memory = sealing.Sealer._seal_memory
def slow(self, data):
    time.sleep(1)  # a disk that takes its time
    return seal_memory(self, data)
sealing.Sealer._seal_memory = slow
"""


def test_fsync_of_a_directory_covers_a_file_that_was_closed_and_is_being_sealed(
    make_mount: MountMaker,
) -> None:
    mount = make_mount(prelude=_SLOW_SEAL)
    data = os.urandom(1 << 20)
    (mount.path / "closed").write_bytes(data)
    directory = os.open(mount.path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    mount.kill()
    mount.start()
    assert (mount.path / "closed").read_bytes() == data
