"""A store mounted by mount.cas as a process of its own, for one test or several."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mount.consistency import check_store
from mountstore.fuse.mounts import mount_at, unmount
from mountstore.namespace.pages import MAGICS
from mountstore.store.create import create_store

SCALE = int(os.environ.get("MOUNTSTORE_TEST_SCALE", "1"))
"""Multiplies the counts of the long tests; 10 makes 10,000 files 100,000."""

MODE = tuple(filter(None, os.environ.get("MOUNTSTORE_TEST_OPTIONS", "").split(",")))
"""Mount options for every mount of the tests, such as `nofastloop,nohandshake`."""

PATIENCE_S = 120
"""Far longer than anything here takes: what hangs is to fail, not to wait for ever."""

_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \S+ mount\.cas\[\d+\] (?:DEBUG|INFO) ")

_OVERTAKEN = "fuse: reading device: Software caused connection abort"
"""What libfuse says when the unmount overtakes the RELEASE of a file that it is just reading."""

_UNCLEAN = r"not unmounted cleanly"

_numbers = itertools.count()


class LiveMount:
    """A mount that can be ended and made again.

    Args:
      base: An existing directory for the store, the mount point and the log.
      options: Words behind `-o`.
      piece_max: Of the store, in bytes; without it, mount.cas makes the store.
      prelude: Python that the daemon's process runs first, to make something small or something fail.
      checked: Whether every unmount checks the store.
    """

    def __init__(
        self, base: Path, *options: str, piece_max: int | None = None, prelude: str = "", checked: bool = True
    ) -> None:
        self.store = base / "store"
        self.path = base / "mnt"
        self.log = base / "log"
        self.options = options
        self.prelude = prelude
        self.checked = checked
        self._announced: set[str] = set()
        self._log_read = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self.path.mkdir()
        self.log.touch()
        if piece_max is not None:
            create_store(str(self.store), piece_max=piece_max)
        self.start()

    # --- making and ending ---

    def start(self) -> None:
        """Mount, and return when the daemon says that it serves."""
        assert self._process is None
        program = f"import sys\n{self.prelude}\nfrom mountstore.cli.mount import main\nsys.exit(main())"
        command = [sys.executable, "-c", program, str(self.store), str(self.path), "--foreground"]
        if MODE or self.options:
            command += ["-o", ",".join((*MODE, *self.options))]
        address = f"mountstore-test-{os.getpid()}-{next(_numbers)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self.log.open("ab") as log:
            told.bind(f"\0{address}")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": f"@{address}"},
            )
            self._process = process
            ended = os.pidfd_open(process.pid)
            try:
                # Not select(2): its descriptors end at 1023.
                poll = select.poll()
                poll.register(told.fileno(), select.POLLIN)
                poll.register(ended, select.POLLIN)
                ready = [descriptor for descriptor, _ in poll.poll(PATIENCE_S * 1000)]
            finally:
                os.close(ended)
            if told.fileno() not in ready:
                self.kill()
                raise AssertionError(f"not mounted:\n{self.log.read_text()}")
            assert told.recv(1000).startswith(b"READY=1")
        if self._killed:
            self._killed = False
            self.announce(_UNCLEAN)

    def unmount(self) -> None:
        """Unmount, wait until the daemon has ended well, and check what it left."""
        assert self._process is not None
        unmount(str(self.path))
        self._wait_for_end()
        if self.checked:
            check_store(self.store)

    def _wait_for_end(self) -> None:
        assert self._process is not None
        code = self._process.wait(PATIENCE_S)
        self._process = None
        assert code == 0, f"the daemon ended with {code}:\n{self.log.read_text()}"

    def remount(self) -> None:
        """Unmount and mount again: what is seen afterwards comes from the disk."""
        self.unmount()
        self.start()

    def terminate(self) -> None:
        """End the daemon with SIGTERM, as systemd does."""
        assert self._process is not None
        self._process.terminate()
        self._wait_for_end()

    def kill(self) -> None:
        """End the daemon with SIGKILL, and take the dead mount away."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._process = None
        self._killed = True
        if mount_at(str(self.path)):
            unmount(str(self.path), lazy=True)

    def finish(self) -> None:
        """Leave no mount and no process, whatever happened; then say what was wrong."""
        try:
            if self._process is not None:
                self.unmount()
        finally:
            if self._process is not None:
                self.kill()
            while mount_at(str(self.path)):
                unmount(str(self.path), lazy=True)
            self.check_log()

    # --- looking inside ---

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def memory_bytes(self) -> int:
        """Resident memory of the daemon."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def blobs(self) -> set[str]:
        """Names of all blobs in the tree but those that snapshots consist of."""
        return {
            name
            for directory, _, names in os.walk(self.store / "blobs")
            for name in names
            if len(name) > 64 and not _is_of_snapshot(Path(directory, name))
        }

    def wait_committed(self) -> None:
        """Return when the death of the daemon would cost nothing of what was closed: by itself, a quarter second
        after the last change, without a sync."""
        busy = True
        while busy:
            status = json.loads((self.path / ".cas/status").read_bytes())
            busy = status["uncommitted"] or status["files_being_written"] > 0

    def announce(self, pattern: str) -> None:
        """Say that a line at WARNING or above that matches `pattern` is right, and has to come."""
        self._announced.add(pattern)

    def announce_logged(self, *patterns: str) -> None:
        """`announce` those of the patterns that are in the log, literally: what may come, but need not."""
        text = self.log.read_text()
        for pattern in patterns:
            if pattern in text:
                self.announce(pattern)

    def check_log(self) -> None:
        """Fail if the log since the last check has what was not announced, or lacks what was."""
        with self.log.open("rb") as log:
            log.seek(self._log_read)
            lines = log.read().decode(errors="replace").splitlines()
            self._log_read = log.tell()
        missing = set(self._announced)
        unannounced = []
        for line in lines:
            if _LOG_LINE.match(line) or line == _OVERTAKEN:
                continue
            matching = {pattern for pattern in self._announced if re.search(pattern, line)}
            missing -= matching
            if not matching:
                unannounced.append(line)
        self._announced.clear()
        assert not unannounced, "not announced in the log:\n" + "\n".join(unannounced)
        assert not missing, f"announced, but not in the log: {missing}"


def _is_of_snapshot(path: Path) -> bool:
    with path.open("rb") as blob:
        return blob.read(8) in MAGICS


def run(*command: str | Path, cwd: str | Path | None = None, **environment: str) -> str:
    """Run a program that has to end well; returns what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


_AS_USER = """
import os, stat, sys, errno
uid, gid, groups = int(sys.argv[1]), int(sys.argv[2]), [int(g) for g in sys.argv[3].split(",") if g]
arguments = sys.argv[4:]
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
os.umask(0)
try:
    exec(sys.stdin.read())
except OSError as exc:
    print(errno.errorcode[exc.errno])
"""


def run_as(
    uid: int, code: str, *arguments: str | Path, gid: int | None = None, groups: Sequence[int] = ()
) -> str:
    """Run Python as another user, with `arguments` under that name; umask 0.

    Returns:
      What it printed, or the name of the errno that it ended with.
    """
    words = [str(uid), str(uid if gid is None else gid), ",".join(map(str, groups)), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", _AS_USER, *words],
        input=code,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def let_everybody_reach(directory: Path) -> None:
    """Give every user a way to `directory`, whatever umask its parents were made with."""
    for parent in (directory, *directory.parents):
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o011)
