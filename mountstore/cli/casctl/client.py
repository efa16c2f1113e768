"""Talking to a mount through its control file.

Long commands run as jobs of the mount: their progress can be read meanwhile, and an interrupt cancels them. (A
process that waits for the answer to a write(2) could not even be killed.)
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from mountstore.cli.casctl.exits import AnsweredError, Exit, Failure
from mountstore.cli.exits import printable
from mountstore.control.language import quote
from mountstore.fuse.mounts import Mount, is_dead

CONTROL = "control"
CONTROL_DIRECTORY = ".cas"
CONTROL_VARIABLE = "CASCTL_CONTROL"
"""Says what the directory is called in a mount that was made with control=NAME."""

READABLE = ("status", "stats")
"""Commands whose results are also files beside the control file."""

_READ_BYTES = 1 << 20

Answer = dict[str, Any]
"""The fields of one answer, as `docs/control.md` has them."""

Listener = Callable[[Answer, str], None]
"""Told every answer as it comes, with the line it came in."""


def _nobody(answer: Answer, line: str) -> None:
    pass


def read_report(mount: Mount, command: str) -> Answer:
    """The result of one of the `READABLE` commands, from a mount to whose control file nothing can be written.

    Raises: OSError; Failure if it has no control directory.
    """
    try:
        with open(os.path.join(_directory(mount), command), "rb") as file:
            return {"type": "result", **json.load(file)}
    except FileNotFoundError:
        raise _without(mount) from None


def _without(mount: Mount) -> Failure:
    name = os.path.basename(_directory(mount))
    return Failure(
        Exit.NO_MOUNT,
        f"{printable(mount.mountpoint)}: has no directory {printable(name)}: it shows one snapshot, or was mounted"
        f" with nocontrol, by an older release, or with control=NAME (then say {CONTROL_VARIABLE}=NAME)",
    )


def _directory(mount: Mount) -> str:
    return os.path.join(mount.mountpoint, os.environ.get(CONTROL_VARIABLE) or CONTROL_DIRECTORY)


class Control:
    """An open control file. A context manager.

    Raises:
      Failure: It cannot be opened: nobody serves the mount, it is somebody else's, or has no control file.
    """

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self._path = os.path.join(_directory(mount), CONTROL)
        self._rest = b""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise self._explained(exc) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._fd)

    def run(self, words: Sequence[str], *, job: bool = False, listener: Listener = _nobody) -> Answer:
        """Run a command and return its result.

        Args:
          words: The command's name, which may be two words, and its arguments.
          job: As a job of the mount, for what takes long.

        Raises:
          AnsweredError: It failed.
          Failure: Nobody serves the mount any more.
          KeyboardInterrupt: After the job was told to end.
        """
        line = " ".join(map(quote, words)) + (" &" if job else "") + "\n"
        failed: OSError | None = None
        try:
            os.write(self._fd, line.encode("utf-8", "surrogateescape"))
        except OSError as exc:
            # The answer says it in words.
            failed = exc
        number: int | None = None
        try:
            for answer, text in self._answers(wait=job and failed is None):
                listener(answer, text)
                match answer.get("type"):
                    case "job":
                        number = answer["job"]
                    case "result":
                        return answer
                    case "error":
                        raise AnsweredError(answer.get("error", ""), answer.get("message", ""))
        except KeyboardInterrupt:
            if number is not None:
                self._cancel(number)
            raise
        if failed is not None:
            raise self._explained(failed) from failed
        raise Failure(Exit.BUG, f"{printable(self._path)}: no answer to {words[0]}")

    def _answers(self, *, wait: bool) -> Iterator[tuple[Answer, str]]:
        """What there is to read; with `wait`, also what comes later."""
        while True:
            while b"\n" not in self._rest:
                try:
                    data = os.read(self._fd, _READ_BYTES)
                except OSError as exc:
                    raise self._explained(exc) from exc
                # The mount lets a reader wait for a moment, then says that there is nothing yet.
                if not data and not wait:
                    return
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            answer = json.loads(line)
            yield answer, line.decode("ascii")

    def _cancel(self, number: int) -> None:
        with suppress(OSError):
            os.write(self._fd, b"cancel %d\n" % number)

    def _explained(self, exc: OSError) -> Exception:
        """Why the control file cannot be used, as far as that is foreseen."""
        mountpoint = printable(self.mount.mountpoint)
        if isinstance(exc, PermissionError):
            return Failure(
                Exit.DENIED, f"{printable(self._path)}: only {self._owner()} may control this mount"
            )
        if isinstance(exc, FileNotFoundError):
            return _without(self.mount)
        if self.mount.read_only:
            return Failure(
                Exit.FAILED,
                f"{mountpoint} is mounted read-only, so it takes no commands but {' and '.join(READABLE)}",
            )
        if is_dead(self.mount.mountpoint):
            return Failure(
                Exit.NO_MOUNT,
                f"{mountpoint}: nobody serves this mount any more; mount it again with mount.cas"
                f" {printable(self.mount.source)} {mountpoint}",
            )
        return exc

    def _owner(self) -> str:
        try:
            uid = os.stat(self._path).st_uid
        except OSError:
            return "its owner and root"
        if uid == 0:
            return "root"
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = f"user {uid}"
        return f"{name}, who mounted it, and root"
