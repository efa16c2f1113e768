"""Serve FUSE requests without going through trio's scheduler for each of them.

pyfuse3 waits for its descriptor with a trio lock and an epoll pass before every request, which is two thirds of
the cost of a small one. `install` replaces that wait: a request that is already there is taken at once; when
none is, the descriptor is polled a little longer, as long as requests have lately been following each other
that closely; only then is the original wait entered, and the process sleeps.

Invariants:
1. One task at a time is the poller: it polls, sleeps, or stands at a checkpoint. Every other task of pyfuse3's
   pool that has nothing to do is parked. So nobody takes the request that another was woken for, which
   matters because reading the descriptor blocks the whole thread when nothing is there.
2. Whenever the poller leaves with a request, a parked task is made runnable. It runs, and becomes the
   poller, as soon as the handler of that request waits for something: a slow handler holds up nobody.
3. Every other task and timer gets its turn at least every `_TURN_S`, and every `_BUSY_TURN_S` while a handler
   waits for something. Then polling goes through the scheduler, too: a thread's result must not have to wait
   for its end.
4. Sleeping, and with it noticing the end of the session, is left to the original function.
5. An idle mount costs nothing: after a request no longer than the bound is polled for, then never again, and
   `_LINGER_S` after the last one of a burst the cores may sleep as deeply as they would without this.

`mountstore.fuse.handshake.mount` must be done before `serve`; between serves the original wait is in
force. The private parts this relies on, and the measurements: docs/request-loop.md.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import select
from collections.abc import Awaitable, Callable
from time import perf_counter

import pyfuse3
import trio
from trio.lowlevel import checkpoint, current_statistics, current_task

from mountstore.fuse.quick_wake import QuickWake

__all__ = ["DEFAULT_BUSY_POLL_S", "install", "installed", "requests", "serve", "uninstall"]

log = logging.getLogger(__name__)

_KNOWN_RELEASES = ("3.5.",)
_WAIT = "_wait_fuse_readable"

DEFAULT_BUSY_POLL_S = 0.0002
# A turn costs 20 us in a mount when nobody else has anything to do: 2 % of this.
_TURN_S = 0.001
_BUSY_TURN_S = 0.0005
# Passes of the scheduler in one turn, as long as there is somebody to run: one alone would let a task that
# takes several steps (a thread's result takes three) do one each turn.
_TURN_PASSES_MAX = 16
# One round of polling takes 2 us. One that took this long was interrupted: somebody else wants the core.
_ROUND_S_MAX = 0.00005
# So many requests, each so soon after the one before, are a burst, in which idle cores are kept quick to wake.
_BURST = 8
_CLOSE_S = 0.0005
# A burst is over when nothing came for this long (an fsync takes a millisecond), or more came late than soon.
_LINGER_S = 0.002
# Below this a window is not worth opening.
_WINDOW_S_MIN = 0.00001


class _FastWait:
    """The replacement of pyfuse3's wait, with its state; belongs to the trio thread."""

    def __init__(
        self, original: Callable[[], Awaitable[bool]], bound_s: float, quick_wake: QuickWake | None = None
    ) -> None:
        self._original = original
        self._bound_s = bound_s
        self._quick_wake = quick_wake
        self._poll: Callable[[int], object] | None = None
        self._has_poller = False
        self._successor: trio.Event | None = None
        self._parked: list[trio.Event] = []
        # Tasks that were given a request and have not come back for the next one.
        self._busy: set[trio.lowlevel.Task] = set()
        self._last_turn_s = 0.0
        self._window_s = 0.0
        self._one_core = False
        # Requests that came soon less those that came late, from 0 to `_BURST`.
        self._credit = 0
        self.requests = 0

    def start(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        self._poll = poll.poll
        self._has_poller = False
        self._successor = None
        self._parked.clear()
        self._busy.clear()
        self._window_s = 0.0
        self._one_core = _has_one_core()
        self._credit = 0
        if self._quick_wake is not None:
            self._quick_wake.open()
        self._last_turn_s = perf_counter()

    def stop(self) -> None:
        self._poll = None
        if self._quick_wake is not None:
            self._quick_wake.close()

    async def __call__(self) -> bool:
        """Return True when a request can be read without blocking, False to end the session's loop."""
        poll = self._poll
        if poll is None:
            return await self._original()
        task = current_task()
        busy = self._busy
        busy.discard(task)
        while self._has_poller:
            await self._park()
        self._has_poller = True
        try:
            if perf_counter() - self._last_turn_s > (_BUSY_TURN_S if busy else _TURN_S):
                await self._give_turn()
            readable = bool(poll(0)) or await self._poll_busily(poll) or await self._sleep()
        finally:
            self._has_poller = False
            if self._parked and self._successor is None:
                self._successor = self._parked.pop()
                self._successor.set()
        busy.add(task)
        self.requests += 1
        return readable

    async def _park(self) -> None:
        # Last in, first out: few tasks do the work, so few of libfuse's 1 MiB buffers are ever touched.
        event = trio.Event()
        self._parked.append(event)
        try:
            await event.wait()
        finally:
            if self._successor is event:
                self._successor = None
            else:
                self._parked.remove(event)

    async def _give_turn(self) -> None:
        """Let the timers fire and the other tasks run until all of them wait for something."""
        for _ in range(_TURN_PASSES_MAX):
            await checkpoint()
            if not current_statistics().tasks_runnable:
                break
        self._last_turn_s = perf_counter()

    async def _poll_busily(self, poll: Callable[[int], object]) -> bool:
        """Poll for as long as lately was worth it; return whether a request came."""
        window_s = self._window_s
        if not window_s:
            if not self._one_core:
                return False
            # Who was just answered may wait for this very core.
            os.sched_yield()
            return bool(poll(0))
        started_s = now_s = perf_counter()
        while now_s - started_s < window_s:
            if self._busy:
                # Handlers wait for threads or timers: only the scheduler can see those.
                await checkpoint()
                self._last_turn_s = perf_counter()
            else:
                os.sched_yield()
            if poll(0):
                self._came_soon()
                return True
            before_s, now_s = now_s, perf_counter()
            if now_s - before_s > _ROUND_S_MAX and not self._busy:
                break
        self._window_s = window_s / 2 if window_s > _WINDOW_S_MIN else 0.0
        return False

    async def _sleep(self) -> bool:
        asleep_s = perf_counter()
        quick_wake = self._quick_wake
        if quick_wake is not None and quick_wake.held:
            readable = await self._linger(quick_wake)
        else:
            readable = await self._original()
        self._last_turn_s = now_s = perf_counter()
        if now_s - asleep_s < _CLOSE_S:
            self._came_soon()
        else:
            self._came_late()
        if now_s - asleep_s < self._bound_s:
            self._one_core = _has_one_core()
            if not self._one_core:
                # Polling would have caught this one. On a single core it would only have kept the client from
                # running.
                self._window_s = self._bound_s
        return readable

    async def _linger(self, quick_wake: QuickWake) -> bool:
        """Sleep as `_original` does; from `_LINGER_S` on the cores may sleep deeply again."""
        with trio.move_on_after(_LINGER_S):
            return await self._original()
        quick_wake.let_go()
        self._credit = 0
        return await self._original()

    def _came_soon(self) -> None:
        if self._credit < _BURST:
            self._credit += 1
            if self._credit == _BURST and self._quick_wake is not None:
                self._quick_wake.hold()

    def _came_late(self) -> None:
        if self._credit:
            self._credit -= 1
            if not self._credit and self._quick_wake is not None:
                self._quick_wake.let_go()


def _has_one_core() -> bool:
    return len(os.sched_getaffinity(0)) == 1


_installed: _FastWait | None = None


def install(busy_poll_s: float = DEFAULT_BUSY_POLL_S, *, quick_wake: bool = True) -> bool:
    """Replace pyfuse3's wait from the next `serve` on; a second call changes the bound.

    Args:
      busy_poll_s: How long at most to poll for the next request before sleeping; 0 never polls.
      quick_wake: Keep idle cores quick to wake during bursts (`mountstore.fuse.quick_wake`).

    Returns:
      False, with a line in the log, when this pyfuse3 is not one the replacement is known to fit: then the
      original stays.
    """
    global _installed
    uninstall()
    reason = _misfit()
    if reason:
        log.warning("serving requests in pyfuse3's own loop, which is slower: %s", reason)
        return False
    _installed = _FastWait(getattr(pyfuse3, _WAIT), busy_poll_s, QuickWake() if quick_wake else None)
    setattr(pyfuse3, _WAIT, _installed.__call__)
    return True


def uninstall() -> None:
    """Put pyfuse3's own wait back; not while serving."""
    global _installed
    if _installed is not None:
        setattr(pyfuse3, _WAIT, _installed._original)
        _installed = None


def installed() -> bool:
    """Whether the replacement is in place."""
    return _installed is not None


def requests() -> int:
    """How many requests were taken since the replacement is in place; 0 if it is not."""
    return 0 if _installed is None else _installed.requests


async def serve(min_tasks: int = 1, max_tasks: int = 64) -> None:
    """Serve requests until the file system is unmounted or `pyfuse3.terminate` is called.

    Args:
      max_tasks: How many requests may be under way at a time. Tasks are made as they are needed.
    """
    if _installed is None:
        await _serve(min_tasks, max_tasks)
        return
    descriptor = _session_descriptor()
    if descriptor is None:
        log.warning("serving requests in pyfuse3's own loop: no single descriptor of /dev/fuse")
    else:
        _installed.start(descriptor)
    try:
        await _serve(min_tasks, max_tasks)
    finally:
        _installed.stop()


async def _serve(min_tasks: int, max_tasks: int) -> None:
    try:
        await pyfuse3.main(min_tasks, max_tasks)
    except* OSError as group:
        # The end of a connection is ENODEV, which libfuse knows. But whoever was just taking a request out of its
        # queue (the RELEASE of a file, which an unmount overtakes) gets this: fuse_dev_do_read in the kernel.
        others = group.split(_is_abort)[1]
        if others is not None:
            raise others from None


def _is_abort(exc: BaseException) -> bool:
    return isinstance(exc, OSError) and exc.errno == errno.ECONNABORTED


def _misfit() -> str | None:
    """Say what about pyfuse3 is not as `_FastWait` needs it, or None."""
    if not pyfuse3.__version__.startswith(_KNOWN_RELEASES):
        return f"pyfuse3 {pyfuse3.__version__} is not known to have it the same way"
    wait = getattr(pyfuse3, _WAIT, None)
    if not inspect.iscoroutinefunction(wait) or inspect.signature(wait).parameters:
        return f"pyfuse3.{_WAIT} is not a coroutine function without parameters"
    if getattr(pyfuse3, "trio", None) is not trio:
        return "pyfuse3 does not run on trio"
    return None


def _session_descriptor() -> int | None:
    """Return the one descriptor of this process that is open on /dev/fuse; pyfuse3 does not tell its own."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.append(int(name))
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return found[0] if len(found) == 1 else None
