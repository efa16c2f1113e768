"""Commands that run: in the background, or while their writer waits. All can be listed and cancelled."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import trio

from mountstore.control.answers import encode, encode_slowly
from mountstore.control.context import Context, Services
from mountstore.errors import AbsentError, BusyError, CancelledError

if TYPE_CHECKING:
    from mountstore.control.command import Arguments, Command, Registry

__all__ = ["Job", "Jobs", "State"]

log = logging.getLogger(__name__)

RUNNING_MAX: Final = 32
"""Commands that may run at a time. Each whose writer waits takes one of the mount's 64 requests under way."""

_ENDED_MAX: Final = 100
"""Ended background jobs that are remembered."""

_RESULT_MAX_BYTES: Final = 4096
"""Larger results of ended jobs are not remembered."""

Listener = Callable[[bytes, bool], None]
"""Told a line of an answer, and whether it is only progress."""


class State(StrEnum):
    """Where a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job:
    """One run of a command."""

    def __init__(self, number: int, line: str, *, background: bool, listener: Listener | None) -> None:
        self.number: Final = number
        self.line: Final = line
        self.background: Final = background
        self.listener = listener
        self.state = State.RUNNING
        self.started_s: Final = time.time()
        self.ended_s: float | None = None
        self.progress: tuple[int, int | None, str] | None = None
        self.error: tuple[str, str] | None = None
        self.result: Mapping[str, object] | None = None
        self.scope: Final = trio.CancelScope()
        self.cancelled = False

    def cancel(self) -> None:
        """Have it end as soon as it can."""
        self.cancelled = True
        self.scope.cancel()

    def tell_progress(self, done: int, total: int | None, unit: str) -> None:
        self.progress = done, total, unit
        if self.listener is not None:
            answer = {"type": "progress", "done": done, "total": total, "unit": unit}
            self.listener(encode(self._marked(answer)), True)

    async def tell(self, answer: dict[str, object]) -> None:
        """Give an answer to whoever still listens."""
        if self.listener is not None:
            line = await encode_slowly(self._marked(answer))
            if self.listener is not None:
                self.listener(line, False)

    def _marked(self, answer: dict[str, object]) -> dict[str, object]:
        return {**answer, "job": self.number} if self.background else answer

    def describe(self) -> dict[str, object]:
        """A row for `jobs`."""
        row: dict[str, object] = {
            "job": self.number,
            "command": self.line,
            "state": self.state.value,
            "background": self.background,
            "started_s": round(self.started_s, 3),
            "elapsed_s": round((self.ended_s or time.time()) - self.started_s, 3),
        }
        if self.progress is not None:
            row["done"], row["total"], row["unit"] = self.progress
        if self.error is not None:
            row["error"], row["message"] = self.error
        if self.result is not None:
            row["result"] = self.result
        return row


class Jobs:
    """The jobs of one mount; `run` has to run as long as commands are to be taken."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._nursery: trio.Nursery | None = None
        self._next = 1
        self._running: dict[int, Job] = {}
        self._ended: OrderedDict[int, Job] = OrderedDict()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let jobs run in the background until cancelled, which cancels them."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self.stop()

    def stop(self) -> None:
        """Take no more commands, and cancel those that run."""
        self._nursery = None
        for job in self._running.values():
            job.cancel()

    # --- looking ---

    def all(self) -> list[Job]:
        """Those that run, then the background ones that ended lately; the latest last in both."""
        return [*self._ended.values(), *self._running.values()]

    def get(self, number: int) -> Job:
        """Raises: AbsentError if there is no such job, or it is forgotten."""
        job = self._running.get(number) or self._ended.get(number)
        if job is None:
            raise AbsentError(f"there is no job {number}; jobs lists them")
        return job

    # --- running ---

    def begin(self, line: str, *, background: bool, listener: Listener) -> Job:
        """A new job, to be given to `perform` or, if it is to run in the background, to `start`.

        Args:
          listener: Gets its answers, until it is taken off the job.

        Raises: BusyError if too many run, or the mount is about to end.
        """
        if self._nursery is None:
            raise BusyError("the mount is ending")
        if len(self._running) >= RUNNING_MAX:
            raise BusyError(f"{RUNNING_MAX} commands are running; wait for one to end, or cancel it")
        job = Job(self._next, line, background=background, listener=listener)
        self._next += 1
        self._running[job.number] = job
        return job

    async def perform(self, job: Job, command: Command, arguments: Arguments) -> None:
        """Run a job for somebody who waits for it.

        Raises: What the command raises, or CancelledError; `job.error` says it in words.
        """
        await self._run(job, command, arguments)

    def start(self, job: Job, command: Command, arguments: Arguments) -> None:
        """Run a job in the background."""
        assert self._nursery is not None, "no await since `begin`"
        self._nursery.start_soon(self._run_alone, job, command, arguments)

    async def _run_alone(self, job: Job, command: Command, arguments: Arguments) -> None:
        try:
            await self._run(job, command, arguments)
        except Exception:
            # Its answer, and `jobs`, say so.
            log.info("job %d failed: %s: %s", job.number, job.line, job.error)

    async def _run(self, job: Job, command: Command, arguments: Arguments) -> None:
        services = self._services
        services.statistics.commands += 1
        context = Context(services, self._registry, self, job)
        try:
            with job.scope:
                answer = await command.run(context, arguments)
                await services.trees.drop_displaced()
                job.state = State.DONE
                await self._succeed(job, answer)
            if job.state is State.RUNNING:
                # Cancelled from outside: by whom is no matter.
                raise CancelledError(f"{job.line}: cancelled")
        except Exception as exc:
            services.statistics.failed_commands += 1
            job.state = State.CANCELLED if isinstance(exc, CancelledError) else State.FAILED
            job.error = services.explain(exc), str(exc) or type(exc).__name__
            await job.tell({"type": "error", "error": job.error[0], "message": job.error[1]})
            raise
        finally:
            if job.state is State.RUNNING:
                # The mount ends.
                job.state = State.CANCELLED
            self._end(job)

    async def _succeed(self, job: Job, answer: Mapping[str, object]) -> None:
        if job.background:
            rows = answer.get("rows")
            small = not (isinstance(rows, list) and len(rows) > 20)
            if small and len(encode(answer)) <= _RESULT_MAX_BYTES:
                job.result = answer
        await job.tell({"type": "result", **answer})

    def _end(self, job: Job) -> None:
        job.ended_s = time.time()
        job.listener = None
        del self._running[job.number]
        if job.background:
            self._ended[job.number] = job
            if len(self._ended) > _ENDED_MAX:
                self._ended.popitem(last=False)
