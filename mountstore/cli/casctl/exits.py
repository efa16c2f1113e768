"""How casctl ends: its exit codes, and one place that turns exceptions into a line and a code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from enum import IntEnum

from mountstore.cli.exits import message_of, say
from mountstore.cli.streams import open_standard_streams
from mountstore.errors import MisuseError, MountstoreError, NotPermittedError

PROGRAM = "casctl"


class Exit(IntEnum):
    """Those of an ordinary program, not of mount(8): nobody but people and scripts calls casctl."""

    OK = 0
    FAILED = 1
    """The command failed, or damage was found."""
    USAGE = 2
    NO_MOUNT = 3
    """There is no mount here, or nobody serves it."""
    BUG = 4
    DENIED = 5
    """Only the owner of the mount may."""
    INTERRUPTED = 130
    """As a shell says it of a program that SIGINT ended."""


class Failure(MountstoreError):
    """A reason to end with a given code; what it says is meant for the user."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class AnsweredError(Failure):
    """The mount answered that the command failed.

    Args:
      error: The name of the errno.
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(_CODES.get(error, Exit.FAILED), _in_words(error, message))
        self.error = error


_WORDS = {
    "ENOENT": "there is no such file, version or blob",
    "EEXIST": "exists already",
    "EISDIR": "is a directory",
    "ENOTDIR": "is no directory",
    "EROFS": "the mount takes no writes",
    "ENOSPC": "the disk is full",
    "EBUSY": "is in use",
    "EIO": "the store is damaged, or its disk; the log of the mount tells more",
}


def _in_words(error: str, message: str) -> str:
    """What a person is told: some errors only name the file (`mountstore.errors.shown`)."""
    name = _literal(message)
    if name is not None:
        message = name
    elif not message:
        message = error
    elif " " in message:
        return message
    return f"{message}: {_WORDS.get(error, error)}"


def _literal(text: str) -> str | None:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, str) else None


_CODES = {
    "EINVAL": Exit.USAGE,
    "EISDIR": Exit.USAGE,
    "ENOTDIR": Exit.USAGE,
    "EPERM": Exit.DENIED,
    "EACCES": Exit.DENIED,
}


def run_guarded(body: Callable[[], int]) -> int:
    """Run the program's body; an exception becomes one line on stderr and its exit code."""
    open_standard_streams()
    try:
        return body()
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still buffered goes nowhere.
        sys.stdout = None
        return Exit.OK
    except (Exception, KeyboardInterrupt) as exc:
        code = _code_of(exc)
        if code is Exit.BUG:
            import traceback

            traceback.print_exc()
        say(PROGRAM, message_of(exc))
        return code


def _code_of(exc: BaseException) -> Exit:
    match exc:
        case Failure(code=code):
            return code
        case MisuseError():
            return Exit.USAGE
        case NotPermittedError() | PermissionError():
            return Exit.DENIED
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case MountstoreError() | OSError() | MemoryError():
            return Exit.FAILED
        case _:
            return Exit.BUG
