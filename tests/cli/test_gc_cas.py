"""gc.cas: what it prints, what it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from mountstore.blobs.digest import Digest
from mountstore.cli.exits import Exit
from mountstore.cli.gc import main
from mountstore.store import Store
from mountstore.store.create import create_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with one blob that nothing needs."""
    path = str(tmp_path / "store")
    create_store(path)

    async def fill() -> None:
        async with Store.open(path).running() as opened:
            opened.tree.add_bytes(b"gone")

    trio.run(fill)
    return path


def blobs(store: str) -> int:
    return len(list(Path(store).glob("blobs/*/*_*")))


def test_garbage_is_collected_and_purged(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grace", "0", "--dry-run", store]) == Exit.OK
    assert "1 of 1 blobs would be collected, 4 B" in capsys.readouterr().out
    assert blobs(store) == 1
    assert main([store]) == Exit.OK
    assert "0 of 1 blobs collected" in capsys.readouterr().out
    assert main([store, "--grace", "0", "--purge", "--older-than", "0", "--json"]) == Exit.OK
    report = json.loads(capsys.readouterr().out)
    assert report["collected"]["never used"] == {"blobs": 1, "bytes": 4}
    assert report["purged"] == {"blobs": 1, "bytes": 4}
    assert blobs(store) == 0
    assert main(["-q", store]) == Exit.OK
    assert capsys.readouterr().out == ""


def test_lists_are_kept(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "list"
    listed.write_text(Digest.of(b"gone").name + "\n")
    assert main(["-q", "--grace", "0", "--keep", str(listed), store]) == Exit.OK
    assert blobs(store) == 1
    listed.write_text("nonsense\n")
    assert main(["-q", "--grace", "0", "--keep", str(listed), store]) == Exit.USAGE
    assert "list:1" in capsys.readouterr().err


def test_a_store_that_is_in_use_is_left_alone(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with Store.open(store).running():
            assert main(["--grace", "0", store]) == Exit.FAILED

    trio.run(body)
    assert "in use" in capsys.readouterr().err
    assert blobs(store) == 1


@pytest.mark.parametrize("words", [[], [""], ["--grace", "x", "s"], ["--older-than", "1", "s"], ["--what", "s"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == Exit.USAGE
    assert capsys.readouterr().err.startswith("gc.cas: ")


def test_what_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == Exit.FAILED
    assert "not a store" in capsys.readouterr().err
