"""PostgreSQL with its data directory in a mount: pgbench, kill -9, recovery."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import SCALE, LiveMount


def _programs() -> Path:
    """Where the newest installed PostgreSQL has its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is not installed (Debian: postgresql)"
    return found[-1].parent


class Server:
    """One PostgreSQL cluster."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data = data
        self.work = work
        self._programs = _programs()
        self._user = pwd.getpwnam("postgres")
        os.chown(work, self._user.pw_uid, self._user.pw_gid)
        data.mkdir()
        os.chown(data, self._user.pw_uid, self._user.pw_gid)
        self.call("initdb", "--no-sync", "--auth=trust", "--data-checksums", "-D", data)
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, program: str, *arguments: str | Path) -> str:
        """Run one of its programs as the user postgres; it has to end well."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            env={"PATH": os.environ["PATH"], "PGHOST": str(self.work), "LC_ALL": "C"},
            cwd=self.work,
            user=self._user.pw_uid,
            group=self._user.pw_gid,
            extra_groups=(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}\n{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        path = self.work / "log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.work}"]
        with (self.work / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, *options],
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                cwd=self.work,
                user=self._user.pw_uid,
                group=self._user.pw_gid,
                extra_groups=(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while self.query("SELECT 1", patient=True) != "1":
            assert self._process.poll() is None and time.monotonic() < deadline, self.log()

    def query(self, sql: str, *, patient: bool = False) -> str:
        try:
            return self.call("psql", "-XAtq", "-d", "postgres", "-c", sql).strip()
        except AssertionError:
            if not patient:
                raise
            time.sleep(0.05)
            return ""

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            assert self._process.wait(60) == 0, self.log()
            self._process = None

    def kill(self) -> None:
        """kill -9 of the server and all its children at once."""
        assert self._process is not None
        group = self._process.pid
        children = Path(f"/proc/{group}/task/{group}/children").read_text().split()
        for pid in (group, *map(int, children)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait(60)
        self._process = None
        # The children are in sessions of their own, and hold files open until they are gone.
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}/stat").exists() for pid in children) and time.monotonic() < deadline:
            time.sleep(0.01)

    def balances(self) -> list[str]:
        """The sums of pgbench's tables, which every transaction keeps equal."""
        columns = {"accounts": "abalance", "tellers": "tbalance", "branches": "bbalance", "history": "delta"}
        return [
            self.query(f"SELECT coalesce(sum({name}), 0) FROM pgbench_{table}") for table, name in columns.items()
        ]


@pytest.fixture
def server(mount: LiveMount, tmp_path: Path) -> Iterator[Server]:
    work = tmp_path / "pg"
    work.mkdir()
    server = Server(mount.path / "data", work)
    yield server
    server.stop()


def test_pgbench_killed_and_recovered(mount: LiveMount, server: Server) -> None:
    server.start()
    server.call("pgbench", "-i", "-s", str(2 * SCALE), "-q", "postgres")
    out = server.call("pgbench", "-c", "4", "-j", "2", "-t", str(100 * SCALE), "-n", "postgres")
    print("\n".join(line for line in out.splitlines() if "tps" in line or "processed" in line))
    acknowledged = int(server.query("SELECT count(*) FROM pgbench_history"))
    assert acknowledged == 400 * SCALE
    busy = subprocess.Popen(
        [_programs() / "pgbench", "-c", "4", "-T", "60", "-n", "-U", "postgres", "-h", server.work, "postgres"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while int(server.query("SELECT count(*) FROM pgbench_history")) < acknowledged + 20:
        pass
    acknowledged = int(server.query("SELECT count(*) FROM pgbench_history"))
    server.kill()
    busy.wait(60)
    server.start()
    assert "redo done" in server.log() or "redo is not required" in server.log()
    assert int(server.query("SELECT count(*) FROM pgbench_history")) >= acknowledged
    assert len(set(server.balances())) == 1
    server.call("pg_amcheck", "-d", "postgres", "--install-missing", "--heapallindexed")
    before = server.balances(), server.query("SELECT count(*) FROM pgbench_accounts")
    server.stop()
    mount.remount()
    server.call("pg_checksums", "--check", "-D", server.data)
    server.start()
    assert (server.balances(), server.query("SELECT count(*) FROM pgbench_accounts")) == before


def test_the_daemon_is_killed_under_postgresql(make_mount: MountMaker, tmp_path: Path) -> None:
    """What a transaction was told to be durable is there after kill -9 of the file system."""
    mount = make_mount()
    work = tmp_path / "pg"
    work.mkdir()
    server = Server(mount.path / "data", work)
    server.start()
    try:
        server.query("CREATE TABLE t (n int)")
        server.query("CHECKPOINT")
        for number in range(20):
            server.query(f"INSERT INTO t VALUES ({number})")
        mount.kill()
    finally:
        server.kill()
    mount.start()
    (server.data / "postmaster.pid").unlink(missing_ok=True)
    server.start()
    try:
        assert server.query("SELECT count(*), min(n), max(n) FROM t") == "20|0|19"
    finally:
        server.stop()
