"""Whatever bytes a store has: a check and a repair answer, and raise nothing but what they promise."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from care.damage import Specimen
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.repair import repair_store
from mountstore.cli.fsck import main
from mountstore.errors import CorruptError, StoreError

CASES = int(os.environ.get("FSCK_CASES", "60"))


def spoil(path: Path, rng: random.Random) -> None:
    """Change a file in one of several ways, as disks, crashes and people do."""
    data = bytearray(path.read_bytes())
    size = max(len(data), 1)
    match rng.randrange(7):
        case 0 | 1:
            for _ in range(rng.choice([1, 1, 3, 30])):
                if data:
                    data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case 2:
            start = rng.randrange(size)
            data[start : start + 4096] = rng.randbytes(min(4096, size - start))
        case 3:
            start = rng.randrange(size) // 4096 * 4096
            data[start : start + 4096] = bytes(min(4096, size - start))
        case 4:
            del data[rng.randrange(size) :]
        case 5:
            data = bytearray(rng.randbytes(rng.choice([0, 1, 100, size])))
        case 6 if size > 8192:
            # Two pages swapped.
            one, two = (rng.randrange(size // 4096) * 4096 for _ in range(2))
            data[one : one + 4096], data[two : two + 4096] = data[two : two + 4096], data[one : one + 4096]
        case _:
            data += rng.randbytes(50)
    path.chmod(0o644)
    path.write_bytes(data)


def check_and_repair(path: Path) -> None:
    """Raises: anything that is not promised."""
    try:
        check_store(str(path), full=True)
        repair_store(str(path), approve=lambda report: True)
        repair_store(str(path), approve=lambda report: True)
        check_store(str(path))
    except (StoreError, CorruptError) as exc:
        assert str(exc)


def target_of(name: str) -> Callable[[Specimen], Path]:
    return {
        "blob": lambda specimen: specimen.blob(b"a small file"),
        "manifest": Specimen.manifest,
        "piece": Specimen.piece,
    }.get(name, lambda specimen: specimen.path / name)


@pytest.mark.parametrize(
    "name", ["catalog.db", "catalog.db-wal", "store.toml", "lock", "fsck.json", "blob", "manifest", "piece"]
)
def test_spoilt_files(interrupted_original: Specimen, tmp_path: Path, name: str) -> None:
    check_store(str(interrupted_original.path), full=True)
    # Asking the original would fold its WAL into the catalog.
    target = target_of(name)(interrupted_original.copy(tmp_path / "asked"))
    relative = target.relative_to(tmp_path / "asked")
    for seed in range(CASES if name.startswith("catalog") else CASES // 4):
        rng = random.Random(f"{name} {seed}")
        path = tmp_path / "store"
        shutil.copytree(interrupted_original.path, path)
        for _ in range(rng.choice([1, 1, 2])):
            spoil(path / relative, rng)
        try:
            check_and_repair(path)
        except BaseException as exc:
            exc.add_note(f"{name}, seed {seed}")
            raise
        shutil.rmtree(path)


def test_spoilt_rows(specimen: Specimen, tmp_path: Path) -> None:
    """Damage that SQLite cannot see: any value in any column."""
    columns = [
        (table, column)
        for table in ("inode", "entry", "xattr", "blob", "unsynced", "draft", "meta")
        for column, kind in specimen.ask("SELECT name, type FROM pragma_table_info(?)", table)
    ]
    values = ["-1", "0", "1", "2", "9223372036854775807", "-9223372036854775808", "x''", "x'00'", "NULL"]
    values += ["'text'", "zeroblob(32)", "zeroblob(3000)", "4096", "61440"]
    for seed in range(CASES):
        rng = random.Random(seed)
        copy = specimen.copy(tmp_path / f"{seed}")
        for _ in range(rng.choice([1, 2, 5])):
            table, column = rng.choice(columns)
            value = rng.choice(values)
            one = f" WHERE {column} IN (SELECT {column} FROM {table} LIMIT 1 OFFSET {rng.randrange(20)})"
            try:
                copy.run(f"UPDATE OR REPLACE {table} SET {column} = {value}{rng.choice(['', one])}")
            except sqlite3.Error:
                pass  # the schema forbids it
        try:
            repair_store(str(copy.path), approve=lambda report: True)
            left = check_store(str(copy.path))
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
        # Only what cannot be made up is left.
        cannot = {Kind.CONTENT_LOST, Kind.CONTENT_INVALID, Kind.BLOB_UNRECORDED, Kind.SNAPSHOT_NONE}
        assert set(left.counts) <= cannot, (seed, left.findings)
        shutil.rmtree(copy.path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_text("a file"),
        lambda path: path.symlink_to("nowhere"),
    ],
    ids=["absent", "empty", "file", "dangling"],
)
def test_what_is_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x")
    for option in ("-n", "-y", "-p", "--full"):
        assert main([option, str(tmp_path / "x")]) == 8
    said = capsys.readouterr()
    assert said.err.count("is not a store") == 4
    assert "Traceback" not in said.err


@pytest.mark.parametrize("what", ["absent", "empty", "random", "fifo", "directory"])
def test_a_catalog_that_is_none(specimen: Specimen, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    specimen.catalog.unlink()
    if what == "empty":
        specimen.catalog.touch()
    elif what == "random":
        specimen.catalog.write_bytes(random.Random(1).randbytes(100_000))
    elif what == "fifo":
        os.mkfifo(specimen.catalog)
    elif what == "directory":
        specimen.catalog.mkdir()
    for option in ("-n", "-y", "-p"):
        assert main([option, str(specimen.path)]) == 4
    said = capsys.readouterr()
    assert "--rebuild" in said.out
    assert "Traceback" not in said.err


def test_a_configuration_that_cannot_be_read_stops_repairs(specimen: Specimen) -> None:
    specimen.run("UPDATE inode SET nlink = 9 WHERE id = :linked")
    (specimen.path / "store.toml").write_text("format = 99")
    repair = repair_store(str(specimen.path), approve=lambda report: True)
    assert repair.before.counts == {Kind.CONFIGURATION_DAMAGED: 1, Kind.LINK_COUNT: 1}
    assert not repair.made
