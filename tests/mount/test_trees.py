"""clone, rmtree, and restore from a snapshot: whole trees, in one step."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from mount.live import SCALE, LiveMount, run
from mount.picture import Sight
from mount.snapshots import ask, fill, seen
from mount.test_versions import now

LIMBO = ".mountstore-limbo"


def alike(top: Path) -> dict[bytes, Sight]:
    """What can be seen, but for the times at which inodes changed, and of the topmost directory."""
    found = {name: sight._replace(times=(sight.times[0], 0)) for name, sight in seen(top).items()}
    return {name: sight for name, sight in found.items() if name}


def refused(mount: LiveMount, line: str) -> str:
    with open(mount.path / ".cas/control", "r+b", buffering=0) as control, pytest.raises(OSError) as caught:
        control.write(line.encode() + b"\n")
    assert caught.value.errno is not None
    return errno.errorcode[caught.value.errno]


@pytest.fixture
def filled(mount: LiveMount) -> LiveMount:
    """A mount with a directory `d` with everything in it."""
    (mount.path / "d").mkdir()
    fill(mount.path / "d")
    return mount


# --- clone ---


def test_a_clone_is_the_same_and_diverges(filled: LiveMount) -> None:
    top = filled.path
    before, blobs = alike(top / "d"), filled.blobs()
    assert not os.path.exists(top / "copy")
    made = ask(filled, "clone /d /copy")
    assert made["directories"] == 6
    assert alike(top / "copy") == before
    assert filled.blobs() == blobs
    # Each goes its own way.
    (top / "copy/small").write_bytes(b"of the copy")
    with open(top / "d/large", "r+b") as file:
        file.seek(5 << 20)
        file.write(b"of the original")
    (top / "d/deep/er").rename(top / "d/moved")
    os.setxattr(top / "copy/small", "user.note", b"new")
    assert (top / "d/small as well").read_bytes() == b"some bytes"
    assert os.getxattr(top / "d/small", "user.note") == b"\0value"
    assert (top / "copy/deep/er/and/deeper/small too").read_bytes() == b"of the copy"
    assert (top / "copy/deep/er").is_dir()
    assert b"of the original" not in (top / "copy/large").read_bytes()
    run("rm", "-r", top / "d")
    copy = alike(top / "copy")
    filled.remount()
    assert alike(top / "copy") == copy


def test_clone_of_files_and_of_itself(filled: LiveMount) -> None:
    top = filled.path
    ask(filled, "clone /d/small /one")
    assert (top / "one").read_bytes() == b"some bytes"
    assert (top / "one").stat().st_nlink == 1
    assert os.getxattr(top / "one", "user.note") == b"\0value"
    ask(filled, "clone '/d/to deep' /link")
    assert os.readlink(top / "link") == "deep/er"
    ask(filled, "clone /d /d/inside")
    assert sorted(os.listdir(top / "d")) == sorted([*os.listdir(top / "d/inside"), "inside"])
    ask(filled, "clone / /everything")
    assert sorted(os.listdir(top / "everything")) == ["d", "link", "one"]
    assert os.stat(top).st_nlink == 4
    # A file that is being written is copied as it was when it was closed last.
    with open(top / "one", "r+b", buffering=0) as file:
        file.write(b"SOME")
        ask(filled, "clone /one /two")
        assert (top / "two").read_bytes() == b"some bytes"


def test_clone_refusals(filled: LiveMount) -> None:
    before = os.stat(filled.path)
    assert refused(filled, "clone /none /copy") == "ENOENT"
    assert refused(filled, "clone /d /d/hollow") == "EEXIST"
    assert refused(filled, "clone /d /none/copy") == "ENOENT"
    assert refused(filled, "clone /d /d/small/copy") == "ENOTDIR"
    assert refused(filled, f"clone /d /{'x' * 256}") == "ENAMETOOLONG"
    assert refused(filled, f"clone /d /{LIMBO}") == "EINVAL"
    for name in (".cas", ".versions", "d/.versions"):
        assert refused(filled, f"clone /d /{name}") == "EINVAL"
    assert refused(filled, "clone /d /") == "EINVAL"
    assert refused(filled, "rmtree /d/small") == "ENOTDIR"
    assert refused(filled, "rmtree /none") == "ENOENT"
    assert refused(filled, "rmtree /") == "EINVAL"
    assert refused(filled, f"rmtree /{LIMBO}") == "EINVAL"
    for name in (LIMBO, f"d/../{LIMBO}"):
        assert not (filled.path / name).exists()
        with pytest.raises(FileExistsError):
            (filled.path / name).mkdir()
    assert os.listdir(filled.path) == ["d"]
    assert os.stat(filled.path) == before


def test_a_clone_is_of_one_instant(mount: LiveMount) -> None:
    """A writer adds a number at a time to two files in directories that are far apart."""
    top = mount.path
    (top / "d").mkdir()
    for name in ("a", "z"):
        (top / "d" / name).mkdir()
    for i in range(3000 * SCALE):
        (top / "d" / f"m{i}").touch()
    ended = threading.Event()

    def write() -> None:
        i = 0
        while not ended.is_set():
            i += 1
            (top / f"d/z/{i}").touch()
            (top / f"d/a/{i}").touch()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(5):
            ask(mount, f"clone /d /c{i}")
    finally:
        ended.set()
        writer.join()
    last = 0
    for i in range(5):
        first, second = (len(os.listdir(top / f"c{i}" / name)) for name in ("a", "z"))
        assert second - 1 <= first <= second
        assert second >= last
        last = second
    assert last


# --- rmtree ---


def test_rmtree_leaves_what_rm_leaves(mount: LiveMount) -> None:
    top = mount.path
    for name in ("one", "two"):
        (top / name / "sub").mkdir(parents=True)
        (top / name / "sub/f").write_bytes(b"first")
        (top / name / "sub/f").write_bytes(b"second")
        (top / name / "g").write_bytes(b"only")
        os.link(top / name / "g", top / f"link of {name}")
        os.symlink("g", top / name / "symlink")
        os.mkfifo(top / name / "fifo")
    (top / "kept").write_bytes(b"")
    then = now(top)
    run("rm", "-r", top / "one")
    held = open(top / "two/sub/f", "rb")  # noqa: SIM115  # it is closed below
    ask(mount, "rmtree --wait /two")
    assert not (top / "two").exists()
    assert held.read() == b"second"
    held.close()
    assert sorted(os.listdir(top)) == ["kept", "link of one", "link of two"]
    assert os.stat(top / "link of two").st_nlink == 1
    assert os.stat(top).st_nlink == 2
    for _ in range(2):
        left = []
        for name in ("one", "two"):
            assert (top / ".versions/.at" / then / name / "sub/f").read_bytes() == b"second"
            assert os.listdir(top / ".versions/.at" / then / name) == ["sub"]
            versions = top / ".versions" / name
            assert sorted(os.listdir(versions / "sub/f")) == ["1", "2", "at", "latest"]
            assert (versions / "sub/f/1").read_bytes() == b"first"
            left.append(sorted(str(path.relative_to(versions)) for path in versions.rglob("*")))
        assert left[0] == left[1]
        mount.remount()
    (top / "two").mkdir()
    assert (top / ".versions/two@1/sub/f/2").read_bytes() == b"second"
    assert not any(LIMBO in str(path) for path in top.rglob("*"))


def test_rmtree_of_many_files(mount: LiveMount) -> None:
    top = mount.path / "many"
    count = 20_000 * SCALE
    for i in range(count):
        if i % 500 == 0:
            directory = top / f"{i}"
            directory.mkdir(parents=True)
        os.mknod(directory / str(i))
    inside = os.open(directory, os.O_RDONLY)
    ask(mount, "rmtree /many")
    assert not top.exists()
    # The name is free at once.
    top.mkdir()
    (top / "new").write_bytes(b"new")
    # What is not deleted yet is at the next mount.
    os.close(inside)
    mount.remount()
    assert os.listdir(mount.path) == ["many"]
    ask(mount, "rmtree --wait /many")
    mount.unmount()
    assert "many" not in os.listdir(mount.path)
    mount.start()
    assert os.stat(mount.path).st_nlink == 2


def test_who_is_inside_is_told(mount: LiveMount) -> None:
    (mount.path / "d/sub").mkdir(parents=True)
    (mount.path / "d/sub/f").write_bytes(b"bytes")
    inside = os.open(mount.path / "d/sub", os.O_RDONLY)
    file = os.open(mount.path / "d/sub/f", os.O_RDWR)
    ask(mount, "rmtree /d --wait")
    assert os.pread(file, 10, 0) == b"bytes"
    os.pwrite(file, b"more bytes", 0)
    assert os.fstat(file).st_nlink == 0
    with pytest.raises(OSError) as caught:
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=inside))
    assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    os.close(file)
    os.close(inside)


# --- restore ---


def test_restore_from_a_snapshot(filled: LiveMount) -> None:
    top = filled.path
    before, numbers = alike(top / "d"), {path.name: path.lstat().st_ino for path in (top / "d").iterdir()}
    ask(filled, "snapshot one")
    (top / "d/small").write_bytes(b"changed")
    run("sync", top / "d/small")
    blobs = filled.blobs()
    # One file, which becomes a version.
    ask(filled, "restore /d/small --snapshot one")
    assert (top / "d/small").read_bytes() == b"some bytes"
    assert (top / "d/small as well").read_bytes() == b"changed"
    versions = [(top / f"d/.versions/small/{number}").read_bytes() for number in (1, 2, 3)]
    assert versions == [b"some bytes", b"changed", b"some bytes"]
    # A tree, elsewhere and in its own place.
    ask(filled, "restore /d --snapshot one --to /back")
    assert alike(top / "back") == before
    assert not {path.lstat().st_ino for path in (top / "back").iterdir()} & set(numbers.values())
    assert refused(filled, "restore /d --snapshot one") == "EEXIST"
    ask(filled, "restore /d --snapshot one --replace")
    assert alike(top / "d") == before
    assert filled.blobs() == blobs
    ask(filled, "rmtree /d --wait")
    ask(filled, "restore /d --snapshot one")
    ask(filled, "restore /d/deep/er --snapshot one --to /er")
    assert (top / "er/and/deeper/file").read_bytes() == b"deeper"
    ask(filled, "restore / --snapshot one --to /all")
    assert alike(top / "all/d") == alike(top / "d") == before
    filled.remount()
    assert alike(top / "all/d") == alike(top / "d") == before


def test_restored_contents_outlive_the_snapshot(filled: LiveMount) -> None:
    before = alike(filled.path / "d")
    ask(filled, "snapshot one")
    run("rm", "-r", filled.path / "d")
    ask(filled, "prune --all /d")
    ask(filled, "restore --snapshot one /d")
    ask(filled, "snapshot-delete one")
    ask(filled, "gc --grace 0 --purge --older-than 0")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert alike(filled.path / "d") == before


def test_restore_refusals(filled: LiveMount) -> None:
    ask(filled, "snapshot one")
    (filled.path / "file").write_bytes(b"")
    assert refused(filled, "restore /d --snapshot none") == "ENOENT"
    assert refused(filled, "restore /none --snapshot one") == "ENOENT"
    assert refused(filled, "restore /d/small/x --snapshot one --to /x") == "ENOTDIR"
    assert refused(filled, "restore /d --snapshot one --to /file") == "EEXIST"
    assert refused(filled, "restore /d/small --snapshot one --to /d") == "EEXIST"
    assert refused(filled, "restore / --snapshot one") == "EINVAL"
    assert refused(filled, "restore /d --replace") == "EINVAL"
    for path in (filled.store / "blobs").rglob("*_a"):
        path.unlink()
    assert refused(filled, "restore /d --snapshot one --to /back") == "EIO"
    assert sorted(os.listdir(filled.path)) == ["d", "file"]
    filled.announce("is not there|is missing|not in the tree")
    filled.checked = False
