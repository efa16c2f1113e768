"""Small file systems in files, on loop devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from durability.recorder import run


@contextmanager
def small_disk(base: Path, size_mib: int, *mkfs: str) -> Iterator[Path]:
    """An ext4 of that size, mounted; no blocks are reserved for root."""
    image = base / "small.img"
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    run("mkfs.ext4", "-q", "-m", "0", *mkfs, image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        disk = base / "small"
        disk.mkdir()
        run("mount", device, disk)
        try:
            yield disk
        finally:
            run("umount", disk)
    finally:
        run("losetup", "--detach", device)


@contextmanager
def quota_disk(base: Path, limit_mib: int) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A subvolume of a btrfs with far more room than its quota; and what sets the quota, in MiB."""
    image = base / "quota.img"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    run("mkfs.btrfs", "-q", image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        disk = base / "quota"
        disk.mkdir()
        run("mount", device, disk)
        try:
            run("btrfs", "quota", "enable", disk)
            run("btrfs", "subvolume", "create", disk / "limited")

            def limit(mib: int) -> None:
                run("btrfs", "qgroup", "limit", f"{mib}M", disk / "limited")

            limit(limit_mib)
            yield disk / "limited", limit
        finally:
            run("umount", disk)
    finally:
        run("losetup", "--detach", device)


def fill(disk: Path, *, leave_bytes: int = 0) -> None:
    """Use up the room of a file system with one file beside the store."""
    status = os.statvfs(disk)
    free = status.f_bavail * status.f_frsize - leave_bytes
    with (disk / "filler").open("ab", buffering=0) as file:
        for length in (1 << 20, 4096):
            try:
                while free > length:
                    free -= file.write(bytes(length))
            except OSError:
                pass
            if leave_bytes == 0:
                free = 1 << 40
        os.fsync(file.fileno())


def use_up_inodes(disk: Path, *, leave: int = 0) -> None:
    """Make empty files beside the store until none can be made."""
    directory = disk / "files"
    directory.mkdir(exist_ok=True)
    free = os.statvfs(disk).f_favail - leave
    for number in range(free):
        try:
            (directory / f"{os.getpid()}-{number}-{free}").touch()
        except OSError:
            return
