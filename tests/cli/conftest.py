"""Programs, a store and a mount point for every test, and nothing left mounted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.live import let_everybody_reach

from cli.programs import Programs
from mountstore.fuse.mounts import mount_at, read_mounts, unmount


@pytest.fixture
def open_tmp_path(tmp_path: Path) -> Path:
    """A temporary directory that every user can reach."""
    let_everybody_reach(tmp_path)
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
