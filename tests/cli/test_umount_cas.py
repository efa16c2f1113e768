"""umount.cas on real mounts: it waits for the disk, names who is in the way, and never waits for ever."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from durability.tracing import traced

from cli.programs import BIN, Programs, has_ended, lock_is_free
from mountstore.fuse.mounts import Mount, mount_at, unmount

pytestmark = pytest.mark.mount

NOBODY = 65534


def wait_until_mounted(mountpoint: Path, *, mounted: bool = True) -> None:
    """The kernel tells of every change of the mount table with POLLPRI, see proc(5)."""
    poller = select.poll()
    with open("/proc/self/mounts", "rb") as table:
        poller.register(table, select.POLLPRI)
        while (mount_at(str(mountpoint)) is not None) is not mounted:
            assert poller.poll(60_000)


def wait_until_detached(mountpoint: Path) -> None:
    wait_until_mounted(mountpoint, mounted=False)


def test_it_returns_only_when_the_daemon_has_ended(programs: Programs, store: Path, mountpoint: Path) -> None:
    daemon = programs.mounted(store, mountpoint)
    (mountpoint / "x").write_text("hello\n")
    signal.pidfd_send_signal(daemon, signal.SIGSTOP)
    process = subprocess.Popen([BIN / "umount.cas", "-v", mountpoint], stderr=subprocess.PIPE, text=True)
    try:
        wait_until_detached(mountpoint)
        assert process.stderr is not None
        assert process.stderr.readline() == f"umount.cas: waiting until {store} is safe on disk\n"
        assert process.poll() is None
        assert not lock_is_free(store)
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert has_ended(daemon)
    assert lock_is_free(store)


UNSAFE = "is unmounted, but its daemon ended before all of"


def test_a_daemon_that_is_killed_before_its_end_is_told(programs: Programs, store: Path, mountpoint: Path) -> None:
    daemon = programs.mounted(store, mountpoint)
    (mountpoint / "x").write_text("hello\n")
    signal.pidfd_send_signal(daemon, signal.SIGSTOP)
    process = subprocess.Popen([BIN / "umount.cas", mountpoint], stderr=subprocess.PIPE, text=True)
    wait_until_detached(mountpoint)
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and f"{mountpoint} {UNSAFE} {store} was safe on disk" in said
    programs.mounted(store, mountpoint)
    assert programs.umount(mountpoint).returncode == 0


def test_a_disk_that_fails_at_the_end_is_told(
    programs: Programs, store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    programs.mounted(store, mountpoint)
    (mountpoint / "x").write_text("hello\n")
    pid = int((store / "lock").read_text().split()[0])
    with traced(pid, tmp_path / "trace", "fdatasync", inject="fdatasync:error=EIO") as trace:
        done = programs.umount(mountpoint)
    assert trace.injected
    assert done.returncode == 2 and UNSAFE in done.stderr
    assert lock_is_free(store)
    programs.mounted(store, mountpoint)
    assert (mountpoint / "x").read_text() == "hello\n"
    assert programs.umount(mountpoint).returncode == 0


@contextmanager
def mounted_by_nobody(mountpoint: Path, source: Path) -> Iterator[Mount]:
    """A mount of another user that says it is of `source`, as fusermount3 lets anybody make."""
    libc = ctypes.CDLL(None, use_errno=True)
    connection = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={connection},rootmode=40000,user_id={NOBODY},group_id={NOBODY}".encode()
        assert libc.mount(os.fsencode(source), os.fsencode(mountpoint), b"fuse.cas", 0, options) == 0
        mount = mount_at(str(mountpoint))
        assert mount is not None
        yield mount
        unmount(str(mountpoint))
    finally:
        os.close(connection)


def test_a_mount_of_somebody_else_that_claims_to_be_of_the_store_is_not_believed(
    programs: Programs, store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "claimed").mkdir()
    programs.mounted(store, mountpoint)
    with mounted_by_nobody(tmp_path / "claimed", store) as impostor:
        assert impostor.ours and impostor.source == str(store) and impostor.user_id == NOBODY
        done = programs.umount("-v", store)
        assert done.returncode == 0
        assert f"waiting until {store} is safe on disk" in done.stderr
        assert lock_is_free(store)
        assert programs.umount(store).returncode == 32


def test_who_keeps_it_busy_is_named(programs: Programs, store: Path, mountpoint: Path) -> None:
    programs.mounted(store, mountpoint)
    (mountpoint / "x").touch()
    with (mountpoint / "x").open() as _held:
        done = programs.umount(mountpoint)
        assert done.returncode == 32
        assert f"pid {os.getpid()}, has open {mountpoint}/x" in done.stderr
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=mountpoint) as process:
        done = programs.umount(mountpoint)
        assert done.returncode == 32
        assert f"cat (pid {process.pid}, works in {mountpoint})" in done.stderr
        assert mount_at(str(mountpoint)) is not None
    assert programs.umount(mountpoint).returncode == 0


def test_a_lazy_unmount_of_a_busy_mount_does_not_wait_and_loses_nothing(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    with (mountpoint / "x").open("w") as held:
        assert programs.umount("-l", mountpoint).returncode == 0
        assert mount_at(str(mountpoint)) is None
        assert not has_ended(daemon)
        held.write("late\n")
    assert has_ended(daemon, within_s=60)
    programs.mounted(store, mountpoint)
    assert (mountpoint / "x").read_text() == "late\n"


def test_a_lazy_unmount_of_an_idle_mount_waits(programs: Programs, store: Path, mountpoint: Path) -> None:
    daemon = programs.mounted(store, mountpoint)
    assert programs.umount("-l", mountpoint).returncode == 0
    assert has_ended(daemon)


def test_a_forced_unmount_frees_who_waits_for_a_daemon_that_hangs(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    signal.pidfd_send_signal(daemon, signal.SIGSTOP)
    waiting = subprocess.Popen(["ls", mountpoint / "not-cached"], stderr=subprocess.DEVNULL)
    process = subprocess.Popen([BIN / "umount.cas", "-f", "-l", mountpoint])
    assert waiting.wait(timeout=60) != 0
    signal.pidfd_send_signal(daemon, signal.SIGCONT)
    assert process.wait(timeout=60) == 0
    # It has no mount any more, and so ends.
    assert has_ended(daemon, within_s=60)
    assert lock_is_free(store)


def test_a_forced_unmount_does_not_wait_for_ever_for_a_daemon_that_hangs(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    pid = (store / "lock").read_text().split()[0]
    signal.pidfd_send_signal(daemon, signal.SIGSTOP)
    try:
        with subprocess.Popen(["ls", mountpoint / "not-cached"], stderr=subprocess.DEVNULL):
            done = programs.umount("-f", "-v", mountpoint)
        assert mount_at(str(mountpoint)) is None
        assert not lock_is_free(store)
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGCONT)
    assert done.returncode == 2
    waiting, left = done.stderr.splitlines()
    assert waiting == f"umount.cas: waiting until {store} is safe on disk, but no longer than 10 s"
    assert f"its daemon (pid {pid}) has not ended within 10 s and holds {store}" in left
    assert f"kill -KILL {pid}" in left
    assert has_ended(daemon, within_s=60)
    assert lock_is_free(store)


def test_a_forced_unmount_takes_the_mount_from_who_uses_it(
    programs: Programs, store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", mountpoint, tmp_path / "bound"], check=True)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=mountpoint) as process:
        done = programs.umount("-f", mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert process.poll() is None
        assert mount_at(str(mountpoint)) is None
        assert has_ended(daemon)


def test_a_bind_mount_goes_without_waiting_for_the_daemon(
    programs: Programs, store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", mountpoint, tmp_path / "bound"], check=True)
    done = programs.umount(tmp_path / "bound")
    assert done.returncode == 0
    assert "still mounted elsewhere" in done.stderr
    assert not has_ended(daemon)
    assert programs.umount(mountpoint).returncode == 0
    assert has_ended(daemon)


@pytest.mark.parametrize("option", [(), ("-l",)], ids=["wait", "lazy"])
@pytest.mark.parametrize("by_store", [False, True], ids=["mountpoint", "store"])
def test_who_may_not_unmount_is_told_who_may(
    programs: Programs, open_tmp_path: Path, store: Path, mountpoint: Path, option: tuple[str, ...], by_store: bool
) -> None:
    daemon = programs.mounted(store, mountpoint)
    done = programs.umount(*option, store if by_store else mountpoint, uid=NOBODY)
    assert (done.returncode, done.stderr) == (
        1,
        f"umount.cas: {mountpoint}: only root, or the user who mounted it, may unmount it\n",
    )
    assert mount_at(str(mountpoint)) is not None
    assert not has_ended(daemon)


def test_the_store_names_the_mount_too(programs: Programs, store: Path, mountpoint: Path) -> None:
    programs.mounted(store, mountpoint)
    assert programs.umount(store).returncode == 0
    assert mount_at(str(mountpoint)) is None


@pytest.mark.parametrize("option", [(), ("-l",), ("-f",)], ids=["plain", "lazy", "forced"])
def test_a_mount_whose_daemon_was_killed_is_taken_away_and_told_of(
    programs: Programs, store: Path, mountpoint: Path, option: tuple[str, ...]
) -> None:
    daemon = programs.mounted(store, mountpoint)
    (mountpoint / "x").write_text("hello\n")
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    assert has_ended(daemon, within_s=60)
    done = programs.umount(*option, mountpoint)
    assert done.returncode == 2 and f"{mountpoint} {UNSAFE} {store} was safe on disk" in done.stderr
    assert mount_at(str(mountpoint)) is None
    # What a mount recovered is safe.
    programs.mounted(store, mountpoint)
    assert programs.umount(mountpoint).returncode == 0


def test_a_dead_mount_that_loses_nothing_is_taken_away_in_silence(
    programs: Programs, store: Path, mountpoint: Path
) -> None:
    # One that writes was killed before: no matter for a mount that only reads.
    signal.pidfd_send_signal(writer := programs.mounted(store, mountpoint), signal.SIGKILL)
    assert has_ended(writer, within_s=60)
    assert programs.umount(mountpoint).returncode == 2
    with subprocess.Popen(
        [BIN / "mount.cas", "--foreground", store, mountpoint, "-o", f"ro,log={programs.log}"]
    ) as reader:
        wait_until_mounted(mountpoint)
        reader.kill()
    done = programs.umount(mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert mount_at(str(mountpoint)) is None


def test_a_dead_mount_of_a_store_that_was_mounted_elsewhere_does_not_wait_for_that(
    programs: Programs, store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    killed = programs.mounted(store, mountpoint)
    signal.pidfd_send_signal(killed, signal.SIGKILL)
    assert has_ended(killed, within_s=60)
    (tmp_path / "other").mkdir()
    daemon = programs.mounted(store, tmp_path / "other")
    try:
        subprocess.run([BIN / "umount.cas", mountpoint], check=True, timeout=30)
    finally:
        assert programs.umount(tmp_path / "other").returncode == 0
    assert has_ended(daemon)
    assert mount_at(str(mountpoint)) is None


def test_a_read_only_mount_beside_a_writer_does_not_wait_for_the_writer(
    programs: Programs, store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    daemon = programs.mounted(store, mountpoint)
    (tmp_path / "view").mkdir()
    assert programs.mount(store, tmp_path / "view", "-o", "ro").returncode == 0
    done = programs.umount(store)
    assert done.returncode == 1
    assert "more than once" in done.stderr
    assert programs.umount(tmp_path / "view").returncode == 0
    assert not has_ended(daemon)


@pytest.mark.parametrize(
    ("argv", "code", "hint"),
    [
        ([], 1, "MOUNTPOINT"),
        ([""], 1, "empty string"),
        (["/", "/proc"], 1, "/proc"),
        (["-x", "/proc"], 1, "-x"),
        (["-N", "1", "/proc"], 1, "nsenter"),
        (["/proc"], 32, "type proc"),
        (["/proc/self"], 32, "not mounted"),
        (["/does/not/exist"], 32, "not mounted"),
    ],
)
def test_refusals(programs: Programs, argv: list[str], code: int, hint: str) -> None:
    done = programs.umount(*argv)
    assert done.returncode == code
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1
