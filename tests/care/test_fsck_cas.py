"""fsck.cas: options, what it says, exit codes of fsck(8)."""

from __future__ import annotations

import builtins
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from uuid import uuid4

import pytest

from care.damage import Specimen, overwrite, write_again
from mountstore.care.checking import check_store
from mountstore.care.premises import Premises
from mountstore.cli.fsck import main

Capture = pytest.CaptureFixture[str]


def break_links(specimen: Specimen) -> None:
    specimen.run("UPDATE inode SET nlink = 9 WHERE id = :linked")


def links(specimen: Specimen) -> object:
    return specimen.ask("SELECT nlink FROM inode WHERE id = :linked")[0][0]


@pytest.mark.parametrize("options", ["", "-n", "-y", "-p", "-a", "-pf", "--full", "-v", "-C0 -a"])
def test_a_sound_store(specimen: Specimen, options: str, capsys: Capture) -> None:
    assert main([*options.split(), str(specimen.path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "error" not in said.out.replace("no errors", "")


def test_looking_only(specimen: Specimen, capsys: Capture) -> None:
    break_links(specimen)
    assert main(["-n", str(specimen.path)]) == 4
    assert links(specimen) == 9
    said = capsys.readouterr().out
    assert "error: wrong link count: inode" in said
    assert "-> set it to 2" in said
    assert "1 error;" in said


@pytest.mark.parametrize("options", [["-y"], ["-p", "-f"], ["-a", "-f"]])
def test_repairing(specimen: Specimen, options: list[str], capsys: Capture) -> None:
    break_links(specimen)
    assert main([*options, str(specimen.path)]) == 1
    assert links(specimen) == 2
    assert "1 change made" in capsys.readouterr().out
    assert main([*options, str(specimen.path)]) == 0


def test_automatic_repair_trusts_a_store_that_was_closed_in_order(specimen: Specimen, capsys: Capture) -> None:
    break_links(specimen)
    assert main(["-p", "-v", str(specimen.path)]) == 0
    assert "clean" in capsys.readouterr().out
    specimen.run("UPDATE meta SET value = 0 WHERE key = 'clean'")
    assert main(["-p", str(specimen.path)]) == 1
    assert links(specimen) == 2


@pytest.mark.parametrize("options", [["-n"], ["-n", "--full"], ["-y"]])
def test_automatic_repair_remembers_errors(specimen: Specimen, options: list[str]) -> None:
    specimen.blob(b"a small file").unlink()
    assert main([*options, str(specimen.path)]) == 4
    assert main(["-p", str(specimen.path)]) == 4
    write_again(specimen, b"healed", b"a small file")
    assert main(["-n", str(specimen.path)]) == 0
    assert main(["-p", "-v", str(specimen.path)]) == 0


def test_what_root_finds_is_the_owners_to_read(specimen: Specimen) -> None:
    os.chown(specimen.path, 65534, 65533)
    specimen.blob(b"a small file").unlink()
    assert main(["-n", str(specimen.path)]) == 4
    notes = (specimen.path / "fsck.json").stat()
    assert (notes.st_uid, notes.st_gid, stat.S_IMODE(notes.st_mode)) == (65534, 65533, 0o600)


def test_automatic_repair_looks_for_what_a_mount_would_refuse(specimen: Specimen) -> None:
    (specimen.path / "blobs").rename(specimen.path.parent / "blobs")
    records = specimen.ask("SELECT count(*) FROM blob")
    assert main(["-p", str(specimen.path)]) == 4
    # Nothing was concluded from that: it may be a file system that is not mounted.
    assert not (specimen.path / "blobs").exists()
    assert specimen.ask("SELECT count(*) FROM blob") == records
    (specimen.path.parent / "blobs").rename(specimen.path / "blobs")
    assert main(["-p", str(specimen.path)]) == 0
    specimen.run(f"UPDATE meta SET value = '{uuid4()}' WHERE key = 'uuid'")
    assert main(["-p", str(specimen.path)]) == 4


def test_automatic_repair_leaves_what_needs_a_decision(specimen: Specimen, capsys: Capture) -> None:
    break_links(specimen)
    specimen.run("INSERT INTO entry VALUES (1, x'61', :deep, 3000000)")
    assert main(["-p", "-f", str(specimen.path)]) == 5
    assert "(with -y, or when asked)" in capsys.readouterr().out
    assert main(["-y", str(specimen.path)]) == 1


def test_errors_that_cannot_be_repaired(specimen: Specimen, capsys: Capture) -> None:
    overwrite(specimen.blob(b"a small file"), 0, b"X")
    assert main(["-y", "--full", str(specimen.path)]) == 5
    said = capsys.readouterr().out
    assert "left:" in said
    assert "/outer/inner/small" in said
    assert main(["-y", str(specimen.path)]) == 4


@pytest.mark.parametrize(("answer", "code", "nlink"), [("y", 1, 2), ("no", 4, 9), ("", 4, 9), (None, 4, 9)])
def test_asking(
    specimen: Specimen, monkeypatch: pytest.MonkeyPatch, answer: str | None, code: int, nlink: int
) -> None:
    break_links(specimen)

    def reply(prompt: str) -> str:
        assert prompt.startswith("Make 1 change?")
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", reply)
    assert main([str(specimen.path)]) == code
    assert links(specimen) == nlink


def test_nothing_is_asked_without_a_terminal(specimen: Specimen, capsys: Capture) -> None:
    break_links(specimen)
    assert main([str(specimen.path)]) == 4
    assert links(specimen) == 9
    assert "nothing was changed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["-n"], ["-y"], ["-p"], ["--full"]])
def test_a_store_in_use(specimen: Specimen, options: list[str], capsys: Capture) -> None:
    with Premises.enter(str(specimen.path)):
        assert main([*options, str(specimen.path)]) == 8
    said = capsys.readouterr().err
    assert "in use by pid" in said
    assert main([*options, str(specimen.path)]) == 0


@pytest.mark.parametrize("words", [[], ["-n", "-y", "x"], ["--unknown", "x"], [""], ["x", "y"]])
def test_wrong_usage(words: list[str], capsys: Capture) -> None:
    assert main(words) == 16
    assert capsys.readouterr().err.startswith("fsck.cas: ")


def test_ctrl_c(specimen: Specimen, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    break_links(specimen)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", interrupt)
    assert main([str(specimen.path)]) == 32
    assert "interrupted" in capsys.readouterr().err
    assert links(specimen) == 9


def test_what_was_not_foreseen(specimen: Specimen, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr("mountstore.care.checking.check_store", fail)
    assert main(["-n", str(specimen.path)]) == 8
    assert "unforeseen RuntimeError: surprise" in capsys.readouterr().err


def test_progress_on_a_terminal(specimen: Specimen, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("mountstore.cli.fsck_dialogue._PROGRESS_EVERY_S", 0.0)
    assert main(["--full", str(specimen.path)]) == 0
    assert "100 %" in capsys.readouterr().err


def test_many_findings_are_summed_up(specimen: Specimen, capsys: Capture) -> None:
    with specimen.sql() as db:
        db.executemany(
            "INSERT INTO entry VALUES (1, ?, 999, ?)", ((b"name%d" % i, 2_000_000 + i) for i in range(150))
        )
        db.execute("UPDATE meta SET value = 3000000 WHERE key = 'next_cookie'")
    assert main(["-n", str(specimen.path)]) == 4
    few = capsys.readouterr().out
    assert few.count("error: entry to nothing") == 100
    assert "150  entry to nothing" in few
    assert main(["-n", "-v", str(specimen.path)]) == 4
    assert capsys.readouterr().out.count("error: entry to nothing") == 150


def test_names_are_shown_on_one_line(specimen: Specimen, capsys: Capture) -> None:
    specimen.run("UPDATE entry SET name = x'610a1b62ff' WHERE inode = :same")
    specimen.blob(b"a small file").unlink()
    assert main(["-n", str(specimen.path)]) == 4
    assert "/a\\x0a\\x1bb\\xff (inode" in capsys.readouterr().out


def test_as_a_process(specimen: Specimen, original: Specimen) -> None:
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    done = run(
        [sys.executable, "-m", "mountstore.cli.fsck", "-n", "--full", str(specimen.path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"{specimen.path}: no errors; 12 inodes, 12 names")
    assert check_store(str(specimen.path)).statistics.inodes == 12
