"""What the programs say where paths cannot be told from the current directory, because it was removed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cli.programs import BIN


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("casctl df", 1),
        ("casctl pin file", 1),
        ("fsck.cas store", 8),
        ("gc.cas store", 2),
        ("mkfs.cas store", 2),
        ("mount.cas store mnt", 2),
        ("umount.cas mnt", 2),
    ],
)
def test_the_directory_is_named(tmp_path: Path, command: str, code: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f"mkdir gone && cd gone && rmdir ../gone && exec {BIN}/{command}"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    program = command.split()[0]
    assert done.stderr == f"{program}: the current directory does not exist any more\n"
    assert done.returncode == code
