"""The processes that decode images: started when first needed, kept for a while, ended when they stall.

The daemon has many threads and open files, so a worker is a fresh program, not a fork, and gets no descriptor
but its end of a socket, and over that the two files of each job. Whatever happens to a worker (it is killed, runs
out of memory, answers nonsense) is at worst an `ImageError` for the job at hand; the next job gets another one.

Everything here runs on one trio thread.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import Final

import msgspec
import trio

from mountstore.errors import ImageError, TooLargeError
from mountstore.images.job import MESSAGE_MAX, Job, Limits, Outcome, Request

__all__ = ["WORKERS", "Workers"]

log = logging.getLogger(__name__)

WORKERS: Final = max(1, min(os.cpu_count() or 1, 4))
"""Images that are worked on at the same time."""

_IDLE_S: Final = 60.0
_START_S: Final = 60.0
_GRACE_S: Final = 5.0
"""A worker ends a job that takes too long by itself; after so much more, it is ended."""


class _Lost(Exception):
    """The worker's end of the socket is closed."""


class _Worker:
    """One process and our end of its socket."""

    def __init__(self, process: trio.Process, connection: trio.socket.SocketType) -> None:
        self.process = process
        self._connection = connection

    @classmethod
    async def start(cls) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "mountstore.images.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                start_new_session=True,
            )
            worker = cls(process, trio.socket.from_stdlib_socket(ours.dup()))
        try:
            with trio.fail_after(_START_S):
                await worker.receive()
        except BaseException as exc:
            await worker.end()
            if isinstance(exc, _Lost | trio.TooSlowError):
                raise ImageError(
                    "the process that resizes images cannot be started; is Pillow installed for"
                    f" {sys.executable}? The daemon's log has more"
                ) from exc
            raise
        return worker

    async def receive(self) -> Outcome:
        try:
            message = await self._connection.recv(MESSAGE_MAX)
        except ConnectionError:
            message = b""
        if not message:
            raise _Lost
        try:
            return msgspec.json.decode(message, type=Outcome)
        except (msgspec.ValidationError, msgspec.DecodeError) as exc:
            raise _Lost from exc

    async def ask(self, request: Request, source: int, result: int) -> Outcome:
        descriptors = memoryview(b"".join(fd.to_bytes(4, sys.byteorder) for fd in (source, result)))
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
        try:
            await self._connection.sendmsg([msgspec.json.encode(request)], [rights])
        except ConnectionError as exc:
            raise _Lost from exc
        return await self.receive()

    async def end(self) -> int:
        """Close the socket, kill the process and take its exit status, whatever happens here meanwhile."""
        self._connection.close()
        with trio.CancelScope(shield=True):
            self.process.kill()
            await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode


class Workers:
    """At most `count` processes; more jobs wait for their turn, first come, first served."""

    def __init__(self, limits: Limits | None = None, *, count: int = WORKERS, idle_s: float = _IDLE_S) -> None:
        self.limits: Final = limits or Limits()
        self._turns = trio.CapacityLimiter(count)
        self._idle: list[tuple[_Worker, float]] = []
        self._idle_s = idle_s
        self._clearing = False
        self._closed = False
        self.started = 0
        """Processes started so far."""

    async def render(self, job: Job, source: int, result: int) -> Outcome:
        """Make the image.

        Args:
          source: Descriptor of the image.
          result: Descriptor of an empty file, for reading and writing, which gets the new image.

        Raises:
          ImageError: The source is no image, or a damaged one, or its decoder died of it.
          TooLargeError: The image, or the work, is beyond the limits.

        Cancellation: The process is killed; `result` may hold anything.
        """
        async with self._turns:
            outcome = await self._ask(Request(job, self.limits), source, result)
        if outcome.too_large:
            raise TooLargeError(outcome.error)
        if outcome.error:
            raise ImageError(outcome.error)
        if os.fstat(result).st_size != outcome.size_bytes:
            raise ImageError("the result is not what its maker says")
        return outcome

    async def aclose(self) -> None:
        """End all processes. Whoever waits for one gets an ImageError."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[0].end()

    async def _ask(self, request: Request, source: int, result: int) -> Outcome:
        limits = request.limits
        while True:
            worker, fresh = await self._take()
            try:
                with trio.fail_after(limits.wall_s + _GRACE_S):
                    outcome = await worker.ask(request, source, result)
                break
            except BaseException as exc:
                status = await worker.end()
                if isinstance(exc, trio.TooSlowError):
                    raise TooLargeError(f"it took longer than {limits.wall_s:g} s") from None
                if not isinstance(exc, _Lost):
                    raise
                # One that had been waiting may have died of anything: another is asked, but that is all.
                if fresh:
                    how = f"signal {-status}" if status < 0 else f"exit code {status}"
                    raise ImageError(f"the process that resizes images died ({how}); try again") from None
        if self._closed:
            await worker.end()
        else:
            self._keep(worker)
        return outcome

    def _keep(self, worker: _Worker) -> None:
        self._idle.append((worker, trio.current_time() + self._idle_s))
        if not self._clearing:
            self._clearing = True
            trio.lowlevel.spawn_system_task(self._clear, name="idle image workers")

    async def _take(self) -> tuple[_Worker, bool]:
        """A worker, and whether it was started just now."""
        while self._idle:
            # The one used last: the others may end for want of work.
            worker, _ = self._idle.pop()
            if worker.process.poll() is None:
                return worker, False
            await worker.end()
        if self._closed:
            raise ImageError("the mount is being ended")
        worker = await _Worker.start()
        self.started += 1
        return worker, True

    async def _clear(self) -> None:
        """End workers that nobody has used for some time, until there are none."""
        try:
            while self._idle:
                worker, until_s = self._idle[0]
                now_s = trio.current_time()
                if until_s > now_s:
                    await trio.sleep(until_s - now_s)
                else:
                    del self._idle[0]
                    await worker.end()
        except Exception:
            # A system task that raises ends the daemon.
            log.exception("an idle process for images cannot be ended")
        finally:
            self._clearing = False
