"""Backups as they are made in practice: beside a busy mount, interrupted, damaged, and brought back."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from mount.conftest import MountMaker
from mount.live import LiveMount, let_everybody_reach, run

from casctl.backups import check, fill
from casctl.program import CASCTL, PATIENCE_S, answers, casctl, casctl_as, done, environment, result
from mountstore.blobs.clock import now_ns
from mountstore.care.verify import verify_blobs

ROOT = Path(__file__).parent.parent.parent

SLOWLY = "--bwlimit=2000"
"""KiB a second."""


# Collects for as long as it is let.
COLLECTING = """
import trio
from mountstore.control import basics, command

async def _collecting(context, arguments):
    with context.exclusively("collection", "a collection is running"):
        await trio.sleep_forever()

basics.COMMANDS = (*basics.COMMANDS, command.Command("collecting", "Collect.", _collecting, long=True))
"""


def remote_shell(path: Path, home: Path) -> str:
    """An option for what stands for ssh: the words become one line for the shell "there", in the user's home."""
    path.write_text(
        f'#!/bin/sh\nshift\n[ "$1" = -l ] && shift 2\nshift\n[ "$1" = -- ] && shift\ncd {home}\nexec sh -c "$*"\n'
    )
    path.chmod(0o755)
    return f"--rsh={shlex.quote(str(path))} -x"


@contextmanager
def restored(make_mount: MountMaker, backup: Path) -> Iterator[Path]:
    """A mount of a copy of a backup."""
    mount = make_mount()
    mount.unmount()
    shutil.rmtree(mount.store)
    run("cp", "-al", backup, mount.store)
    mount.start()
    mount.announce("made again|catalog")
    yield mount.path
    mount.unmount()


def documented_check() -> str:
    """What docs/backup.md has people type to check a copy."""
    text = (ROOT / "docs" / "backup.md").read_text()
    (block,) = re.findall(r"```sh\ncd /backup/store/blobs\n(find .*?)```", text, re.DOTALL)
    return str(block)


@contextmanager
def running(*arguments: str | Path, cwd: Path, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """A backup that has begun to copy; `changes` are of the environment."""
    with subprocess.Popen(
        [CASCTL, "--json", "backup", *arguments],
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                answer = json.loads(line)
                if answer["type"] == "progress" and answer["stage"] == "copying" and answer["done"]:
                    break
            else:
                raise AssertionError(process.stderr.read())
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_a_busy_mount_comes_back_as_it_was(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount()
    backup = tmp_path / "backup"
    files = fill(mount.path / "d", 1)
    (mount.path / "d" / "f1-0").write_bytes(b"second version")
    old, files["f1-0"] = files["f1-0"], b"second version"
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            (mount.path / f"busy{number % 50}").write_bytes(b"%d" % number * 2000)
            number += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        first = result("backup", backup, cwd=mount.path)
        check(backup)
        more = fill(mount.path / "d", 2, 5)
        second = result("backup", backup, "--full", cwd=mount.path)
    finally:
        stop.set()
        worker.join()
    assert first["copied"]["blobs"] >= 41 and second["copied"]["blobs"] >= 5
    check(backup)
    assert result("status", cwd=mount.path)["collection_held"] == []
    with restored(make_mount, backup) as path:
        for name, data in {**files, **more}.items():
            assert (path / "d" / name).read_bytes() == data
        assert (path / "d" / ".versions" / "f1-0" / "1").read_bytes() == old


def test_the_next_one_copies_only_what_is_new(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 10)
    backup = tmp_path / "backup"
    done("backup", backup, cwd=shared_mount.path)
    before = {path: path.stat().st_ino for path in (backup / "blobs").rglob("*_*")}
    assert result("backup", backup, cwd=shared_mount.path)["copied"]["bytes"] < 10_000
    after = {path: path.stat().st_ino for path in (backup / "blobs").rglob("*_*")}
    assert before.items() <= after.items()
    check(backup)


def test_damage_in_the_copy_is_found_and_mended(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 10)
    backup = tmp_path / "backup"
    done("backup", backup, cwd=shared_mount.path)
    cut, flipped, gone = sorted((backup / "blobs").rglob("*_c350"))[:3]
    for path in (cut, flipped):
        path.chmod(0o644)
    cut.write_bytes(b"")
    gone.unlink()
    ended = casctl("backup", backup, cwd=shared_mount.path)
    assert ended.returncode == 0 and "1 blobs at" in ended.stderr
    check(backup)
    flipped.chmod(0o644)
    data = bytearray(flipped.read_bytes())
    data[1000] ^= 1
    flipped.write_bytes(data)
    assert not verify_blobs(str(backup)).ok
    assert result("backup", backup, cwd=shared_mount.path)["checked"] == "names and sizes"
    ended = casctl("verify", backup)
    assert ended.returncode == 1 and flipped.name in ended.stdout
    ended = casctl("backup", "--full", backup, cwd=shared_mount.path)
    assert ended.returncode == 0 and "1 blobs at" in ended.stderr
    check(backup)
    assert done("verify", backup).endswith("snapshots complete\n")


def test_what_the_store_lacks_is_told(mount: LiveMount, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 3)
    mount.unmount()
    mount.checked = False
    next((mount.store / "blobs").rglob("*_c350")).unlink()
    backup = tmp_path / "backup"
    for arguments in ([], ["--full"]):
        ended = casctl("backup", "--store", mount.store, backup, *arguments)
        assert ended.returncode == 1 and "is not complete, neither here nor in the store" in ended.stderr
    rsh = remote_shell(tmp_path / "shell", tmp_path)
    ended = casctl("backup", "--store", mount.store, f"host:{backup}", rsh)
    assert ended.returncode == 1 and "is not complete in the store" in ended.stderr
    mount.start()


def test_the_check_that_needs_only_coreutils(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    backup = tmp_path / "backup"
    done("backup", backup, cwd=shared_mount.path)
    blobs = backup / "blobs"
    script = documented_check()
    assert run("sh", "-c", script, cwd=blobs) == ""
    victim = next(blobs.rglob("*_c350"))
    victim.chmod(0o644)
    with victim.open("r+b") as file:
        file.write(b"\0")
    ended = subprocess.run(["sh", "-c", script], cwd=blobs, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert ended.stdout == f"./{victim.relative_to(blobs)}: FAILED\n"


def test_the_documented_copy_by_hand(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    text = (ROOT / "docs" / "backup.md").read_text()
    (script,) = re.findall(r"```sh\n(echo 'gc hold.*?)```", text, re.DOTALL)
    backup = tmp_path / "backup"
    backup.mkdir()
    for word, meant in [
        ("/mnt/store", shared_mount.path),
        ("/data/", f"{shared_mount.store}/"),
        ("nas:/srv/store", backup),
        ("/tmp/refs", tmp_path / "refs"),
    ]:
        assert word in script
        script = script.replace(word, str(meant))
    run("sh", "-ec", script)
    check(backup)
    assert "before-backup" in os.listdir(backup / "blobs" / "refs")
    assert result("status", cwd=shared_mount.path)["collection_held"] == []


def test_an_interrupted_copy_harms_nothing(mount: LiveMount, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 5)
    backup = tmp_path / "backup"
    done("backup", backup, cwd=mount.path)
    fill(mount.path / "d", 2, 150)
    with running(backup, f"--rsync={SLOWLY}", cwd=mount.path) as process:
        second = casctl("backup", backup, cwd=mount.path)
        assert second.returncode == 1 and "another backup is being made there" in second.stderr
        assert result("status", cwd=mount.path)["collection_held"]
        refused = casctl("gc", cwd=mount.path)
        assert refused.returncode == 1 and "held" in refused.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 130
    assert result("status", cwd=mount.path)["collection_held"] == []
    found = verify_blobs(str(backup))
    assert found.ok and len(found.snapshots) >= 1
    done("backup", backup, cwd=mount.path)
    check(backup)


def test_a_killed_copy_ends_its_hold_by_itself(mount: LiveMount, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 150)
    backup = tmp_path / "backup"
    # What is killed leaves its temporary files.
    with running(backup, f"--rsync={SLOWLY}", cwd=mount.path, TMPDIR=str(tmp_path)) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
    (hold,) = result("status", cwd=mount.path)["collection_held"]
    assert 0 < hold["left_s"] <= 600
    # No snapshot whose blobs are not all there.
    assert not os.listdir(backup / "blobs" / "refs")
    done("backup", backup, cwd=mount.path)
    check(backup)
    done("gc", "release", cwd=mount.path)


def test_a_collection_that_runs_is_waited_for(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount(prelude=COLLECTING)
    control = os.open(mount.path / ".cas" / "control", os.O_RDWR)
    os.write(control, b"collecting &\n")
    job = json.loads(os.read(control, 1000))["job"]
    with subprocess.Popen(
        [CASCTL, "--json", "backup", tmp_path / "backup"],
        cwd=mount.path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "waiting" in json.loads(process.stdout.readline())["stage"]
        done("cancel", str(job), cwd=mount.path)
        *_, last = map(json.loads, process.stdout)
        assert last["type"] == "result" and process.wait(PATIENCE_S) == 0
    os.close(control)


def test_a_mirror_lets_go_of_what_the_store_let_go_of(mount: LiveMount, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    fill(mount.path / "d", 1, 5)
    done("snapshot", "first", cwd=mount.path)
    done("backup", backup, cwd=mount.path)
    shutil.rmtree(mount.path / "d")
    done("prune", "--all", mount.path)
    for name in os.listdir(backup / "blobs" / "refs"):
        done("snapshot-delete", name, cwd=mount.path)
    (mount.path / "kept").write_bytes(b"kept")
    done("backup", backup, cwd=mount.path)
    done("gc", "--grace=0", cwd=mount.path)
    assert len(list((backup / "blobs").rglob("*_c350"))) == 5
    assert "first" in os.listdir(backup / "blobs" / "refs")
    done("backup", "--mirror", backup, cwd=mount.path)
    assert not list((backup / "blobs").rglob("*_c350"))
    assert "first" not in os.listdir(backup / "blobs" / "refs")
    check(backup)


def test_over_a_remote_shell(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    home = tmp_path / "home"
    home.mkdir()
    rsh = remote_shell(tmp_path / "shell", home)
    backup = home / "a b; 'c"
    for path in (str(backup), backup.name):
        done("backup", f"user@host:{path}", rsh, "--full", cwd=shared_mount.path)
        check(backup)
    ended = casctl("backup", f"user@host:{home}/no/such", rsh, cwd=shared_mount.path)
    assert ended.returncode == 1 and "user@host:" in ended.stderr
    ended = casctl("backup", "user@host:x", "--rsh=false", cwd=shared_mount.path)
    assert ended.returncode == 1


def test_a_store_by_its_directory(mount: LiveMount, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 5)
    backup = tmp_path / "backup"
    done("backup", "--store", mount.store, backup)
    check(backup)
    (mount.path / "later").write_bytes(b"later")
    mount.unmount()
    done("backup", "--store", mount.store, backup, "--full")
    check(backup)
    mount.start()


def test_where_no_backup_goes(shared_mount: LiveMount, make_mount: MountMaker, tmp_path: Path) -> None:
    other = make_mount()
    refused: list[tuple[str | Path, str]] = [
        (shared_mount.store / "x", "lie in each other"),
        (shared_mount.store, "lie in each other"),
        (shared_mount.path / "x", "lies in the mount"),
        (tmp_path / "no" / "such", "No such file"),
        (other.store, "is a store itself"),
        ("host::module", "rsync daemon"),
    ]
    for destination, said in refused:
        ended = casctl("backup", destination, cwd=shared_mount.path)
        assert ended.returncode in (1, 2) and said in ended.stderr, ended.stderr
        assert result("status", cwd=shared_mount.path)["collection_held"] == []
    ended = casctl("--json", "backup", other.store, cwd=shared_mount.path)
    assert ended.returncode == 1 and "is a store itself" in json.loads(ended.stdout)["message"]
    ended = casctl("verify", tmp_path)
    assert ended.returncode == 1 and "is not a directory of blobs" in ended.stderr


def test_the_copy_of_another_store_is_left_alone(mount: LiveMount, make_mount: MountMaker, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 5)
    backup, rsh = tmp_path / "backup", remote_shell(tmp_path / "shell", tmp_path)
    done("backup", backup, cwd=mount.path)
    before = {*backup.rglob("*"), backup / "blobs" / ".staging"}
    other = make_mount()
    (other.path / "f").write_bytes(b"another")
    for arguments in ([backup], [backup, "--mirror"], [f"host:{backup}", "--mirror", rsh]):
        ended = casctl("backup", *arguments, cwd=other.path)
        assert ended.returncode == 1 and "is the backup of another store" in ended.stderr, ended.stderr
        assert {*backup.rglob("*")} == before
    check(backup)
    # A store that was made of the copies of both is both.
    for ref in (mount.store / "blobs" / "refs").iterdir():
        shutil.copy(ref, other.store / "blobs" / "refs")
    assert "is the backup of another" not in casctl("backup", backup, cwd=other.path).stderr


def test_a_snapshot_that_is_deleted_meanwhile_is_in_the_copy(mount: LiveMount, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 150)
    backup = tmp_path / "backup"
    with running(backup, f"--rsync={SLOWLY}", cwd=mount.path) as process:
        # As the next snapshot of the same hour does it.
        (name,) = os.listdir(mount.store / "blobs" / "refs")
        done("snapshot-delete", name, cwd=mount.path)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
    assert os.listdir(backup / "blobs" / "refs") == [name]
    check(backup)


def test_a_destination_that_is_full_is_gone_on_with_when_there_is_room(mount: LiveMount, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    backup.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", backup)
    try:
        fill(mount.path / "d", 1, 10)
        done("backup", backup, cwd=mount.path)
        before = os.listdir(backup / "blobs" / "refs")
        fill(mount.path / "d", 2, 80)
        ended = casctl("backup", backup, cwd=mount.path)
        assert ended.returncode == 1 and "No space left" in ended.stderr, ended.stderr
        assert os.listdir(backup / "blobs" / "refs") == before
        found = verify_blobs(str(backup))
        assert found.ok and found.snapshots[0].complete
        run("mount", "-o", "remount,size=20m", backup)
        for _ in range(2):
            done("backup", backup, cwd=mount.path)
            check(backup)
    finally:
        run("umount", backup)


def test_a_mirror_removes_nothing_of_somebody_else(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    backup = tmp_path / "backup"
    other = backup / "blobs" / "sha256" / "x"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of a registry")
    done("backup", backup, "--mirror", cwd=shared_mount.path)
    assert other.read_bytes() == b"of a registry"
    check(backup)


def test_a_mirror_removes_nothing_later_than_the_store(mount: LiveMount, tmp_path: Path) -> None:
    backup, earlier = tmp_path / "backup", tmp_path / "earlier"
    fill(mount.path / "d", 1, 5)
    mount.unmount()
    shutil.copytree(mount.store, earlier)
    mount.start()
    fill(mount.path / "d", 2, 5)
    done("backup", backup, cwd=mount.path)
    before = {*backup.rglob("*")}
    ended = casctl("backup", "--store", earlier, backup, "--mirror")
    assert ended.returncode == 1 and "later than all of the store" in ended.stderr, ended.stderr
    assert {*backup.rglob("*")} == before
    check(backup)


def test_a_directory_of_blobs_is_no_place_for_a_backup(
    shared_mount: LiveMount, make_mount: MountMaker, tmp_path: Path
) -> None:
    fill(shared_mount.path / "d", 1, 5)
    backup, other, linked = tmp_path / "backup", make_mount().store, tmp_path / "linked"
    done("backup", backup, cwd=shared_mount.path)
    linked.mkdir()
    (linked / "blobs").symlink_to(shared_mount.store / "blobs")
    refused: list[tuple[Path, str]] = [
        (backup / "blobs", "holds blobs itself"),
        (other / "blobs", "lies in a store"),
        (other / "elsewhere", "lies in a store"),
        (linked, "lie in each other"),
    ]
    for destination, said in refused:
        ended = casctl("backup", destination, cwd=shared_mount.path)
        assert ended.returncode in (1, 2) and said in ended.stderr, (destination, ended.stderr)
        assert not (destination / "blobs" / "refs" / "blobs").exists()
    assert not (backup / "blobs" / "blobs").exists() and not (other / "blobs" / "blobs").exists()


def test_a_clock_that_was_set_back_hides_no_damage(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    backup = tmp_path / "backup"
    done("backup", backup, cwd=shared_mount.path)
    # Whoever gets to the blobs can read them.
    assert backup.stat().st_mode & 0o777 == 0o700
    os.truncate(next((backup / "blobs").rglob("*_c350")), 7)
    a_day_ago_ns = now_ns() - 86_400 * 10**9
    with (
        mock.patch("mountstore.cli.casctl.backup_run.now_ns", return_value=a_day_ago_ns),
        mock.patch("mountstore.cli.casctl.backup_check.now_ns", return_value=a_day_ago_ns),
    ):
        ended = casctl("backup", backup, cwd=shared_mount.path)
    assert ended.returncode == 0 and "copying them again" in ended.stderr
    check(backup)


def test_the_lost_and_found_of_a_file_system_is_no_blob(shared_mount: LiveMount, tmp_path: Path) -> None:
    (shared_mount.store / "blobs" / "lost+found").mkdir(mode=0)
    done("backup", tmp_path / "backup", cwd=shared_mount.path)
    (shared_mount.store / "blobs" / "lost+found").rmdir()
    assert not (tmp_path / "backup" / "blobs" / "lost+found").exists()
    check(tmp_path / "backup")


def test_others_may_not(shared_mount: LiveMount, tmp_path: Path) -> None:
    let_everybody_reach(tmp_path)
    ended = casctl_as(65534, "--mount", shared_mount.path, "backup", tmp_path / "backup")
    assert ended.returncode == 5, ended.stderr


def test_progress_and_result_for_programs(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    *progress, last = answers("backup", tmp_path / "backup", "--full", cwd=shared_mount.path)
    assert {answer["stage"] for answer in progress} >= {"copying", "reading the copy"}
    assert last["type"] == "result" and last["snapshots"] >= 1 and last["copied"]["bytes"] > 250_000
    (found,) = [answer for answer in answers("verify", tmp_path / "backup") if answer["type"] == "result"]
    assert found["ok"] and found["snapshots"][0]["complete"]


# --- the script for timers ---


def test_the_script_runs_one_at_a_time(shared_mount: LiveMount, tmp_path: Path) -> None:
    fill(shared_mount.path / "d", 1, 5)
    backup = tmp_path / "backup"
    script = ROOT / "scripts" / "backup"
    locks = tmp_path / "locks"
    locks.mkdir()
    run(script, shared_mount.path, backup, "-q", BACKUP_LOCK_DIR=str(locks))
    check(backup)
    (lock,) = locks.iterdir()
    held = subprocess.run(
        ["flock", lock, script, shared_mount.path, backup],
        env=environment(BACKUP_LOCK_DIR=str(locks)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert held.returncode == 75 and "still running" in held.stderr


def test_the_script_without_casctl(mount: LiveMount, tmp_path: Path) -> None:
    fill(mount.path / "d", 1, 5)
    mount.remount()
    script = tmp_path / "backup-script"
    shutil.copy(ROOT / "scripts" / "backup", script)
    path = os.pathsep.join(
        d for d in os.environ["PATH"].split(os.pathsep) if not (Path(d) / "casctl").exists()
    )
    run(script, mount.store, tmp_path / "backup", BACKUP_LOCK_DIR=str(tmp_path), PATH=path)
    check(tmp_path / "backup")
