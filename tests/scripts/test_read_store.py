"""scripts/read-store: what it says of arguments that do not fit; what it reads is in tests/mount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mountstore.care.snapshots import Snapshots
from mountstore.store import Store
from mountstore.store.create import create_store

READER = Path(__file__).parents[2] / "scripts" / "read-store"


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Those of a store with one snapshot, `all`."""
    create_store(str(tmp_path / "store"))

    async def take() -> None:
        async with Store.open(str(tmp_path / "store")).running() as store:
            await Snapshots(store).take("all")

    trio.run(take)
    return tmp_path / "store" / "blobs"


def read(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", READER, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def refusal(*arguments: str | Path) -> str:
    done = read(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_destination_is_made(blobs: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert read(blobs, made).returncode == 0
    assert made.is_dir()
    assert f"{made}: exists already" in refusal(blobs, made)
    assert f"{tmp_path / 'none'}: is no directory" in refusal(blobs, tmp_path / "none" / "made")
    (tmp_path / "loop").symlink_to("loop")
    assert f"{tmp_path / 'loop'}: exists already" in refusal(blobs, tmp_path / "loop")


def test_blobs_that_are_none(blobs: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "none", blobs.parent, blobs / "refs"):
        assert f"{wrong}: has no snapshots; BLOBS is the directory `blobs`" in refusal(wrong, tmp_path / "made")
    assert "no such snapshot; there are: all" in refusal(blobs, tmp_path / "made", "other")
    assert not (tmp_path / "made").exists()


def test_what_the_system_refuses_is_named(blobs: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    assert f"{long}: File name too long" in refusal(blobs, long)
