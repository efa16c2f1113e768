"""Extended attributes: their limits, who sees them, and file capabilities, which do not outlive a change."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import LiveMount, let_everybody_reach, run_as
from mount.side_by_side import compare, state_of, twins

_libc = ctypes.CDLL(None, use_errno=True)

VALUE_MAX = 65536
LIST_MAX = 65536

CAPABILITIES = {
    "a capability survives what leaves the content alone": """
        cp /bin/cat t; setcap cap_dac_read_search+ep t; getcap t
        touch t; getcap t
        chmod 755 t; getcap t
        mv t u; ln u v; getcap u v
        cp -a u w; cp u x; cp --preserve=xattr u y; getcap u v w x y
        rsync -aX u z; getcap z
        true >> u; getcap u
        setfattr -n user.note -v hello u; setfattr -x user.note u; getcap u
        setcap -r u; getcap u v
    """,
    "a capability is in force": """
        chmod 755 .; echo secret > s; chmod 600 s; cp /bin/cat t; chmod 755 t
        bob: ./t s
        setcap cap_dac_read_search+ep t
        bob: ./t s
        chmod o+w t
        bob: true >> t; ./t s
        bob: printf x >> t; getcap t
        bob: ./t s
    """,
    "a change by root removes a capability": """
        touch t; setcap cap_net_raw+ep t; printf x >> t; getcap t
        setcap cap_net_raw+ep t; printf x >> t; getcap t
        setcap cap_net_raw+ep t; printf y | dd of=t conv=notrunc status=none; getcap t
        setcap cap_net_raw+ep t; printf y | dd of=t conv=notrunc,fsync oflag=sync status=none; getcap t
        setcap cap_net_raw+ep t; truncate -s 0 t; getcap t
        setcap cap_net_raw+ep t; truncate -s 9 t; getcap t
        setcap cap_net_raw+ep t; truncate -s 9 t; getcap t
        setcap cap_net_raw+ep t; : > t; getcap t
        setcap cap_net_raw+ep t; : > t; getcap t
        setcap cap_net_raw+ep t; chown 41001 t; getcap t
        setcap cap_net_raw+ep t; chown 41001 t; getcap t
        setcap cap_net_raw+ep t; chgrp 42000 t; getcap t
        setcap cap_net_raw+ep t; chmod 6777 t; getcap t; printf x >> t; getcap t
        setcap cap_net_raw+ep t; cp /dev/null t; getcap t
        setcap cap_net_raw+ep t; echo new > u; cp u t; getcap t
        setcap cap_net_raw+ep t; rsync --inplace -I u t; getcap t
        chmod 6777 t; printf x >> t; setcap cap_net_raw+ep t; printf x >> t
        chmod 6777 t; setcap cap_net_raw+ep t; truncate -s 3 t
        chmod 6777 t; setcap cap_net_raw+ep t; chown 41001 t
        chmod 6777 t; setcap cap_net_raw+ep t; python3 -c 'import os; os.chown("t", -1, -1)'
        chmod 6767 t; setcap cap_net_raw+ep t; python3 -c 'import os; os.chown("t", -1, -1)'
        mkfifo p; chmod 6777 p; python3 -c 'import os; os.chown("p", -1, -1)'
        chmod 6777 p; touch p; chmod 6777 p; chgrp 41001 p
        mkdir d; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 d; chown 41001 d
    """,
    "a change by another user removes a capability": """
        chmod 777 .; touch t; chmod 777 t; setcap cap_net_raw+ep t
        bob: printf x >> t; getcap t
        setcap cap_net_raw+ep t
        bob: printf y | dd of=t conv=notrunc status=none; getcap t
        setcap cap_net_raw+ep t
        bob: truncate -s 9 t; getcap t
        setcap cap_net_raw+ep t
        bob: : > t; getcap t
        chmod 6777 t; setcap cap_net_raw+ep t
        bob: printf x >> t; getcap t
        chmod 6767 t; setcap cap_net_raw+ep t
        bob: printf x >> t; getcap t
        chown 41001:42000 t; chmod 2755 t; setcap cap_net_raw+ep t
        ann: chgrp 41001 t; getcap t
        setcap cap_net_raw+ep t
        ann: printf z >> t; getcap t
        setcap cap_net_raw+ep t
        ann: chmod 700 t; getcap t
        ann: setcap -r t
        ann: setfattr -x security.capability t; getcap t
        ann: setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 t
    """,
}

WRITES = """
    bob: printf x >> t
    bob: printf x >> t; stat -c %a t
    bob: : > t
    bob: truncate -s 9 t
    bob: truncate -s 9 t
    bob: exec 3<>t; printf x >&3; printf y >&3
    bob: exec 3<>t; printf ''
    eve: printf x >> t
    eve: truncate -s 3 t
    eve: : > t
    ann: printf x >> t
    printf x >> t
    truncate -s 0 t
    : > t
"""

# One handle that was open before, and knew of no capability; lines run as python3.
HELD_OPEN = """
import os, subprocess
fd = os.open("t", os.O_RDWR | os.O_CREAT, 0o777)
def arm():
    subprocess.run(["setcap", "cap_net_raw+ep", "t"], check=True)
def armed():
    print("security.capability" in os.listxattr("t"))
os.write(fd, b"one")
arm(); os.write(fd, b"two"); armed()
arm(); os.pwrite(fd, b"three", 100); armed()
arm(); os.ftruncate(fd, 5); armed()
arm(); os.ftruncate(fd, 5); armed()
arm(); os.fchmod(fd, 0o755); armed()
arm(); os.utime(fd); armed()
arm(); os.write(fd, b""); armed()
arm(); os.writev(fd, [b"four", b"five"]); armed()
arm(); os.pwritev(fd, [b"six"], 0, os.RWF_SYNC); armed()
arm(); os.posix_fallocate(fd, 0, 3); armed()
arm(); os.fchown(fd, -1, -1); armed()
arm(); os.fchown(fd, 41001, -1); armed()
"""


@pytest.fixture(scope="module")
def any_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    base = tmp_path_factory.mktemp("xattr")
    let_everybody_reach(base)
    mount = LiveMount(base)
    yield mount
    mount.finish()


@pytest.fixture
def pair(any_mount: LiveMount, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """An empty directory in the mount and its twin beside."""
    yield twins(any_mount, request.node.name)
    any_mount.check_log()


@pytest.mark.parametrize("name", CAPABILITIES)
def test_capabilities_are_as_beside_the_mount(name: str, pair: tuple[Path, Path]) -> None:
    compare(CAPABILITIES[name], *pair)


@pytest.mark.parametrize("mode", ["4777", "6777", "6767", "2777", "2767", "1777"])
def test_setuid_and_setgid_go_with_a_write(mode: str, pair: tuple[Path, Path]) -> None:
    compare("chmod 777 .; touch t", *pair)
    for line in WRITES.strip().splitlines():
        compare(f"chown 41001:42000 t; chmod {mode} t\n{line}", *pair)


def test_capabilities_and_an_open_handle(pair: tuple[Path, Path]) -> None:
    for directory in pair:
        (directory / "held_open.py").write_text(HELD_OPEN)
    compare("python3 held_open.py", *pair)


@pytest.mark.parametrize("options", [(), ("nohandshake",)], ids=["handshake", "ordinary"])
def test_capabilities_after_remount(options: tuple[str, ...], make_mount: MountMaker) -> None:
    mount = make_mount(*options)
    directory, beside = twins(mount, "d")
    compare(
        "chmod 777 .; for i in a b c d e; do touch $i; chmod 777 $i; setcap cap_net_raw+ep $i; done",
        directory,
        beside,
    )
    mount.remount()
    assert state_of(directory) == state_of(beside)
    compare(
        """
        printf x >> a; getcap a
        : > b; getcap b
        bob: printf x >> c; getcap c
        bob: truncate -s 3 d; getcap d
        chown 41001 e; getcap e
        """,
        directory,
        beside,
    )


# --- limits ---


def outcome(operation: Callable[[], object]) -> object:
    """What it returns, or the name of the error."""
    try:
        return operation()
    except OSError as exc:
        assert exc.errno is not None
        return errno.errorcode[exc.errno]


@pytest.fixture
def file(any_mount: LiveMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = any_mount.path / request.node.name
    path.touch(mode=0o666)
    path.chmod(0o666)
    yield path
    any_mount.check_log()


def test_a_value_of_64_kib_is_the_largest(file: Path) -> None:
    value = os.urandom(VALUE_MAX)
    os.setxattr(file, "user.v", value)
    assert os.getxattr(file, "user.v") == value
    assert outcome(lambda: os.setxattr(file, "user.v", bytes(VALUE_MAX + 1))) == "E2BIG"
    assert os.getxattr(file, "user.v") == value
    os.setxattr(file, "user.v", b"")
    assert os.getxattr(file, "user.v") == b""


def test_a_name_of_255_bytes_is_the_longest(file: Path) -> None:
    longest = b"user." + b"\xff" * 250
    os.setxattr(file, longest, b"v")
    assert [os.fsencode(name) for name in os.listxattr(file)] == [longest]
    assert os.getxattr(file, longest) == b"v"
    for operation in (
        lambda: os.setxattr(file, longest + b"x", b"v"),
        lambda: os.getxattr(file, longest + b"x"),
        lambda: os.removexattr(file, longest + b"x"),
    ):
        assert outcome(operation) == "ERANGE"


def test_a_list_of_64_kib_is_the_longest(file: Path) -> None:
    names = [f"user.{number:0250}" for number in range(LIST_MAX // 256)]
    for name in names:
        os.setxattr(file, name, b"v")
    assert sorted(os.listxattr(file)) == names
    assert outcome(lambda: os.setxattr(file, "user.x", b"v")) == "ENOSPC"
    os.setxattr(file, names[0], b"changed")
    os.removexattr(file, names[1])
    os.setxattr(file, "user.x", b"v")
    assert len(os.listxattr(file)) == len(names)


def test_values_of_256_kib_are_all_that_a_file_has(file: Path) -> None:
    for number in range(4):
        os.setxattr(file, f"user.{number}", bytes(65536))
    assert outcome(lambda: os.setxattr(file, "user.x", b"v")) == "ENOSPC"
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, "user.0", b"x" * 65535)
    os.setxattr(file, "user.x", b"v")
    assert outcome(lambda: os.setxattr(file, "user.0", bytes(65536))) == "ENOSPC"
    assert os.getxattr(file, "user.0") == b"x" * 65535
    assert len(os.listxattr(file)) == 6


def test_a_buffer_too_small_is_erange(file: Path) -> None:
    os.setxattr(file, "user.v", b"12345678")
    path = os.fsencode(file)
    buffer = ctypes.create_string_buffer(64)
    calls: list[tuple[Callable[[int], int], int]] = [
        (lambda size: int(_libc.getxattr(path, b"user.v", buffer, size)), 8),
        (lambda size: int(_libc.listxattr(path, buffer, size)), 7),
    ]
    for call, full in calls:
        assert call(0) == full
        assert call(full) == full
        assert call(64) == full
        assert call(full - 1) == -1
        assert ctypes.get_errno() == errno.ERANGE


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "get absent": lambda f: os.getxattr(f, "user.x"),
    "remove absent": lambda f: os.removexattr(f, "user.x"),
    "replace absent": lambda f: os.setxattr(f, "user.x", b"", os.XATTR_REPLACE),
    "create": lambda f: os.setxattr(f, "user.x", b"1", os.XATTR_CREATE),
    "create again": lambda f: os.setxattr(f, "user.x", b"2", os.XATTR_CREATE),
    "replace": lambda f: os.setxattr(f, "user.x", b"3", os.XATTR_REPLACE),
    "get": lambda f: os.getxattr(f, "user.x"),
    "create and replace": lambda f: os.setxattr(f, "user.x", b"4", os.XATTR_REPLACE | os.XATTR_CREATE),
    "unknown flag": lambda f: os.setxattr(f, "user.x", b"4", 4),
    "no name": lambda f: os.setxattr(f, "user.", b"4"),
    "no namespace": lambda f: os.setxattr(f, "x", b"4"),
    "dot at the end": lambda f: os.setxattr(f, "user.dot.", b"4"),
    "get without name": lambda f: os.getxattr(f, "user."),
    "get without security name": lambda f: os.getxattr(f, "security."),
    "set without trusted name": lambda f: os.setxattr(f, "trusted.", b""),
    "remove without name": lambda f: os.removexattr(f, "user."),
    "unknown namespace": lambda f: os.setxattr(f, "strange.x", b"4"),
    "get of unknown namespace": lambda f: os.getxattr(f, "strange.x"),
    "unknown system": lambda f: os.setxattr(f, "system.x", b"4"),
    "get of unknown system": lambda f: os.getxattr(f, "system.x"),
    "trusted": lambda f: os.setxattr(f, "trusted.x", b"5"),
    "get trusted": lambda f: os.getxattr(f, "trusted.x"),
    "security": lambda f: os.setxattr(f, "security.x", b"6"),
    "get security": lambda f: os.getxattr(f, "security.x"),
    "list": lambda f: sorted(os.listxattr(f)),
    "remove": lambda f: os.removexattr(f, "user.x"),
    "list the rest": lambda f: sorted(os.listxattr(f)),
    "user attribute of a device": lambda f: os.setxattr(
        made(f, "c", lambda p: os.mknod(p, 0o020666, 0x103)), "user.x", b""
    ),
    "trusted attribute of a device": lambda f: os.setxattr(f.with_name("c"), "trusted.x", b""),
    "user attribute of a link": lambda f: os.setxattr(
        made(f, "l", lambda p: os.symlink("f", p)), "user.x", b"", follow_symlinks=False
    ),
    "trusted attribute of a link": lambda f: os.setxattr(
        f.with_name("l"), "trusted.x", b"7", follow_symlinks=False
    ),
    "get it": lambda f: os.getxattr(f.with_name("l"), "trusted.x", follow_symlinks=False),
}


def made(file: Path, name: str, make: Callable[[Path], None]) -> Path:
    path = file.with_name(name)
    make(path)
    return path


def test_every_operation_answers_as_beside_the_mount(pair: tuple[Path, Path]) -> None:
    for directory in pair:
        (directory / "f").touch()
    for name, operation in OPERATIONS.items():
        answers = [outcome(lambda d=d, o=operation: o(d / "f")) for d in pair]  # type: ignore[misc]
        assert answers[0] == answers[1], name
    assert state_of(pair[0]) == state_of(pair[1])


AS_ANOTHER = """
f = arguments[0]
def outcome(operation, *arguments):
    try:
        print(operation(f, *arguments))
    except OSError as exc:
        print(errno.errorcode[exc.errno])
print(sorted(os.listxattr(f)))
for name in "user.x", "trusted.x", "security.x":
    outcome(os.getxattr, name)
    outcome(os.setxattr, name, b"2")
    outcome(os.removexattr, name)
    outcome(os.removexattr, name)
"""


def test_trusted_attributes_are_for_root_alone(pair: tuple[Path, Path]) -> None:
    answers = []
    for directory in pair:
        file = directory / "f"
        file.touch()
        file.chmod(0o666)
        for name in "user.x", "trusted.x", "security.x":
            os.setxattr(file, name, b"1")
        answers.append(run_as(41002, AS_ANOTHER, file))
        assert sorted(os.listxattr(file)) == ["security.x", "trusted.x"]
    assert answers[0] == answers[1]
    assert "trusted" not in answers[0]
