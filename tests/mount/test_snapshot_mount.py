"""A snapshot mounted alone: `-o ro,snapshot=NAME`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import LiveMount, run
from mount.snapshots import ask, fill, seen
from mountstore.cli.mount import main


class Alone(LiveMount):
    """A snapshot of a store that may be mounted elsewhere, or of a copy of its blobs."""

    def __init__(self, base: Path, store: Path, name: str, *options: str) -> None:
        base.mkdir()
        (base / "store").symlink_to(store)
        super().__init__(base, "ro", f"snapshot={name}", *options, checked=False)


def numbers(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_ino for path in top.rglob("*")}


def test_stands_beside_a_writer(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount()
    (mount.path / "d").mkdir()
    fill(mount.path / "d")
    (mount.path / "d/program").write_bytes(b"#!/bin/sh\n")
    (mount.path / "d/program").chmod(0o6755)
    then, there = seen(mount.path), numbers(mount.path)
    ask(mount, "snapshot one")
    run("rm", "-r", mount.path / "d/deep")
    alone = Alone(tmp_path / "alone", mount.store, "one")
    try:
        for name in ("two", "three"):
            assert seen(alone.path) == then
            # Those of then, which no other file has.
            assert numbers(alone.path) == there
            (mount.path / "d/small").write_bytes(b"goes on")
            ask(mount, f"snapshot {name}")
            alone.remount()
        assert stat.S_IMODE((alone.path / "d/program").stat().st_mode) == 0o6755
        assert not (alone.path / ".cas").exists()
        assert (alone.path / "..").resolve() == alone.path.parent.resolve()
        attempts: list[Callable[[], object]] = [
            lambda: (alone.path / "new").mkdir(),
            lambda: (alone.path / "d/small").write_bytes(b""),
            lambda: (alone.path / "d/small").unlink(),
        ]
        for attempt in attempts:
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        run("tar", "-C", alone.path, "-cf", tmp_path / "archive", ".")
    finally:
        alone.finish()


def test_a_copy_of_the_blobs_is_enough(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount()
    (mount.path / "d").mkdir()
    fill(mount.path / "d")
    then = seen(mount.path)
    ask(mount, "snapshot one")
    (tmp_path / "copy").mkdir()
    run("cp", "-a", mount.store / "blobs", tmp_path / "copy")
    names = set(os.listdir(tmp_path / "copy"))
    alone = Alone(tmp_path / "alone", tmp_path / "copy", "one", "nosuid")
    try:
        assert seen(alone.path) == then
        for damaged in [path for path in (tmp_path / "copy/blobs").rglob("*") if path.name.endswith("_a")]:
            damaged.chmod(0o644)
            damaged.write_bytes(b"OTHER BYTE")
        alone.remount()
        alone.announce("is not what was written|does not|damaged")
        with pytest.raises(OSError) as caught:
            (alone.path / "d/small").read_bytes()
        assert caught.value.errno == errno.EIO
    finally:
        alone.finish()
    assert set(os.listdir(tmp_path / "copy")) == names


def test_sigterm_takes_it_from_those_who_use_it(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount()
    ask(mount, "snapshot one")
    alone = Alone(tmp_path / "alone", mount.store, "one")
    # A directory: closing a file of a mount that is gone is an error.
    in_use = os.open(alone.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        alone.announce("is in use|detaching")
        alone.terminate()
        assert not os.path.ismount(alone.path)
    finally:
        os.close(in_use)
        alone.finish()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("ro,snapshot=none", "there is no snapshot none; there are one"),
        ("ro,snapshot=../one", "is no name for a snapshot"),
        ("snapshot=one", "say ro as well"),
        ("ro,snapshot=", "needs a value"),
    ],
)
def test_errors_say_what_to_do(
    mount: LiveMount, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, said: str
) -> None:
    ask(mount, "snapshot one")
    (tmp_path / "other").mkdir()
    assert main([str(mount.store), str(tmp_path / "other"), "-o", options]) in (1, 32)
    assert said in capsys.readouterr().err
    assert not os.path.ismount(tmp_path / "other")
