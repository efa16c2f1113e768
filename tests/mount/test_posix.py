"""The file system's behaviour, call by call: what ext4 does is right.

Every test runs on the disk's own file system and in a mount. The mount is then mounted again and has to look
the same.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mount.live import LiveMount
from mount.picture import assert_same, picture
from mount.syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
    name_to_handle,
    open_by_handle,
    renameat2,
    utimensat,
)

# --- files that are open ---


def test_an_unlinked_open_file_lives_on(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    assert os.fstat(fd).st_nlink == 0
    assert os.pread(fd, 100, 0) == b"before"
    os.pwrite(fd, b"after!!", 0)
    os.ftruncate(fd, 5)
    assert os.pread(fd, 100, 0) == b"after"
    path.write_bytes(b"another file")
    assert os.pread(fd, 100, 0) == b"after"
    os.fsync(fd)
    os.close(fd)
    assert os.listdir(directory) == ["f"]


def test_a_file_that_another_is_renamed_over_lives_on_while_open(directory: Path) -> None:
    old, new = directory / "old", directory / "new"
    old.write_bytes(b"old content")
    new.write_bytes(b"new content")
    with open(old, "rb") as reader:
        os.rename(new, old)
        assert old.read_bytes() == b"new content"
        assert reader.read() == b"old content"
    assert os.listdir(directory) == ["old"]


def test_a_file_renamed_while_it_is_written_keeps_what_follows(directory: Path) -> None:
    with open(directory / "a", "wb", buffering=0) as file:
        file.write(b"one ")
        os.rename(directory / "a", directory / "b")
        file.write(b"two ")
        assert (directory / "b").read_bytes() == b"one two "
        os.link(directory / "b", directory / "c")
        file.write(b"three")
    assert (directory / "c").read_bytes() == b"one two three"


def test_readers_see_what_writers_wrote_before_close(directory: Path) -> None:
    writer = os.open(directory / "f", os.O_WRONLY | os.O_CREAT, 0o644)
    reader = os.open(directory / "f", os.O_RDONLY)
    for length in (1, 4095, 4096, 70_000, 3_000_000):
        data = os.urandom(length)
        os.pwrite(writer, data, 0)
        assert os.pread(reader, length, 0) == data
        assert os.fstat(reader).st_size == max(os.fstat(writer).st_size, length)
    os.close(writer)
    os.close(reader)


def test_append_goes_to_the_end_whoever_else_writes(directory: Path) -> None:
    path = directory / "log"
    one = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    two = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(100):
        os.write(one if number % 2 else two, b"%02d," % number)
    os.lseek(one, 0, os.SEEK_SET)
    os.write(one, b"end")
    assert path.read_bytes() == b"".join(b"%02d," % number for number in range(100)) + b"end"
    os.truncate(path, 3)
    os.write(two, b"rest")
    assert path.read_bytes() == b"00,rest"
    os.close(one)
    os.close(two)


def test_lines_appended_by_processes_are_whole(directory: Path) -> None:
    path = directory / "log"
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)\n"
        "for i in range(200): os.write(fd, f'{sys.argv[2]} {i} {\"x\" * (i % 50)}\\n'.encode())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path, str(n)]) for n in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{n} {i} {'x' * (i % 50)}" for n in range(4) for i in range(200))


def test_open_flags(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(b"something")
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))
    assert path.read_bytes() == b"something"
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    (directory / "link").symlink_to("made")
    os.close(os.open(directory / "link", os.O_WRONLY | os.O_CREAT, 0o640))
    assert stat.S_IMODE((directory / "made").stat().st_mode) == 0o640
    reader = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reader, b"x")
    os.close(reader)


def test_a_new_file_may_be_written_by_who_made_it_read_only(directory: Path) -> None:
    fd = os.open(directory / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o000)
    os.write(fd, b"whatever the mode says")
    os.close(fd)
    assert (directory / "f").stat().st_size == 22


# --- contents ---


def test_truncation_down_and_up_reads_zeros(directory: Path) -> None:
    path = directory / "f"
    for before, cut, after in [(10_000, 5_000, 9_000), (100, 0, 100), (5_000_000, 1_234_567, 4_000_000)]:
        data = os.urandom(before)
        path.write_bytes(data)
        os.truncate(path, cut)
        assert path.stat().st_size == cut
        os.truncate(path, after)
        assert path.read_bytes() == data[:cut] + bytes(after - cut)
        with open(path, "r+b") as file:
            file.truncate(cut + 10)
            file.seek(cut + 20)
            file.write(b"end")
        assert path.read_bytes() == data[:cut] + bytes(20) + b"end"


def test_holes_read_as_zeros_and_take_no_room(directory: Path) -> None:
    path = directory / "f"
    gib = 1 << 30
    with open(path, "wb", buffering=0) as file:
        for offset in (0, 5 * gib, 100 * gib):
            os.pwrite(file.fileno(), b"x" * 5000, offset)
        assert os.fstat(file.fileno()).st_size == 100 * gib + 5000
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 10_000, 5 * gib - 4000) == bytes(4000) + b"x" * 5000 + bytes(1000)
        assert os.pread(file.fileno(), 100_000, 50 * gib) == bytes(100_000)
        assert os.pread(file.fileno(), 100_000, 100 * gib) == b"x" * 5000
    assert path.stat().st_blocks * 512 < 1 << 20
    os.truncate(path, 1000 * gib)
    assert path.stat().st_size == 1000 * gib
    os.unlink(path)


def test_blocks_tell_what_is_stored(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(os.urandom(100_000))
    os.sync()
    assert path.stat().st_blocks == (100_000 + 4095) // 4096 * 8
    path.write_bytes(b"")
    os.sync()
    assert path.stat().st_blocks == 0


def test_a_shared_mapping_is_the_file(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(bytes(100_000))
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 100_000) as mapping:
        mapping[5000:5005] = b"hello"
        assert os.pread(fd, 5, 5000) == b"hello"
        os.pwrite(fd, b"WORLD", 70_000)
        assert mapping[70_000:70_005] == b"WORLD"
        code = (
            "import mmap, sys\n"
            "with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n"
            "    assert m[5000:5005] == b'hello'\n"
            "    m[0:4] = b'from'\n"
        )
        subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)
        assert mapping[0:4] == b"from"
        mapping.flush()
        os.close(fd)
        mapping[99_999:] = b"!"
    content = path.read_bytes()
    expected = bytearray(100_000)
    expected[0:4], expected[5000:5005], expected[70_000:70_005], expected[99_999:] = (
        b"from",
        b"hello",
        b"WORLD",
        b"!",
    )
    assert content == expected


def test_a_mapping_outlives_its_name(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(b"a" * 8192)
    fd = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(fd, 8192)
    os.close(fd)
    os.unlink(path)
    mapping[4096:4100] = b"bbbb"
    mapping.flush()
    assert mapping[4090:4102] == b"a" * 6 + b"bbbb" + b"aa"
    mapping.close()


def test_a_private_mapping_changes_nothing(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(b"a" * 5000)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[0:3] = b"xyz"
    assert path.read_bytes() == b"a" * 5000


# --- times ---


def test_times_have_nanoseconds(directory: Path) -> None:
    path = directory / "f"
    path.write_bytes(b"x")
    for atime_ns, mtime_ns in [(1, 2), (1_234_567_890_123_456_789, 987_654_321_012_345_678), (-1, -999_999_999)]:
        os.utime(path, ns=(atime_ns, mtime_ns))
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (atime_ns, mtime_ns)
    utimensat(path, (5, 5), (0, UTIME_OMIT))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5_000_000_005, -999_999_999)
    before = time.time_ns()
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_NOW))
    assert path.stat().st_atime_ns == 5_000_000_005
    assert abs(path.stat().st_mtime_ns - before) < 10_000_000_000
    (directory / "link").symlink_to("f")
    os.utime(directory / "link", ns=(7, 8), follow_symlinks=False)
    assert (directory / "link").lstat().st_mtime_ns == 8
    assert path.stat().st_mtime_ns != 8
    os.utime(directory, ns=(11, 12))
    assert directory.stat().st_mtime_ns == 12


_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; Python has no name for it

_MTIME, _CTIME = "st_mtime_ns", "st_ctime_ns"
_CHANGES: list[tuple[str, Callable[[Path], object], dict[str, set[str]]]] = [
    ("write", lambda d: (d / "f").write_bytes(b"new"), {"f": {_MTIME, _CTIME}, ".": set()}),
    ("truncate", lambda d: os.truncate(d / "f", 1), {"f": {_MTIME, _CTIME}, ".": set()}),
    ("chmod", lambda d: os.chmod(d / "f", 0o600), {"f": {_CTIME}, ".": set()}),
    ("chown", lambda d: os.chown(d / "f", 1, 1), {"f": {_CTIME}, ".": set()}),
    ("setxattr", lambda d: os.setxattr(d / "f", "user.a", b""), {"f": {_CTIME}, ".": set()}),
    ("utime", lambda d: os.utime(d / "f", ns=(1, 1)), {"f": {_MTIME, _CTIME}, ".": set()}),
    ("link", lambda d: os.link(d / "f", d / "g"), {"f": {_CTIME}, ".": {_MTIME, _CTIME}}),
    ("unlink", lambda d: os.unlink(d / "h"), {"f": {_CTIME}, ".": {_MTIME, _CTIME}}),
    ("rename", lambda d: os.rename(d / "h", d / "g"), {"f": {_CTIME}, ".": {_MTIME, _CTIME}}),
    ("into", lambda d: os.rename(d / "h", d / "d/h"), {"d": {_MTIME, _CTIME}, ".": {_MTIME, _CTIME}}),
    ("mkdir", lambda d: os.mkdir(d / "e"), {"d": set(), ".": {_MTIME, _CTIME}}),
    ("rmdir", lambda d: os.rmdir(d / "d"), {"f": set(), ".": {_MTIME, _CTIME}}),
    ("symlink", lambda d: os.symlink("f", d / "s"), {"f": set(), ".": {_MTIME, _CTIME}}),
    ("mkfifo", lambda d: os.mkfifo(d / "p"), {"f": set(), ".": {_MTIME, _CTIME}}),
    ("read", lambda d: (d / "f").read_bytes(), {"f": set(), ".": set()}),
    ("open to write", lambda d: open(d / "f", "r+b").close(), {"f": set(), ".": set()}),
    ("open to truncate", lambda d: open(d / "f", "wb").close(), {"f": {_MTIME, _CTIME}, ".": set()}),
    ("failure", lambda d: os.path.exists(d / "nothing"), {"f": set(), ".": set()}),
]


@pytest.mark.parametrize(("change", "expected"), [c[1:] for c in _CHANGES], ids=[c[0] for c in _CHANGES])
def test_times_change_with_what_they_tell(
    directory: Path, change: Callable[[Path], object], expected: dict[str, set[str]]
) -> None:
    (directory / "f").write_bytes(b"12345")
    os.link(directory / "f", directory / "h")
    (directory / "d").mkdir()
    paths = {name: directory / name for name in expected}
    before = {name: path.stat() for name, path in paths.items()}
    # ext4 takes the time from a clock that ticks every few milliseconds.
    started = time.time_ns()
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= max(
        started, *(status.st_ctime_ns for status in before.values())
    ):
        pass
    change(directory)
    for name, path in paths.items():
        after = path.stat()
        changed = {
            field for field in (_MTIME, _CTIME) if getattr(after, field) != getattr(before[name], field)
        }
        assert changed == expected[name], name


def test_what_is_written_is_not_older_than_what_was_made_before(directory: Path) -> None:
    for number in range(50):
        os.close(os.open(directory / f"empty{number}", os.O_CREAT))
        os.mkdir(directory / f"directory{number}")
        (directory / f"written{number}").write_bytes(b"x")
        times = [(directory / f"{kind}{number}").stat().st_mtime_ns for kind in ("empty", "directory", "written")]
        assert times == sorted(times)


def test_truncation_to_the_same_size_looks_the_same_after_a_remount(mount: LiveMount) -> None:
    # truncate(2) leaves the times to the file system; with the write-back cache the kernel does not ask for
    # them. What it goes on showing is then what has to be stored.
    path = mount.path / "f"
    path.write_bytes(b"12345")
    os.truncate(path, 5)
    before = picture(mount.path, exact=True)
    mount.remount()
    assert_same(picture(mount.path, exact=True), before)


def test_times_of_a_written_file_are_those_of_the_write(directory: Path) -> None:
    with open(directory / "f", "wb", buffering=0) as file:
        file.write(b"x")
        seen = os.fstat(file.fileno()).st_mtime_ns
        os.utime(directory / "f", ns=(3, 4))
    assert (directory / "f").stat().st_mtime_ns == 4
    assert abs(seen - time.time_ns()) < 10_000_000_000


# --- names ---


def test_names_are_any_bytes(directory: Path) -> None:
    base = os.fsencode(directory)
    single = [bytes([byte]) for byte in range(1, 256) if byte not in b"./"]
    long = [bytes(range(1, 256)).replace(b"/", b"_"), b"\xff" * 255, "ü".encode() * 127 + b"!"]
    long += [b"...", b"  ", b"-rf"]
    for name in single + long:
        with open(base + b"/" + name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(base)) == sorted(single + long)
    for name in single + long:
        with open(base + b"/" + name, "rb") as file:
            assert file.read() == name
        os.rename(base + b"/" + name, base + b"/" + name[::-1])


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _longer(directory: Path) -> Path:
    return directory / ("n" * 256)


_FAILURES: list[tuple[str, int, Callable[[Path], object]]] = [
    ("rmdir full", errno.ENOTEMPTY, lambda d: os.rmdir(d / "full")),
    ("rmdir file", errno.ENOTDIR, lambda d: os.rmdir(d / "file")),
    ("rmdir link to directory", errno.ENOTDIR, lambda d: os.rmdir(d / "to-empty")),
    ("rmdir absent", errno.ENOENT, lambda d: os.rmdir(d / "absent")),
    ("rmdir dot", errno.EINVAL, lambda d: os.rmdir(f"{d}/empty/.")),
    ("rmdir dotdot", errno.ENOTEMPTY, lambda d: os.rmdir(f"{d}/full/inner/..")),
    ("unlink directory", errno.EISDIR, lambda d: os.unlink(d / "empty")),
    ("unlink absent", errno.ENOENT, lambda d: os.unlink(d / "absent")),
    ("unlink below a file", errno.ENOTDIR, lambda d: os.unlink(d / "file/x")),
    ("unlink with a slash", errno.ENOTDIR, lambda d: os.unlink(f"{d}/file/")),
    ("mkdir on directory", errno.EEXIST, lambda d: os.mkdir(d / "empty")),
    ("mkdir on file", errno.EEXIST, lambda d: os.mkdir(d / "file")),
    ("mkdir on dangling link", errno.EEXIST, lambda d: os.mkdir(d / "dangling")),
    ("mkdir in nothing", errno.ENOENT, lambda d: os.mkdir(d / "absent/x")),
    ("mkdir dot", errno.EEXIST, lambda d: os.mkdir(f"{d}/empty/.")),
    ("mkdir below a file", errno.ENOTDIR, lambda d: os.mkdir(d / "file/x")),
    ("open absent", errno.ENOENT, lambda d: os.open(d / "absent", os.O_RDONLY)),
    ("open directory to write", errno.EISDIR, lambda d: os.open(d / "empty", os.O_RDWR)),
    ("create on directory", errno.EISDIR, lambda d: os.open(d / "empty", os.O_RDONLY | os.O_CREAT)),
    ("create exclusively", errno.EEXIST, lambda d: os.open(d / "file", os.O_CREAT | os.O_EXCL)),
    ("exclusively on link", errno.EEXIST, lambda d: os.open(d / "dangling", os.O_CREAT | os.O_EXCL)),
    ("no link followed", errno.ELOOP, lambda d: os.open(d / "to-empty", os.O_RDONLY | os.O_NOFOLLOW)),
    ("not a directory", errno.ENOTDIR, lambda d: os.open(d / "file", os.O_DIRECTORY)),
    ("link to itself", errno.ELOOP, lambda d: os.open(d / "loop", os.O_RDONLY)),
    ("links in a ring", errno.ELOOP, lambda d: os.stat(d / "ring1/x")),
    ("41 links", errno.ELOOP, lambda d: os.stat(d / "chain41")),
    ("fifo without reader", errno.ENXIO, lambda d: os.open(d / "fifo", os.O_WRONLY | os.O_NONBLOCK)),
    ("rename file over directory", errno.EISDIR, lambda d: os.rename(d / "file", d / "empty")),
    ("rename directory over file", errno.ENOTDIR, lambda d: os.rename(d / "empty", d / "file")),
    ("rename directory over full", errno.ENOTEMPTY, lambda d: os.rename(d / "empty", d / "full")),
    ("rename into itself", errno.EINVAL, lambda d: os.rename(d / "full", d / "full/inner/x")),
    ("rename over its parent", errno.ENOTEMPTY, lambda d: os.rename(d / "full/inner", d / "full")),
    ("rename absent", errno.ENOENT, lambda d: os.rename(d / "absent", d / "x")),
    ("rename to nowhere", errno.ENOENT, lambda d: os.rename(d / "file", d / "absent/x")),
    ("rename below a file", errno.ENOTDIR, lambda d: os.rename(d / "file", d / "fifo/x")),
    ("rename dot", errno.EBUSY, lambda d: os.rename(f"{d}/empty/.", d / "x")),
    ("rename file to a slash", errno.ENOTDIR, lambda d: os.rename(d / "file", f"{d}/x/")),
    ("rename to another file system", errno.EXDEV, lambda d: os.rename(d / "file", "/proc/x")),
    ("no replacing", errno.EEXIST, lambda d: renameat2(d / "file", d / "fifo", RENAME_NOREPLACE)),
    ("no replacing itself", errno.EEXIST, lambda d: renameat2(d / "file", d / "file", RENAME_NOREPLACE)),
    ("exchange with nothing", errno.ENOENT, lambda d: renameat2(d / "file", d / "x", RENAME_EXCHANGE)),
    ("exchange with parent", errno.EINVAL, lambda d: renameat2(d / "full", d / "full/inner", RENAME_EXCHANGE)),
    ("exchange with child", errno.EINVAL, lambda d: renameat2(d / "full/inner", d / "full", RENAME_EXCHANGE)),
    ("both flags", errno.EINVAL, lambda d: renameat2(d / "file", d / "fifo", 3)),
    ("unknown flag", errno.EINVAL, lambda d: renameat2(d / "file", d / "fifo", 64)),
    ("link directory", errno.EPERM, lambda d: os.link(d / "empty", d / "x")),
    ("link on something", errno.EEXIST, lambda d: os.link(d / "file", d / "fifo")),
    ("link absent", errno.ENOENT, lambda d: os.link(d / "absent", d / "x")),
    ("link to nowhere", errno.ENOENT, lambda d: os.link(d / "file", d / "absent/x")),
    ("symlink on something", errno.EEXIST, lambda d: os.symlink("x", d / "file")),
    ("empty symlink", errno.ENOENT, lambda d: os.symlink("", d / "x")),
    ("symlink too long", errno.ENAMETOOLONG, lambda d: os.symlink("x" * 4096, d / "x")),
    ("readlink of a file", errno.EINVAL, lambda d: os.readlink(d / "file")),
    ("mknod on something", errno.EEXIST, lambda d: os.mknod(d / "file", stat.S_IFREG | 0o600)),
    ("mkfifo on something", errno.EEXIST, lambda d: os.mkfifo(d / "full")),
    ("chdir to file", errno.ENOTDIR, lambda d: os.chdir(d / "file")),
    ("list a file", errno.ENOTDIR, lambda d: os.listdir(d / "file")),
    ("truncate directory", errno.EISDIR, lambda d: os.truncate(d / "empty", 0)),
    ("truncate fifo", errno.EINVAL, lambda d: os.truncate(d / "fifo", 0)),
    ("truncate absent", errno.ENOENT, lambda d: os.truncate(d / "absent", 0)),
    ("truncate to less than nothing", errno.EINVAL, lambda d: os.truncate(d / "file", -1)),
    ("connect to a file", errno.ECONNREFUSED, lambda d: _connect(d / "file")),
    ("bind on something", errno.EADDRINUSE, lambda d: _bind(d / "file")),
    ("stat long", errno.ENAMETOOLONG, lambda d: os.stat(_longer(d))),
    ("create long", errno.ENAMETOOLONG, lambda d: os.open(_longer(d), os.O_CREAT)),
    ("mkdir long", errno.ENAMETOOLONG, lambda d: os.mkdir(_longer(d))),
    ("mknod long", errno.ENAMETOOLONG, lambda d: os.mkfifo(_longer(d))),
    ("symlink long", errno.ENAMETOOLONG, lambda d: os.symlink("x", _longer(d))),
    ("link long", errno.ENAMETOOLONG, lambda d: os.link(d / "file", _longer(d))),
    ("rename to long", errno.ENAMETOOLONG, lambda d: os.rename(d / "file", _longer(d))),
    ("rename from long", errno.ENAMETOOLONG, lambda d: os.rename(_longer(d), d / "x")),
    ("unlink long", errno.ENAMETOOLONG, lambda d: os.unlink(_longer(d))),
    ("rmdir long", errno.ENAMETOOLONG, lambda d: os.rmdir(_longer(d))),
    ("below long", errno.ENAMETOOLONG, lambda d: os.stat(_longer(d) / "x")),
    ("path too long", errno.ENAMETOOLONG, lambda d: os.stat(f"{d}/{'./' * 2048}file")),
    ("no attribute", errno.ENODATA, lambda d: os.getxattr(d / "file", "user.none")),
    ("remove no attribute", errno.ENODATA, lambda d: os.removexattr(d / "file", "user.none")),
    ("make attribute", errno.EEXIST, lambda d: os.setxattr(d / "file", "user.a", b"", os.XATTR_CREATE)),
    ("replace attribute", errno.ENODATA, lambda d: os.setxattr(d / "file", "user.b", b"", os.XATTR_REPLACE)),
    ("unknown attribute", errno.EOPNOTSUPP, lambda d: os.setxattr(d / "file", "other.a", b"")),
    ("attribute without space", errno.EOPNOTSUPP, lambda d: os.setxattr(d / "file", "a", b"")),
    ("attribute of a link", errno.EPERM, lambda d: os.setxattr(d / "loop", "user.a", b"", follow_symlinks=False)),
    ("attribute of a fifo", errno.EPERM, lambda d: os.setxattr(d / "fifo", "user.a", b"")),
    ("long attribute name", errno.ERANGE, lambda d: os.setxattr(d / "file", "user." + "a" * 251, b"")),
    ("long attribute", errno.E2BIG, lambda d: os.setxattr(d / "file", "user.c", bytes(65537))),
]


def _furnish(directory: Path) -> None:
    """One of each, for the calls that fail."""
    (directory / "file").write_bytes(b"content")
    os.setxattr(directory / "file", "user.a", b"value")
    (directory / "empty").mkdir()
    (directory / "full/inner").mkdir(parents=True)
    (directory / "to-empty").symlink_to("empty")
    (directory / "dangling").symlink_to("nothing")
    (directory / "loop").symlink_to("loop")
    (directory / "ring1").symlink_to("ring2")
    (directory / "ring2").symlink_to("ring1")
    (directory / "chain0").symlink_to("file")
    for number in range(41):
        (directory / f"chain{number + 1}").symlink_to(f"chain{number}")
    os.mkfifo(directory / "fifo")


def test_failures_have_their_errno_and_change_nothing(directory: Path) -> None:
    # Short enough for a socket's address.
    os.chdir(directory)
    try:
        here = Path()
        _furnish(here)
        before = picture(here, exact=True)
        wrong = []
        for label, expected, call in _FAILURES:
            target = directory if label in ("rmdir full",) else here
            try:
                call(target)
                wrong.append(f"{label}: worked")
            except OSError as exc:
                if exc.errno != expected:
                    number = exc.errno or 0
                    wrong.append(f"{label}: {errno.errorcode[number]}, not {errno.errorcode[expected]}")
        assert not wrong, "\n".join(wrong)
        assert_same(picture(here, exact=True), before)
        assert os.stat(here / "chain39").st_size == 7
    finally:
        os.chdir("/")


def test_a_directory_that_was_removed_takes_nothing_more(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    (directory / "d").mkdir()
    inner = os.open(directory / "d", os.O_RDONLY)
    os.rmdir(directory / "d")
    assert os.listdir(inner) == []
    for call in (
        lambda: os.open("x", os.O_CREAT, dir_fd=inner),
        lambda: os.mkdir("x", dir_fd=inner),
        lambda: os.symlink("x", "x", dir_fd=inner),
    ):
        with pytest.raises(FileNotFoundError):
            call()
    os.close(inner)
    os.close(fd)


# --- renaming ---


def test_exchange_swaps_anything(directory: Path) -> None:
    (directory / "a").write_bytes(b"A")
    (directory / "d/sub").mkdir(parents=True)
    (directory / "e").mkdir()
    renameat2(directory / "a", directory / "d/sub", RENAME_EXCHANGE)
    assert (directory / "d/sub").read_bytes() == b"A"
    assert (directory / "a").is_dir()
    assert (directory / "d").stat().st_nlink == 2
    assert directory.stat().st_nlink == 5
    renameat2(directory / "a", directory / "d", RENAME_EXCHANGE)
    assert os.listdir(directory / "a") == ["sub"]
    renameat2(directory / "a/sub", directory / "e", RENAME_EXCHANGE)
    assert (directory / "e").read_bytes() == b"A"
    assert (directory / "a").stat().st_nlink == 3


def test_noreplace_renames_to_a_free_name(directory: Path) -> None:
    (directory / "a").write_bytes(b"A")
    renameat2(directory / "a", directory / "b", RENAME_NOREPLACE)
    assert os.listdir(directory) == ["b"]


def test_renaming_a_hard_link_over_its_twin_does_nothing(directory: Path) -> None:
    (directory / "a").write_bytes(b"A")
    os.link(directory / "a", directory / "b")
    os.rename(directory / "a", directory / "b")
    assert sorted(os.listdir(directory)) == ["a", "b"]
    assert (directory / "a").stat().st_nlink == 2


def test_a_directory_renamed_over_an_empty_one_takes_its_place(directory: Path) -> None:
    (directory / "a/x").mkdir(parents=True)
    (directory / "p/b").mkdir(parents=True)
    os.rename(directory / "a", directory / "p/b")
    assert os.listdir(directory / "p/b") == ["x"]
    assert os.path.samefile(directory / "p/b/..", directory / "p")
    assert (directory.stat().st_nlink, (directory / "p").stat().st_nlink) == (3, 3)


# --- links, types ---


def test_link_counts_are_right_through_every_name(directory: Path) -> None:
    path = directory / "0"
    path.write_bytes(b"x")
    for number in range(1, 5):
        os.link(path, directory / f"{number}")
        assert {(directory / f"{n}").stat().st_nlink for n in range(number + 1)} == {number + 1}
    with open(path, "rb") as file:
        os.unlink(directory / "1")
        assert os.fstat(file.fileno()).st_nlink == 4
        (directory / "other").write_bytes(b"y")
        os.rename(directory / "other", directory / "2")
        assert os.fstat(file.fileno()).st_nlink == path.stat().st_nlink == 3
        renameat2(directory / "2", directory / "3", RENAME_EXCHANGE)
        assert (directory / "2").stat().st_nlink == 3
        assert (directory / "3").stat().st_nlink == 1
    # A link to a symbolic link, a fifo.
    (directory / "s").symlink_to("0")
    os.link(directory / "s", directory / "t", follow_symlinks=False)
    os.mkfifo(directory / "p")
    os.link(directory / "p", directory / "q")
    assert (directory / "s").lstat().st_nlink == (directory / "q").stat().st_nlink == 2


def test_link_counts_of_directories_count_subdirectories(directory: Path) -> None:
    for name in ("a", "b", "a/c"):
        (directory / name).mkdir()
    counts = [directory.stat().st_nlink, (directory / "a").stat().st_nlink, (directory / "b").stat().st_nlink]
    assert counts == [4, 3, 2]
    os.rename(directory / "a/c", directory / "b/c")
    assert ((directory / "a").stat().st_nlink, (directory / "b").stat().st_nlink) == (2, 3)
    os.rmdir(directory / "b/c")
    os.rmdir(directory / "b")
    assert directory.stat().st_nlink == 3


def test_every_type_of_file_works(directory: Path) -> None:
    os.mknod(directory / "regular", stat.S_IFREG | 0o640)
    assert (directory / "regular").stat().st_mode == stat.S_IFREG | 0o640
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(directory / "block", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    assert (directory / "null").stat().st_rdev == os.makedev(1, 3)
    assert (directory / "block").stat().st_rdev == os.makedev(7, 99)
    (directory / "null").write_bytes(b"gone")
    assert (directory / "null").read_bytes() == b""
    os.mkfifo(directory / "fifo")
    writer = subprocess.Popen(["sh", "-c", 'echo through > "$0"', directory / "fifo"])
    assert (directory / "fifo").read_bytes() == b"through\n"
    assert writer.wait(60) == 0
    os.chdir(directory)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
            accepted, _ = server.accept()
            accepted.sendall(b"hello")
            accepted.close()
            assert client.recv(10) == b"hello"
    finally:
        os.chdir("/")
    assert stat.S_ISSOCK((directory / "socket").stat().st_mode)
    long = "t" * 4095
    os.symlink(long, directory / "long")
    assert os.readlink(directory / "long") == long
    assert (directory / "long").lstat().st_size == 4095
    target = bytes(range(1, 256))
    os.symlink(target, os.fsencode(directory) + b"/bytes")
    assert os.readlink(os.fsencode(directory) + b"/bytes") == target


def test_the_umask_is_applied(directory: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(directory / "f", os.O_CREAT, 0o777))
        os.mkdir(directory / "d", 0o777)
        os.mkfifo(directory / "p", 0o666)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((directory / name).stat().st_mode) for name in "fdp"]
    assert modes == [0o750, 0o750, 0o640]


def test_all_mode_bits_are_kept(directory: Path) -> None:
    path = directory / "f"
    path.touch()
    for mode in (0o7777, 0, 0o4711, 0o1000, 0o2070):
        path.chmod(mode)
        assert path.stat().st_mode == stat.S_IFREG | mode
    (directory / "d").mkdir()
    (directory / "d").chmod(0o7123)
    assert (directory / "d").stat().st_mode == stat.S_IFDIR | 0o7123


# --- extended attributes ---


@pytest.mark.parametrize("space", ["user", "trusted", "security"])
def test_extended_attributes(directory: Path, space: str) -> None:
    path = directory / "f"
    path.touch()
    one, two = f"{space}.one", f"{space}.two"
    os.setxattr(path, one, b"\0\xff any bytes")
    os.setxattr(path, two, b"", os.XATTR_CREATE)
    assert sorted(os.listxattr(path)) == [one, two]
    assert os.getxattr(path, one) == b"\0\xff any bytes"
    assert os.getxattr(path, two) == b""
    os.setxattr(path, one, b"new", os.XATTR_REPLACE)
    assert os.getxattr(path, one) == b"new"
    os.removexattr(path, two)
    assert os.listxattr(path) == [one]
    long = f"{space}.".ljust(255, "x")
    os.setxattr(path, long, b"v" * 1000)
    assert os.getxattr(path, long) == b"v" * 1000
    (directory / "d").mkdir()
    os.setxattr(directory / "d", one, b"of a directory")
    assert os.getxattr(directory / "d", one) == b"of a directory"
    os.rename(path, directory / "g")
    assert os.getxattr(directory / "g", one) == b"new"
    if space != "user":
        (directory / "s").symlink_to("g")
        os.setxattr(directory / "s", one, b"of a link", follow_symlinks=False)
        assert os.getxattr(directory / "s", one, follow_symlinks=False) == b"of a link"
        assert os.getxattr(directory / "s", one) == b"new"


# --- directories ---


def test_dot_and_dotdot(directory: Path) -> None:
    (directory / "a/b").mkdir(parents=True)
    (directory / "c").mkdir()
    assert os.path.samefile(directory / "a/b/..", directory / "a")
    os.rename(directory / "a/b", directory / "c/b")
    assert os.path.samefile(directory / "c/b/..", directory / "c")
    listed = subprocess.run(["ls", "-aif1", directory / "c/b"], capture_output=True, text=True, check=True)
    numbers = {line.split()[1]: int(line.split()[0]) for line in listed.stdout.splitlines()}
    assert numbers == {".": (directory / "c/b").stat().st_ino, "..": (directory / "c").stat().st_ino}


def test_a_directory_can_be_read_again_from_the_start_and_from_anywhere(directory: Path) -> None:
    names = {f"{number:04d}" for number in range(2000)}
    for name in names:
        (directory / name).touch()
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(3):
        os.lseek(fd, 0, os.SEEK_SET)
        assert set(os.listdir(fd)) == names
    os.close(fd)
    # A listing begun before a change, continued after it.
    with os.scandir(directory) as listing:
        seen = [next(listing).name for _ in range(10)]
        for name in sorted(names - set(seen))[::2]:
            os.unlink(directory / name)
        for number in range(500):
            (directory / f"new{number}").touch()
        rest = [entry.name for entry in listing]
    assert len(set(seen + rest)) == len(seen + rest)
    assert set(os.listdir(directory)) & names <= set(seen + rest)


# --- only in the mount ---


def test_statfs_is_the_disks(shared_mount: LiveMount) -> None:
    ours, below = os.statvfs(shared_mount.path), os.statvfs(shared_mount.store)
    assert ours.f_namemax == 255
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files"):
        assert getattr(ours, field) == getattr(below, field), field
    # Others use the disk as well.
    assert abs(ours.f_bavail - below.f_bavail) * below.f_frsize < 1 << 30
    assert ours.f_ffree > 0


def test_attributes_may_be_as_long_as_the_kernel_takes_them(shared_mount: LiveMount) -> None:
    path = shared_mount.path / "long-attributes"
    path.touch()
    value = os.urandom(65536)
    os.setxattr(path, "user.long", value)
    assert os.getxattr(path, "user.long") == value
    room = 65536 - len("user.long") - 1
    with pytest.raises(OSError) as full:
        for number in range(300):
            os.setxattr(path, f"user.{number:03d}".ljust(250, "x"), b"")
            room -= 251
    assert full.value.errno == errno.ENOSPC
    assert 0 <= room < 251
    assert len(os.listxattr(path)) > 200


def test_a_sparse_file_may_be_very_long(shared_mount: LiveMount) -> None:
    path = shared_mount.path / "long"
    longest = (1 << 63) - 1
    data_at = 15 << 40  # ext4, where the draft lies, takes no byte beyond 16 TiB
    with open(path, "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", data_at)
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), longest)
    assert path.stat().st_size == longest
    assert path.stat().st_blocks == 8
    with open(path, "r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 10, data_at - 2) == b"\0\0end" + bytes(5)
        assert os.pread(file.fileno(), 100, longest - 100) == bytes(100)
        with pytest.raises(OSError) as refused:
            os.pwrite(file.fileno(), b"x", longest)
        assert refused.value.errno in (errno.EFBIG, errno.EINVAL)
    os.unlink(path)


def test_inode_numbers_are_not_used_again(shared_mount: LiveMount) -> None:
    numbers = set()
    for _ in range(20):
        path = shared_mount.path / "number"
        path.touch()
        numbers.add(path.stat().st_ino)
        os.unlink(path)
    assert len(numbers) == 20


def test_handles_are_stable(mount: LiveMount) -> None:
    (mount.path / "d").mkdir()
    (mount.path / "d/f").write_bytes(b"found by its handle")
    file, directory = name_to_handle(mount.path / "d/f"), name_to_handle(mount.path / "d")
    (mount.path / "gone").touch()
    gone = name_to_handle(mount.path / "gone")
    os.unlink(mount.path / "gone")
    for _ in range(2):
        root = os.open(mount.path, os.O_RDONLY)
        fd = open_by_handle(root, file, os.O_RDONLY)
        assert os.read(fd, 100) == b"found by its handle"
        os.close(fd)
        fd = open_by_handle(root, directory, os.O_RDONLY | os.O_DIRECTORY)
        assert os.listdir(fd) == ["f"]
        assert os.path.samestat(os.stat("..", dir_fd=fd), os.fstat(root))
        os.close(fd)
        with pytest.raises(OSError) as stale:
            open_by_handle(root, gone, os.O_RDONLY)
        assert stale.value.errno == errno.ESTALE
        os.close(root)
        os.rename(mount.path / "d", mount.path / "renamed")
        mount.remount()
        os.rename(mount.path / "renamed", mount.path / "d")


def test_a_read_only_mount_changes_nothing(mount: LiveMount) -> None:
    _furnish(mount.path)
    before = picture(mount.path, exact=True)
    mount.unmount()
    files = {path: path.stat().st_mtime_ns for path in mount.store.rglob("*")}
    mount.options = ("ro",)
    mount.start()
    assert_same(picture(mount.path, exact=True), before)
    for name in (".", "file"):
        # In a process of its own, since one that never came back could not be ended.
        sync = "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY))"
        subprocess.run([sys.executable, "-c", sync, str(mount.path / name)], check=True, timeout=20)
    root = mount.path
    calls: list[Callable[[], object]] = [
        lambda: os.open(root / "x", os.O_CREAT),
        lambda: os.open(root / "file", os.O_WRONLY),
        lambda: os.open(root / "file", os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(root / "file", 1),
        lambda: os.mkdir(root / "x"),
        lambda: os.rmdir(root / "empty"),
        lambda: os.unlink(root / "file"),
        lambda: os.rename(root / "file", root / "x"),
        lambda: os.link(root / "file", root / "x"),
        lambda: os.symlink("x", root / "x"),
        lambda: os.mkfifo(root / "x"),
        lambda: os.chmod(root / "file", 0),
        lambda: os.chown(root / "file", 1, 1),
        lambda: os.utime(root / "file"),
        lambda: os.setxattr(root / "file", "user.a", b""),
        lambda: os.removexattr(root / "file", "user.a"),
    ]
    for call in calls:
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == errno.EROFS
    assert_same(picture(mount.path, exact=True), before)
    mount.unmount()
    after = {path: path.stat().st_mtime_ns for path in mount.store.rglob("*")}
    kept = {path for path in files if not path.name.startswith("catalog.db")}
    assert {path: after.get(path) for path in kept} == {path: files[path] for path in kept}
