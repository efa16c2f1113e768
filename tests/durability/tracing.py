"""The system calls of a running daemon: watched, counted, and made to fail, by strace(1)."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")


class Call(NamedTuple):
    """One system call: the `number`th of its name in its thread, with its arguments as strace shows them."""

    thread: int
    name: str
    number: int
    arguments: str


class Trace:
    """What was seen, when the context of `traced` has ended."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def calls(self) -> list[Call]:
        seen: Counter[tuple[int, str]] = Counter()
        calls = []
        for line in self._output.read_text(errors="replace").splitlines():
            match = _LINE.match(line)
            if (match is not None and "<unfinished" not in line[-20:]) or match is not None:
                thread, name = int(match[1]), match[2]
                seen[thread, name] += 1
                calls.append(Call(thread, name, seen[thread, name], match[3]))
        return calls

    @property
    def injected(self) -> int:
        return self._output.read_text(errors="replace").count("(INJECTED)")


@contextmanager
def traced(pid: int, output: Path, names: str, *, path: str = "", inject: str = "") -> Iterator[Trace]:
    """Watch system calls (`names`, comma-separated) of a process and its threads.

    Args:
      path: Only those on this file.
      inject: Of strace's `--inject`: `fsync:error=EIO:when=2` lets each thread's second fsync fail.
    """
    command = ["strace", "-f", "-y", "-o", str(output), "-e", f"trace={names}", "-p", str(pid)]
    if path:
        command += ["-P", path]
    if inject:
        command += ["-e", f"inject={inject}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert b"attached" in first, first
        yield Trace(output)
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()
