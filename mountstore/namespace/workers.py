"""Threads for what blocks, nearer at hand than those of trio.

`trio.to_thread` takes three passes of the scheduler a call. Here a call goes through a queue, and its end is told
by a socket of its own, for which the scheduler waits as for any other: an fsync of 0.64 ms takes 0.54 so.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import outcome
import trio

_T = TypeVar("_T")

_Signal = tuple[socket.socket, socket.socket]
"""Where the end of a call is awaited, and where it is told."""


class _Call(Generic[_T]):
    """A call, and what came of it."""

    __slots__ = ("_arguments", "_function", "result", "signal")

    def __init__(self, function: Callable[..., _T], arguments: tuple[object, ...], signal: _Signal) -> None:
        self._function = function
        self._arguments = arguments
        self.signal = signal
        self.result: outcome.Maybe[_T] | None = None

    def make(self) -> None:
        self.result = outcome.capture(self._function, *self._arguments)
        self.signal[1].send(b"\0")


class Workers:
    """Threads of one owner, made as they are needed.

    Args:
      count: So many calls may be under way at a time; others wait, first come, first served.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        # As many as threads have nothing to do; `_free` counts those that nobody is about to take.
        self._idle: list[_Signal] = []
        self._free = trio.Semaphore(0)

    async def run(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function in one of the threads. Whoever is cancelled meanwhile still waits for its end.

        Raises: What it raises; OSError, RuntimeError: There is no thread yet, and none can be had.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            if not self._start():
                await self._free.acquire()
        signal = self._idle.pop()
        call = _Call(function, arguments, signal)
        self._calls.put(call)
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(signal[0])
        signal[0].recv(1)
        self._idle.append(signal)
        self._free.release()
        assert call.result is not None
        return call.result.unwrap()

    def _start(self) -> bool:
        """Begin another thread, for who asks; False if those there are must do.

        Raises: OSError, RuntimeError: There are none.
        """
        if len(self._threads) == self._count:
            return False
        try:
            signal = socket.socketpair()
            try:
                # A process that ends in spite of a call does not wait for it.
                name = f"worker-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                thread.start()
            except BaseException:
                _close(signal)
                raise
        except (OSError, RuntimeError):
            if not self._threads:
                raise
            return False
        self._threads.append(thread)
        self._idle.append(signal)
        return True

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()
            # What it has may be large.
            del call

    def close(self) -> None:
        """End the threads, for good. No call may be under way."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        while self._idle:
            _close(self._idle.pop())


def _close(signal: _Signal) -> None:
    for end in signal:
        end.close()
