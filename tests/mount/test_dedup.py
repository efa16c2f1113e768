"""The same bytes are stored once, and no name notices."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import stat
from pathlib import Path

from mount.conftest import MountMaker
from mount.live import LiveMount

MIB = 1 << 20


def settle(mount: LiveMount) -> set[str]:
    """All blobs, when what was written is sealed: a close(2) does not wait for that, a sync does."""
    fd = os.open(mount.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    mount.remount()
    return mount.blobs()


def test_a_copy_of_a_stored_file_writes_no_blob(mount: LiveMount) -> None:
    (mount.path / "small").write_bytes(random.Random(1).randbytes(100_000))
    (mount.path / "large").write_bytes(random.Random(2).randbytes(20 * MIB))
    before = settle(mount)
    assert len(before) > 3
    for name in ("small", "large"):
        for number in range(3):
            shutil.copy(mount.path / name, mount.path / f"{name}{number}")
    # Not even on the way: nothing of it passes through the tree's directories.
    assert settle(mount) == before
    for name in ("small", "large"):
        for number in range(3):
            assert (mount.path / f"{name}{number}").read_bytes() == (mount.path / name).read_bytes()


def test_the_same_content_is_one_blob_however_it_was_written(mount: LiveMount) -> None:
    data = random.Random(3).randbytes(50_000)
    root = mount.path
    (root / "whole").write_bytes(data)
    with open(root / "pieces", "wb", buffering=0) as file:
        for offset in range(0, len(data), 777):
            file.write(data[offset : offset + 777])
    with open(root / "backwards", "wb", buffering=0) as file:
        for offset in reversed(range(0, len(data), 5000)):
            os.pwrite(file.fileno(), data[offset : offset + 5000], offset)
    with open(root / "mapped", "w+b") as file:
        file.truncate(len(data))
        with mmap.mmap(file.fileno(), len(data)) as mapping:
            mapping[:] = data
    (root / "cut").write_bytes(data + b"too much")
    os.truncate(root / "cut", len(data))
    (root / "changed").write_bytes(bytes(50_000))
    with open(root / "changed", "r+b") as file:
        file.write(data)
    blobs = settle(mount)
    sizes = [name for name in blobs if name.endswith(f"_{50_000:x}")]
    # "cut" and "changed" had another content when they were closed before.
    assert len(sizes) == 2
    assert len([name for name in root.iterdir() if name.read_bytes() == data]) == 6


def test_an_edit_of_one_copy_never_shows_in_the_other(mount: LiveMount) -> None:
    for size in (10, 100_000, 12 * MIB):
        data = random.Random(size).randbytes(size)
        one, two = mount.path / f"one{size}", mount.path / f"two{size}"
        one.write_bytes(data)
        shutil.copy(one, two)
        with open(two, "r+b") as file:
            file.seek(size // 2)
            file.write(b"edit")
            file.flush()
            assert one.read_bytes() == data
        os.truncate(one, size - 1)
        expected = data[: size // 2] + b"edit" + data[size // 2 + 4 :]
        assert (one.read_bytes(), two.read_bytes()) == (data[:-1], expected)
    settle(mount)
    for size in (10, 100_000, 12 * MIB):
        data = random.Random(size).randbytes(size)
        assert (mount.path / f"one{size}").read_bytes() == data[:-1]
        assert (mount.path / f"two{size}").read_bytes()[size // 2 :][:4] == b"edit"


def test_a_small_edit_of_a_large_file_stores_little(mount: LiveMount) -> None:
    path = mount.path / "large"
    path.write_bytes(random.Random(4).randbytes(40 * MIB))
    before = settle(mount)
    with open(path, "r+b") as file:
        file.seek(20 * MIB)
        file.write(b"edit")
    after = settle(mount)
    added = sum(int(name.partition("_")[2], 16) for name in after - before)
    assert 0 < added < 8 * MIB
    assert len(path.read_bytes()) == 40 * MIB


def test_links_name_the_same_file_and_copies_do_not(mount: LiveMount) -> None:
    root = mount.path
    (root / "file").write_bytes(b"content")
    os.link(root / "file", root / "hard")
    (root / "soft").symlink_to("file")
    shutil.copy2(root / "file", root / "copy")
    with open(root / "hard", "ab") as file:
        file.write(b" more")
    contents = [(root / name).read_bytes() for name in ("file", "hard", "soft", "copy")]
    assert contents == [b"content more"] * 3 + [b"content"]
    numbers = [(root / name).stat().st_ino for name in ("file", "hard", "soft", "copy")]
    assert len(set(numbers)) == 2
    (root / "new").write_bytes(b"new")
    os.rename(root / "new", root / "file")
    settle(mount)
    contents = [(root / name).read_bytes() for name in ("file", "hard", "soft", "copy")]
    assert contents == [b"new", b"content more", b"new", b"content"]
    assert (root / "hard").stat().st_nlink == 1


def test_zeros_and_empty_files_cost_nothing(mount: LiveMount) -> None:
    before = settle(mount)
    (mount.path / "empty").touch()
    with open(mount.path / "sparse", "wb") as file:
        file.truncate(10 << 30)
    assert len(settle(mount) - before) <= 1
    (mount.path / "zeros").write_bytes(bytes(30 * MIB))
    stored = sum(int(name.partition("_")[2], 16) for name in settle(mount))
    assert stored < MIB
    assert (mount.path / "sparse").stat().st_size == 10 << 30
    assert (mount.path / "zeros").read_bytes() == bytes(30 * MIB)


def test_blobs_are_read_only_and_named_by_their_content(mount: LiveMount) -> None:
    (mount.path / "hello").write_bytes(b"hello, world\n")
    (name,) = settle(mount)
    (path,) = mount.store.glob(f"blobs/*/{name}")
    assert name == "853ff93762a06ddbf722c4ebe9ddd66d8f63ddaea97f521c3ecc20da7c976020_d"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert path.read_bytes() == b"hello, world\n"


def test_a_file_that_was_never_kept_leaves_no_blob(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount("commit=3600")
    for number in range(20):
        with open(mount.path / "temporary", "wb") as file:
            file.write(b"%d" % number * 1000)
            os.unlink(mount.path / "temporary")
    assert settle(mount) == set()
