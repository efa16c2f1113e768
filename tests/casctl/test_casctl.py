"""casctl on real mounts: which mount is meant, what is answered, how it ends."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
from mount.conftest import MountMaker
from mount.live import LiveMount, run
from PIL import Image

from casctl.program import CASCTL, PATIENCE_S, answers, casctl, casctl_as, done, environment, result

# ioctl_tty(2)
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441

# A command that ends only when it is told to, on both sides.
WAITING = """
import trio
from mountstore.control import basics, command

async def _wait(context, arguments):
    context.progress(1, 3, "steps")
    try:
        await trio.sleep_forever()
    finally:
        context.store.namespace.waited = True

basics.COMMANDS = (*basics.COMMANDS, command.Command("wait", "Wait.", _wait, long=True))
"""


@pytest.fixture(scope="module")
def _waiting_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    mount = LiveMount(tmp_path_factory.mktemp("waiting"), prelude=WAITING)
    try:
        yield mount
    finally:
        mount.finish()


@pytest.fixture
def waiting_mount(_waiting_mount: LiveMount) -> Iterator[LiveMount]:
    """One that knows the command."""
    yield _waiting_mount
    _waiting_mount.check_log()


def client(*arguments: str) -> str:
    """A casctl that knows of it."""
    return (
        f"{WAITING}\nimport sys\nfrom mountstore.cli.casctl.main import main\nsys.exit(main({arguments!r}))"
    )


# --- which mount ---


def test_the_mount_is_found_from_anywhere_in_it(shared_mount: LiveMount, tmp_path: Path) -> None:
    top = shared_mount.path
    (top / "d" / "e").mkdir(parents=True)
    (top / "d" / "f").write_text("hello")
    (top / "d" / "link").symlink_to("f")
    (tmp_path / "into").symlink_to(top / "d")
    (tmp_path / "root").symlink_to(top)
    mountpoint = str(top)
    assert result("status", cwd=top / "d" / "e")["mountpoint"] == mountpoint
    assert result("--mount", top / "d", "status")["mountpoint"] == mountpoint
    assert result("status", "--mount", tmp_path / "root")["mountpoint"] == mountpoint
    assert result("status", CASCTL_MOUNT=mountpoint)["mountpoint"] == mountpoint
    wanted = [(str(top / "d" / "f"), tmp_path), ("f", top / "d"), ("../f", top / "d" / "e"), ("d//./f", top)]
    for path, cwd in [*wanted, ("into/f", tmp_path)]:
        assert result("info", path, cwd=cwd)["path"] == "/d/f"
    # A link is what it is, not what it leads to; one from outside leads in.
    assert result("info", top / "d" / "link")["kind"] == "symbolic link"
    assert result("info", tmp_path / "into")["path"] == "/d"
    assert result("info", ".", cwd=top)["path"] == "/"
    assert result("info", top)["path"] == "/"
    assert result("info", "..", cwd=top / "d" / "e")["path"] == "/d"


def test_a_bind_mount_of_a_part_is_the_same_mount(shared_mount: LiveMount, tmp_path: Path) -> None:
    part = shared_mount.path / "part"
    part.mkdir()
    (part / "f").write_text("hello")
    bound = tmp_path / "bound"
    bound.mkdir()
    run("mount", "--bind", part, bound)
    try:
        assert result("info", bound / "f")["path"] == "/part/f"
        assert result("status", cwd=bound)["mountpoint"] == str(shared_mount.path)
    finally:
        run("umount", bound)


def test_outside_of_every_mount(shared_mount: LiveMount, tmp_path: Path) -> None:
    for arguments in (["info", "/etc/passwd"], ["--mount", "/etc", "status"], ["info", "/nowhere/at/all"]):
        ended = casctl(*arguments, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (3, "")
        assert ended.stderr.endswith(": is not in a mount of mountstore\n")
    ended = casctl("--mount", shared_mount.path, "info", "/etc/passwd")
    assert ended.returncode == 3 and f"the mount is {shared_mount.path}" in ended.stderr


def test_a_read_only_mount_takes_no_commands(make_mount: MountMaker) -> None:
    mount = make_mount()
    mount.unmount()
    mount.options = ("ro",)
    mount.start()
    assert result("status", cwd=mount.path)["read_only"] is True
    assert "requests" in done("stats", cwd=mount.path)
    ended = casctl("df", cwd=mount.path)
    assert ended.returncode == 1 and "mounted read-only" in ended.stderr


def test_a_mount_of_one_snapshot_takes_no_commands_at_all(make_mount: MountMaker) -> None:
    mount = make_mount()
    done("snapshot", "one", cwd=mount.path)
    mount.unmount()
    mount.options = ("ro", "snapshot=one")
    mount.start()
    for command in ("status", "df"):
        ended = casctl(command, cwd=mount.path)
        assert ended.returncode == 3 and "it shows one snapshot" in ended.stderr
    mount.unmount()


def test_a_control_directory_of_another_name(make_mount: MountMaker) -> None:
    mount = make_mount("control=steer")
    ended = casctl("status", cwd=mount.path)
    assert ended.returncode == 3 and "CASCTL_CONTROL" in ended.stderr
    assert result("status", cwd=mount.path, CASCTL_CONTROL="steer")["mountpoint"] == str(mount.path)


def test_paths_of_two_mounts_are_refused(shared_mount: LiveMount, make_mount: MountMaker) -> None:
    other = make_mount()
    ended = casctl("du", shared_mount.path, other.path)
    assert ended.returncode == 2 and "in another mount" in ended.stderr
    ended = casctl("status", cwd=Path("/"))
    assert (
        ended.returncode == 3 and str(other.path) in ended.stderr and str(shared_mount.path) in ended.stderr
    )


def test_odd_names_arrive(shared_mount: LiveMount) -> None:
    names = [
        b"a b",
        b"quo'te\"s",
        b"new\nline",
        b"\xff\xfe",
        b"$HOME;&|#",
        b"-n",
        b"--json",
        "ünï".encode(),
        b"back\\",
    ]
    directory = os.fsencode(shared_mount.path) + b"/odd"
    os.mkdir(directory)
    for number, name in enumerate(names):
        with open(directory + b"/" + name, "wb") as file:
            file.write(b"%d" % number * (number + 1))
    for number, name in enumerate(names):
        path = os.fsdecode(directory + b"/" + name)
        found = result("info", path)
        assert (found["path"], found["size_bytes"]) == (os.fsdecode(b"/odd/" + name), number + 1)
        assert "odd/" in done("info", path)
    assert result("info", "--", "-n", cwd=shared_mount.path / "odd")["path"] == "/odd/-n"


# --- answers ---


def test_info_for_people_and_programs(shared_mount: LiveMount) -> None:
    file = shared_mount.path / "report"
    file.write_text("first")
    file.write_text("second one")
    text = done("info", file)
    assert text.startswith("/report: file\n")
    assert re.search(r"^  version +2 \(1 before it\)$", text, re.MULTILINE)
    path = re.search(r"^  blob path +(.*)$", text, re.MULTILINE)
    assert path is not None and Path(path[1]).read_text() == "second one"
    old = result("info", f"{file}@1")
    assert Path(old["content"]["blob_path"]).read_text() == "first"
    assert old["content"]["blob_path"] == f"{shared_mount.store}/{old['content']['blob']}"
    ended = casctl("info", shared_mount.path / "nowhere")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "casctl: /nowhere: there is nothing of that name\n"
    ended = casctl("--json", "info", shared_mount.path / "nowhere")
    assert ended.returncode == 1 and json.loads(ended.stdout)["error"] == "ENOENT"


def test_names_are_told_as_they_were_given(shared_mount: LiveMount) -> None:
    (shared_mount.path / "d ü").mkdir(exist_ok=True)
    missing = casctl("restore", "no such", cwd=shared_mount.path)
    assert missing.stderr == "casctl: /no such: there is no such file, version or blob\n"
    taken = casctl("clone", "d ü", "d ü", cwd=shared_mount.path)
    assert taken.stderr == "casctl: '/d ü' is there already\n"


def test_df_and_du(make_mount: MountMaker) -> None:
    mount = make_mount(piece_max=64 << 10)
    (mount.path / "d").mkdir()
    data = os.urandom(300_000)
    (mount.path / "d" / "a").write_bytes(data)
    (mount.path / "b").write_bytes(data)
    (mount.path / "c").write_bytes(b"alone")
    space = result("df", cwd=mount.path)
    assert (space["files"], space["logical_bytes"]) == (3, 600_005)
    assert 300_000 < space["stored"]["bytes"] < 310_000
    assert space["stored"]["bytes"] == sum(int(name.split("_")[1], 16) for name in mount.blobs())
    assert space["ratio"] > 1.9
    text = done("df", cwd=mount.path)
    assert "585.9 KiB" in text and "deduplication: 1.9" in text
    rows = {row["path"]: row for row in result("du", "d", "c", ".", cwd=mount.path)["rows"]}
    assert rows["/d"]["unique_bytes"] == 0 and rows["/d"]["shared_bytes"] > 300_000
    assert rows["/c"]["unique_bytes"] == 5
    assert rows["/"]["stored_bytes"] == space["stored"]["bytes"]
    assert re.search(r"^ *5 B +5 B +5 B +0 B +1  /c$", done("du", "c", cwd=mount.path), re.MULTILINE)


def test_quiet_says_nothing(shared_mount: LiveMount) -> None:
    assert done("-q", "status", cwd=shared_mount.path) == ""
    assert casctl("-q", "info", "nowhere", cwd=shared_mount.path).stderr


def test_a_reader_that_has_seen_enough(shared_mount: LiveMount) -> None:
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{CASCTL} help | head -n 1"],
        cwd=shared_mount.path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_every_command_says(mount: LiveMount) -> None:
    """In words, each at least once; that it does what it says is tested with the commands themselves."""
    top = mount.path

    def said(*arguments: str) -> str:
        return done(*arguments, cwd=top)

    for text in ("one", "second", "the third"):
        (top / "f").write_text(text)
    (top / "gone").write_text("gone")
    (top / "gone").unlink()
    Image.new("RGB", (64, 48), (1, 2, 3)).save(top / "image.png")
    assert [line.split()[0] for line in said("versions", "f").splitlines()] == ["VERSION", "1", "2", "3"]
    assert said("restore", "f@1") == "/f: brought back, 3 B\n"
    assert said("restore", "f@2", "--to", "g") == "/g: brought back, 6 B\n"
    assert (top / "f").read_text() == "one" and (top / "g").read_text() == "second"
    (top / "d" / "sub").mkdir(parents=True)
    (top / "d" / "in it").write_text("12345")
    (top / "d" / "sub" / "below").write_text("12")
    assert said("restore", "d@2100-01-01", "--to", "e") == "/e: brought back, 1 directories, 2 files, 7 B\n"
    assert said("restore", "d/sub@2100-01-01", "--to", "s") == "/s: brought back, 0 directories, 1 files, 2 B\n"
    assert said("undelete", "gone") == "/gone: brought back, 4 B\n"
    assert "versions 1 and 2 differ from byte 0 on" in said("diff", "f", "1", "2")
    assert "versions 1 and 4 have the same bytes" in said("diff", "f", "1")
    assert "keep last" in said("policy", ".")
    assert re.search(r"keep last +3", said("policy", ".", "keep_last=3"))
    assert said("snapshot", "here").startswith("here: ")
    assert said("snapshot", "--auto") == "nothing has changed since the last snapshot\n"
    (top / "later").write_text("later")
    said("snapshot", "there")
    assert said("snapshot-diff", "here", "there") == "added    /later\n"
    assert "here" in said("snapshots") and said("snapshot-delete", "here", "there")
    assert said("sync") == "everything written so far is safe on disk\n"
    assert said("resize", "image.png", "32x32", "small.png").startswith("/small.png: 32x24, ")
    assert said("resize", "*.png", "16x16", "thumbnails").endswith("2 images: 2 made\n")
    hold = re.match(r"hold (\d+): nothing is collected for 60 seconds", said("gc", "hold", "--timeout", "60"))
    assert hold is not None and "HOLD" in said("status")
    assert said("gc", "release", hold[1]) == "1 holds ended\n"
    assert "old versions would be dropped" in said("prune", "f", "--all", "--dry-run")
    assert "old versions dropped" in said("prune", "f", "--all")
    assert "would be collected" in said("gc", "--dry-run", "--grace", "0")
    assert re.search(
        r"^1[0-9]* blobs collected|^[2-9] blobs collected", said("gc", "--grace", "0"), re.MULTILINE
    )
    (top / "pinned").write_text("pinned")
    digest = result("info", "pinned", cwd=top)["content"]["digest"]
    assert said("pin", digest) == "1 blobs pinned in .cas/pins/pinned\n"
    assert "unpinned  1" in said("unpin", digest)
    collected = next((mount.store / "trash").rglob("*_*")).name
    assert collected in said("untrash", collected)
    assert "blobs deleted" in said("purge", "--older-than", "0")
    assert re.search(r"damaged blobs +0", said("scrub", "--full"))
    assert "done" in said("jobs") and "COMMAND" in said("jobs")


def test_a_directory_in_place_of_a_file_is_wrong_usage(mount: LiveMount) -> None:
    (mount.path / "d").mkdir()
    for text in ("one", "two"):
        (mount.path / "f").write_text(text)
    for arguments in (("versions", "d"), ("undelete", "d"), ("diff", "d", "1"), ("rmtree", "f"), ("policy", "f")):
        assert casctl(*arguments, cwd=mount.path).returncode == 2, arguments
    ended = casctl("restore", "f@1", "--to", "d", cwd=mount.path)
    assert ended.returncode == 2
    assert ended.stderr == "casctl: '/d' is a directory: name the file in it that is to be made\n"


@pytest.mark.parametrize("name", [".mountstore-limbo", ".cas", ".versions", "d/.versions"])
def test_names_that_are_not_free_are_not_given(mount: LiveMount, name: str) -> None:
    """What is made under one cannot be reached, and keeps its directory from being removed."""
    (mount.path / "d").mkdir()
    for text in ("one", "two"):
        (mount.path / "f").write_text(text)
        (mount.path / "d" / "in it").write_text(text)
    Image.new("RGB", (8, 8)).save(mount.path / "image.png")
    for arguments in (
        ("restore", "f@1", "--to", name),
        ("restore", "d@2100-01-01", "--to", name),
        ("resize", "image.png", "4x4", name, "--format", "png"),
        ("resize", "*.png", "4x4", name),
        ("clone", "f", name),
    ):
        ended = casctl(*arguments, cwd=mount.path)
        assert ended.returncode in (1, 2), (arguments, ended)
        assert ended.stderr, arguments
    below = casctl("restore", "f@1", "--to", f"{name}/below", cwd=mount.path)
    assert below.returncode in (1, 2)
    (mount.path / "d" / "in it").unlink()
    (mount.path / "d").rmdir()
    assert done("clone", "f", "g", cwd=mount.path)


def test_a_directory_that_comes_back_in_part_says_so(mount: LiveMount) -> None:
    directory = mount.path / "d"
    directory.mkdir()
    (directory / "good").write_text("good")
    (directory / "lost").write_bytes(os.urandom(5_000_000))
    content = result("info", "d/lost", cwd=mount.path)["content"]
    Path(content["blob_path"]).unlink()
    ended = casctl("restore", "d@2100-01-01", "--to", "e", cwd=mount.path)
    assert ended.returncode == 1
    row, summary = ended.stdout.splitlines()[-2:]
    assert row.startswith("lost ") and "is missing or damaged" in row
    assert summary == "/e: brought back, 0 directories, 1 files, 4 B; 1 files are lost"
    assert os.listdir(mount.path / "e") == ["good"]
    mount.checked = False


def test_damage_is_a_failure(mount: LiveMount) -> None:
    (mount.path / "f").write_bytes(b"x" * 1000)
    blob = Path(result("info", "f", cwd=mount.path)["content"]["blob_path"])
    blob.chmod(0o644)
    blob.write_bytes(b"y" * 1000)
    mount.announce("damaged|not what was written|checksum")
    ended = casctl("scrub", cwd=mount.path)
    assert ended.returncode == 1 and blob.name in ended.stdout
    mount.checked = False


# --- how it ends ---


def test_others_are_told_who_may(shared_mount: LiveMount) -> None:
    ended = casctl_as(65534, "--mount", shared_mount.path, "status")
    assert (ended.returncode, ended.stdout) == (5, "")
    assert "only root may control this mount" in ended.stderr


def test_a_mount_that_nobody_serves(make_mount: MountMaker) -> None:
    mount = make_mount()
    daemon = os.pidfd_open(mount.pid)
    os.kill(mount.pid, signal.SIGKILL)
    poller = select.poll()
    poller.register(daemon, select.POLLIN)
    assert poller.poll(PATIENCE_S * 1000)
    os.close(daemon)
    ended = casctl("--mount", mount.path, "status")
    assert ended.returncode == 3
    assert f"mount.cas {mount.store} {mount.path}" in ended.stderr
    mount.kill()
    mount.start()


def test_an_interrupt_cancels_the_job(waiting_mount: LiveMount) -> None:
    mount = waiting_mount
    program = client("--json", "wait")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=mount.path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        job = json.loads(process.stdout.readline())["job"]
        progress = json.loads(process.stdout.readline())
        assert (progress["type"], progress["done"], progress["total"]) == ("progress", 1, 3)
        (row,) = [row for row in result("jobs", cwd=mount.path)["rows"] if row["job"] == job]
        assert (row["state"], row["done"], row["total"], row["unit"]) == ("running", 1, 3, "steps")
        assert "1 of 3 steps" in done("jobs", cwd=mount.path)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "casctl: interrupted\n"
        assert process.wait(PATIENCE_S) == 130
    (row,) = [row for row in result("jobs", cwd=mount.path)["rows"] if row["job"] == job]
    assert row["state"] == "cancelled"


def test_cancelling_from_elsewhere(waiting_mount: LiveMount) -> None:
    mount = waiting_mount
    program = client("--json", "wait")
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=mount.path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        job = json.loads(process.stdout.readline())["job"]
        done("cancel", str(job), cwd=mount.path)
        (*_, last) = map(json.loads, process.stdout.read().splitlines())
        assert last["type"] == "error" and process.wait(PATIENCE_S) == 1


def open_terminal(place: Path) -> tuple[int, int]:
    """Both ends of a new terminal, also where nobody mounted /dev/pts, as in a chroot."""
    place.mkdir()
    run("mount", "-t", "devpts", "-o", "ptmxmode=600", "devpts", place)
    try:
        terminal = os.open(place / "ptmx", os.O_RDWR | os.O_NOCTTY)
    finally:
        run("umount", "--lazy", place)
    ioctl(terminal, TIOCSPTLCK, bytes(4))
    return terminal, ioctl(terminal, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)


def test_a_bar_on_a_terminal_only(waiting_mount: LiveMount, tmp_path: Path) -> None:
    mount = waiting_mount
    program = client("wait")
    terminal, side = open_terminal(tmp_path / "pts")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=mount.path,
        env=environment(TERM="xterm", COLUMNS="120"),
        stdout=subprocess.PIPE,
        stderr=side,
    ) as process:
        os.close(side)
        shown = b""
        while b"steps" not in shown:
            shown += os.read(terminal, 10_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    os.close(terminal)
    assert b"wait" in shown and b"1/3" in shown


def test_many_at_once(shared_mount: LiveMount) -> None:
    commands = [["status"], ["df"], ["du"]]
    running = [
        subprocess.Popen(
            [CASCTL, *command], cwd=shared_mount.path, env=environment(), stdout=subprocess.DEVNULL
        )
        for command in commands
    ]
    assert [process.wait(PATIENCE_S) for process in running] == [0] * len(commands)


@pytest.mark.parametrize("arguments", [["stats"], ["status"], ["jobs"], ["df"], ["du"]])
def test_every_report_is_shown(shared_mount: LiveMount, arguments: list[str]) -> None:
    assert done(*arguments, cwd=shared_mount.path).strip()
    assert answers(*arguments, cwd=shared_mount.path)[-1]["type"] == "result"
