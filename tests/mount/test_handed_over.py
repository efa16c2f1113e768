"""Small files that are read in order are handed to the kernel when they are opened; whatever happens, what
programs read is what was written."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.limits import FORESEEN
from mount.live import LiveMount
from mountstore.blobs.digest import Digest


def _forget(path: Path) -> None:
    """Have the kernel drop what it has of a file's bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _forget_all(mount: LiveMount) -> None:
    """Have the next reads come from the disk, through the daemon."""
    os.sync()
    for name in mount.blobs():
        _forget(next((mount.store / "blobs").rglob(name)))
    for name in os.listdir(mount.path):
        _forget(mount.path / name)


def _read(path: Path) -> bytes:
    """All bytes of a file, by no more system calls than it takes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def _requests(mount: LiveMount) -> int:
    stats = json.loads((mount.path / ".cas/stats").read_text())
    assert isinstance(stats["requests"], int)
    return stats["requests"]


def _fill(mount: LiveMount) -> dict[str, bytes]:
    sizes = [1, 100, 2048, 4095, 4096, 4097, 9000, 65_536, 131_072, 131_073, 200_000, 0]
    contents = {
        f"{number:03}": random.Random(number).randbytes(sizes[number % len(sizes)]) for number in range(96)
    }
    for name, data in contents.items():
        (mount.path / name).write_bytes(data)
    return contents


def test_files_read_in_order_need_no_read_requests(mount: LiveMount) -> None:
    contents = _fill(mount)
    _forget_all(mount)
    before = _requests(mount)
    for name, data in contents.items():
        assert _read(mount.path / name) == data
    # OPEN and RELEASE of each, and a READ of the first, of the large, and of those that the disk had not yet got.
    assert _requests(mount) - before < len(contents) * 5 // 2
    assert {name: _read(mount.path / name) for name in contents} == contents


def test_a_damaged_file_can_be_opened_and_not_read(mount: LiveMount) -> None:
    contents = _fill(mount)
    bad = "050"
    path = next((mount.store / "blobs").rglob(Digest.of(contents[bad]).name))
    mount.unmount()
    damaged = bytearray(contents[bad])
    damaged[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    mount.start()
    _forget_all(mount)
    for name, data in contents.items():
        with open(mount.path / name, "rb", buffering=0) as file:
            if name == bad:
                with pytest.raises(OSError) as caught:
                    file.read()
                assert caught.value.errno == errno.EIO
            else:
                assert file.readall() == data
    mount.announce("is damaged")
    mount.checked = False


def test_nothing_waits_and_nothing_old_is_seen_when_files_change_beside(make_mount: MountMaker) -> None:
    mount = make_mount(prelude=FORESEEN)
    paths = [mount.path / name for name in "abc"]
    for path in paths:
        path.write_bytes(bytes(5000))
    last: dict[Path, bytes] = {}
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(300):
                path = choose.choice(paths)
                descriptor = os.open(path, os.O_RDONLY)
                if choose.random() < 0.5:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(descriptor, 10_000, choose.choice([0, 4096]))
                os.close(descriptor)
        except BaseException as exc:
            failures.append(exc)

    def change(path: Path) -> None:
        choose = random.Random(str(path))
        try:
            for number in range(100):
                data = bytes([number + 1]) * choose.choice([1, 3000, 4096, 6000, 140_000])
                if number % 3:
                    descriptor = os.open(path, os.O_WRONLY | (os.O_TRUNC if number % 3 == 1 else 0))
                    os.write(descriptor, data)
                    os.ftruncate(descriptor, len(data))
                    os.close(descriptor)
                else:
                    (new := path.with_suffix(".new")).write_bytes(data)
                    os.truncate(new, len(data) // 2)
                    os.rename(new, path)
                    data = data[: len(data) // 2]
                last[path] = data
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=read, args=(seed,), daemon=True) for seed in range(3)]
    threads += [threading.Thread(target=change, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for again in range(2):
        for path in paths:
            assert path.read_bytes() == last[path], again
            _forget(path)


def test_only_what_may_be_kept_is_handed_over(make_mount: MountMaker) -> None:
    """A read-only mount beside a writer sees what that one commits."""
    mount = make_mount(prelude=FORESEEN)
    (mount.path / "file").write_bytes(b"first")
    mount.unmount()
    mount.options = ("ro",)
    mount.start()
    for _ in range(2):
        before = _requests(mount)
        assert (mount.path / "file").read_bytes() == b"first"
        assert _requests(mount) - before >= 3
