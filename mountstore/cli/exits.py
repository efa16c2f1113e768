"""How a program ends: mount(8)'s exit codes, and one place that turns exceptions into a line and a code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import IntEnum

from mountstore.cli.streams import open_standard_streams
from mountstore.errors import MisuseError, MountstoreError, NotPermittedError


class Exit(IntEnum):
    """Exit codes of mount(8), which its helpers share."""

    OK = 0
    USAGE = 1
    """Wrong arguments, or the caller may not."""
    SYSTEM = 2
    """The system lacks something or failed: no FUSE, no memory, an I/O error."""
    BUG = 4
    INTERRUPTED = 8
    FAILED = 32
    """Nothing was mounted or unmounted."""


class Failure(MountstoreError):
    """A reason to end with a given code; what it says is meant for the user."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def cause_of(exc: BaseException) -> BaseException:
    """What to tell of a group of exceptions, as trio raises them: the first unforeseen, else the first."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    causes = [cause_of(inner) for inner in exc.exceptions]
    return next((cause for cause in causes if exit_code_of(cause) is Exit.BUG), causes[0])


def exit_code_of(exc: BaseException) -> Exit:
    """The code a program ends with because of `exc`."""
    match cause_of(exc):
        case Failure(code=code):
            return code
        case MisuseError() | NotPermittedError():
            return Exit.USAGE
        case MountstoreError():
            return Exit.FAILED
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case OSError() | MemoryError():
            return Exit.SYSTEM
        case _:
            return Exit.BUG


def message_of(exc: BaseException) -> str:
    """What the user is told about `exc`: what happened, to which file."""
    match exc := cause_of(exc):
        case MountstoreError():
            return str(exc)
        case KeyboardInterrupt():
            return "interrupted"
        case FileNotFoundError(filename=None) if not _has_current_directory():
            return "the current directory does not exist any more"
        case OSError(strerror=str(reason)):
            names = [name for name in (exc.filename, exc.filename2) if name is not None]
            return f"{' -> '.join(map(printable, names))}: {reason}" if names else reason
        case _:
            return f"unforeseen {type(exc).__name__}: {exc}"


def _has_current_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def printable(path: object) -> str:
    """A path as it can be shown on one line: control characters and undecodable bytes escaped."""
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else str(path)
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, see os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def say(program: str, message: str) -> None:
    """Print `program: message` to stderr as one line, whatever characters it holds."""
    sys.stdout.flush()
    sys.stderr.write(f"{program}: {printable(' '.join(message.split()))}\n")
    sys.stderr.flush()


def run_guarded(program: str, body: Callable[[], int]) -> int:
    """Run a program's body; an exception becomes one line on stderr and its exit code.

    Only what is unforeseen shows a traceback, since only then somebody has to read code.
    """
    open_standard_streams()
    try:
        return body()
    except (Exception, KeyboardInterrupt) as exc:
        code = exit_code_of(exc)
        if code is Exit.BUG:
            import traceback

            traceback.print_exc()
        say(program, message_of(exc))
        return code
