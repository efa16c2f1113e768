"""Programs whose caller has closed stdin, stdout or stderr do what they do otherwise."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from cli.programs import BIN, Programs
from mountstore.fuse.mounts import mount_at

CLOSINGS = [closed for count in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), count)]


def run(closed: tuple[int, ...], name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = 'exec "$@" ' + " ".join(f"{number}>&-" for number in closed)
    return subprocess.run(
        ["bash", "-c", script, "bash", BIN / name, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.mount
@pytest.mark.parametrize("closed", CLOSINGS, ids=str)
def test_a_mount_is_made_and_taken_away(
    programs: Programs, store: Path, mountpoint: Path, closed: tuple[int, ...]
) -> None:
    assert run(closed, "mount.cas", store, mountpoint, "-o", f"log={programs.log}").returncode == 0
    (mountpoint / "x").write_text("hello\n")
    daemon = (store / "lock").read_text().split()[0]
    assert [os.readlink(f"/proc/{daemon}/fd/{number}") for number in (0, 1, 2)] == ["/dev/null"] * 3
    assert run(closed, "casctl", "df", "--mount", mountpoint).returncode == 0
    assert run(closed, "umount.cas", mountpoint).returncode == 0
    assert mount_at(str(mountpoint)) is None


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("casctl help", 0),
        ("casctl nonsense", 2),
        ("fsck.cas STORE", 0),
        ("fsck.cas ELSEWHERE", 8),
        ("gc.cas STORE", 0),
        ("gc.cas ELSEWHERE", 32),
        ("mkfs.cas STORE", 32),
        ("mount.cas STORE ELSEWHERE", 32),
        ("umount.cas ELSEWHERE", 32),
    ],
)
def test_codes_and_messages_are_the_same(
    programs: Programs, store: Path, tmp_path: Path, command: str, code: int, closed: tuple[int, ...]
) -> None:
    assert programs.run("mkfs.cas", store).returncode == 0
    places = {"STORE": str(store), "ELSEWHERE": str(tmp_path / "elsewhere")}
    name, *arguments = (places.get(word, word) for word in command.split())
    done = run(closed, name, *arguments)
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (code != 0 and 2 not in closed)
    assert "Traceback" not in done.stderr
