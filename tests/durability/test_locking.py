"""One writer per store; readers beside it see what it commits, and never disturb it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.conftest import MountMaker
from mount.live import LiveMount

from durability.disks import small_disk
from durability.recorder import run
from mountstore.errors import BusyError
from mountstore.store import Store
from mountstore.store.create import create_store
from mountstore.store.lock import StoreLock

PATIENCE_S = 10


def eventually(condition: Callable[[], bool]) -> None:
    """Within the writer's quarter second and the reader's second, and then some."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def reader(mount: LiveMount, tmp_path: Path) -> Iterator[LiveMount]:
    """The store of `mount`, mounted read-only beside it."""
    base = tmp_path / "reader"
    base.mkdir()
    (base / "store").symlink_to(mount.store)
    reader = LiveMount(base, "ro", checked=False)
    yield reader
    reader.finish()


def test_a_second_writer_is_told_who_has_the_store(mount: LiveMount, tmp_path: Path) -> None:
    with pytest.raises(BusyError, match=f"pid {mount.pid}"):
        Store.open(str(mount.store))
    base = tmp_path / "second"
    base.mkdir()
    (base / "store").symlink_to(mount.store)
    with pytest.raises(AssertionError, match=f"in use by pid {mount.pid}"):
        LiveMount(base)


def test_a_lock_whose_holder_died_is_free(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    create_store(path)
    program = (
        "import os, sys; from mountstore.store import Store\n"
        "store = Store.open(sys.argv[1]); print(os.getpid(), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert (tmp_path / "store/lock").read_text().split()[0] == done.stdout.strip()
    store = Store.open(path)
    with pytest.raises(BusyError, match=f"pid {os.getpid()}"):
        Store.open(path)
    store._close()


def test_a_reader_sees_what_the_writer_commits(mount: LiveMount, reader: LiveMount) -> None:
    root, seen = mount.path, reader.path
    (root / "d").mkdir()
    (root / "f").write_bytes(b"first")
    eventually(lambda: (seen / "f").exists() and (seen / "f").read_bytes() == b"first")
    with (seen / "f").open("rb") as held:
        (root / "f").write_bytes(b"second, longer")
        os.chmod(root / "f", 0o600)
        os.rename(root / "f", root / "d/g")
        (root / "f").write_bytes(b"x" * 1_000_000)
        eventually(lambda: (seen / "d/g").exists() and (seen / "d/g").read_bytes() == b"second, longer")
        eventually(lambda: (seen / "f").stat().st_size == 1_000_000)
        assert (seen / "d/g").stat().st_mode & 0o777 == 0o600
        assert (seen / "f").read_bytes() == b"x" * 1_000_000
        assert held.read() in (b"first", b"second, longer")
    os.unlink(root / "d/g")
    os.rmdir(root / "d")
    eventually(lambda: os.listdir(seen) == ["f"])
    with pytest.raises(OSError):
        (seen / "new").touch()


def test_a_file_open_for_reading_here_may_be_removed_by_the_writer(mount: LiveMount, reader: LiveMount) -> None:
    data = os.urandom(300_000)
    (mount.path / "f").write_bytes(data)
    # A commit may come between the creation of the name and the seal of what was written to it.
    eventually(lambda: (reader.path / "f").exists() and (reader.path / "f").stat().st_size == len(data))
    with (reader.path / "f").open("rb", buffering=0) as file:
        os.unlink(mount.path / "f")
        eventually(lambda: not (reader.path / "f").exists())
        assert file.read(400_000) == data


def test_a_reader_does_not_disturb_the_writer(mount: LiveMount, reader: LiveMount) -> None:
    """Neither do its reads hold back commits and checkpoints, nor does its end take anything away."""
    for number in range(300):
        (mount.path / f"f{number}").write_bytes(b"%d" % number)
        if number % 50 == 0:
            assert len(os.listdir(reader.path)) <= number + 1
    fd = os.open(mount.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    eventually(lambda: len(os.listdir(reader.path)) == 300)
    mount.remount()
    (mount.path / "after").touch()
    eventually(lambda: (reader.path / "after").exists())
    reader.unmount()
    reader.start()
    assert len(os.listdir(reader.path)) == 301


def test_a_store_on_a_read_only_disk_can_be_mounted_read_only(
    in_memory: Path, make_mount: MountMaker
) -> None:
    with small_disk(in_memory, 64) as disk:
        base = in_memory / "m"
        base.mkdir()
        (base / "store").symlink_to(disk / "store")
        mount = LiveMount(base)
        (mount.path / "f").write_bytes(b"content")
        mount.finish()
        run("mount", "-o", "remount,ro", disk)
        (base / "mnt").rmdir()
        reader = LiveMount(base, "ro", checked=False)
        try:
            assert (reader.path / "f").read_bytes() == b"content"
        finally:
            reader.finish()


def test_a_lock_that_cannot_say_who_holds_it_is_held_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk nothing can be written to the file, which is for the message only."""
    create_store(str(tmp_path / "store"))

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = StoreLock(str(tmp_path / "store"))
    with pytest.raises(BusyError, match="another process"):
        StoreLock(str(tmp_path / "store"))
    lock.release()
    StoreLock(str(tmp_path / "store")).release()
