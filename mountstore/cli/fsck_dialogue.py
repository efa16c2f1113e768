"""How fsck.cas talks, whether it checks or rebuilds: its name and exit codes, lists, questions, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Final, ParamSpec, TypeVar

__all__ = ["PROGRAM", "Code", "ask", "listed", "progress_lines"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

PROGRAM: Final = "fsck.cas"

_LISTED_MAX: Final = 100
"""Things shown one by one without -v."""

_PROGRESS_EVERY_S = 2.0


class Code(IntFlag):
    """Exit codes of fsck(8)."""

    OK = 0
    REPAIRED = 1
    ERRORS_LEFT = 4
    FAILED = 8
    USAGE = 16
    INTERRUPTED = 32


def listed(things: Sequence[_T], *, verbose: bool) -> Sequence[_T]:
    """Those of many things that are shown."""
    return things if verbose else things[:_LISTED_MAX]


def ask(question: str) -> bool:
    """Whether the user says yes; who says nothing does not."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def progress_lines(line: Callable[_P, str]) -> Callable[_P, None]:
    """What can be told how far it is as often as one likes: `line` of it is written to stderr now and then."""
    last_s = time.monotonic()

    def show(*arguments: _P.args, **named: _P.kwargs) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _PROGRESS_EVERY_S:
            last_s = now_s
            sys.stderr.write(f"{PROGRAM}: {line(*arguments, **named)}\n")

    return show
