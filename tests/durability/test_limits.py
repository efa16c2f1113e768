"""Limits other than a full disk: whoever writes is told which, nothing acknowledged is lost, and the mount goes on
when the limit does (promise 4)."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mount.conftest import MountMaker
from mount.live import LiveMount

from durability.disks import quota_disk
from durability.tracing import traced
from mountstore.errors import QuotaError
from mountstore.namespace.mapped_index import MappedIndex

KIB = 1 << 10
MIB = 1 << 20


def write(path: Path, data: bytes, *, sync: bool = True) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, data)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def overwrite(fd: int, change: bytes) -> None:
    os.pwrite(fd, change, 5 * MIB)
    os.fsync(fd)


def overwrite_in(path: Path, change: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        overwrite(fd, change)
    finally:
        os.close(fd)


def told(operation: Callable[[], object]) -> int:
    """The errno of an operation, 0 if it succeeds."""
    try:
        operation()
    except OSError as exc:
        return exc.errno or -1
    return 0


def until_it_succeeds(operation: Callable[[], object], expected: int) -> None:
    deadline = time.monotonic() + 20
    while number := told(operation):
        assert number == expected, os.strerror(number)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def no_room(mount: LiveMount) -> bool:
    found: bool = json.loads((mount.path / ".cas/status").read_bytes())["no_room"]
    return found


def test_a_quota_is_told_to_who_writes_and_what_was_acknowledged_is_kept(in_memory: Path) -> None:
    choice = random.Random(1)
    announced = ("Disk quota exceeded", "no room for the catalog", "there is room again")
    with quota_disk(in_memory, 40) as (disk, limit):
        (in_memory / "m").mkdir()
        (in_memory / "m/store").symlink_to(disk / "store")
        mount = LiveMount(in_memory / "m")
        try:
            root = mount.path
            kept: dict[str, bytes] = {}
            refusals: list[int] = []
            for number in range(80):
                data = choice.randbytes(MIB)
                refusals.append(told(partial(write, root / f"f{number}", data)))
                if not refusals[-1]:
                    kept[f"f{number}"] = data
            assert set(refusals) == {0, errno.EDQUOT} and 20 < len(kept) < 45
            assert no_room(mount)
            # Also without fsync, at the latest by close, which knows ENOSPC and EIO only (the kernel's doing).
            # While the catalog cannot be committed either, no name is made (ENOSPC).
            closed = {told(lambda: write(root / "closed", choice.randbytes(MIB), sync=False)) for _ in range(9)}
            assert closed <= {errno.EIO, errno.ENOSPC}
            # Names need no room that is worth mentioning, and the mount is not in doubt.
            for number in range(200):
                os.mkdir(root / f"d{number}")
            os.unlink(root / "f0")
            del kept["f0"]
            # A deletion can be committed, since some room was held back for that.
            fd = os.open(root / "f1", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            for name, data in kept.items():
                assert (root / name).read_bytes() == data, name
            limit(200)
            until_it_succeeds(lambda: write(root / "more", b"more"), errno.EDQUOT)
            assert not no_room(mount)
            write(root / "f79", kept.setdefault("f79", choice.randbytes(MIB)))
            mount.announce_logged(*announced)
            mount.remount()
            for name, data in kept.items():
                assert (root / name).read_bytes() == data, name
            assert (root / "more").read_bytes() == b"more" and (root / "d199").is_dir()
        finally:
            mount.announce_logged(*announced)
            mount.finish()


def test_a_quota_that_stops_a_file_which_stays_open_is_told_of(in_memory: Path) -> None:
    with quota_disk(in_memory, 40) as (disk, limit):
        (in_memory / "m").mkdir()
        (in_memory / "m/store").symlink_to(disk / "store")
        mount = LiveMount(in_memory / "m")
        try:
            choice = random.Random(4)
            write(mount.path / "database", b"begin")
            fd = os.open(mount.path / "database", os.O_RDWR)

            def transact() -> None:
                os.pwrite(fd, choice.randbytes(MIB), number * MIB)
                os.fsync(fd)

            number = 0
            while not (refusal := told(transact)):
                number += 1
                assert number < 80
            assert refusal == errno.EDQUOT and no_room(mount)
            limit(200)
            until_it_succeeds(transact, errno.EDQUOT)
            assert not no_room(mount)
            os.close(fd)
        finally:
            mount.announce_logged("Disk quota exceeded", "no room for the catalog", "there is room again")
            mount.finish()


def test_a_commit_needs_room_for_its_rows_and_what_is_held_for_it_is_not_for_contents(in_memory: Path) -> None:
    with quota_disk(in_memory, 64) as (disk, _):
        index = MappedIndex(str(disk / "catalog.db"), lambda: sqlite3.connect(":memory:"))
        scarce: list[int | None] = []
        index.on_scarce = lambda refusal: scarce.append(refusal.errno)
        index.require_room()
        with (disk / "filler").open("wb", buffering=0) as filler:
            while not told(lambda: filler.write(bytes(64 * KIB))):
                assert filler.tell() < 64 * MIB
            assert filler.tell() < 56 * MIB, "some is held"
            index.require_room(100)
            assert scarce == [errno.EDQUOT]
            # Of the 8 MiB that were let go, 2 are left.
            filler.write(bytes(6 * MIB))
            index.require_room(100)
            with pytest.raises(QuotaError):
                index.require_room(1000)
            assert scarce == [errno.EDQUOT]
        index.close()


def test_a_quota_that_stops_the_catalog_puts_nothing_in_doubt(in_memory: Path) -> None:
    """SQLite calls it an I/O error."""
    with quota_disk(in_memory, 64) as (disk, limit):
        (in_memory / "m").mkdir()
        (in_memory / "m/store").symlink_to(disk / "store")
        mount = LiveMount(in_memory / "m")
        try:
            root = mount.path
            write(root / "before", b"before")
            with (disk / "filler").open("wb", buffering=0) as filler:
                assert told(lambda: [filler.write(bytes(64 * KIB)) for _ in range(2000)]) == errno.EDQUOT
                while not told(lambda: filler.write(bytes(4 * KIB))):
                    pass
            made = 0
            while not (number := told(partial(os.mkdir, root / f"{'d' * 200}{made}"))):
                made += 1
                assert made < 100_000
            assert number == errno.ENOSPC
            time.sleep(3)  # more timed commits than may fail otherwise
            assert told(lambda: os.mkdir(root / "another")) == errno.ENOSPC
            limit(400)
            until_it_succeeds(lambda: os.mkdir(root / "another"), errno.ENOSPC)
            mount.announce("no room for the catalog")
            mount.announce("there is room again")
            mount.announce_logged("Disk quota exceeded")
            mount.remount()
            assert len(os.listdir(root)) == made + 2
            assert (root / "before").read_bytes() == b"before"
        finally:
            mount.finish()


def test_a_daemon_without_descriptors_says_so_and_goes_on_when_files_are_closed(make_mount: MountMaker) -> None:
    mount = make_mount(prelude="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))")
    root = mount.path
    choice = random.Random(2)
    contents = {root / f"f{number}": bytearray(choice.randbytes(9 * MIB)) for number in range(24)}
    for path, data in contents.items():
        path.write_bytes(data)
    # A change in the middle of a large file is drafted in a file of its own.
    files = {path: os.open(path, os.O_RDWR) for path in contents}
    refused: list[Path] = []
    for path, fd in files.items():
        change = choice.randbytes(100)
        number = told(partial(overwrite, fd, change))
        if number:
            assert number == errno.EMFILE, os.strerror(number)
            refused.append(path)
        else:
            contents[path][5 * MIB : 5 * MIB + 100] = change
    assert 4 < len(refused) < 22
    # Some are left to what needs them for a moment.
    write(root / "small", b"small")
    os.mkdir(root / "directory")
    for fd in files.values():
        told(partial(os.close, fd))
    for path in refused:
        change = choice.randbytes(100)
        # close(2) does not wait for the daemon to let go of a file.
        until_it_succeeds(partial(overwrite_in, path, change), errno.EMFILE)
        contents[path][5 * MIB : 5 * MIB + 100] = change
    mount.announce("Too many open files")
    mount.remount()
    for path, data in contents.items():
        assert path.read_bytes() == data, path
    assert (root / "small").read_bytes() == b"small"


@pytest.mark.parametrize("by", [os.fsync, os.close])
def test_of_many_open_files_no_byte_is_lost_without_a_word(
    make_mount: MountMaker, by: Callable[[int], None]
) -> None:
    """More drafts than fit into memory, and more staging files than there may be."""
    mount = make_mount(
        prelude=f"""
import resource
from mountstore.namespace import drafts
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
drafts.MEMORY_TOTAL = {4 * MIB}
"""
    )
    root = mount.path
    choice = random.Random(3)
    contents = {root / f"f{n}": bytearray(choice.randbytes(choice.randrange(60_000))) for n in range(300)}
    for path, data in contents.items():
        path.write_bytes(data)
    files = {path: os.open(path, os.O_RDWR | os.O_APPEND) for path in contents}
    refused: set[Path] = set()

    def tell(path: Path, operation: Callable[[], object]) -> None:
        number = told(operation)
        if number:
            # What the kernel writes back and close(2) reports is EIO, whatever the daemon says.
            assert number in (errno.EMFILE, errno.EIO), os.strerror(number)
            refused.add(path)

    for _ in range(4):
        for path in choice.sample(list(files), len(files)):
            change = choice.randbytes(choice.randrange(1, 40_000))
            tell(path, partial(os.write, files[path], change))
            contents[path] += change
    os.sync()
    for path, fd in files.items():
        tell(path, partial(by, fd))
    if by is not os.close:
        for fd in files.values():
            os.close(fd)
    mount.announce_logged("Too many open files")
    mount.remount()
    kept = {path for path, data in contents.items() if path.read_bytes() == data}
    assert len(kept) > 50 and contents.keys() - kept <= refused


def test_a_system_without_descriptors_is_told_to_who_writes(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount()
    root = mount.path
    write(root / "before", b"before")
    with traced(mount.pid, tmp_path / "trace", "openat", inject="openat:error=ENFILE") as trace:
        assert told(lambda: write(root / "small", b"small")) == errno.ENFILE
        assert told(lambda: os.mkdir(root / "directory")) == 0
    assert trace.injected
    until_it_succeeds(lambda: write(root / "small", b"small"), errno.ENFILE)
    mount.announce("Too many open files in system")
    mount.remount()
    assert (root / "before").read_bytes() == b"before" and (root / "small").read_bytes() == b"small"


def test_a_limit_on_the_size_of_files_concerns_large_drafts_only(make_mount: MountMaker) -> None:
    mount = make_mount(
        prelude=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({24 * MIB}, {24 * MIB}))"
    )
    root = mount.path
    data = os.urandom(30 * MIB)
    # What arrives in order is cut into pieces, each a file below the limit.
    write(root / "in order", data)
    fd = os.open(root / "changed", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"begin")
    os.fsync(fd)
    os.ftruncate(fd, 100 * MIB)
    os.pwrite(fd, b"end", 99 * MIB)
    assert told(lambda: os.fsync(fd)) == errno.EFBIG
    os.pwrite(fd, b"middle", 9 * MIB)
    os.fsync(fd)
    os.close(fd)
    mount.announce("File too large")
    mount.remount()
    assert (root / "in order").read_bytes() == data
    with (root / "changed").open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(9 * MIB)
        assert file.read(6) == b"middle"
    assert (root / "changed").stat().st_size == 100 * MIB
