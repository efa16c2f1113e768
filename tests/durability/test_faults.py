"""Every system call that an operation makes in the store fails once (promise 4); and the cost of an fsync."""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mount.conftest import MountMaker
from mount.live import SCALE, LiveMount

from durability.tracing import Call, traced
from mountstore.care.checking import check_store

CALLS = "openat,write,pwrite64,rename,mkdir,fchmod,ftruncate,unlink,fallocate,fsync,fdatasync,syncfs"
FLUSHES = ("fsync", "fdatasync", "syncfs")
KIB = 1 << 10

TROUBLE = r"Input/output error|disk I/O error|cannot be sealed now|timed sync failed|no more writes are taken"

_KEPT = "a draft that nothing speaks of any more is kept"


def write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    write(path.with_suffix(".new"), data)
    os.rename(path.with_suffix(".new"), path)
    sync(path.parent)


def change_in_place(path: Path, data: bytes) -> None:
    """The second fsync of an open file goes to a staging file."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for offset in (0, 5):
            os.pwrite(fd, data, offset)
            os.fsync(fd)
    finally:
        os.close(fd)


def make_names(path: Path, data: bytes) -> None:
    path.mkdir(exist_ok=True)
    (path / "a").touch()
    os.symlink(b"target", path / data.hex()[:20])
    os.unlink(path / "a")
    sync(path)


def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


OPERATIONS: dict[str, tuple[Callable[[Path, bytes], None], int]] = {
    "small": (write, 10 * KIB),
    "replaced": (replace, 3000),
    "in-place": (change_in_place, 9000),
    "large": (write, 9000 * KIB),
    "names": (make_names, 20),
}


def settled(mount: LiveMount) -> None:
    """Nothing is under way: the next calls belong to the next operation."""
    (mount.path / "settle").touch()
    sync(mount.path)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_call_that_fails_is_told_and_the_next_attempt_succeeds(
    make_mount: MountMaker, tmp_path: Path, operation: str
) -> None:
    work, size = OPERATIONS[operation]
    choice = random.Random(operation)
    mount = make_mount("commit=60", checked=False)
    kept = choice.randbytes(5000)
    write(mount.path / "kept", kept)
    settled(mount)
    with traced(mount.pid, tmp_path / "dry", CALLS) as trace:
        work(mount.path / operation, choice.randbytes(size))
    targets = _targets(trace.calls(), str(mount.store))
    expected = {"names": {"fdatasync"}, "large": {"rename", "fsync", "fdatasync"}}
    assert expected.get(operation, {"rename", "fdatasync"}) <= {name for name, _ in targets}
    for name, number in targets:
        settled(mount)
        output = tmp_path / f"{name}-{number}"
        with traced(mount.pid, output, CALLS, inject=f"{name}:error=EIO:when={number}") as trace:
            told = _error(work, mount.path / operation, choice.randbytes(size))
        if not trace.injected:
            assert told is None
            continue
        mount.announce(TROUBLE) if re.search(TROUBLE, _log_since_check(mount)) else None
        assert told in (None, errno.EIO, errno.EROFS), (name, number, told)
        if name in FLUSHES:
            assert told == errno.EIO
            _ends_in_doubt(mount)
        else:
            data = choice.randbytes(size)
            work(mount.path / operation, data)
        assert (mount.path / "kept").read_bytes() == kept
    mount.unmount()
    findings = check_store(str(mount.store), full=True).findings
    assert [str(finding) for finding in findings if finding.is_error] == []


def _targets(calls: list[Call], store: str) -> list[tuple[str, int]]:
    """The calls that concern the store, of each name the first, the middle and the last; flushes last."""
    found: dict[str, set[int]] = {}
    for call in calls:
        if store in call.arguments:
            found.setdefault(call.name, set()).add(call.number)
    targets = []
    for name, numbers in found.items():
        ordered = sorted(numbers)
        chosen = ordered if SCALE > 1 else {ordered[0], ordered[len(ordered) // 2], ordered[-1]}
        targets += [(name, number) for number in chosen]
    return sorted(targets, key=lambda target: (target[0] in FLUSHES, target))


def _error(work: Callable[[Path, bytes], None], path: Path, data: bytes) -> int | None:
    try:
        work(path, data)
    except OSError as exc:
        return exc.errno
    return None


def _log_since_check(mount: LiveMount) -> str:
    return mount.log.read_bytes()[mount._log_read :].decode()


def _ends_in_doubt(mount: LiveMount) -> None:
    """A flush failed: no more writes, said once; reads go on; the next mount is as good as new."""
    with pytest.raises(OSError) as caught:
        (mount.path / "refused").touch()
    assert caught.value.errno == errno.EROFS
    # Said before it was answered.
    assert _log_since_check(mount).count("no more writes are taken") == 1
    mount.announce("no more writes are taken")
    mount.kill()
    mount.start()
    if _KEPT in _log_since_check(mount):
        mount.announce(_KEPT)
    mount.check_log()
    (mount.path / "accepted").touch()


def test_an_fsync_of_a_small_file_flushes_once_and_never_in_the_main_thread(
    mount: LiveMount, tmp_path: Path
) -> None:
    for number in range(3):
        write(mount.path / f"warm-{number}", b"%d" % number)
    with traced(mount.pid, tmp_path / "trace", "fsync,fdatasync,syncfs,sync_file_range,msync") as trace:
        for number in range(20):
            write(mount.path / f"f{number}", b"%d" % number * 100)
    calls = trace.calls()
    assert all(call.thread != mount.pid for call in calls)
    # The write-ahead log, with the bytes in the journal. If five seconds pass meanwhile, the blobs once.
    assert 20 <= len(calls) <= 20 + 4
