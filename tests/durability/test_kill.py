"""kill -9 of the daemon at random moments (promise 3); `scripts/killtest` goes on as long as wanted."""

from __future__ import annotations

import ctypes
import os
import random
import sqlite3
import time
from pathlib import Path

from mount.conftest import MountMaker
from mount.live import SCALE, LiveMount

from durability.kill import kill_once


def test_killed_again_and_again_one_store_keeps_every_promise(tmp_path: Path) -> None:
    mount = LiveMount(tmp_path, checked=False)
    choice = random.Random(1)
    for number in range(15 * SCALE):
        if number:
            mount.start()
        assert kill_once(mount, number, choice) == []


def test_a_file_renamed_over_another_while_open_is_never_empty_after_a_crash(mount: LiveMount) -> None:
    """What the kernel holds back of the new content is lost; the name then has the old."""
    root: Path = mount.path
    for name in ("lost", "closed", "fsynced"):
        (root / name).write_bytes(b"old")
    files = {}
    for name in ("lost", "closed", "fsynced"):
        files[name] = os.open(root / f"{name}.new", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(files[name], b"new" * 1000)
        os.rename(root / f"{name}.new", root / name)
    os.close(files.pop("closed"))
    os.fsync(files["fsynced"])
    mount.kill()
    mount.start()
    mount.announce("lost: the last changes did not reach the disk; it is as before")
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {
        "lost": b"old",
        "closed": b"new" * 1000,
        "fsynced": b"new" * 1000,
    }
    for fd in files.values():
        os.close(fd)


def test_files_that_stay_open_lose_no_more_than_what_came_last(make_mount: MountMaker) -> None:
    """Promise 2 for programs that neither close nor fsync: logs, recordings."""
    mount = make_mount("commit=1", checked=False)
    files = {
        "small": os.urandom(10_000),
        "streamed": os.urandom(12 << 20),
        "changed": os.urandom(9 << 20),
    }
    (mount.path / "changed").write_bytes(b"x" * (20 << 20))
    open_files = {name: os.open(mount.path / name, os.O_RDWR | os.O_CREAT, 0o644) for name in files}
    try:
        for name, data in files.items():
            os.write(open_files[name], data)
        # What the kernel holds back is not ours to keep: it comes after 30 s, or when somebody asks.
        for fd in open_files.values():
            write_back(fd)
        time.sleep(4.5)  # three intervals
        mount.kill()
        mount.start()
        for name, data in files.items():
            assert (mount.path / name).read_bytes()[: len(data)] == data, name
        assert (mount.path / "changed").stat().st_size == 20 << 20
    finally:
        for fd in open_files.values():
            os.close(fd)


def test_a_large_file_that_came_out_of_order_survives_while_it_is_sealed(mount: LiveMount) -> None:
    """Promise 3: the daemon dies while it is cutting and hashing what was closed."""
    size = 160 << 20
    data = os.urandom(size)
    fd = os.open(mount.path / "large", os.O_RDWR | os.O_CREAT, 0o644)
    # So far ahead of the rest that it goes to a staging file.
    os.pwrite(fd, data[-(1 << 20) :], size - (1 << 20))
    write_back(fd)
    for offset in range(0, size, 100_000):
        os.pwrite(fd, data[offset : offset + 100_000], offset)
    os.close(fd)
    catalog = sqlite3.connect(f"file:{mount.store}/catalog.db?mode=ro", uri=True)
    while not catalog.execute("SELECT count(*) FROM draft").fetchone()[0]:
        assert not catalog.execute("SELECT size FROM inode WHERE size = ?", (size,)).fetchone(), "sealed too soon"
    catalog.close()
    mount.kill()
    mount.start()
    assert "1 drafts brought back" in mount.log.read_text()
    assert (mount.path / "large").read_bytes() == data
    mount.remount()
    assert (mount.path / "large").read_bytes() == data
    assert not list((mount.store / "staging").glob("draft-*"))


def test_a_draft_of_a_removed_file_is_not_kept_after_a_crash(mount: LiveMount) -> None:
    path = mount.path / "large"
    path.write_bytes(os.urandom(9 << 20))
    with path.open("r+b") as file:
        # Once recorded by an fsync, once not.
        for offset in (1 << 20, 3 << 20):
            file.seek(offset)
            file.write(b"changed")
            file.flush()
            os.fsync(file.fileno())
        assert any(name.startswith("draft-") for name in os.listdir(mount.store / "staging"))
        path.unlink()
        fd = os.open(mount.path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        mount.kill()
        mount.start()
    assert os.listdir(mount.store / "staging") == []


def write_back(fd: int) -> None:
    """Have the kernel write a file's dirty pages, without the promise of fsync (sync_file_range(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    assert libc.sync_file_range(fd, 0, 0, 1 | 2 | 4) == 0
