"""Answers as they are read from the control file: JSON objects, one a line, ASCII only.

    {"type": "progress", "done": 12, "total": 40, "unit": "blobs"}     total is null if nobody knows
    {"type": "result", ...}                                            a table has "rows"
    {"type": "error", "error": "ENOENT", "message": "..."}
    {"type": "job", "job": 7}                                          what a line that ended in & began

Answers of a job that runs in the background have `"job": 7` as well. File names are text as Python's `os.fsdecode`
makes it: a byte that is no UTF-8 is the escape `\\udcXX`.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

__all__ = ["AnswerQueue", "encode", "encode_slowly"]

_ROWS: Final = 100
"""Rows encoded in one go: a fifth of a millisecond."""

QUEUE_MAX_BYTES: Final = 64 << 20
"""What nobody reads is given up beyond this, the oldest first."""


def encode(answer: Mapping[str, object]) -> bytes:
    """One line, with its newline."""
    return _dump(answer).encode("ascii") + b"\n"


async def encode_slowly(answer: Mapping[str, object]) -> bytes:
    """The same for what may be a large table; others have their turn in between."""
    rows = answer.get("rows")
    if not isinstance(rows, list) or len(rows) <= _ROWS:
        return encode(answer)
    head = _dump({key: value for key, value in answer.items() if key != "rows"})
    parts = []
    for begin in range(0, len(rows), _ROWS):
        parts.append(_dump(rows[begin : begin + _ROWS])[1:-1])
        await trio.lowlevel.checkpoint()
    body = ", ".join(parts)
    return f'{head[:-1]}, "rows": [{body}]}}\n'.encode("ascii")


def _dump(value: object) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return msgspec.to_builtins(value)


def _finite(value: object) -> object:
    """Infinity, which JSON has no word for, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class AnswerQueue:
    """Lines that wait to be read. What is read is cut anywhere, as a pipe does."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._sizes = 0
        self._taken = 0
        self._progress: bytes | None = None
        self._arrived = trio.Event()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, line: bytes, *, progress: bool = False) -> None:
        """Add a line. A progress that nobody has read gives way to the next."""
        lines = self._lines
        stale = self._progress is not None and bool(lines) and lines[-1] is self._progress
        if stale and (len(lines) > 1 or not self._taken):
            self._sizes -= len(lines.pop())
        lines.append(line)
        self._sizes += len(line)
        self._progress = line if progress else None
        while self._sizes > QUEUE_MAX_BYTES and len(lines) > 1:
            self._sizes -= len(lines.popleft())
            self._taken = 0
        self._arrived.set()

    def take(self, length: int) -> bytes:
        """Up to `length` bytes; none if nothing waits."""
        parts = []
        while length > 0 and self._lines:
            line = self._lines[0]
            part = line[self._taken : self._taken + length]
            parts.append(part)
            length -= len(part)
            self._taken += len(part)
            if self._taken == len(line):
                self._lines.popleft()
                self._sizes -= len(line)
                self._taken = 0
        return b"".join(parts)

    async def wait(self) -> None:
        """Return when something waits to be read."""
        while not self._lines:
            self._arrived = trio.Event()
            await self._arrived.wait()
