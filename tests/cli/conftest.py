"""Programs, a store and a mount point for every test, and nothing left mounted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Programs

from mountstore.fuse.mounts import mount_at, read_mounts, unmount


@pytest.fixture
def open_tmp_path(tmp_path: Path) -> Path:
    """A temporary directory that every user can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """The programs; afterwards everything below the temporary directory is unmounted, and the log is clean."""
    programs = Programs(tmp_path / "log")
    yield programs
    for mount in reversed(read_mounts()):
        if mount.mountpoint.startswith(f"{tmp_path}/"):
            programs.umount(mount.mountpoint)
            with contextlib.suppress(Exception):
                if mount_at(mount.mountpoint):
                    unmount(mount.mountpoint, lazy=True)
    if programs.log.exists():
        bad = [line for line in programs.log.read_text().splitlines() if "unforeseen" in line]
        assert not bad, "\n".join(bad)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store can be made."""
    return tmp_path / "store"


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """An empty directory to mount on."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory
