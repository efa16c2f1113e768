"""kill -9 of the daemon at random moments (promise 3); `scripts/killtest` goes on as long as wanted."""

from __future__ import annotations

import os
import random
from pathlib import Path

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
