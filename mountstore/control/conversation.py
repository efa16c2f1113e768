"""One open control file: lines go in, answers come out."""

from __future__ import annotations

import itertools
import logging
from typing import Final

import trio

from mountstore.control.answers import AnswerQueue, encode
from mountstore.control.command import Arguments, Command, Registry
from mountstore.control.context import Services
from mountstore.control.jobs import Job, Jobs
from mountstore.control.language import LineBuffer, parse_line
from mountstore.errors import BusyError, CancelledError

__all__ = ["CommandFailedError", "Conversation"]

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 0.1
"""Who reads while jobs of its own run, and nothing is there, waits so long at most: a process that waits for an
answer to a FUSE request cannot even be killed."""

_LINE_SHOWN: Final = 200

_LINES_AT_ONCE: Final = 16
"""Commands that do not wait take up to a fifth of a millisecond each."""


class CommandFailedError(Exception):
    """A command failed, and its answer, which can be read, says why. `error` is what `Services.explain` said."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error: Final = error


class Conversation:
    """What was written to, and is to be read from, one open control file."""

    def __init__(self, services: Services, registry: Registry, jobs: Jobs) -> None:
        self._services = services
        self._registry = registry
        self._jobs = jobs
        self._lines = LineBuffer()
        self._queue = AnswerQueue()
        # One write at a time, though several threads may use one descriptor.
        self._turn = trio.Lock()
        self._mine: set[Job] = set()
        self._current: Job | None = None
        self._cancelled = False

    async def write(self, data: bytes) -> None:
        """Run the lines that `data` ends, in order, up to the first that fails; the rest of `data` is dropped.

        Raises: CommandFailedError
        """
        async with self._turn:
            self._cancelled = False
            lines = self._lines.feed(data)
            for number in itertools.count(1):
                if number % _LINES_AT_ONCE == 0:
                    # Some commands never wait, and empty lines do not: others have their turn all the same.
                    await trio.lowlevel.checkpoint()
                try:
                    line = next(lines, None)
                    if line is None:
                        return
                    if self._cancelled:
                        raise CancelledError("cancelled")
                    parsed = self._parse(line)
                except Exception as exc:
                    self._lines.drop_rest()
                    raise self._refused(exc) from exc
                try:
                    await self._run(*parsed)
                except CommandFailedError:
                    self._lines.drop_rest()
                    raise

    def _parse(self, text: bytes) -> tuple[str, Command | None, Arguments, bool]:
        shown = text[:_LINE_SHOWN].decode("utf-8", "backslashreplace")
        words, background = parse_line(text)
        if not words:
            return shown, None, Arguments({}), False
        command, rest = self._registry.find(words)
        return shown, command, command.parse(rest), background

    async def _run(self, shown: str, command: Command | None, arguments: Arguments, background: bool) -> None:
        if command is None:
            return
        try:
            job = self._jobs.begin(shown, background=background, listener=self._listen)
        except BusyError as exc:
            raise self._refused(exc) from exc
        if background:
            self._mine.add(job)
            self._queue.put(encode({"type": "job", "job": job.number}))
            self._jobs.start(job, command, arguments)
            return
        self._current = job
        try:
            await self._jobs.perform(job, command, arguments)
        except Exception as exc:
            raise CommandFailedError(job.error[0] if job.error else "EIO") from exc
        finally:
            self._current = None

    def _listen(self, line: bytes, progress: bool) -> None:
        self._queue.put(line, progress=progress)

    def _refused(self, exc: Exception) -> CommandFailedError:
        """The answer to what never ran."""
        error = self._services.explain(exc)
        self._services.statistics.failed_commands += 1
        self._queue.put(encode({"type": "error", "error": error, "message": str(exc)}))
        return CommandFailedError(error)

    def cancel(self) -> None:
        """Whoever waits for a command of this conversation waits no more: it is cancelled."""
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()

    async def read(self, length: int) -> bytes:
        """What there is to read, up to `length` bytes; nothing if nothing is there by now, or very soon."""
        if not self._queue:
            self._mine = {job for job in self._mine if job.ended_s is None}
            if self._mine:
                with trio.move_on_after(_PATIENCE_S):
                    await self._queue.wait()
        return self._queue.take(length)

    def take(self, length: int) -> bytes:
        """As `read`, without waiting."""
        return self._queue.take(length)

    def close(self) -> None:
        """Nobody reads any more. Jobs in the background go on."""
        for job in self._mine:
            job.listener = None
        rest = self._lines.unfinished.strip()
        if rest:
            # Never run: it may be the first half of a command whose writer died.
            shown = rest[:_LINE_SHOWN].decode("utf-8", "backslashreplace")
            log.warning("a line of the control file without a newline was not run: %s", shown)

