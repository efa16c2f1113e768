"""Random operations on a mount and on a plain directory: after every step they look the same.

The same machine runs on ordinary mounts, on a store with tiny pieces, so that files of some KiB are manifests,
and on daemons with tiny limits, so that drafts of such files are streamed and staged, and what is known of names
and inodes is forgotten all the time.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from mount.conftest import MountMaker
from mount.limits import SMALL_LIMITS
from mount.live import SCALE, LiveMount
from mount.picture import assert_same, picture
from mount.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, write_back

PATHS = st.sampled_from(["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "a/x"])
OFFSETS = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 9_000, 16_384, 40_000, 65_536, 70_001, 131_072, 300_000])
LENGTHS = st.sampled_from([0, 1, 10, 4095, 4096, 5_000, 20_000, 65_536, 100_000, 150_001])
SEEDS = st.integers(0, 30)
"""Of the bytes written: few, so that contents repeat; 0 stands for zeros."""

_SETTINGS = settings(
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def data_of(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length) if seed else bytes(length)


def _outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the errno it fails with."""
    try:
        return call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


@dataclass
class OpenPair:
    """The same file opened on both sides."""

    ours: int
    plain: int


class Sides(RuleBasedStateMachine):
    """A directory in a mount and a plain one, which ought to be alike."""

    def __init__(self, mount: LiveMount, base: Path, numbers: itertools.count[int]) -> None:
        super().__init__()
        number = next(numbers)
        self.mount = mount
        self.ours = mount.path / f"{number}"
        self.plain = base / f"plain{number}"
        self.ours.mkdir()
        self.plain.mkdir()
        self.open: list[OpenPair] = []

    def both(self, call: Callable[[Path], Any]) -> Any:
        """Do the same on both sides; the outcomes must be equal."""
        ours, plain = _outcome(lambda: call(self.ours)), _outcome(lambda: call(self.plain))
        assert ours == plain, f"{ours!r}, but {plain!r} on the plain side"
        return ours

    def both_open(self, index: int, call: Callable[[int], Any]) -> Any:
        """Do the same with an open file."""
        pair = self.open[index % len(self.open)]
        ours, plain = _outcome(lambda: call(pair.ours)), _outcome(lambda: call(pair.plain))
        assert ours == plain, f"{_brief(ours)}, but {_brief(plain)} on the plain side"
        return ours

    # --- files that are opened ---

    @rule(
        path=PATHS,
        access=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
        create=st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
        more=st.sampled_from([0, 0, os.O_APPEND, os.O_TRUNC]),
    )
    @precondition(lambda self: len(self.open) < 6)
    def open_file(self, path: str, access: int, create: int, more: int) -> None:
        # A fifo or a device is never here, so no open waits.
        opened: list[int] = []

        def call(side: Path) -> str:
            opened.append(os.open(side / path, access | create | more, 0o644))
            return "opened"

        if self.both(call) == "opened":
            self.open.append(OpenPair(*opened))

    @rule(index=st.integers(0, 5))
    @precondition(lambda self: self.open)
    def close(self, index: int) -> None:
        pair = self.open.pop(index % len(self.open))
        os.close(pair.ours)
        os.close(pair.plain)

    @rule(index=st.integers(0, 5), offset=OFFSETS, length=LENGTHS, seed=SEEDS)
    @precondition(lambda self: self.open)
    def pwrite(self, index: int, offset: int, length: int, seed: int) -> None:
        self.both_open(index, lambda fd: os.pwrite(fd, data_of(seed, length), offset))

    @rule(index=st.integers(0, 5), length=LENGTHS, seed=SEEDS, times=st.integers(1, 8))
    @precondition(lambda self: self.open)
    def write_on(self, index: int, length: int, seed: int, times: int) -> None:
        """Sequentially, as cp does; with O_APPEND at the end."""
        for number in range(times):
            self.both_open(index, lambda fd, n=number: os.write(fd, data_of(seed + n, length)))  # type: ignore[misc]

    @rule(index=st.integers(0, 5), offset=OFFSETS, length=LENGTHS)
    @precondition(lambda self: self.open)
    def pread(self, index: int, offset: int, length: int) -> None:
        self.both_open(index, lambda fd: os.pread(fd, length, offset))

    @rule(index=st.integers(0, 5), size=OFFSETS)
    @precondition(lambda self: self.open)
    def ftruncate(self, index: int, size: int) -> None:
        self.both_open(index, lambda fd: os.ftruncate(fd, size))

    @rule(index=st.integers(0, 5))
    @precondition(lambda self: self.open)
    def fsync(self, index: int) -> None:
        self.both_open(index, os.fsync)

    @rule(index=st.integers(0, 5))
    @precondition(lambda self: self.open)
    def drop_pages(self, index: int) -> None:
        """What is read next comes from the daemon, out of the draft."""
        fd = self.open[index % len(self.open)].ours
        write_back(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    @rule(index=st.integers(0, 5), offset=OFFSETS, length=st.integers(1, 9_000), seed=SEEDS)
    @precondition(lambda self: self.open)
    def write_mapped(self, index: int, offset: int, length: int, seed: int) -> None:
        def call(fd: int) -> Any:
            size = os.fstat(fd).st_size
            if size == 0:
                return "empty"
            start = offset % size
            end = min(start + length, size)
            with mmap.mmap(fd, size) as mapping:
                mapping[start:end] = data_of(seed, end - start)
                return bytes(mapping[: start + 10])

        self.both_open(index, call)

    # --- names ---

    @rule(path=PATHS, length=LENGTHS, seed=SEEDS)
    def write_whole(self, path: str, length: int, seed: int) -> None:
        def call(side: Path) -> int:
            with open(side / path, "wb") as file:
                return file.write(data_of(seed, length))

        self.both(call)

    @rule(path=PATHS, length=LENGTHS, seed=SEEDS)
    def replace(self, path: str, length: int, seed: int) -> None:
        """As editors do."""

        def call(side: Path) -> None:
            with open(side / "new", "wb") as file:
                file.write(data_of(seed, length))
            try:
                os.rename(side / "new", side / path)
            except OSError:
                os.unlink(side / "new")
                raise

        self.both(call)

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda side: os.truncate(side / path, size))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda side: os.unlink(side / path))

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        self.both(lambda side: os.mkdir(side / path))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda side: os.rmdir(side / path))

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(lambda side: os.rename(side / old, side / new))

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([RENAME_EXCHANGE, RENAME_NOREPLACE]))
    def rename_with(self, old: str, new: str, flags: int) -> None:
        self.both(lambda side: renameat2(side / old, side / new, flags))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        self.both(lambda side: os.link(side / old, side / new, follow_symlinks=False))

    @rule(old=PATHS, new=PATHS)
    def symlink(self, old: str, new: str) -> None:
        self.both(lambda side: os.symlink(old, side / new))

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o644, 0o755, 0o2755, 0o4711, 0o1777, 0]))
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda side: os.chmod(side / path, mode))

    @rule(path=PATHS, owner=st.sampled_from([0, 1, 1000]))
    def chown(self, path: str, owner: int) -> None:
        self.both(lambda side: os.chown(side / path, owner, owner, follow_symlinks=False))

    @rule(path=PATHS, times=st.tuples(st.integers(0, 10**15), st.integers(0, 10**15)))
    def utime(self, path: str, times: tuple[int, int]) -> None:
        def call(side: Path) -> int:
            os.utime(side / path, ns=times)
            return os.stat(side / path).st_mtime_ns

        self.both(call)

    @rule(path=PATHS, name=st.sampled_from(["user.a", "user.b", "trusted.c"]), length=st.sampled_from([0, 3, 900]))
    def setxattr(self, path: str, name: str, length: int) -> None:
        self.both(lambda side: os.setxattr(side / path, name, bytes(length)))

    @rule(path=PATHS, name=st.sampled_from(["user.a", "user.b"]))
    def removexattr(self, path: str, name: str) -> None:
        self.both(lambda side: os.removexattr(side / path, name))

    # --- all ---

    @rule()
    def remount(self) -> None:
        self._close_all()
        self.mount.remount()

    @invariant()
    def sides_look_the_same(self) -> None:
        assert_same(picture(self.ours), picture(self.plain))
        for index in range(len(self.open)):
            self.both_open(index, _look)

    def _close_all(self) -> None:
        while self.open:
            self.close(0)

    def teardown(self) -> None:
        self._close_all()


def _look(fd: int) -> Any:
    """What an open file shows, also one without a name."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode, status.st_nlink
    content = _outcome(lambda: os.pread(fd, 1 << 20, 0))
    return status.st_mode, status.st_nlink, status.st_size, os.lseek(fd, 0, os.SEEK_CUR), content


def _brief(outcome: Any) -> str:
    text = repr(outcome)
    return text if len(text) < 300 else f"{text[:200]}… ({len(text)})"


SMALL_MEMORY = """
from mountstore.fuse import session
from mountstore.namespace import catalog, history
from mountstore.namespace.inodes import InodeTable
for defaults, name, value in [
    (InodeTable.__init__.__kwdefaults__, "capacity", 2), (InodeTable.__init__.__kwdefaults__, "views", 3),
    (vars(session), "CACHE_S", 0.0), (vars(catalog), "_ENTRIES_MAX", 4), (vars(history), "_KNOWN_MAX", 3),
]:
    assert type(defaults[name]) is type(value)
    defaults[name] = value
"""
"""Makes a daemon forget names and inodes at once, and the kernel ask for them every time."""


@pytest.mark.parametrize(
    ("options", "piece_max", "prelude"),
    [
        pytest.param((), None, "", id="ordinary"),
        pytest.param((), 65_536, "", id="tiny pieces"),
        pytest.param((), 65_536, SMALL_LIMITS, id="small limits"),
        pytest.param((), None, SMALL_MEMORY, id="small memory"),
        pytest.param(("nofastloop",), None, "", id="original loop"),
        pytest.param(("nohandshake",), None, "", id="no handshake"),
    ],
)
def test_a_mount_behaves_as_a_plain_directory(
    make_mount: MountMaker, tmp_path: Path, options: tuple[str, ...], piece_max: int | None, prelude: str
) -> None:
    mount = make_mount(*options, piece_max=piece_max, prelude=prelude)
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: Sides(mount, tmp_path, numbers),  # type: ignore[arg-type]  # it is only called
        settings=settings(_SETTINGS, max_examples=6 * SCALE),
    )
