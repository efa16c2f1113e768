"""mount.cas on real mounts: what works, and what each refusal says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.device import fuse_for_everybody

from cli.programs import BIN, Programs, has_ended, lock_is_free
from mountstore.cli import checks
from mountstore.cli.exits import Exit, Failure
from mountstore.fuse.mounts import is_dead, mount_at, read_mounts
from mountstore.store.config import read_config

pytestmark = pytest.mark.mount

NOBODY = 65534


def test_a_mount_works_when_mount_cas_returns_and_keeps_what_was_written(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    mount = mount_at(str(mountpoint))
    assert mount is not None
    assert (mount.filesystem_type, mount.source, mount.read_only) == ("fuse.cas", str(store), False)
    (mountpoint / "x").write_text("hello\n")
    assert programs.umount(mountpoint).returncode == 0
    assert has_ended(daemon)
    assert lock_is_free(store)
    assert not (mountpoint / "x").exists()
    assert programs.mount(store, mountpoint, "-o", "ro,noexec,nosuid").returncode == 0
    assert (mountpoint / "x").read_text() == "hello\n"
    assert os.statvfs(mountpoint).f_flag & (os.ST_RDONLY | os.ST_NOEXEC | os.ST_NOSUID) == (
        os.ST_RDONLY | os.ST_NOEXEC | os.ST_NOSUID
    )
    with pytest.raises(OSError, match="Read-only file system"):
        (mountpoint / "y").touch()


def test_the_caller_gets_no_output_and_no_open_descriptor(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    done = programs.mount(store, mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert programs.umount("-v", mountpoint).stderr.splitlines() == [
        f"umount.cas: waiting until {store} is safe on disk",
        f"umount.cas: {mountpoint} is unmounted",
    ]


ODD_NAMES = ["with space", "a,b", "é ünï 日本", "new\nline", "back\\slash", 'quo"te', "%41 #x", "-dash", "\udcff"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_paths_with_odd_characters(programs: Programs, tmp_path: Path, name: str) -> None:
    store, mountpoint = tmp_path / f"s {name}", tmp_path / f"m {name}"
    mountpoint.mkdir()
    programs.mounted(store, mountpoint)
    mount = mount_at(str(mountpoint))
    assert mount is not None
    assert mount.source == str(store)
    (mountpoint / name).write_bytes(b"x")
    assert programs.umount(mountpoint).returncode == 0
    assert lock_is_free(store)


def test_relative_paths_are_those_of_the_caller(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = subprocess.run(
        [BIN / "mount.cas", "./data", "mnt", "-o", f"log={programs.log}"], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    assert mount_at(str(tmp_path / "mnt")) is not None
    assert (tmp_path / "data" / "store.toml").exists()


def test_symbolic_links_on_the_way_are_followed(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    (tmp_path / "data").mkdir()
    (tmp_path / "store-link").symlink_to("data")
    programs.mounted(tmp_path / "store-link", tmp_path / "link")
    assert mount_at(str(tmp_path / "mnt")) is not None
    assert programs.umount(tmp_path / "link").returncode == 0


def test_an_empty_directory_becomes_a_store_with_the_limit_asked_for_and_only_then(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    store.mkdir()
    programs.mounted(store, mountpoint, "-o", "dir_limit=500")
    assert read_config(str(store)).dir_limit == 500
    assert programs.umount(mountpoint).returncode == 0
    # A line in fstab must go on working.
    programs.mounted(store, mountpoint, "-o", "dir_limit=500")
    assert programs.umount(mountpoint).returncode == 0
    done = programs.mount(store, mountpoint, "-o", "dir_limit=501")
    assert done.returncode == 1
    assert "made with dir_limit=500" in done.stderr


# --- refusals: the code, and a word of the message ---


def refused(done: subprocess.CompletedProcess[str], code: int, *hints: str) -> None:
    assert done.returncode == code, done.stderr
    for hint in hints:
        assert hint in done.stderr
    assert done.stderr.startswith("mount.cas: ")
    assert done.stderr.count("\n") == 1


def test_a_mount_point_that_is_missing_or_no_directory(programs: Programs, store: Path, tmp_path: Path) -> None:
    refused(programs.mount(store, tmp_path / "none"), 32, "does not exist", "mkdir", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    refused(programs.mount(store, tmp_path / "file"), 32, "not a directory")
    assert not store.exists()


def test_a_store_that_is_none(programs: Programs, tmp_path: Path, mountpoint: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").touch()
    refused(programs.mount(full, mountpoint), 32, "not a store", str(full))
    refused(programs.mount(full / "letter.txt", mountpoint), 32, "is not a directory")
    refused(programs.mount(tmp_path / "new", mountpoint, "-o", "ro"), 32, "no store yet", "mkfs.cas")
    assert os.listdir(full) == ["letter.txt"]
    assert not (tmp_path / "new").exists()
    assert mount_at(str(mountpoint)) is None


def test_a_store_of_another_format(programs: Programs, store: Path, mountpoint: Path) -> None:
    assert programs.run("mkfs.cas", store).returncode == 0
    config = store / "store.toml"
    config.write_text(config.read_text().replace("format = 1", "format = 99"))
    refused(programs.mount(store, mountpoint), 32, "format 99", "store.toml")


@pytest.mark.parametrize("page", range(1, 12))
def test_a_damaged_catalog_is_mounted_or_refused_and_nothing_between(
    programs: Programs, store: Path, mountpoint: Path, page: int
) -> None:
    programs.mounted(store, mountpoint)
    (mountpoint / "f").write_bytes(b"bytes")
    assert programs.umount(mountpoint).returncode == 0
    with (store / "catalog.db").open("r+b") as catalog:
        catalog.seek(4096 * page)
        catalog.write(bytes(4096))
    done = programs.mount(store, mountpoint)
    if done.returncode == 0:
        assert programs.umount(mountpoint).returncode in (0, 2)
    else:
        assert done.returncode == 32 and "fsck.cas" in done.stderr, done.stderr
        assert mount_at(str(mountpoint)) is None and lock_is_free(store)


def test_a_store_in_use_names_the_process(
    programs: Programs, store: Path, tmp_path: Path, mountpoint: Path
) -> None:
    programs.mounted(store, mountpoint)
    pid = (store / "lock").read_text().split()[0]
    (tmp_path / "other").mkdir()
    refused(programs.mount(store, tmp_path / "other"), 32, f"in use by pid {pid}")


def test_what_is_mounted_already(programs: Programs, store: Path, tmp_path: Path, mountpoint: Path) -> None:
    programs.mounted(store, mountpoint)
    pid = (store / "lock").read_text().split()[0]
    refused(programs.mount(store, mountpoint), 32, "mounted already", str(store), f"pid {pid}")
    refused(programs.mount(tmp_path / "second", mountpoint), 32, "mounted already", str(store))


def test_store_and_mount_point_must_lie_apart(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    refused(programs.mount(tmp_path / "a", tmp_path / "link/b"), 1, "inside the store")
    refused(programs.mount(tmp_path / "link/b", tmp_path / "a"), 1, "inside the mount point")
    refused(programs.mount(tmp_path / "a", tmp_path / "link"), 1, "both")


def test_a_log_that_cannot_be(programs: Programs, store: Path, mountpoint: Path, tmp_path: Path) -> None:
    refused(programs.mount(store, mountpoint, "-o", f"log={mountpoint}/log"), 1, "inside the mount point")
    refused(programs.mount(store, mountpoint, "-o", f"log={store}/x/log"), 1, "inside the store")
    refused(programs.mount(store, mountpoint, "-o", "log=stderr"), 1, "foreground")
    (tmp_path / "directory").mkdir()
    refused(programs.mount(store, mountpoint, "-o", f"log={tmp_path}/directory"), 2, "cannot log")
    (tmp_path / "file").touch()
    done = programs.mount(store, mountpoint, "-o", f"log={tmp_path}/file/log")
    refused(done, 2, f"cannot log to {tmp_path}/file/log: {tmp_path}/file is not a directory")


def test_wrong_options(programs: Programs, store: Path, mountpoint: Path) -> None:
    refused(programs.mount(store, mountpoint, "-o", "nofial"), 1, "did you mean nofail?")
    refused(programs.mount(store, mountpoint, "-o", "remount"), 1, "umount.cas")
    assert not store.exists()


def test_sloppy_mounts_anyway(programs: Programs, store: Path, mountpoint: Path) -> None:
    done = programs.mount(store, mountpoint, "-s", "-o", "frobnicate")
    assert done.returncode == 0
    assert "frobnicate" in done.stderr


def test_no_fuse_device(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="modprobe fuse") as failure:
        checks.check_platform(device=str(tmp_path / "fuse"))
    assert failure.value.code is Exit.SYSTEM


def test_no_fusermount_for_an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(checks, "find_fusermount", lambda: None)
    with pytest.raises(Failure, match="package fuse3"):
        checks.check_platform(device="/dev/null")


def test_allow_other_for_an_ordinary_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    conf = tmp_path / "fuse.conf"
    conf.write_text("#user_allow_other\nmount_max = 7\n")
    with pytest.raises(Failure, match="user_allow_other"):
        checks.check_allow_other(conf=str(conf))
    with pytest.raises(Failure, match="user_allow_other"):
        checks.check_allow_other(conf=str(tmp_path / "none"))
    conf.write_text("user_allow_other\n")
    checks.check_allow_other(conf=str(conf))


# --- fake and foreground ---


def test_fake_checks_all_and_mounts_nothing(programs: Programs, store: Path, mountpoint: Path) -> None:
    done = programs.mount(store, mountpoint, "--fake", "-v")
    assert done.returncode == 0
    assert "would be mounted" in done.stderr
    assert not store.exists()
    assert programs.mount(store, mountpoint / "none", "--fake").returncode == 32


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_foreground_serves_until_a_signal_ends_it_cleanly(
    store: Path, mountpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(60)
        process = subprocess.Popen(
            [BIN / "mount.cas", "-f", store, mountpoint],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": address},
        )
        assert channel.recv(100) == b"READY=1"
        (mountpoint / "x").write_text("hello\n")
        assert int((store / "lock").read_text().split()[0]) == process.pid
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert channel.recv(100) == b"STOPPING=1"
    assert process.returncode == 0, said
    assert "SIGTERM" in said or "SIGINT" in said
    assert mount_at(str(mountpoint)) is None
    assert lock_is_free(store)
    assert [path for path in (store / "blobs").rglob("*_6") if path.read_text() == "hello\n"]


def test_a_failure_in_the_foreground_is_one_line(programs: Programs, tmp_path: Path, mountpoint: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    refused(programs.run("mount.cas", "--foreground", tmp_path / "full", mountpoint), 32, "not a store")


# --- the daemon ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_cleanly(
    programs: Programs, store: Path, mountpoint: Path, number: signal.Signals
) -> None:
    daemon = programs.mounted(store, mountpoint)
    (mountpoint / "x").write_text("hello\n")
    with (mountpoint / "x").open() as still_open:
        signal.pidfd_send_signal(daemon, number)
        assert has_ended(daemon, within_s=60)
        assert mount_at(str(mountpoint)) is None
        assert not still_open.closed
    assert lock_is_free(store)
    programs.mounted(store, mountpoint)
    assert (mountpoint / "x").read_text() == "hello\n"
    assert "not unmounted cleanly" not in programs.log.read_text()


def test_the_mount_of_a_killed_daemon_is_cleaned_up_by_the_next_mount(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    with (mountpoint / "x").open("w") as file:
        file.write("hello\n")
        file.flush()
        os.fsync(file.fileno())
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    assert has_ended(daemon, within_s=60)
    assert is_dead(str(mountpoint))
    done = programs.mount(store, mountpoint, "--fake")
    assert (done.returncode, done.stderr) == (0, "")
    done = programs.mount(store, mountpoint)
    assert done.returncode == 0
    assert "cleaning up a dead mount" in done.stderr
    assert (mountpoint / "x").read_text() == "hello\n"
    assert sum(mount.mountpoint == str(mountpoint) for mount in read_mounts()) == 1


# --- an ordinary user, through fusermount3 ---


@pytest.fixture
def device_for_everybody() -> Iterator[None]:
    with fuse_for_everybody():
        yield


@pytest.mark.usefixtures("device_for_everybody")
def test_an_ordinary_user_mounts_and_unmounts(programs: Programs, open_tmp_path: Path, mountpoint: Path) -> None:
    store = open_tmp_path / "store"
    for directory in (open_tmp_path, mountpoint):
        os.chown(directory, NOBODY, NOBODY)
    daemon = programs.mounted(store, mountpoint, uid=NOBODY)
    mount = mount_at(str(mountpoint))
    assert mount is not None
    assert (mount.filesystem_type, mount.source) == ("fuse.cas", str(store))
    # Without allow_other not even root sees into it.
    with pytest.raises(PermissionError):
        os.listdir(mountpoint)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    subprocess.run([*as_nobody, "sh", "-c", f"echo hello > '{mountpoint}/x'"], check=True)
    seen = subprocess.run([*as_nobody, "stat", "-c", "%U %s", f"{mountpoint}/x"], check=True, capture_output=True)
    assert seen.stdout == b"nobody 6\n"
    # The mount is this user's, and so is the control file.
    script = "cd '$0' && echo world > x && echo sync > .cas/control && echo restore x@1 > .cas/control && cat x"
    restored = subprocess.run(
        [*as_nobody, "sh", "-c", script.replace("$0", str(mountpoint))], check=True, capture_output=True
    )
    assert restored.stdout == b"hello\n"
    done = programs.umount(mountpoint, uid=NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert has_ended(daemon)
    assert lock_is_free(store)


@pytest.mark.usefixtures("device_for_everybody")
def test_an_ordinary_user_is_told_why_not(programs: Programs, open_tmp_path: Path, mountpoint: Path) -> None:
    os.chown(open_tmp_path, NOBODY, NOBODY)
    done = programs.mount(open_tmp_path / "store", mountpoint, uid=NOBODY)
    refused(done, 32, "fusermount3", "write access")
    done = programs.mount(open_tmp_path / "store", mountpoint, "-o", "allow_other", uid=NOBODY)
    refused(done, 1, "user_allow_other")


# --- quick answers ---


@pytest.mark.parametrize("name", ["mount.cas", "umount.cas", "mkfs.cas"])
def test_help_and_version_need_nothing_heavy(programs: Programs, name: str) -> None:
    for option in ("--help", "--version"):
        done = programs.run(name, option)
        assert done.returncode == 0
        assert name in done.stdout
    module = f"mountstore.cli.{name.removesuffix('.cas')}"
    check = f"import sys, {module}; print(sorted({{'trio', 'pyfuse3', 'sqlite3', 'msgspec'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=True).stdout == b"[]\n"
