"""Two users with different rights, and what is cleared when the wrong one changes a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mount.live import LiveMount, run, run_as

ANN, BOB = 41001, 65534
STAFF = 42000


@pytest.fixture
def home(directory: Path) -> Path:
    """A directory of Ann's, with a file of hers that everybody may read."""
    home = directory / "home"
    home.mkdir()
    (home / "f").write_bytes(b"hers")
    for path in (home, home / "f"):
        os.chown(path, ANN, ANN)
    (home / "f").chmod(0o644)
    return home


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(open(f'{arguments[0]}/f').read())", "hers"),
        ("open(f'{arguments[0]}/f', 'r+')", "EACCES"),
        ("open(f'{arguments[0]}/new', 'w')", "EACCES"),
        ("os.unlink(f'{arguments[0]}/f')", "EACCES"),
        ("os.rename(f'{arguments[0]}/f', f'{arguments[0]}/g')", "EACCES"),
        ("os.link(f'{arguments[0]}/f', f'{arguments[0]}/../g')", "EPERM"),
        ("os.chmod(f'{arguments[0]}/f', 0o777)", "EPERM"),
        ("os.chown(f'{arguments[0]}/f', 65534, 65534)", "EPERM"),
        ("os.utime(f'{arguments[0]}/f', (1, 1))", "EPERM"),
        ("os.utime(f'{arguments[0]}/f')", "EACCES"),
        ("os.truncate(f'{arguments[0]}/f', 0)", "EACCES"),
        ("os.setxattr(f'{arguments[0]}/f', 'user.a', b'')", "EACCES"),
        ("os.setxattr(f'{arguments[0]}/f', 'trusted.a', b'')", "EPERM"),
        ("os.setxattr(f'{arguments[0]}/f', 'security.a', b'')", "EPERM"),
        ("os.mknod(f'{arguments[0]}/../null', 0o20666, os.makedev(1, 3))", "EPERM"),
        ("os.mkfifo(f'{arguments[0]}/../fifo')", ""),
        ("print(os.access(f'{arguments[0]}/f', os.W_OK), os.access(f'{arguments[0]}/f', os.R_OK))", "False True"),
    ],
)
def test_others_may_do_what_the_mode_says(home: Path, code: str, expected: str) -> None:
    assert run_as(BOB, code, home) == expected
    assert (home / "f").read_bytes() == b"hers"
    assert (home / "f").stat().st_mode == stat.S_IFREG | 0o644


def test_modes_shut_out(home: Path) -> None:
    (home / "f").chmod(0o600)
    assert run_as(BOB, "open(f'{arguments[0]}/f')", home) == "EACCES"
    home.chmod(0o711)
    assert run_as(BOB, "os.listdir(arguments[0])", home) == "EACCES"
    assert run_as(BOB, "print(os.stat(f'{arguments[0]}/f').st_size)", home) == "4"
    home.chmod(0o700)
    assert run_as(BOB, "os.stat(f'{arguments[0]}/f')", home) == "EACCES"
    # The other way round, with what the kernel has cached.
    home.chmod(0o755)
    (home / "f").chmod(0o644)
    assert run_as(BOB, "print(open(f'{arguments[0]}/f').read())", home) == "hers"
    os.chown(home / "f", ANN, STAFF)
    (home / "f").chmod(0o640)
    assert run_as(BOB, "open(f'{arguments[0]}/f')", home) == "EACCES"
    assert run_as(BOB, "print(open(f'{arguments[0]}/f').read())", home, groups=[STAFF]) == "hers"


def test_new_files_belong_to_who_makes_them(directory: Path) -> None:
    code = "os.chdir(arguments[0]); open('f', 'x'); os.mkdir('d'); os.symlink('x', 's'); os.mkfifo('p')"
    assert run_as(BOB, code, directory, gid=STAFF) == ""
    for name in "fdsp":
        status = (directory / name).lstat()
        assert (status.st_uid, status.st_gid) == (BOB, STAFF), name


def test_a_sticky_directory_keeps_others_from_removing(directory: Path) -> None:
    directory.chmod(0o1777)
    (directory / "roots").write_bytes(b"root")
    (directory / "roots").chmod(0o666)
    assert run_as(ANN, "os.chdir(arguments[0]); open('anns', 'w'); open('anns2', 'w')", directory) == ""
    for code, expected in [
        ("os.unlink('roots')", "EPERM"),
        ("os.unlink('anns')", "EPERM"),
        ("os.rename('anns', 'x')", "EPERM"),
        ("open('bobs', 'w'); os.rename('bobs', 'anns')", "EPERM"),
        ("print(open('roots').read())", "root"),
        ("open('roots', 'a').write('+')", ""),
        ("os.unlink('bobs')", ""),
    ]:
        assert run_as(BOB, f"os.chdir(arguments[0]); {code}", directory) == expected, code
    assert run_as(ANN, "os.chdir(arguments[0]); os.rename('anns', 'anns2'); os.unlink('anns2')", directory) == ""
    assert sorted(os.listdir(directory)) == ["roots"]
    assert (directory / "roots").read_bytes() == b"root+"


def test_a_setgid_directory_gives_its_group(directory: Path) -> None:
    os.chown(directory, 0, STAFF)
    directory.chmod(0o2777)
    code = "os.chdir(arguments[0]); os.open('f', os.O_CREAT, 0o2775); os.mkdir('d', 0o755); os.symlink('x', 's')"
    assert run_as(BOB, code, directory) == ""
    for name in "fds":
        assert (directory / name).lstat().st_gid == STAFF, name
    assert (directory / "d").stat().st_mode == stat.S_IFDIR | 0o2755
    # Who is not of the group does not get to run things as the group.
    assert (directory / "f").stat().st_mode == stat.S_IFREG | 0o775
    assert run_as(BOB, "os.mkdir(f'{arguments[0]}/d/e', 0o700)", directory) == ""
    assert (directory / "d/e").stat().st_mode == stat.S_IFDIR | 0o2700
    assert run_as(BOB, "os.open(arguments[0] + '/g', os.O_CREAT, 0o2775)", directory, groups=[STAFF]) == ""
    assert (directory / "g").stat().st_mode == stat.S_IFREG | 0o2775


def test_an_owner_may_give_a_file_to_a_group_of_theirs_only(home: Path) -> None:
    path = home / "f"
    assert run_as(ANN, "os.chown(f'{arguments[0]}/f', -1, 42000)", home) == "EPERM"
    assert run_as(ANN, "os.chown(f'{arguments[0]}/f', -1, 42000)", home, groups=[STAFF]) == ""
    assert path.stat().st_gid == STAFF
    # chmod by an owner who is not of the file's group cannot set setgid.
    assert run_as(ANN, "os.chmod(f'{arguments[0]}/f', 0o2755)", home) == ""
    assert path.stat().st_mode == stat.S_IFREG | 0o755
    assert run_as(ANN, "os.chmod(f'{arguments[0]}/f', 0o2755)", home, groups=[STAFF]) == ""
    assert path.stat().st_mode == stat.S_IFREG | 0o2755


_ACTIONS = {
    "write": "os.write(os.open(arguments[0], os.O_WRONLY), b'x')",
    "write through a handle": "fd = os.open(arguments[0], os.O_RDWR); os.pwrite(fd, b'x', 2); os.fsync(fd)",
    "append": "os.write(os.open(arguments[0], os.O_WRONLY | os.O_APPEND), b'x')",
    "truncate": "os.truncate(arguments[0], 2)",
    "extend": "os.truncate(arguments[0], 200)",
    "ftruncate": "os.ftruncate(os.open(arguments[0], os.O_RDWR), 1)",
    "open to truncate": "os.open(arguments[0], os.O_WRONLY | os.O_TRUNC)",
    "chown": "os.chown(arguments[0], -1, 42000)",
    "chown to itself": "os.chown(arguments[0], 41001, -1)",
    "read": "os.read(os.open(arguments[0], os.O_RDONLY), 10)",
}


@pytest.mark.parametrize("who", ["root", "owner"])
@pytest.mark.parametrize("action", _ACTIONS)
def test_setuid_and_setgid_are_cleared_as_ext4_does(
    shared_mount: LiveMount, tmp_path: Path, who: str, action: str
) -> None:
    """Rather than to a table, both are compared: capabilities, groups and modes make many cases."""
    tmp_path.chmod(0o755)
    seen = []
    for base in (shared_mount.path, tmp_path):
        directory = base / f"{who}-{action}"
        directory.mkdir()
        modes = []
        for mode in (0o4755, 0o2755, 0o6755, 0o6777, 0o2644, 0o6644, 0o4000, 0o7777, 0o2666):
            path = directory / f"{mode:o}"
            path.write_bytes(b"content")
            os.chown(path, ANN, ANN)
            path.chmod(mode)
            if who == "root":
                failed = run_as(0, _ACTIONS[action], path)
            else:
                failed = run_as(ANN, _ACTIONS[action], path, groups=[STAFF])
            modes.append((oct(mode), failed, oct(stat.S_IMODE(path.stat().st_mode))))
        seen.append(modes)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("size", [7, 100_000, 3_000_000])
@pytest.mark.parametrize("before_close", [True, False])
def test_a_version_is_for_whom_the_file_was_for_then(mount: LiveMount, size: int, before_close: bool) -> None:
    """Also if its mode and owner change while the next content is written, as by `cp -p`, or being sealed."""
    file = mount.path / "f"
    file.write_bytes(b"secret" * size)
    file.chmod(0o600)
    run("sync", "-f", mount.path)
    with file.open("r+b", buffering=0) as writer:
        writer.truncate(0)
        writer.write(b"public" * size)
        if before_close:
            os.chown(writer.fileno(), 41002, 41002)
            os.fchmod(writer.fileno(), 0o644)
    if not before_close:
        os.chown(file, 41002, 41002)
        file.chmod(0o644)
    old, new = mount.path / ".versions/f/1", mount.path / ".versions/f/2"
    status = old.stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o400, 0, 0)
    assert old.read_bytes() == b"secret" * size
    assert (new.stat().st_mode & 0o777, new.stat().st_uid) == (0o444, 41002)
