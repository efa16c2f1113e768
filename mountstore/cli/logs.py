"""Where log lines go: stderr, a file, syslog or the systemd journal.

One message is one line, tracebacks included (their line breaks become ` | `), so that whatever reads the log
can work line by line. Logging never blocks the caller on a log daemon: what it does not take at once is
counted, and the count is told with the next line that gets through.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from logging.handlers import WatchedFileHandler

JOURNAL_SOCKET = "/run/systemd/journal/socket"
SYSLOG_SOCKET = "/dev/log"

_SYSLOG_FACILITY_DAEMON = 3
_SEVERITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class OneLine(logging.Formatter):
    """A formatter whose result never holds a line break."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line for line in super().format(record).splitlines() if line.strip())


def _priority(record: logging.LogRecord) -> int:
    """The syslog severity of a record: 2 critical to 7 debug."""
    return next((severity for level, severity in _SEVERITIES if record.levelno >= level), 7)


class DatagramHandler(logging.Handler):
    """Sends every record as one datagram to a log daemon's Unix socket, and never waits for it.

    A daemon that was restarted is reconnected to. Records that it does not take (its queue is full, it is
    gone) are lost, and counted.
    """

    def __init__(self, address: str, encode: Callable[[logging.LogRecord, str], bytes]) -> None:
        """
        Raises:
          OSError: Nobody listens at `address`.
        """
        super().__init__()
        self._address = address
        self._encode = encode
        self._lost_count = 0
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._address)
        except OSError:
            connection.close()
            raise
        return connection

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self._lost_count:
            line = f"({self._lost_count} messages were lost) {line}"
        data = self._encode(record, line)
        try:
            try:
                self._socket.send(data)
            except BlockingIOError:
                raise
            except OSError:  # refused when the daemon goes, and not connected from then on
                renewed = self._connect()
                self._socket.close()
                self._socket = renewed
                self._socket.send(data)
        except OSError:
            self._lost_count += 1
        else:
            self._lost_count = 0

    def close(self) -> None:
        self._socket.close()
        super().close()


def _encode_syslog(record: logging.LogRecord, line: str) -> bytes:
    head = f"<{_SYSLOG_FACILITY_DAEMON * 8 + _priority(record)}>mount.cas[{os.getpid()}]: "
    return (head + line).encode("utf-8", "backslashreplace")


def _encode_journal(record: logging.LogRecord, line: str) -> bytes:
    """The journal's native protocol: one FIELD=value a line; see systemd's JOURNAL_NATIVE_PROTOCOL."""
    text = f"MESSAGE={line}\nPRIORITY={_priority(record)}\nSYSLOG_IDENTIFIER=mount.cas\n"
    return text.encode("utf-8", "backslashreplace")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def default_destination() -> str:
    """Where a daemon logs if nobody said: the journal, else syslog, else a file of its owner."""
    if _is_socket(JOURNAL_SOCKET):
        return "journal"
    if _is_socket(SYSLOG_SOCKET):
        return "syslog"
    if os.geteuid() == 0:
        return "/var/log/mount.cas.log"
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "mount.cas.log")


def _handler_for(destination: str) -> logging.Handler:
    handler: logging.Handler
    if destination == "stderr":
        handler = logging.StreamHandler(sys.stderr)
    elif destination == "journal":
        handler = DatagramHandler(JOURNAL_SOCKET, _encode_journal)
    elif destination == "syslog":
        handler = DatagramHandler(SYSLOG_SOCKET, _encode_syslog)
    else:
        # Reopens the file when logrotate(8) has moved it away.
        handler = WatchedFileHandler(destination, encoding="utf-8", errors="backslashreplace")
    # A log daemon adds time, process and severity itself.
    head = "" if destination in ("journal", "syslog") else "%(asctime)s mount.cas[%(process)d] %(levelname)s "
    handler.setFormatter(OneLine(f"{head}%(name)s: %(message)s"))
    return handler


def log_to(destination: str, *, verbose: bool = False) -> None:
    """Send the log of this process to `destination`, including what no one catches.

    Args:
      destination: `stderr`, `journal`, `syslog`, or the absolute path of a file, which is appended to.
      verbose: Debug messages too.

    Raises:
      OSError: The destination cannot be opened.
    """
    root = logging.getLogger()
    root.addHandler(_handler_for(destination))
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
    logger = logging.getLogger("mountstore")

    def from_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            logger.critical("unforeseen in thread %s", args.thread, exc_info=args.exc_value)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        logger.error("%s: %r", args.err_msg or "ignored exception", args.object, exc_info=args.exc_value)

    threading.excepthook = from_thread
    sys.unraisablehook = unraisable
