"""What nobody foresaw, and what the disk spoiled: an errno and a log line, and the mount goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import LiveMount

# Every kind of handler fails when a name or a content says so.
_BOOM = """
from mountstore.fuse import operations
from mountstore.namespace.files import Files
from mountstore.namespace.namespace import Namespace

def fail_on(cls, name, when):
    method = getattr(cls, name)
    def failing(self, *arguments, **named):
        if when(arguments):
            raise ZeroDivisionError(f"injected in {name}")
        return method(self, *arguments, **named)
    setattr(cls, name, failing)

def named(arguments):
    return b"boom" in arguments

fail_on(Namespace, "find", named)
fail_on(Namespace, "create", lambda a: a[1].startswith(b"boom-"))
fail_on(Namespace, "unlink", lambda a: a[1] == b"stay")
fail_on(Namespace, "link", lambda a: a[2] == b"no-link")
fail_on(Namespace, "listing", lambda a: a[0].mode & 0o7777 == 0o741)
fail_on(Files, "write", lambda a: a[2] == b"boom")
fail_on(Files, "truncate", lambda a: a[1] == 666)
fail_on(Files, "fsync", lambda a: a[0].mode & 0o7777 == 0o641)
fail_on(Files, "release", lambda a: a[0].inode.mode & 0o7777 == 0o642)
fail_on(Files, "read", lambda a: a[0].mode & 0o7777 == 0o643)
once = [True]
fail_on(Namespace, "forget", lambda a: a[0] and once and once.pop())
"""


def test_an_unforeseen_exception_is_eio_and_the_mount_goes_on(make_mount: MountMaker) -> None:
    mount = make_mount(prelude=_BOOM)
    root = mount.path
    (root / "stay").write_bytes(b"stays")
    (root / "closed").mkdir()
    (root / "closed").chmod(0o741)
    for name, mode in (("unsynced", 0o641), ("unreleased", 0o642), ("unread", 0o643)):
        (root / name).write_bytes(b"x")
        (root / name).chmod(mode)
    # What is read comes from the daemon, and an inode is forgotten.
    mount.remount()
    (root / "forgotten").touch()
    (root / "forgotten").unlink()
    mount.announce("forget: unforeseen")

    def write_boom() -> None:
        fd = os.open(root / "written", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.write(fd, b"boom")
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync() -> None:
        fd = os.open(root / "unsynced", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: os.stat(root / "boom"), "lookup: unforeseen.*ZeroDivisionError: injected in find"),
        (lambda: os.mkdir(root / "boom-d"), "mkdir: unforeseen.*injected in create"),
        (lambda: os.open(root / "boom-f", os.O_CREAT), "create: unforeseen.*injected in create"),
        (lambda: os.unlink(root / "stay"), "unlink: unforeseen"),
        (lambda: os.link(root / "stay", root / "no-link"), "link: unforeseen"),
        (lambda: os.listdir(root / "closed"), "readdir: unforeseen"),
        (lambda: os.truncate(root / "stay", 666), "setattr: unforeseen"),
        (write_boom, "write: unforeseen"),
        (lambda: (root / "unread").read_bytes(), "read: unforeseen"),
        (sync, "fsync: unforeseen"),
    ]
    for call, where in calls:
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.EIO, where
        mount.announce(where)
    (root / "unreleased").read_bytes()
    mount.announce("release: unforeseen")
    assert (root / "stay").read_bytes() == b"stays"
    (root / "after").write_bytes(b"all is well")
    mount.remount()
    assert (root / "after").read_bytes() == b"all is well"


def _only_blob(mount: LiveMount) -> Path:
    (name,) = mount.blobs()
    (path,) = mount.store.glob(f"blobs/*/{name}")
    return path


@pytest.mark.parametrize("damage", ["changed", "shortened", "removed"])
def test_a_damaged_blob_is_never_served(make_mount: MountMaker, damage: str) -> None:
    mount = make_mount(checked=False)
    (mount.path / "f").write_bytes(b"right " * 10_000)
    mount.unmount()
    blob = _only_blob(mount)
    blob.chmod(0o644)
    if damage == "changed":
        with open(blob, "r+b") as file:
            file.seek(30_000)
            file.write(b"WRONG")
    elif damage == "shortened":
        os.truncate(blob, 30_000)
    else:
        blob.unlink()
    mount.start()
    for offset in (0, 40_000):
        with open(mount.path / "f", "rb", buffering=0) as file:
            with pytest.raises(OSError) as failed:
                os.pread(file.fileno(), 10, offset)
            assert failed.value.errno == errno.EIO
    mount.announce(f"/f: .*{blob.name}")
    (mount.path / "g").write_bytes(b"something else")
    assert (mount.path / "g").read_bytes() == b"something else"
    # The same content written again heals it.
    (mount.path / "h").write_bytes(b"right " * 10_000)
    mount.remount()
    assert (mount.path / "h").read_bytes() == b"right " * 10_000
    assert (mount.path / "f").read_bytes() == b"right " * 10_000
