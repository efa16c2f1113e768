"""The kernel's mount table, as text and as it is."""

from __future__ import annotations

import os

import pytest

from mountstore.errors import AbsentError
from mountstore.fuse.mounts import Mount, is_dead, mount_at, parse_mountinfo, read_mounts, unmount

LINE = (
    rb"36 35 0:51 / /mnt/a\040b\012c\134d rw,nosuid shared:1 master:2"
    rb" - fuse.cas /data/x\054y\043 rw,user_id=0"
)


def test_escapes_and_optional_fields_are_undone() -> None:
    assert parse_mountinfo(LINE + b"\n") == [
        Mount(
            "/mnt/a b\nc\\d",
            device="0:51",
            filesystem_type="fuse.cas",
            source="/data/x,y#",
            read_only=False,
            user_id=0,
            number=36,
        )
    ]


def test_a_line_without_optional_fields_is_read() -> None:
    (mount,) = parse_mountinfo(b"22 1 0:20 / /sys rw - sysfs sysfs rw\n")
    assert mount == Mount(
        "/sys", device="0:20", filesystem_type="sysfs", source="sysfs", read_only=False, number=22
    )
    assert not mount.ours


def test_bytes_that_are_not_utf8_survive() -> None:
    (mount,) = parse_mountinfo(b"22 1 0:20 / /m\xff rw - fuse.cas /s\xfe rw\n")
    assert os.fsencode(mount.mountpoint) == b"/m\xff"
    assert os.fsencode(mount.source) == b"/s\xfe"
    assert mount.ours


def test_a_bind_mount_of_a_part_says_of_which() -> None:
    (mount,) = parse_mountinfo(rb"36 35 0:51 /a\040b /srv rw - fuse.cas /data rw" + b"\n")
    assert (mount.mountpoint, mount.root) == ("/srv", "/a b")


def test_the_real_table_holds_proc_and_living_mounts() -> None:
    assert any(mount.filesystem_type == "proc" for mount in read_mounts())
    proc = mount_at("/proc")
    assert proc is not None
    assert proc.source == "proc"
    assert not is_dead("/proc")
    assert not is_dead("/does/not/exist")


def test_unmounting_what_is_no_mount_says_so(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(AbsentError):
        unmount(os.fspath(tmp_path))


def test_read_only_is_that_of_the_file_system_not_of_the_mount_point() -> None:
    text = b"22 1 0:20 / /a ro - fuse.cas /s rw,user_id=0\n23 1 0:21 / /b rw - fuse.cas /s ro,user_id=0\n"
    assert [mount.read_only for mount in parse_mountinfo(text)] == [False, True]
