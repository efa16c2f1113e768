"""The handshake: what it negotiates, what it leaves behind when a step fails, and what mount tables show."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.device import fuse_for_everybody

from fuse.served import NOBODY, PATIENCE_S, Served
from mountstore.errors import MountError
from mountstore.fuse import handshake, kernel_mount, mounts, readahead
from mountstore.fuse.handshake import InitFlag

pytestmark = pytest.mark.mount

AWKWARD_NAMES = ["plain", "two words, and a comma", "back\\slash\\054", "Grüße #日本", "tab\tand\nline"]


@pytest.fixture
def mountpoint() -> Iterator[Path]:
    # Not below pytest's own directory, which is closed to other users.
    with tempfile.TemporaryDirectory(prefix="handshake-") as base:
        os.chmod(base, 0o755)
        path = Path(base) / "mnt"
        path.mkdir()
        os.chown(path, os.getuid() or NOBODY, os.getgid() or NOBODY)
        yield path


@pytest.fixture(autouse=True)
def device_for_everybody() -> Iterator[None]:
    with fuse_for_everybody():
        yield


@pytest.fixture(params=["root", "ordinary user"])
def uid(request: pytest.FixtureRequest) -> int:
    """Whom to mount as; an ordinary user running the tests is the ordinary user both times."""
    return NOBODY if request.param == "ordinary user" and os.getuid() == 0 else os.getuid()


def shell(script: str, uid: int) -> str:
    """Run a script as the user who mounted."""
    who = {"user": uid, "group": uid, "extra_groups": []} if uid != os.getuid() else {}
    done = subprocess.run(
        ["/bin/sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        cwd="/",
        **who,  # type: ignore[call-overload]
    )
    assert isinstance(done.stdout, str)
    return done.stdout


def mount_options(mountpoint: Path) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == str(mountpoint):
            return set(line.split()[5].split(",")) | set(line.split(" - ")[1].split()[2].split(","))
    raise AssertionError(f"{mountpoint} is not mounted")


def test_the_kernel_grants_what_was_asked_for(mountpoint: Path, uid: int) -> None:
    with Served(mountpoint, uid=uid) as served:
        assert served.ready["handshake"]
        assert served.ready["killpriv_v2"]
        assert served.ready["parallel_dirops"]
        assert served.ready["flags"] & InitFlag.CACHE_SYMLINKS
        assert served.ready["flags"] & InitFlag.WRITEBACK_CACHE
        assert served.ready["fuse descriptors"] == 1
        assert shell(f"cd {mountpoint}; echo content > file; cat file; ls", uid) == "content\nfile\n"
        assert served.unmounted() == ""


def test_cores_are_kept_quick_to_wake_by_who_may(mountpoint: Path, uid: int) -> None:
    with Served(mountpoint, uid=uid) as served:
        shell(f"cd '{mountpoint}'; for name in $(seq 100); do test ! -e $name; done", uid)
        assert served.ask("quick wake")["open"] == (uid == 0)
        assert served.unmounted() == ""


def test_writes_do_not_ask_for_capabilities_with_the_handshake_only(mountpoint: Path) -> None:
    asked = {}
    for wanted in (True, False):
        with Served(mountpoint, handshake=wanted) as served:
            with open(mountpoint / "file", "wb", buffering=0) as file:
                for _ in range(50):
                    file.write(b"x" * 100)
            asked[wanted] = served.ask("asked").get("getxattr", 0)
            served.unmounted()
    assert asked[True] <= 1
    assert asked[False] >= 50


def test_one_slow_lookup_does_not_hold_up_its_directory(mountpoint: Path) -> None:
    with Served(mountpoint) as served, subprocess.Popen(["stat", mountpoint / "slow"], stderr=-3) as held:
        assert served.answer() == {"held": "slow"}
        for number in range(100):
            assert not (mountpoint / f"quick{number}").exists()
        assert held.poll() is None
        served.tell("release")
        assert held.wait(PATIENCE_S) == 1
        served.unmounted()


def test_large_writes_stay_one_request_of_a_mebibyte(mountpoint: Path) -> None:
    with Served(mountpoint) as served:
        (mountpoint / "file").write_bytes(os.urandom(1 << 20) * 4)
        fd = os.open(mountpoint / "file", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        asked = served.ask("asked")
        assert asked["largest write"] == 1 << 20
        assert asked["write"] == 4
        served.unmounted()


def test_symbolic_links_are_read_once(mountpoint: Path) -> None:
    with Served(mountpoint) as served:
        os.symlink("target", mountpoint / "link")
        assert {os.readlink(mountpoint / "link") for _ in range(5)} == {"target"}
        assert served.ask("asked")["readlink"] == 1
        served.unmounted()


@pytest.mark.parametrize(
    "step",
    ["mount", "request", "silent libfuse", "failing libfuse", "short answer", "refusal", "kernel"],
)
def test_whatever_goes_wrong_leaves_an_ordinary_mount(mountpoint: Path, step: str) -> None:
    with Served(mountpoint, hinder=step) as served:
        assert not served.ready["handshake"]
        assert served.ready["flags"] == 0
        assert not served.ready["killpriv_v2"]
        assert served.ready["fuse descriptors"] == 1
        assert [m.mountpoint for m in mounts.read_mounts()].count(str(mountpoint)) == 1
        assert served.ready["device"] == os.stat(mountpoint).st_dev
        assert shell(f"cd {mountpoint}; echo content > file; cat file", os.getuid()) == "content\n"
        log = served.unmounted()
    assert log.startswith(f"WARNING mounting {mountpoint} without the handshake"), log
    assert log.count("\n") == 1, log


def test_an_ordinary_user_needs_no_fusermount3_of_ours_to_fall_back(mountpoint: Path) -> None:
    uid = os.getuid() or NOBODY
    with Served(mountpoint, hinder="no fusermount3", uid=uid) as served:
        assert not served.ready["handshake"]
        assert shell(f"cd {mountpoint}; echo content > file; cat file", uid) == "content\n"
        assert "fusermount3 not found" in served.unmounted()


def test_when_nothing_works_the_first_reason_is_told_and_nothing_is_mounted(mountpoint: Path) -> None:
    with Served(mountpoint, hinder="both") as served:
        assert served.ready["error"] == MountError.__name__
        assert "Operation not permitted" in served.ready["message"]
        assert served.ended()[0] == 1
    assert mounts.mount_at(str(mountpoint)) is None


@pytest.mark.parametrize("wanted", [True, False], ids=["handshake", "plain"])
@pytest.mark.parametrize("fsname", AWKWARD_NAMES)
def test_any_name_shows_as_it_is_in_the_mount_table(
    mountpoint: Path, fsname: str, wanted: bool, uid: int
) -> None:
    with Served(mountpoint, fsname=fsname, handshake=wanted, uid=uid) as served:
        assert served.ready["handshake"] == wanted
        found = mounts.mount_at(str(mountpoint))
        assert found is not None
        assert (found.source, found.filesystem_type) == (fsname, "fuse.cas")
        served.unmounted()


def test_root_gets_the_flags_asked_for_and_no_others(mountpoint: Path) -> None:
    with Served(mountpoint, options=["ro", "nodev", "noexec", "noatime", "max_read=65536"]) as served:
        options = mount_options(mountpoint)
        assert {"ro", "nodev", "noexec", "noatime", "default_permissions", "max_read=65536"} <= options
        assert not {"nosuid", "allow_other"} & options
        served.unmounted()


def test_the_ordinary_mount_takes_the_same_options(mountpoint: Path) -> None:
    given = ["ro", "nosuid", "nodev", "noexec", "noatime", "lazytime", "max_read=65536", "allow_other"]
    with Served(mountpoint, options=given, handshake=False) as served:
        assert {"ro", "nosuid", "nodev", "noexec", "allow_other"} <= mount_options(mountpoint)
        served.unmounted()


def test_fusermount3_forces_nosuid_and_nodev_and_is_not_asked_for_atime(mountpoint: Path) -> None:
    uid = os.getuid() or NOBODY
    with Served(mountpoint, options=["suid", "dev", "relatime", "noexec"], uid=uid) as served:
        assert served.ready["handshake"]
        assert {"nosuid", "nodev", "noexec", f"user_id={uid}"} <= mount_options(mountpoint)
        served.unmounted()


def test_an_unknown_option_is_refused_before_anything_is_mounted(mountpoint: Path) -> None:
    with Served(mountpoint, options=["frobnicate"]) as served:
        assert served.ready == {"error": "MisuseError", "message": "unknown mount option: frobnicate"}
        served.ended()
    assert mounts.mount_at(str(mountpoint)) is None


def test_a_file_is_no_mount_point(mountpoint: Path) -> None:
    file = mountpoint / "file"
    file.touch()
    with Served(file) as served:
        assert served.ready["error"] == "WantsDirectoryError"
        served.ended()


@pytest.mark.parametrize("wanted", [True, False], ids=["handshake", "plain"])
def test_closing_after_terminate_takes_the_mount_away(mountpoint: Path, wanted: bool, uid: int) -> None:
    with Served(mountpoint, handshake=wanted, uid=uid) as served:
        served.tell("terminate")
        assert served.ended() == (0, "")
    assert mounts.mount_at(str(mountpoint)) is None


def test_readahead_is_raised_by_root_and_never_lowered(mountpoint: Path) -> None:
    with Served(mountpoint) as served:
        device = served.ready["device"]
        assert device == os.stat(mountpoint).st_dev
        knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert readahead.raise_readahead(device) == (os.getuid() == 0)
        if os.getuid() == 0:
            assert int(knob.read_text()) == 4096
            assert readahead.raise_readahead(device, 128)
            assert int(knob.read_text()) == 4096
        served.unmounted()
    # No device at all: the number of the one that has gone may be another mount's by now.
    assert not readahead.raise_readahead(os.makedev(4095, 1))


def test_only_flags_that_the_kernel_offered_are_added() -> None:
    offered = InitFlag.PARALLEL_DIROPS | InitFlag.WRITEBACK_CACHE
    request = struct.pack("=IIQQIIIIIIII", 56, 26, 7, 0, 0, 0, 0, 0, 7, 31, 0, offered)
    answer = struct.pack("=IiQIIIIHHIIHHI28s", 80, 0, 7, 7, 31, 0, 1, 0, 0, 1 << 20, 1, 256, 0, 0, b"")
    flags, amended = handshake._amend(request, answer)
    assert flags == InitFlag.PARALLEL_DIROPS | 1
    assert len(amended) == 80
    with pytest.raises(MountError):
        handshake._amend(request, answer[:8] + b"\x08" + answer[9:])


def test_options_for_libfuse_are_ascii_and_hold_only_what_it_acts_on() -> None:
    plain = kernel_mount.libfuse_options({"ro", "max_read=1"}, fsname="ä,\\", subtype="cas", attached=False)
    assert plain == {"ro", "dev", "suid", "fsname=\\303\\244\\054\\134", "subtype=cas"}
    forbidden = kernel_mount.libfuse_options({"nodev", "nosuid"}, fsname="x", subtype="cas", attached=False)
    assert forbidden == {"nodev", "nosuid", "fsname=x", "subtype=cas"}
    attached = kernel_mount.libfuse_options(
        {"ro", "allow_root", "debug"}, fsname="x", subtype="cas", attached=True
    )
    assert attached == {"allow_root", "debug"}
