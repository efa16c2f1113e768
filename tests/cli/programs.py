"""Running the programs as users do."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent

# Runs a program as another user, who may not be able to reach this Python: all is imported before.
AS_USER = """
import ctypes, importlib, logging.handlers, os, runpy, sys
uid, program = int(sys.argv[1]), sys.argv[2]
for name in ("difflib", "_strptime", "encodings.ascii", "encodings.idna", "encodings.latin_1",
             "mountstore.store.create", "mountstore.fuse.session", "mountstore.cli.logs", "mountstore.cli.stores"):
    importlib.import_module(name)
main = importlib.import_module(f"mountstore.cli.{program.partition('.')[0]}").main
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which the change of user cleared and an exec would set
os.environ.update(HOME="/nonexistent", PATH="/usr/bin:/bin")
sys.exit(main(sys.argv[3:]))
"""


@dataclass
class Programs:
    """mount.cas and its companions, with a log of their own."""

    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, *arguments: str | Path, uid: int = 0) -> subprocess.CompletedProcess[str]:
        command = [BIN / name] if uid == 0 else [sys.executable, "-c", AS_USER, str(uid), name]
        return subprocess.run(
            [*command, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=120,
            env={**os.environ, **self.environment},
        )

    def mount(
        self, store: Path, mountpoint: Path, *arguments: str, uid: int = 0
    ) -> subprocess.CompletedProcess[str]:
        return self.run("mount.cas", store, mountpoint, "-o", f"log={self.log}", *arguments, uid=uid)

    def mounted(self, store: Path, mountpoint: Path, *arguments: str, uid: int = 0) -> int:
        """Mount, expect that it works, and return a pidfd of the daemon."""
        done = self.mount(store, mountpoint, *arguments, uid=uid)
        assert done.returncode == 0, done.stderr
        return os.pidfd_open(int((store / "lock").read_text().split()[0]))

    def umount(self, *arguments: str | Path, uid: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("umount.cas", *arguments, uid=uid)


def has_ended(pidfd: int, *, within_s: float = 0) -> bool:
    """Whether the process has ended by now, or ends within some time."""
    # Not select(2), which ends at descriptor 1023.
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(within_s * 1000))


def lock_is_free(store: Path) -> bool:
    """Whether nobody holds the store's lock."""
    with (store / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
