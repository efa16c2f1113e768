"""Versions in a mount: what programs that save files leave, how it looks, and how to get it back."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import PATIENCE_S, SCALE, LiveMount, run, run_as
from mount.syscalls import RENAME_EXCHANGE, getdents, renameat2
from mount.test_programs import GIT


def contents(path: Path) -> list[bytes]:
    """Every content the name had or has, oldest first, as its version directory shows."""
    directory = path.parent / ".versions" / path.name
    numbers = sorted(int(name) for name in os.listdir(directory) if name.isdigit())
    assert numbers == list(range(1, len(numbers) + 1))
    found = [(directory / str(number)).read_bytes() for number in numbers]
    assert (directory / "latest").read_bytes() == found[-1]
    for number, data in zip(numbers, found, strict=True):
        assert (directory / str(number)).stat().st_size == len(data)
    return found


def histories(directory: Path) -> list[str]:
    """Names with a history."""
    return sorted(os.listdir(directory / ".versions"))


def settle(directory: Path) -> None:
    """Everything closed before is sealed."""
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def now(directory: Path) -> str:
    """The time now, as a name; the coarse clock of the kernel ticks before it and after it.

    A version's time is that of the daemon, which hears of close(2) later, but before it hears of fsync(2).
    """
    settle(directory)
    time.sleep(0.01)
    text = datetime.now(UTC).isoformat()
    time.sleep(0.01)
    return text


def error_of(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(OSError) as caught:
        function(*arguments)
    assert caught.value.errno is not None
    return errno.errorcode[caught.value.errno]


# --- what it looks like ---


def test_a_version_looks_as_the_file_did(mount: LiveMount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"one")
    os.chown(file, 1234, 4321)
    file.chmod(0o6751)
    os.utime(file, ns=(5, 1_234_567_890_123_456_789))
    settle(mount.path)
    file.write_bytes(b"second")
    os.chown(file, 0, 0)
    first = os.stat(mount.path / ".versions/f/1")
    assert stat.filemode(first.st_mode) == "-r-xr-x--x"
    assert (first.st_uid, first.st_gid, first.st_size, first.st_nlink) == (1234, 4321, 3, 1)
    assert first.st_mtime_ns == 1_234_567_890_123_456_789
    assert first.st_blocks == 8
    second = os.stat(mount.path / ".versions/f/2")
    assert (second.st_uid, second.st_size, second.st_mtime_ns) == (0, 6, os.stat(file).st_mtime_ns)
    directory = os.stat(mount.path / ".versions/f")
    assert stat.filemode(directory.st_mode) == "dr-xr-xr-x"
    assert sorted(os.listdir(mount.path / ".versions/f")) == ["1", "2", "at", "latest"]
    assert os.readlink(mount.path / ".versions/f/latest") == "2"


def test_inode_numbers_are_stable_and_apart(mount: LiveMount) -> None:
    for data in (b"one", b"two", b"six"):
        (mount.path / "f").write_bytes(data)
        (mount.path / "g").write_bytes(data)
    paths = [mount.path / ".versions", *(mount.path / ".versions" / name for name in ("f", "g"))]
    paths += [directory / str(number) for directory in paths[1:] for number in (1, 2, 3)]
    numbers = [path.stat().st_ino for path in paths]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= 1 << 62
    # The current one becomes a superseded one, and stays the same inode.
    (mount.path / "f").write_bytes(b"new")
    assert [path.stat().st_ino for path in paths] == numbers
    with open(paths[3], "rb") as held:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert paths[3].stat().st_ino == numbers[3]
        assert held.read() == b"one"


def test_names_of_any_kind(mount: LiveMount) -> None:
    odd = [b"\xff\xfe", b"a\nb", b"f@2", b"f@2@3", b"@", b"1", b"latest", b"at", b"x" * 255, b".versions2", b" "]
    root = os.fsencode(mount.path)
    for name in (*odd, b".at", b"f"):
        for data in (b"1" + name, b"2" + name, b"3" + name):
            with open(root + b"/" + name, "wb") as file:
                file.write(data)
    assert sorted(os.listdir(root + b"/.versions")) == sorted([*odd, b".at@", b"f"])
    for name in (*odd, b"f", b".at"):
        shown = name + b"@" if name == b".at" else name
        for number in (1, 2, 3):
            expected = b"%d" % number + name
            assert Path(os.fsdecode(root + b"/.versions/" + shown + b"/%d" % number)).read_bytes() == expected
            short = name + b"@%d" % number
            if len(short) <= 255 and short not in odd:
                assert Path(os.fsdecode(root + b"/.versions/" + short)).read_bytes() == expected
    # A name that exists comes first; what is meant can always be said.
    assert os.path.isdir(root + b"/.versions/f@2")
    for absent in ("f@4", "f@0", "f@01", "no", "no@1", "no@", "f/0", "f/5", "f/01", "f/x", "f/at/x"):
        assert not os.path.lexists(mount.path / ".versions" / absent), absent


def test_everything_is_read_only_for_root_too(mount: LiveMount) -> None:
    root = mount.path
    (root / "f").write_bytes(b"one")
    (root / "f").write_bytes(b"two")
    (root / "d").mkdir()
    versions = root / ".versions"
    first = versions / "f/1"
    for function, arguments in (
        (open, (first, "r+b")),
        (open, (first, "wb")),
        (open, (versions / "new", "xb")),
        (os.truncate, (first, 0)),
        (os.unlink, (first,)),
        (os.unlink, (versions / "f/latest",)),
        (os.rmdir, (versions / "f",)),
        (os.rmdir, (versions,)),
        (os.mkdir, (versions / "new",)),
        (os.mkdir, (versions / "f/new",)),
        (os.symlink, ("target", versions / "new")),
        (os.mkfifo, (versions / "new",)),
        (os.link, (root / "f", versions / "new")),
        (os.link, (first, root / "new")),
        (os.rename, (root / "f", versions / "new")),
        (os.rename, (first, root / "new")),
        (os.rename, (versions, root / "new")),
        (os.chmod, (first, 0o777)),
        (os.chown, (versions, 1, 1)),
        (os.utime, (first,)),
        (os.setxattr, (first, "user.x", b"y")),
        (os.removexattr, (first, "user.x")),
    ):
        assert error_of(function, *arguments) == "EROFS", (function, arguments)
    assert os.listxattr(first) == []
    assert error_of(os.getxattr, first, "user.x") == "ENODATA"
    assert contents(root / "f") == [b"one", b"two"]


def test_the_name_cannot_be_taken(mount: LiveMount) -> None:
    root = mount.path
    (root / "d").mkdir()
    (root / "f").write_bytes(b"")
    for directory in (root, root / "d"):
        name = directory / ".versions"
        for function, arguments in (
            (os.mkdir, (name,)),
            (os.mkfifo, (name,)),
            (os.symlink, ("x", name)),
            (os.link, (root / "f", name)),
            (open, (name, "xb")),
        ):
            assert error_of(function, *arguments) == "EEXIST", (function, arguments)
        assert error_of(open, name, "wb") == "EISDIR"
        assert error_of(os.rename, root / "f", name) in ("EISDIR", "EEXIST")
    (root / "e").mkdir()
    assert error_of(os.rename, root / "e", root / "d/.versions") == "EEXIST"


def test_programs_that_walk_do_not_come_across_it(mount: LiveMount, tmp_path: Path) -> None:
    root = mount.path / "tree"
    (root / "d").mkdir(parents=True)
    for _ in range(3):
        (root / "f").write_bytes(os.urandom(100))
        (root / "d/g").write_bytes(os.urandom(100))
    (root / "d/gone").write_bytes(b"gone")
    (root / "d/gone").unlink()
    assert run("find", root, "-mindepth", "1", "-printf", "%P\n").split() in (["d", "d/g", "f"], ["f", "d", "d/g"])
    run("rsync", "-a", f"{root}/", tmp_path / "copy")
    run("cp", "-a", root, tmp_path / "copy2")
    run("tar", "-cf", tmp_path / "tar", "-C", root, ".")
    assert sorted(run("tar", "-tf", tmp_path / "tar").split()) == ["./", "./d/", "./d/g", "./f"]
    for copy in ("copy", "copy2"):
        assert sorted(os.listdir(tmp_path / copy)) == ["d", "f"]
        assert os.listdir(tmp_path / copy / "d") == ["g"]
    assert run("du", "-a", "--apparent-size", "-b", root).count("\n") == 4
    run("rm", "-r", root)
    assert os.listdir(mount.path) == []


def test_other_users_see_what_they_could_see(mount: LiveMount) -> None:
    root = mount.path
    for name, mode in (("open", 0o755), ("closed", 0o700), ("passed", 0o711)):
        (root / name).mkdir()
        (root / name).chmod(mode)
        for data in (b"one", b"two"):
            (root / name / "f").write_bytes(data)
        (root / name / "f").chmod(0o600)
        (root / name / "f").write_bytes(b"three")
    read = "print(open(arguments[0]).read())"
    show = "print(sorted(os.listdir(arguments[0])))"
    moment = now(root)
    assert run_as(1000, show, root / "open/.versions/f") == "['1', '2', '3', 'at', 'latest']"
    assert run_as(1000, read, root / "open/.versions/f/1") == "one"
    assert run_as(1000, read, root / "open/.versions/f/2") == "EACCES"
    assert run_as(1000, read, root / "open/.versions/f/latest") == "EACCES"
    assert run_as(1000, "open(arguments[0], 'w')", root / "open/.versions/f/1") == "EACCES"
    for way in (f"{root}/closed/.versions", f"{root}/.versions/closed", f"{root}/.versions/.at/{moment}/closed"):
        assert run_as(1000, show, way) == "EACCES"
        assert run_as(1000, read, f"{way}/f/1") == "EACCES"
    assert run_as(1000, show, root / "passed/.versions") == "EACCES"
    assert run_as(1000, read, root / "passed/.versions/f/1") == "one"


def test_whom_an_access_list_keeps_out_is_kept_out_of_versions(make_mount: MountMaker) -> None:
    mount = make_mount("acl")
    file = mount.path / "f"
    file.write_bytes(b"one")
    # user::rw- user:1000:--- group::--- mask::r-- other::r--
    entries = ((1, 6, 0xFFFFFFFF), (2, 0, 1000), (4, 0, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(file, "system.posix_acl_access", value)
    settle(mount.path)
    file.write_bytes(b"two")
    read = "print(open(arguments[0]).read())"
    assert run_as(1001, read, file) == "two"
    for path in (file, mount.path / ".versions/f/1", mount.path / ".versions/f/2"):
        assert run_as(1000, read, path) == "EACCES"
    assert contents(file) == [b"one", b"two"]


# --- mount options ---


def test_it_can_be_shown_renamed_and_switched_off(make_mount: MountMaker) -> None:
    mount = make_mount("show_versions", "versions=~old")
    root = mount.path
    for data in (b"one", b"two"):
        (root / "f").write_bytes(data)
    assert sorted(os.listdir(root)) == ["f", "~old"]
    assert sorted(name for name in os.listdir(root / "~old/f")) == ["1", "2", "at", "latest"]
    (root / ".versions").mkdir()
    (root / ".versions/real").write_bytes(b"real")
    mount.unmount()
    mount.options = ()
    mount.start()
    # The store has something of that name: the virtual one hides it.
    mount.announce("has an entry .versions")
    assert sorted(os.listdir(root)) == ["f"]
    assert (root / ".versions/f/1").read_bytes() == b"one"
    assert error_of(os.rmdir, root / ".versions") == "EROFS"
    mount.unmount()
    mount.options = ("noversions",)
    mount.start()
    assert sorted(os.listdir(root)) == [".versions", "f"]
    assert (root / ".versions/real").read_bytes() == b"real"
    run("rm", "-r", root / ".versions")
    (root / "f").write_bytes(b"not recorded")
    (root / "f").write_bytes(b"three")
    mount.unmount()
    mount.options = ()
    mount.start()
    assert contents(root / "f") == [b"one", b"three"]


def test_a_read_only_mount_shows_versions(mount: LiveMount) -> None:
    for data in (b"one", b"two"):
        (mount.path / "f").write_bytes(data)
    mount.unmount()
    mount.options = ("ro",)
    mount.start()
    assert contents(mount.path / "f") == [b"one", b"two"]


# --- programs that save ---


def test_shell_redirection_and_cp(mount: LiveMount, tmp_path: Path) -> None:
    file = mount.path / "f"
    run("sh", "-c", "echo one >f; echo two >f; echo three >>f; : >f; echo four >f", cwd=mount.path)
    (tmp_path / "new").write_bytes(b"copied")
    run("cp", tmp_path / "new", file)
    run("cp", "--remove-destination", mount.path / ".versions/f/1", file)
    assert contents(file) == [b"one\n", b"two\n", b"two\nthree\n", b"four\n", b"copied", b"one\n"]
    assert histories(mount.path) == ["f"]


def test_sed_in_place(mount: LiveMount) -> None:
    file = mount.path / "f"
    file.write_text("one\n")
    for old, new in (("one", "two"), ("two", "three")):
        run("sed", "-i", f"s/{old}/{new}/", file)
    run("sed", "-i.bak", "s/three/four/", file)
    assert contents(file) == [b"one\n", b"two\n", b"three\n", b"four\n"]
    assert (mount.path / "f.bak").read_bytes() == b"three\n"
    assert set(histories(mount.path)) <= {"f", "f.bak"}


@pytest.mark.parametrize(
    "options",
    [
        "nobackup nowritebackup",
        "nobackup writebackup backupcopy=no",
        "nobackup writebackup backupcopy=yes",
        "nobackup writebackup backupcopy=auto",
        "backup backupcopy=no",
        "backup backupcopy=yes",
    ],
)
def test_vim(mount: LiveMount, options: str) -> None:
    file = mount.path / "f"
    file.write_text("one\n")
    # Had it been made just now, moving it away would look like the work of a temporary name.
    for old, new in (("one", "two"), ("two", "three")):
        time.sleep(1.1)
        run("vim", "-u", "NONE", "-es", "-c", f"set {options}", "-c", f"%s/{old}/{new}/", "-c", "wq", file)
    assert contents(file) == [b"one\n", b"two\n", b"three\n"]
    # The swap file was written and removed: short-lived, the first to go when gc drops versions.
    assert set(histories(mount.path)) - {"f~", ".f.swp"} == {"f"}
    assert not [name for name in os.listdir(mount.path) if name not in ("f", "f~")]


def test_emacs_like_backup(mount: LiveMount) -> None:
    file, backup = mount.path / "f", mount.path / "f~"
    file.write_bytes(b"one")
    for data in (b"two", b"three"):
        time.sleep(1.1)
        os.rename(file, backup)
        file.write_bytes(data)
    assert contents(file) == [b"one", b"two", b"three"]
    assert backup.read_bytes() == b"two"


def test_libreoffice_like_lock_and_rename(mount: LiveMount) -> None:
    file, lock = mount.path / "f.odt", mount.path / ".~lock.f.odt#"
    file.write_bytes(b"document 1")
    for turn in range(2, 5):
        lock.write_bytes(b",ann,host,22.11.2026 10:00;")
        temporary = mount.path / f"lu{turn}abc.tmp"
        temporary.write_bytes(b"document %d" % turn)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.rename(temporary, file)
        lock.unlink()
    assert contents(file) == [b"document %d" % turn for turn in range(1, 5)]
    # A lock that was written and removed again is a short-lived name; which gc takes first.
    assert set(histories(mount.path)) <= {"f.odt", lock.name}


def test_git(mount: LiveMount) -> None:
    root = mount.path / "project"
    root.mkdir()

    def git(*arguments: str) -> str:
        return run("git", "-c", "gc.auto=0", *arguments, cwd=root, **GIT)

    git("init", "-q", "-b", "main")
    file = root / "f"
    for data in (b"one\n", b"two\n"):
        file.write_bytes(data)
        git("add", "f")
        git("commit", "-qm", "change")
    git("checkout", "-q", "-b", "other", "HEAD~1")
    file.write_bytes(b"other\n")
    git("commit", "-qam", "other")
    git("checkout", "-q", "main")
    git("checkout", "-q", "other")
    expected = [b"one\n", b"two\n", b"one\n", b"other\n", b"two\n", b"other\n"]
    assert contents(file) == expected
    assert histories(root) == ["f"]
    # Objects and packs are written under temporary names; locks become the files they are for.
    for directory, _, _ in os.walk(root / ".git"):
        left = [name for name in histories(Path(directory)) if "tmp" in name or name.endswith(".lock")]
        assert left == [], directory


@pytest.mark.parametrize("options", [[], ["--inplace"], ["--inplace", "--no-whole-file"]])
def test_rsync(mount: LiveMount, tmp_path: Path, options: list[str]) -> None:
    source, target = tmp_path / "source", mount.path / "target"
    source.mkdir()
    written = []
    for turn in range(4):
        written.append(b"".join(b"%d line %d\n" % (turn, line) for line in range(1000 + turn)))
        (source / "f").write_bytes(written[-1])
        run("rsync", "-a", "--ignore-times", *options, f"{source}/", target)
    assert contents(target / "f") == written
    assert histories(target) == ["f"]


def test_tar_over_what_is_there(mount: LiveMount, tmp_path: Path) -> None:
    for turn in range(3):
        (tmp_path / "f").write_bytes(b"turn %d" % turn)
        os.utime(tmp_path / "f", (turn, turn))
        run("tar", "-cf", tmp_path / f"{turn}.tar", "-C", tmp_path, "f")
        run("tar", "-xf", tmp_path / f"{turn}.tar", "-C", mount.path)
    assert contents(mount.path / "f") == [b"turn 0", b"turn 1", b"turn 2"]
    times = [os.stat(mount.path / f".versions/f/{number}").st_mtime for number in (1, 2, 3)]
    assert times == [0, 1, 2]


# --- gone and back ---


def test_a_removed_file_comes_back(mount: LiveMount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"one")
    file.write_bytes(b"two")
    file.unlink()
    assert not file.exists()
    assert contents(file) == [b"one", b"two"]
    run("cp", "-p", mount.path / ".versions/f/latest", file)
    assert file.read_bytes() == b"two"
    file.write_bytes(b"three")
    assert contents(file) == [b"one", b"two", b"two", b"three"]


def test_a_removed_tree_is_found_from_above(mount: LiveMount) -> None:
    root = mount.path
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/f").write_bytes(b"one")
    (root / "a/b/f").write_bytes(b"two")
    (root / "a/1").write_bytes(b"number")
    # While it lives, its histories are found from above, too.
    assert (root / ".versions/a/b/f/1").read_bytes() == b"one"
    before = now(root)
    run("rm", "-r", root / "a")
    assert histories(root) == ["a"]
    assert sorted(os.listdir(root / ".versions/a")) == ["1", "b"]
    directory = root / ".versions/a/b"
    assert sorted(os.listdir(directory / "f")) == ["1", "2", "at", "latest"]
    assert (directory / "f/2").read_bytes() == b"two"
    assert (root / ".versions/a/1/1").read_bytes() == b"number"
    (root / "a").mkdir()
    (root / "a/new").write_bytes(b"new")
    # There is another one now; the removed one is version 1 of the name.
    assert (root / ".versions/a@1/b/f/latest").read_bytes() == b"two"
    assert error_of(os.stat, root / ".versions/a/b") == "ENOENT"
    run("cp", "-r", root / f".versions/.at/{before}/a", root / "back")
    assert (root / "back/b/f").read_bytes() == b"two"
    assert (root / "back/1").read_bytes() == b"number"
    mount.remount()
    assert (root / ".versions/a@1/b/f/1").read_bytes() == b"one"


def test_by_time(mount: LiveMount) -> None:
    file = mount.path / "f"
    (mount.path / "always").symlink_to("f")
    moments = [now(mount.path)]
    for data in (b"one", b"two", b"three"):
        file.write_bytes(data)
        moments.append(now(mount.path))
    file.unlink()
    moments.append(now(mount.path))
    (mount.path / "g").write_bytes(b"late")
    versions = mount.path / ".versions"
    for moment, expected in zip(moments, (None, b"one", b"two", b"three", None), strict=True):
        found = versions / "f/at" / moment
        then = versions / ".at" / moment
        assert sorted(os.listdir(then)) == (["always", "f"] if expected else ["always"])
        assert os.readlink(then / "always") == "f"
        assert not (then / "g").exists()
        if expected is None:
            assert not os.path.lexists(found)
            assert not (then / "f").exists()
            assert not (versions / f"f@{moment}").exists()
        else:
            assert found.read_bytes() == expected
            assert os.readlink(found).startswith("../")
            assert (then / "f").read_bytes() == expected
            assert (then / "always").read_bytes() == expected
            assert (versions / f"f@{moment}").read_bytes() == expected
    assert error_of(os.listdir, versions / ".at/yesterday") == "ENOENT"


def test_hard_links(mount: LiveMount) -> None:
    file, other = mount.path / "f", mount.path / "g"
    file.write_bytes(b"one")
    os.link(file, other)
    other.write_bytes(b"two")
    assert contents(file) == contents(other) == [b"one", b"two"]
    temporary = mount.path / "tmp"
    temporary.write_bytes(b"three")
    os.rename(temporary, file)
    assert contents(file)[-1] == b"three"
    assert contents(other) == [b"one", b"two"]


def test_every_state_of_a_growing_log_can_be_read(mount: LiveMount) -> None:
    file = mount.path / "log"
    lines = [b"%d something happened\n" % line for line in range(1000 * SCALE)]
    for line in lines:
        with open(file, "ab") as log:
            log.write(line)
    found = contents(file)
    assert len(found) == len(lines)
    whole = b"".join(lines)
    ends = [len(b"".join(lines[: turn + 1])) for turn in range(len(lines))]
    assert found == [whole[:end] for end in ends]
    with open(mount.path / ".versions/log/1", "rb", buffering=0) as held:
        file.write_bytes(b"all gone")
        assert held.read() == lines[0]
    assert (mount.path / ".versions/log/2").read_bytes() == lines[0] + lines[1]


def test_a_new_version_shows_at_once(mount: LiveMount) -> None:
    file, versions = mount.path / "f", mount.path / ".versions/f"
    for turn in range(1, 30):
        file.write_bytes(b"%d" % turn)
        assert os.readlink(versions / "latest") == str(turn)
        assert (versions / "latest").read_bytes() == b"%d" % turn
        assert sum(name.isdigit() for name in os.listdir(versions)) == turn
        assert not (versions / str(turn + 1)).exists()


def test_what_is_open_for_writing_shows_when_it_is_closed(mount: LiveMount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"one")
    with open(file, "r+b", buffering=0) as written:
        written.write(b"two")
        os.fsync(written.fileno())
        assert contents(file) == [b"one", b"two"]
        os.pwrite(written.fileno(), b"six", 0)
        assert contents(file) == [b"one", b"two"]
    assert contents(file) == [b"one", b"six"]


# --- nothing is lost on the way ---

SLOW_SEAL = """
import time
from mountstore.namespace.sealing import Sealer
real = Sealer._seal_memory
def slow(self, data):
    time.sleep(0.5)
    return real(self, data)
Sealer._seal_memory = slow
"""


def test_what_was_just_closed_is_a_version_of_what_is_removed(make_mount: MountMaker) -> None:
    mount = make_mount(prelude=SLOW_SEAL)
    first, second = b"a" * 1_000_000, b"b" * 1_000_000
    for way in ("unlinked", "replaced", "exchanged"):
        file, other = mount.path / way, mount.path / f"{way}-other"
        file.write_bytes(first)
        file.write_bytes(second)
        if way == "unlinked":
            file.unlink()
        else:
            other.write_bytes(b"other")
            file.write_bytes(first)
            if way == "replaced":
                os.rename(other, file)
            else:
                renameat2(file, other, RENAME_EXCHANGE)
        found = contents(file)
        assert found[:2] == [first, second], way
        if way != "unlinked":
            assert found[2:] == [first, b"other"]


def test_a_file_that_cannot_be_sealed_can_be_removed(make_mount: MountMaker) -> None:
    prelude = SLOW_SEAL.replace("time.sleep(0.5)", "raise OSError(28, 'No space left on device')")
    mount = make_mount(prelude=prelude)
    file = mount.path / "f"
    file.write_bytes(bytes(1_000_000))
    mount.announce("cannot be sealed now")
    file.unlink()
    assert os.listdir(mount.path) == []


def test_kill_loses_no_version_that_is_committed(mount: LiveMount) -> None:
    file = mount.path / "f"
    for turn in range(4):
        file.write_bytes(b"turn %d" % turn)
    (mount.path / "gone").write_bytes(b"gone")
    (mount.path / "gone").unlink()
    mount.wait_committed()
    mount.kill()
    mount.start()
    assert contents(file) == [b"turn 0", b"turn 1", b"turn 2", b"turn 3"]
    assert contents(mount.path / "gone") == [b"gone"]


def test_many_versions_and_many_names(mount: LiveMount, record_property: Callable[[str, object], None]) -> None:
    """Figures of a real mount; no time is asserted."""
    count = 500 * SCALE
    times = []
    for turn in range(2):
        began = time.perf_counter()
        for number in range(count):
            (mount.path / str(number)).write_bytes(b"%d %d" % (turn, number))
        times.append(time.perf_counter() - began)
    record_property("overwriting, relative to creating", round(times[1] / times[0], 2))
    for turn in range(count):
        (mount.path / "f").write_bytes(b"%d" % turn)
    began = time.perf_counter()
    names = os.listdir(mount.path / ".versions/f")
    record_property(f"listing {count} versions, ms", round((time.perf_counter() - began) * 1e3, 1))
    assert len(names) == count + 2
    assert len(os.listdir(mount.path / ".versions")) == count + 1
    shutil.copytree(mount.path / ".versions/f", mount.path / "copy", symlinks=True)
    assert (mount.path / "copy" / str(count // 2)).read_bytes() == b"%d" % (count // 2 - 1)


def test_a_listing_is_read_in_small_parts_and_goes_back(mount: LiveMount) -> None:
    for turn in range(300):
        (mount.path / "f").write_bytes(b"%d" % turn)
    fd = os.open(mount.path / ".versions/f", os.O_RDONLY)
    try:
        entries: list[tuple[bytes, int]] = []
        while part := getdents(fd, 300):
            entries += part
        names = [name for name, _ in entries]
        assert names == [b".", b"..", *(b"%d" % number for number in range(1, 301)), b"at", b"latest"]
        for index in (250, 3, 290, 0, 1, 299):
            os.lseek(fd, entries[index][1], os.SEEK_SET)
            assert getdents(fd, 100)[0][0] == names[index + 1]
        # From the beginning, a listing is a new one.
        (mount.path / "f").write_bytes(b"one more")
        os.lseek(fd, 0, os.SEEK_SET)
        entries = []
        while part := getdents(fd, 4096):
            entries += part
        assert len(entries) == len(names) + 1
    finally:
        os.close(fd)


def test_memory_is_given_back_when_the_kernel_forgets(mount: LiveMount) -> None:
    for turn in range(300):
        (mount.path / "f").write_bytes(b"%d" % turn)
    subprocess.run(["ls", "-lR", mount.path / ".versions"], check=True, capture_output=True)
    number = os.stat(mount.path / ".versions/f/7").st_ino
    end = time.monotonic() + PATIENCE_S
    # The kernel gives what was just used a second chance, and tells of what it forgot a little later.
    while os.stat(mount.path / ".versions/f/7").st_ino == number:
        assert time.monotonic() < end
        for _ in range(3):
            Path("/proc/sys/vm/drop_caches").write_text("2")
