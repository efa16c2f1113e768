"""mkfs.cas: what it makes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.programs import Programs
from mountstore.cli.exits import Failure
from mountstore.cli.mkfs import parse_size
from mountstore.store.config import read_config


def test_an_absent_directory_becomes_a_store_with_the_limits_asked_for(programs: Programs, store: Path) -> None:
    done = programs.run("mkfs.cas", "--dir-limit", "100", store, "--piece-max", "1M")
    assert (done.returncode, done.stderr) == (0, "")
    config = read_config(str(store))
    assert (config.dir_limit, config.piece_max) == (100, 1024 * 1024)
    assert config.uuid in done.stdout
    assert "100 entries" in done.stdout
    assert "1048576 bytes" in done.stdout


def test_an_empty_directory_and_a_file_system_root_become_stores(programs: Programs, store: Path) -> None:
    store.mkdir()
    (store / "lost+found").mkdir()
    assert programs.run("mkfs.cas", "-q", store).stdout == ""
    assert read_config(str(store)).dir_limit == 32000


def test_blobs_that_are_there_are_adopted(programs: Programs, store: Path) -> None:
    blob = store / "blobs/9/98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4_3"
    blob.parent.mkdir(parents=True)
    blob.write_text("hi\n")
    done = programs.run("mkfs.cas", store)
    assert done.returncode == 0
    assert "adopting the blobs" in done.stdout
    assert blob.read_text() == "hi\n"


def test_a_dry_run_makes_nothing(programs: Programs, store: Path) -> None:
    assert programs.run("mkfs.cas", "-n", store).returncode == 0
    assert not store.exists()


@pytest.mark.parametrize(
    ("argv", "code", "hint"),
    [
        ([], 1, "STORE"),
        ([""], 1, "empty string"),
        (["--dir-limit", "15", "STORE"], 1, "from 16"),
        (["--dir-limit", "many", "STORE"], 1, "whole number"),
        (["--piece-max", "1", "STORE"], 1, "65536"),
        (["--piece-max", "1G", "STORE"], 1, "not a size"),
        (["--force", "STORE"], 1, "--force"),
        (["FULL"], 32, "it holds a, b, c and more"),
        (["FILE"], 32, "not a directory"),
        (["MADE"], 32, "it is a store already"),
    ],
)
def test_refusals_name_the_reason(
    programs: Programs, tmp_path: Path, argv: list[str], code: int, hint: str
) -> None:
    (tmp_path / "FULL").mkdir()
    for name in "abcd":
        (tmp_path / "FULL" / name).touch()
    (tmp_path / "FILE").touch()
    assert programs.run("mkfs.cas", tmp_path / "MADE").returncode == 0
    done = programs.run("mkfs.cas", *[str(tmp_path / word) if word.isupper() else word for word in argv])
    assert done.returncode == code
    assert hint in done.stderr
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("0", 0), ("4194304", 4 << 20), ("4M", 4 << 20), ("64k", 64 << 10), ("1MiB", 1 << 20)]
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5M", "1T", "1 M", "0x10"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(Failure):
        parse_size(text)
