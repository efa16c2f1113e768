"""Where log lines go, and that they never hold up who logs."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountstore.cli import logs


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, with no handlers left afterwards."""
    logger = logging.Logger("mountstore.test", logging.DEBUG)
    yield logger
    for handler in logger.handlers:
        handler.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """A log daemon's socket, on the path `daemon` in the temporary directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "daemon"))
        listener.settimeout(60)
        yield listener


def raise_and_log(logger: logging.Logger) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("it\nbroke")


def test_a_traceback_is_one_line(logger: logging.Logger, tmp_path: Path) -> None:
    handler = logs._handler_for(str(tmp_path / "log"))
    logger.addHandler(handler)
    raise_and_log(logger)
    logger.info("name %s", "\udcff")
    first, second = (tmp_path / "log").read_text().splitlines()
    assert "ERROR mountstore.test: it | broke | Traceback" in first
    assert first.endswith("ValueError: first | second")
    assert f"mount.cas[{os.getpid()}]" in first
    assert second.endswith("name \\udcff")


def test_a_rotated_file_is_opened_anew(logger: logging.Logger, tmp_path: Path) -> None:
    logger.addHandler(logs._handler_for(str(tmp_path / "log")))
    logger.info("one")
    (tmp_path / "log").rename(tmp_path / "log.1")
    logger.info("two")
    assert (tmp_path / "log").read_text().endswith("two\n")


def test_syslog(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "daemon"))
    logger.addHandler(logs._handler_for("syslog"))
    logger.warning("look\nhere")
    assert daemon.recv(1000) == f"<28>mount.cas[{os.getpid()}]: mountstore.test: look | here".encode()


def test_the_journal(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "daemon"))
    logger.addHandler(logs._handler_for("journal"))
    logger.error("look\nhere")
    assert daemon.recv(1000).decode().splitlines() == [
        "MESSAGE=mountstore.test: look | here",
        "PRIORITY=3",
        "SYSLOG_IDENTIFIER=mount.cas",
    ]


def test_a_log_daemon_that_does_not_read_never_blocks_and_learns_what_it_missed(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "daemon"))
    logger.addHandler(logs._handler_for("syslog"))
    sent_count = 5000
    for number in range(sent_count):
        logger.info("message %d", number)
    daemon.setblocking(False)
    received_count = 0
    try:
        while daemon.recv(1000):
            received_count += 1
    except BlockingIOError:
        pass
    assert 0 < received_count < sent_count
    logger.info("after")
    assert f"({sent_count - received_count} messages were lost)" in daemon.recv(1000).decode()


def test_a_log_daemon_that_was_restarted_is_found_again(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "log-daemon")
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(path)
        logger.addHandler(logs._handler_for("syslog"))
        logger.info("one")
        assert first.recv(1000).endswith(b"one")
    os.unlink(path)
    logger.info("lost")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(path)
        logger.info("two")
        said = second.recv(1000)
    assert said.endswith(b"two")
    assert b"(1 messages were lost)" in said


def test_the_default_prefers_the_journal_then_syslog_then_a_file(
    daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert logs.default_destination() == "/var/log/mount.cas.log"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/state")
    assert logs.default_destination() == "/home/x/state/mount.cas.log"
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "daemon"))
    assert logs.default_destination() == "syslog"
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "daemon"))
    assert logs.default_destination() == "journal"
    assert daemon.fileno() >= 0


def test_what_nobody_catches_is_logged(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import threading, warnings
from mountstore.cli.logs import log_to
log_to({str(tmp_path / "log")!r})
def fail(): raise RuntimeError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
class Broken:
    def __del__(self): raise RuntimeError("in a finalizer")
broken = Broken()
del broken
warnings.warn("take care")
""",
        ],
        check=True,
    )
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3
    assert "CRITICAL" in lines[0]
    assert "in a thread" in lines[0]
    assert "in a finalizer" in lines[1]
    assert "take care" in lines[2]
