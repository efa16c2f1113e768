"""A mount from the moment it is made until it is closed, whatever is served: a store, or a snapshot alone.

1. Requests are answered as soon as the mount is made; only then `on_ready` is called.
2. SIGTERM and SIGINT unmount. Whoever still uses the mount loses it, but nothing that was written to it.
3. However serving ends, the connection is closed, and then `Served.close` is called: nobody can ask any more.

The order of the steps, and what they rest on: docs/request-loop.md.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable

import pyfuse3
import trio

from mountstore.blobs.flush import syncfs
from mountstore.errors import BusyError, MountstoreError
from mountstore.fuse import handshake, heap, mounts, request_loop
from mountstore.fuse.handshake import Connection
from mountstore.fuse.mount_options import MountOptions
from mountstore.fuse.readahead import raise_readahead

__all__ = ["Served", "serve"]

log = logging.getLogger(__name__)


class Served(ABC):
    """What a mount shows: the handlers of its requests, and what they need beside them."""

    def __init__(self, operations: pyfuse3.Operations) -> None:
        self.operations = operations

    async def start(self, connection: Connection, nursery: trio.Nursery) -> None:  # noqa: B027  # may need nothing
        """Start what has to run while requests are served; it is cancelled when serving ends."""

    def interrupt(self) -> None:  # noqa: B027  # may have nobody waiting
        """The mount is to end: let go of who waits in a request, and so uses it."""

    async def find_written(self) -> list[bytes]:
        """A path, from the mount's root, of every file that somebody has open for writing."""
        return []

    @abstractmethod
    async def close(self) -> None:
        """Give up everything: the connection is closed. Not cancelled."""


async def serve(
    served: Served, mountpoint: str, options: MountOptions, on_ready: Callable[[], None], *, fsname: str
) -> None:
    """Mount, and serve until the mount is taken away, or SIGTERM or SIGINT arrives.

    Args:
      on_ready: Called once, when requests are being served.
      fsname: The source in mount tables.

    Raises:
      MisuseError, MountError, OSError: Nothing is mounted, and `served` was not closed.
    """
    _quiet_late_answers()
    connection = await handshake.mount(
        served.operations, mountpoint, options.for_kernel(), fsname=fsname, want_handshake=options.handshake
    )
    try:
        raise_readahead(connection.device)
        if options.fast_loop:
            request_loop.install(options.busy_poll_us / 1e6, quick_wake=options.quick_wake)
        async with trio.open_nursery() as nursery:
            await nursery.start(_end_on_signal, connection, served)
            await served.start(connection, nursery)
            nursery.start_soon(_announce, on_ready)
            nursery.start_soon(heap.give_back)
            await request_loop.serve()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            request_loop.uninstall()
            handshake.close(connection)
            await served.close()


def _quiet_late_answers() -> None:
    """Keep pyfuse3 from reporting answers that nobody waits for any more.

    When a mount ends, the kernel drops the RELEASE requests under way; answering one is then ENOENT.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return not (record.args and record.args == (os.strerror(errno.ENOENT),))

    logging.getLogger("pyfuse3").addFilter(wanted)


async def _announce(on_ready: Callable[[], None]) -> None:
    # What was imported stays for good: looking through it for garbage would hold up requests for 50 ms each time.
    gc.collect()
    gc.freeze()
    # One turn of the scheduler: the serving task has begun to wait for requests.
    await trio.lowlevel.checkpoint()
    on_ready()


async def _end_on_signal(
    connection: Connection, served: Served, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Unmount when told to end; who still uses the mount loses it, after the kernel wrote back all it had."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting %s", signal.Signals(number).name, connection.mountpoint)
            served.interrupt()
            try:
                await trio.to_thread.run_sync(mounts.unmount, connection.mountpoint)
            except BusyError as exc:
                log.warning("%s; detaching it from those who use it", exc)
                paths: list[bytes] = []
                try:
                    paths = await served.find_written()
                except Exception as failure:
                    log.error("what is open for writing cannot be found out: %s", failure)
                await trio.to_thread.run_sync(_detach, connection.mountpoint, paths)
                pyfuse3.terminate()
            except MountstoreError as exc:
                log.warning("%s", exc)
                pyfuse3.terminate()


def _detach(mountpoint: str, written: list[bytes]) -> None:
    """Have the kernel write back all it holds, then take the mount away from its users.

    Args:
      written: Paths in the mount of what is open for writing. For FUSE, syncfs(2) begins to write back
        everything, but does not wait for it (mapping_no_data_integrity in the kernel's fs-writeback.c); fsync(2)
        of a file does.
    """
    try:
        syncfs(mountpoint)
    except OSError as exc:
        log.warning("%s: %s", mountpoint, exc)
    for path in written:
        try:
            fd = os.open(os.fsencode(mountpoint) + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            log.warning("%s: %s", os.fsdecode(path), exc)
    try:
        mounts.unmount(mountpoint, lazy=True)
    except (OSError, MountstoreError) as exc:
        log.warning("%s: %s", mountpoint, exc)
