"""Large files: sparse, streamed, changed in the middle, written by several at once, on a full disk."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import SCALE, LiveMount, run
from mount.syscalls import write_back
from mountstore.blobs.manifest import MAGIC, decode_manifest

KIB = 1 << 10
MIB = 1 << 20
TIB = 1 << 40


def blob_bytes(mount: LiveMount) -> int:
    """Bytes of all blobs, when everything is sealed: the kernel may write back after close(2)."""
    mount.remount()
    return sum(int(name[65:], 16) for name in mount.blobs())


def settle(mount: LiveMount) -> None:
    fd = os.open(mount.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_all(path: Path, data: bytes, part: int = MIB) -> None:
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(data), part):
            file.write(data[start : start + part])


def drop_pages(path: Path) -> None:
    """What is read next comes from the daemon."""
    fd = os.open(path, os.O_RDONLY)
    write_back(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# --- sparse ---


def test_a_file_of_a_tebibyte_with_data_at_both_ends(mount: LiveMount) -> None:
    path = mount.path / "sparse"
    before = mount.memory_bytes()
    began = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        file.write(b"head" * 1000)
        os.pwrite(file.fileno(), b"tail" * 1000, TIB - 4000)
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"middle", TIB // 2)
        os.fsync(file.fileno())
    mount.remount()
    assert path.stat().st_size == TIB
    assert path.stat().st_blocks * 512 < 10 * MIB
    assert int(run("du", "-sk", path).split()[0]) < 10 * KIB
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        assert os.pread(fd, 5000, 0) == b"head" * 1000 + bytes(1000)
        assert os.pread(fd, 5000, TIB - 5000) == bytes(1000) + b"tail" * 1000
        assert os.pread(fd, 20, TIB // 2 - 7) == bytes(7) + b"middle" + bytes(7)
        assert os.pread(fd, MIB, TIB // 3) == bytes(MIB)
    os.truncate(path, TIB // 2 + 3)
    os.truncate(path, TIB)
    drop_pages(path)
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 20, TIB // 2 - 7) == bytes(7) + b"mid" + bytes(10)
    path.unlink()
    assert time.monotonic() - began < 30
    assert mount.memory_bytes() < before + 60 * MIB
    # Every blob was mostly zeros, or small.
    assert blob_bytes(mount) < 20 * MIB


def test_an_empty_file_of_the_largest_size(mount: LiveMount) -> None:
    path = mount.path / "empty"
    path.touch()
    largest = (1 << 63) - 4096
    os.truncate(path, largest)
    assert path.stat().st_size == largest
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, largest - 50) == bytes(50)
    assert path.stat().st_blocks == 0
    path.unlink()


# --- changed ---


@pytest.mark.timeout(300 * SCALE)
def test_a_byte_inserted_at_the_front_stores_less_than_a_hundredth(mount: LiveMount) -> None:
    size = min(256 * SCALE, 1024) * MIB
    noise = random.Random(5)
    with open(mount.path / "f", "wb", buffering=0) as file:
        for _ in range(size // (4 * MIB)):
            file.write(noise.randbytes(4 * MIB))
    stored = blob_bytes(mount)
    assert stored >= size
    with open(mount.path / "f", "rb") as old, open(mount.path / "new", "wb", buffering=0) as new:
        new.write(b"!")
        while part := old.read(MIB):
            new.write(part)
    os.rename(mount.path / "new", mount.path / "f")
    added = blob_bytes(mount) - stored
    assert added < (size // 100 if size >= 1024 * MIB else max(size // 100, 5 * MIB)), added
    noise = random.Random(5)
    with open(mount.path / "f", "rb") as file:
        assert file.read(1) == b"!"
        assert file.read(4 * MIB) == noise.randbytes(4 * MIB)
        file.seek(size + 1 - 4 * MIB)
        for _ in range(size // (4 * MIB) - 2):
            last = noise.randbytes(4 * MIB)
        last = noise.randbytes(4 * MIB)
        assert file.read() == last


@pytest.mark.timeout(300 * SCALE)
def test_a_thousand_appends_to_a_hundred_megabytes(mount: LiveMount) -> None:
    path = mount.path / "log"
    data = random.Random(6).randbytes(100_000_000)
    write_all(path, data)
    mount.remount()
    expected = hashlib.sha256(data)
    began = time.monotonic()
    for number in range(1000):
        line = b"%d: a line of a log\n" % number
        expected.update(line)
        with open(path, "ab", buffering=0) as file:
            file.write(line)
    settle(mount)
    took = time.monotonic() - began
    print(f"{took:.1f} s for 1000 appends, {blob_bytes(mount) / 1e6:.0f} MB stored")
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == expected.digest()


def test_written_out_of_order_with_a_hole_and_read_while_it_is_written(mount: LiveMount) -> None:
    path = mount.path / "f"
    expected = bytearray(40 * MIB)
    noise = random.Random(7)
    with open(path, "w+b", buffering=0) as file:
        fd = file.fileno()

        def write(offset: int, length: int) -> None:
            data = noise.randbytes(length)
            assert os.pwrite(fd, data, offset) == length
            expected[offset : offset + length] = data

        for at in range(20):
            write(at * MIB, MIB)
        write_back(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # Read back in the middle of the stream: it is sealed, and goes on as a staged draft.
        assert os.pread(fd, MIB, 3 * MIB + 5) == expected[3 * MIB + 5 : 4 * MIB + 5]
        for at in (30, 25, 29, 21, 39):
            write(at * MIB - 100, MIB)
        write_back(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 12 * MIB, 18 * MIB) == expected[18 * MIB : 30 * MIB]
    del expected[40 * MIB - 100 :]
    assert path.read_bytes() == expected
    mount.remount()
    assert path.read_bytes() == expected


def test_a_stream_is_truncated_fsynced_and_continued(mount: LiveMount) -> None:
    data = random.Random(8).randbytes(30 * MIB)
    path = mount.path / "f"
    with open(path, "wb", buffering=0) as file:
        file.write(data[: 12 * MIB])
        write_back(file.fileno())
        os.ftruncate(file.fileno(), 10 * MIB + 1)
        os.pwrite(file.fileno(), data[10 * MIB + 1 : 20 * MIB], 10 * MIB + 1)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), data[20 * MIB :], 20 * MIB)
        os.ftruncate(file.fileno(), 40 * MIB)
    assert path.read_bytes() == data + bytes(10 * MIB)
    mount.remount()
    assert path.read_bytes() == data + bytes(10 * MIB)
    with open(path, "wb", buffering=0) as file:
        file.write(data[: 12 * MIB])
        write_back(file.fileno())
        os.ftruncate(file.fileno(), 5)
    drop_pages(path)
    assert path.read_bytes() == data[:5]


def test_names_change_while_a_file_is_streamed(mount: LiveMount) -> None:
    data = random.Random(9).randbytes(32 * MIB)
    root = mount.path
    (root / "target").write_bytes(b"old")
    (root / "second").write_bytes(b"old")
    with open(root / "source", "w+b", buffering=0) as file:
        file.write(data[: 14 * MIB])
        write_back(file.fileno())
        os.rename(root / "source", root / "target")
        file.write(data[14 * MIB : 24 * MIB])
        write_back(file.fileno())
        os.link(root / "target", root / "linked")
        os.replace(root / "target", root / "second")
        file.write(data[24 * MIB :])
    assert sorted(os.listdir(root)) == ["linked", "second"]
    with open(root / "gone", "w+b", buffering=0) as file:
        file.write(data[: 14 * MIB])
        write_back(file.fileno())
        os.unlink(root / "gone")
        file.write(data[14 * MIB :])
        write_back(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 32 * MIB, 0) == data
    mount.remount()
    assert (root / "second").read_bytes() == (root / "linked").read_bytes() == data


def test_direct_io(mount: LiveMount) -> None:
    data = random.Random(10).randbytes(24 * MIB)
    path = mount.path / "f"
    buffer = mmap.mmap(-1, MIB)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    for at in range(0, len(data), MIB):
        buffer[:] = data[at : at + MIB]
        assert os.pwrite(fd, buffer, at) == MIB
    assert os.preadv(fd, [buffer], 5 * MIB) == MIB
    assert buffer[:] == data[5 * MIB : 6 * MIB]
    buffer[:] = data[:MIB]
    assert os.pwrite(fd, buffer, 7 * MIB) == MIB
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), MIB, 7 * MIB) == data[:MIB]
    os.close(fd)
    expected = data[: 7 * MIB] + data[:MIB] + data[8 * MIB :]
    assert path.read_bytes() == expected
    mount.remount()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_what_was_written_early_is_overwritten_in_order(mount: LiveMount, direct: bool) -> None:
    data = random.Random(11).randbytes(16 * MIB)
    path = mount.path / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0))
    buffer = mmap.mmap(-1, MIB)

    def put(at: int, part: bytes) -> None:
        buffer[:] = part
        assert os.pwrite(fd, buffer, at) == MIB
        if not direct:
            write_back(fd)

    for at in range(0, 9 * MIB, MIB):
        put(at, data[at : at + MIB])
    put(9 * MIB + MIB // 2, bytes(MIB))
    for at in range(9 * MIB, len(data), MIB):
        put(at, data[at : at + MIB])
        assert os.fstat(fd).st_size == max(at + MIB, 10 * MIB + MIB // 2)
    os.close(fd)
    drop_pages(path)
    assert path.read_bytes() == data
    mount.remount()
    assert path.read_bytes() == data


# --- several at once ---

_WRITER = """
import os, sys
path, letter, kind, count = sys.argv[1], sys.argv[2].encode(), sys.argv[3], int(sys.argv[4])
if kind == "append":
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(count):
        record = b"%s%07d" % (letter, number) + letter * (number % 4000) + b"\\n"
        assert os.write(fd, record) == len(record)
else:
    fd = os.open(path, os.O_WRONLY)
    for number in range(count):
        at = (2 * number + (letter == b"b")) * 10_007
        assert os.pwrite(fd, letter * 10_007, at) == 10_007
os.close(fd)
"""


def _two_processes(path: Path, kind: str, count: int) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path, letter, kind, str(count)]) for letter in "ab"
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]


def test_two_processes_write_to_one_file_in_turns(mount: LiveMount) -> None:
    path = mount.path / "f"
    path.touch()
    _two_processes(path, "disjoint", 1500)
    expected = (b"a" * 10_007 + b"b" * 10_007) * 1500
    assert path.read_bytes() == expected
    mount.remount()
    assert path.read_bytes() == expected


def test_two_processes_append_to_one_file(mount: LiveMount) -> None:
    path = mount.path / "f"
    path.touch()
    _two_processes(path, "append", 8000)
    mount.remount()
    numbers = {b"a": 0, b"b": 0}
    for line in path.read_bytes().splitlines():
        letter = line[:1]
        number = numbers[letter]
        assert line == b"%s%07d" % (letter, number) + letter * (number % 4000)
        numbers[letter] += 1
    assert numbers == {b"a": 8000, b"b": 8000}


def test_eight_writers_at_once_in_little_memory(mount: LiveMount) -> None:
    size = 64 * SCALE * MIB
    digests: dict[int, bytes] = {}

    def write(number: int) -> None:
        digest = hashlib.sha256()
        with open(mount.path / f"{number}", "wb", buffering=0) as file:
            for _ in range(size // MIB):
                data = os.urandom(MIB)
                digest.update(data)
                file.write(data)
        digests[number] = digest.digest()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for number in range(8):
        with open(mount.path / f"{number}", "rb") as file:
            os.fsync(file.fileno())
    status = Path(f"/proc/{mount.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    print(f"at most {int(peak[1]) // 1024} MiB")
    assert int(peak[1]) * KIB < 300 * MIB
    mount.remount()
    for number, digest in digests.items():
        with open(mount.path / f"{number}", "rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == digest


# --- a full disk ---

_FULL = """
import errno, os
from mountstore.blobs.staging import Staging
write = Staging.write
def full(self, data):
    if os.path.exists({flag!r}):
        raise OSError(errno.ENOSPC, "injected")
    return write(self, data)
Staging.write = full
"""


def test_a_stream_on_a_full_disk_is_tried_again_and_loses_nothing(make_mount: MountMaker, tmp_path: Path) -> None:
    flag = tmp_path / "full"
    mount = make_mount(prelude=_FULL.format(flag=str(flag)))
    mount.announce("injected")
    path = mount.path / "f"
    data = random.Random(11).randbytes(40 * MIB)
    with open(path, "wb", buffering=0) as file:
        fd = file.fileno()
        for at in range(0, len(data), MIB):
            if at == 12 * MIB:
                flag.touch()
                for _ in range(3):
                    os.pwrite(fd, data[at : at + MIB], at)
                    with pytest.raises(OSError) as failed:
                        os.fsync(fd)
                    assert failed.value.errno == errno.ENOSPC
                flag.unlink()
            os.pwrite(fd, data[at : at + MIB], at)
            # Written back, so acknowledged by the daemon.
            write_back(fd)
    assert path.read_bytes() == data
    mount.remount()
    assert path.read_bytes() == data


def test_closed_on_a_full_disk_and_sealed_when_there_is_room(make_mount: MountMaker, tmp_path: Path) -> None:
    flag = tmp_path / "full"
    mount = make_mount("commit=1", prelude=_FULL.format(flag=str(flag)))
    mount.announce("cannot be sealed now, kept as a draft: .*injected")
    contents = {}
    for name, size in (("small", 1000), ("memory", 5 * MIB), ("streamed", 8 * MIB + 10), ("sparse", 50 * MIB)):
        contents[name] = bytearray(random.Random(name).randbytes(size))
        with open(mount.path / name, "wb", buffering=0) as file:
            if name == "sparse":
                contents[name][: 49 * MIB] = bytes(49 * MIB)
                os.pwrite(file.fileno(), contents[name][49 * MIB :], 49 * MIB)
            else:
                file.write(contents[name])
            write_back(file.fileno())
            flag.touch()
        while (mount.log.read_text().count("kept as a draft")) < len(contents):
            time.sleep(0.01)
        flag.unlink()
        assert (mount.path / name).read_bytes() == contents[name]
    mount.remount()
    for name, content in contents.items():
        assert (mount.path / name).read_bytes() == content


# --- damage ---


def _pieces(mount: LiveMount) -> tuple[Path, list[tuple[int, Path]]]:
    """The manifest of the only large file of an unmounted store, and its pieces with their offsets."""
    blobs = {path.name: path for path in (mount.store / "blobs").rglob("*") if path.is_file()}
    manifest = next(path for path in blobs.values() if path.read_bytes().startswith(MAGIC))
    entries = decode_manifest(manifest.read_bytes())
    return manifest, [(entry.offset, blobs[entry.digest.name]) for entry in entries if entry.digest is not None]


@pytest.mark.parametrize("damage", ["bit in a piece", "bit in the manifest", "piece cut off", "piece missing"])
def test_damage_is_eio_where_it_is_and_nowhere_else(make_mount: MountMaker, damage: str) -> None:
    mount = make_mount(checked=False)
    root = mount.path
    data = random.Random(13).randbytes(20 * MIB)
    write_all(root / "f", data)
    os.link(root / "f", root / "linked")
    (root / "small").write_bytes(b"small")
    mount.unmount()
    manifest, pieces = _pieces(mount)
    start, victim = pieces[len(pieces) // 2]
    end = start + victim.stat().st_size
    if damage == "bit in the manifest":
        start, end, victim = 0, len(data), manifest
    victim.chmod(0o644)
    if damage == "piece missing":
        victim.unlink()
    elif damage == "piece cut off":
        os.truncate(victim, victim.stat().st_size // 2)
    else:
        with open(victim, "r+b") as blob:
            blob.seek(victim.stat().st_size // 3)
            byte = blob.read(1)[0]
            blob.seek(-1, os.SEEK_CUR)
            blob.write(bytes([byte ^ 16]))
    mount.start()
    mount.announce(rf"/f, /linked: .*{victim.name}.* EIO")
    with open(root / "f", "rb", buffering=0) as file:
        fd = file.fileno()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, len(data), 4 * KIB):
            if at + 4 * KIB <= start or at >= end:
                assert os.pread(fd, 4 * KIB, at) == data[at : at + 4 * KIB]
            elif at % (64 * KIB) == 0 or at < start or at + 8 * KIB > end:
                with pytest.raises(OSError) as failed:
                    os.pread(fd, 4 * KIB, at)
                assert failed.value.errno == errno.EIO
    with pytest.raises(OSError):
        (root / "linked").read_bytes()
    assert (root / "small").read_bytes() == b"small"
    assert mount.log.read_text().count(victim.name) == 1
    if damage != "bit in the manifest":
        # A change elsewhere in the file is kept, and the damage stays where it is.
        with open(root / "f", "r+b") as file:
            file.write(b"changed")
        drop_pages(root / "f")
        mount.remount()
        mount.announce(victim.name)
        with open(root / "f", "rb", buffering=0) as file:
            assert file.read(7) == b"changed"
            assert os.pread(file.fileno(), MIB, 19 * MIB) == data[19 * MIB :]
            with pytest.raises(OSError):
                os.pread(file.fileno(), 4 * KIB, (start + end) // 2)
    # The same content written again heals both.
    write_all(root / "again", data)
    mount.remount()
    assert (root / "again").read_bytes() == data
    if damage == "bit in the manifest":
        assert (root / "f").read_bytes() == data
    else:
        assert (root / "f").read_bytes() == b"changed" + data[7:]


# --- a database ---


def test_a_database_of_some_megabytes(mount: LiveMount) -> None:
    path = mount.path / "database"
    noise = random.Random(12)
    rows = {number: noise.randbytes(1000) for number in range(6000)}
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB)")
    with database:
        database.executemany("INSERT INTO t VALUES (?, ?)", rows.items())
    for _ in range(100):
        number = noise.randrange(6000)
        rows[number] = noise.randbytes(900)
        with database:
            database.execute("UPDATE t SET value = ? WHERE id = ?", (rows[number], number))
    database.close()
    mount.remount()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert dict(database.execute("SELECT id, value FROM t")) == rows
    database.execute("PRAGMA journal_mode = WAL")
    for _ in range(100):
        number = noise.randrange(6000)
        rows[number] = noise.randbytes(900)
        with database:
            database.execute("UPDATE t SET value = ? WHERE id = ?", (rows[number], number))
    settle(mount)
    mount.kill()
    database.close()
    mount.start()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert dict(database.execute("SELECT id, value FROM t")) == rows
    database.close()


def test_a_file_of_five_gigabytes(make_mount: MountMaker) -> None:
    """Offsets and sizes that 32 bits do not hold, in what is written, told, and read after a remount."""
    mount = make_mount()
    file, size = mount.path / "f", 5 << 30
    ends = [(0, b"begin"), ((1 << 32) - 3, b"across"), (size - 3, b"end")]
    with file.open("wb", buffering=0) as writer:
        for offset, data in ends:
            os.pwrite(writer.fileno(), data, offset)
    for _ in range(2):
        assert file.stat().st_size == size
        with file.open("rb", buffering=0) as reader:
            for offset, data in ends:
                assert os.pread(reader.fileno(), 10, offset).rstrip(b"\0") == data
            assert os.pread(reader.fileno(), 10, 1 << 31) == bytes(10)
        mount.remount()
