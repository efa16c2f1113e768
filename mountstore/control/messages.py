"""The latest lines of the log, for `.cas/log`."""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC, datetime
from typing import Final

from mountstore.control.context import Message

__all__ = ["Recent"]

_MESSAGES: Final = 1000

_LENGTH_MAX: Final = 4000
"""Characters of a message that are kept; tracebacks are cut."""


class Recent(logging.Handler):
    """Keeps the latest messages, in memory; any thread may log."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: Final[deque[Message]] = deque(maxlen=_MESSAGES)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        lines = [line for line in text.splitlines() if line.strip()]
        self.messages.append(Message(record.created, record.levelname, " | ".join(lines)[:_LENGTH_MAX]))


def show(messages: deque[Message]) -> bytes:
    """One message a line, the latest last: time in UTC, level, text."""
    lines = []
    for message in list(messages):
        when = datetime.fromtimestamp(message.time_s, UTC).isoformat(timespec="milliseconds")
        lines.append(f"{when.removesuffix('+00:00')}Z {message.level} {message.text}\n")
    return "".join(lines).encode("utf-8", "backslashreplace")
