"""A mount from beginning to end: open the store, mount, serve, seal, close."""

from __future__ import annotations

import errno
import gc
import logging
import math
import os
import signal
from collections.abc import Callable

import pyfuse3
import trio

from mountstore.blobs.flush import syncfs
from mountstore.care.snapshots import Snapshots
from mountstore.control.context import Services
from mountstore.control.messages import Recent
from mountstore.errors import BusyError, MountstoreError
from mountstore.fuse import handshake, mounts, request_loop
from mountstore.fuse.control import Control, explain
from mountstore.fuse.mount_options import MountOptions
from mountstore.fuse.operations import CACHE_S, Operations
from mountstore.fuse.readahead import raise_readahead
from mountstore.fuse.snapshot_mount import serve_snapshot
from mountstore.store import Store

log = logging.getLogger(__name__)

_READ_ONLY_CACHE_S = 1.0
"""A read-only mount may stand beside a writer, whose changes should show soon."""


def serve(
    store_path: str, mountpoint: str, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    """Mount a store and serve it until it is unmounted, or SIGTERM or SIGINT arrives.

    Returns when everything is safe on disk and the store is closed.

    Args:
      on_ready: Called once, when requests are being served.

    Raises:
      StoreError, BusyError, CorruptError, MountError, OSError: Nothing is mounted.
      ExceptionGroup: Contents could not be sealed at the end.
    """
    _quiet_late_answers()
    if options.snapshot is None:
        trio.run(_serve, store_path, mountpoint, options, on_ready)
    else:
        trio.run(_serve_alone, store_path, mountpoint, options.snapshot, options, on_ready)


async def _serve_alone(
    store_path: str, mountpoint: str, snapshot: str, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    await serve_snapshot(
        store_path,
        mountpoint,
        snapshot,
        options.for_kernel(),
        on_ready,
        acl=options.acl,
        xattr=options.xattr,
        want_handshake=options.handshake,
        busy_poll_us=options.busy_poll_us if options.fast_loop else None,
        quick_wake=options.quick_wake,
    )


async def _serve(
    store_path: str, mountpoint: str, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    store = Store.open(
        store_path,
        read_only=options.read_only,
        commit_s=options.commit_s or math.inf,
        acl=options.acl,
    )
    store.versions.enabled = options.versions
    recent = Recent()
    logging.getLogger().addHandler(recent)
    async with store.running():
        services = Services(
            store,
            explain=explain,
            messages=recent.messages,
            mountpoint=mountpoint,
            count_requests=request_loop.requests,
        )
        control = Control(services)
        operations = Operations(
            store,
            acl=options.acl,
            xattr=options.xattr,
            cache_s=_READ_ONLY_CACHE_S if options.read_only else CACHE_S,
            versions_name=os.fsencode(options.versions_name) if options.versions else None,
            show_versions=options.show_versions,
            control=control.directory if options.control else None,
            control_name=os.fsencode(options.control_name),
            statistics=services.statistics,
        )
        control.connect(operations)
        connection = await handshake.mount(
            operations,
            mountpoint,
            options.for_kernel(),
            fsname=store.path,
            want_handshake=options.handshake,
        )
        if options.acl and not connection.handshake:
            log.warning(
                "without the handshake the kernel applies the umask before a default access control list can stand"
                " in for it: what is made in a directory with one may have fewer permissions than it should"
            )
        try:
            raise_readahead(connection.device)
            if options.fast_loop:
                request_loop.install(options.busy_poll_us / 1e6, quick_wake=options.quick_wake)
            async with trio.open_nursery() as nursery:
                await nursery.start(_end_on_signal, connection, operations, control)
                await nursery.start(control.jobs.run)
                if not options.read_only:
                    nursery.start_soon(services.trees.run)
                if options.snapshots and not options.read_only:
                    nursery.start_soon(Snapshots(store).keep, options.snapshot_s)
                nursery.start_soon(_announce, on_ready)
                await request_loop.serve()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                request_loop.uninstall()
                handshake.close(connection)
                await services.images.aclose()
                await operations.release_all()
                if options.snapshots and not options.read_only:
                    await _take_last_snapshot(store)


async def _take_last_snapshot(store: Store) -> None:
    """Have a snapshot of the end, if anything changed."""
    try:
        await store.sealer.seal_all()
    except Exception:
        # It is tried once more when the store is closed, and then it is told what cannot be sealed.
        pass
    if not store.namespace.read_only:
        await Snapshots(store).take_last()


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
    connection: handshake.Connection,
    operations: Operations,
    control: Control,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Unmount when told to end; who still uses the mount loses it, after the kernel wrote back all it had."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting %s", signal.Signals(number).name, connection.mountpoint)
            # Who waits for a command uses the mount, and cannot even be killed.
            control.jobs.stop()
            try:
                await trio.to_thread.run_sync(mounts.unmount, connection.mountpoint)
            except BusyError as exc:
                log.warning("%s; detaching it from those who use it", exc)
                paths: list[bytes] = []
                try:
                    paths = await operations.find_written()
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
