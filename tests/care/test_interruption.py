"""A repair may end at any step, by an exception or with the process; another one finishes the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from care.damage import LARGE, Specimen, overwrite, read_all
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.repair import repair_store


class Interruption(Exception):
    pass


@pytest.fixture
def damaged(specimen: Specimen) -> Specimen:
    """Damaged in a dozen ways that hang together."""
    for statement in (
        "DELETE FROM inode WHERE id = :inner",
        "DELETE FROM entry WHERE inode = :same",
        "UPDATE inode SET nlink = 9 WHERE id = :linked",
        "UPDATE inode SET xattrs = 5 WHERE id = :large",
        "UPDATE entry SET name = x'2f' WHERE inode = :fifo",
        "UPDATE inode SET size = 5 WHERE id = :other",
        "UPDATE meta SET value = 3 WHERE key = 'next_cookie'",
        "INSERT INTO entry VALUES (1, x'61', 999, 3000000)",
        "INSERT INTO draft VALUES (:linked, 'draft-10-1', 1, 1, x'c1')",
        "INSERT INTO blob VALUES (zeroblob(32), 7, zeroblob(16))",
    ):
        specimen.run(statement)
    (specimen.path / "staging" / "draft-10-1").write_bytes(b"x")
    (specimen.path / "staging" / "half").write_bytes(b"x")
    garbage = specimen.blob(b"garbage")
    garbage.parent.mkdir(exist_ok=True)
    garbage.write_bytes(b"garb")
    specimen.blob(b"another small file").chmod(0o644)
    large = specimen.piece()
    large.rename(specimen.path / "blobs" / large.name)
    return specimen


def repair(path: Path, steps: list[str], stop_at: int, *, die: bool = False) -> None:
    def on_step(words: str) -> None:
        if len(steps) == stop_at:
            if die:
                os._exit(0)
            raise Interruption(words)
        steps.append(words)

    repair_store(str(path), approve=lambda report: True, full=True, on_step=on_step)


def test_a_repair_can_be_interrupted_at_every_step(damaged: Specimen, tmp_path: Path) -> None:
    done: list[str] = []
    whole = damaged.copy(tmp_path / "whole")
    repair(whole.path, done, -1)
    assert not check_store(str(whole.path), full=True).findings
    assert len(done) > 20
    expected = sorted(read_all(whole).values())
    assert LARGE in expected
    for stop_at in range(len(done)):
        copy = damaged.copy(tmp_path / f"stopped {stop_at}")
        # Every third time the process ends instead.
        if stop_at % 3 == 0:
            child = os.fork()
            if child == 0:
                repair(copy.path, [], stop_at, die=True)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        else:
            with pytest.raises(Interruption):
                repair(copy.path, [], stop_at)
        committed = "commit" in done[:stop_at]
        found = check_store(str(copy.path))
        assert (Kind.ENTRY_DANGLING in found.counts) != committed, (stop_at, done[stop_at])
        repair_store(str(copy.path), approve=lambda report: True, full=True)
        again = check_store(str(copy.path), full=True)
        assert not again.findings, (stop_at, done[stop_at], again.findings)
        assert sorted(read_all(copy).values()) == expected


def test_nothing_is_changed_unless_approved(damaged: Specimen) -> None:
    before = {path: path.read_bytes() for path in damaged.path.rglob("*") if path.is_file()}
    repair = repair_store(str(damaged.path), approve=lambda report: False)
    assert not repair.made
    assert repair.after is repair.before
    after = {path: path.read_bytes() for path in damaged.path.rglob("*") if path.is_file()}
    new = {path.name for path in after.keys() ^ before.keys()}
    assert new <= {"catalog.db-wal", "catalog.db-shm", "fsck.json"}
    assert all(after.get(path, data) == data for path, data in before.items())


def test_what_the_system_refuses_is_told(damaged: Specimen) -> None:
    (damaged.path / "bad").write_text("in the way")
    repair = repair_store(str(damaged.path), approve=lambda report: True)
    assert len(repair.failed) == 1
    assert set(repair.after.counts) == {Kind.BLOB_DAMAGED}
    (damaged.path / "bad").unlink()
    repair_store(str(damaged.path), approve=lambda report: True)
    assert not check_store(str(damaged.path), full=True).findings


def test_a_killed_store_has_only_notes(interrupted: Specimen) -> None:
    report = check_store(str(interrupted.path), full=True)
    assert not report.errors
    assert not report.clean
    assert report.statistics.drafts == 1
    assert set(report.counts) == {Kind.ORPHAN, Kind.STAGING_LEFTOVER}
    repair_store(str(interrupted.path), approve=lambda report: True, automatic_only=True)
    assert not check_store(str(interrupted.path)).findings
    assert read_all(interrupted)[b"/drafted"] == bytes(9 << 20)


def test_a_changed_file_behind_a_later_repair(specimen: Specimen) -> None:
    """Between a full check and the repair somebody put the right bytes back: they stay."""
    blob = specimen.blob(b"a small file")
    overwrite(blob, 0, b"X")
    assert check_store(str(specimen.path), full=True).errors
    blob.unlink()
    blob.write_bytes(b"a small file")
    blob.chmod(0o444)
    assert not repair_store(str(specimen.path), approve=lambda report: True).made
    assert blob.exists()
