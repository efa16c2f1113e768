"""What is measured: a file system that can be mounted, unmounted and mounted again, all on one disk.

Each has its place below the work directory and leaves nothing mounted. Daemons other than ours run in
the foreground of a session of their own, so that Ctrl-C reaches the benchmark only, which then unmounts.
They inherit the cores that the benchmark may use.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

__all__ = [
    "SYSTEMS",
    "Bindfs",
    "Disk",
    "Gocryptfs",
    "NotMountedError",
    "Null",
    "Ours",
    "System",
    "missing_peers",
]

PATIENCE_S = 120.0
"""Far longer than any mount or unmount takes."""

_SCRIPTS = Path(__file__).resolve().parent.parent


class NotMountedError(Exception):
    """A system cannot be mounted or unmounted; the message says why."""


class System:
    """The disk itself, and the base of all that is mounted.

    Attributes:
      name: Its word on the command line and in JSON.
      title: Its head in tables.
      root: Where work is done; to be used between `start` and `stop`.
    """

    name = "disk"
    title = "disk"
    keeps = True
    """What was written is still there after `stop` and `start`."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.root = os.path.join(place, "root")
        os.makedirs(self.root)

    def start(self) -> None:
        """Mount; returns when it answers."""

    def stop(self) -> None:
        """Unmount; returns when the daemon has ended. Does nothing when not mounted."""

    @property
    def pid(self) -> int | None:
        """The daemon, if there is one."""
        return None


class Disk(System):
    """A plain directory on the same disk as all others."""


class _Served(System, ABC):
    """One whose daemon is a child of ours."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.log = os.path.join(place, "log")
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What runs the daemon in the foreground."""

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._wait_until_mounted(self._process)

    def _wait_until_mounted(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        ended = os.pidfd_open(process.pid)
        # The mount table shows an exceptional condition when it changes (proc(5)).
        with open("/proc/self/mounts", "rb") as table:
            events = select.poll()
            events.register(table, select.POLLPRI)
            events.register(ended, select.POLLIN)
            try:
                while not os.path.ismount(self.root):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise NotMountedError(f"{self.title} does not mount:\n{Path(self.log).read_text()}")
                    events.poll(1000)
            finally:
                os.close(ended)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if os.path.ismount(self.root):
            _unmount(self.root)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise NotMountedError(f"{self.title} did not end after its unmount") from None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid


class Null(_Served):
    """A dict in memory behind our handshake and request loop (scripts/nullfs.py)."""

    name = "null"
    title = "null"
    keeps = False

    def command(self) -> list[str]:
        return [sys.executable, str(_SCRIPTS / "nullfs.py"), self.root]


class Bindfs(_Served):
    """bindfs (C), as it runs by default."""

    name = "bindfs"
    title = "bindfs"

    def command(self) -> list[str]:
        behind = os.path.join(self.place, "behind")
        os.makedirs(behind, exist_ok=True)
        return ["bindfs", "-f", behind, self.root]


class Gocryptfs(_Served):
    """gocryptfs (Go), as it runs by default."""

    name = "gocryptfs"
    title = "gocryptfs"

    def command(self) -> list[str]:
        behind, password = os.path.join(self.place, "behind"), os.path.join(self.place, "password")
        if not os.path.exists(behind):
            os.makedirs(behind)
            Path(password).write_text("benchmark\n")
            # A cheap key derivation: it counts when mounting, never in an operation.
            _run(["gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", password, behind])
        return ["gocryptfs", "-q", "-fg", "-nosyslog", "-passfile", password, behind, self.root]


class Ours(System):
    """mountstore, mounted by mount.cas with no options but where to log."""

    name = "ours"
    title = "mountstore"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.store = os.path.join(place, "store")
        self._mounted = False

    def start(self) -> None:
        options = f"log={os.path.join(self.place, 'log')}"
        self._mounted = True
        _run([sys.executable, "-m", "mountstore.cli.mount", self.store, self.root, "-o", options])

    def stop(self) -> None:
        mounted, self._mounted = self._mounted, False
        if mounted and os.path.ismount(self.root):
            done = subprocess.run(
                [sys.executable, "-m", "mountstore.cli.umount", self.root],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                check=False,
            )
            if done.returncode:
                _unmount(self.root, lazy=True)
                raise NotMountedError(f"umount.cas: {done.stderr.strip()}")

    @property
    def pid(self) -> int | None:
        return int(Path(self.store, "lock").read_text().split()[0]) if self._mounted else None


SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (Ours, Disk, Null, Bindfs, Gocryptfs)}
"""All of them by name, in the order of the tables' columns."""


def missing_peers(names: list[str]) -> list[str]:
    """Which of the systems named are programs that this machine lacks."""
    return [name for name in names if name in ("bindfs", "gocryptfs") and shutil.which(name) is None]


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, check=False
    )
    if done.returncode:
        raise NotMountedError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def _unmount(path: str, *, lazy: bool = False) -> None:
    done = subprocess.run(
        ["umount", *(["-l"] if lazy else []), path],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode and not lazy:
        _unmount(path, lazy=True)
        raise NotMountedError(done.stderr.strip())
