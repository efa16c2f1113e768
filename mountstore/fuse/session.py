"""A mount from beginning to end: open the store, mount, serve, seal, close; or a snapshot of it alone."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import trio

from mountstore.care.snapshots import Snapshots
from mountstore.control.context import Services
from mountstore.control.messages import Recent
from mountstore.fuse import request_loop, serving
from mountstore.fuse.answers import CACHE_S
from mountstore.fuse.control import Control, explain
from mountstore.fuse.handshake import Connection
from mountstore.fuse.mount_options import MountOptions
from mountstore.fuse.operations import Operations
from mountstore.fuse.snapshot_mount import serve_snapshot
from mountstore.store import Store

__all__ = ["serve"]

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
    if options.snapshot is None:
        trio.run(_serve_store, store_path, mountpoint, options, on_ready)
    else:
        trio.run(serve_snapshot, store_path, mountpoint, options.snapshot, options, on_ready)


async def _serve_store(
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
        served = _ServedStore(services, options)
        await serving.serve(served, mountpoint, options, on_ready, fsname=store.path)


class _ServedStore(serving.Served):
    """A store that runs, with what changes it by command and by itself."""

    def __init__(self, services: Services, options: MountOptions) -> None:
        store = services.store
        self._services = services
        self._options = options
        self._control = Control(services)
        self._operations = Operations(
            store,
            acl=options.acl,
            xattr=options.xattr,
            cache_s=_READ_ONLY_CACHE_S if options.read_only else CACHE_S,
            versions_name=os.fsencode(options.versions_name) if options.versions else None,
            show_versions=options.show_versions,
            control=self._control.directory if options.control else None,
            control_name=os.fsencode(options.control_name),
            statistics=services.statistics,
        )
        self._control.connect(self._operations)
        self._snapshots = Snapshots(store) if options.snapshots and not options.read_only else None
        super().__init__(self._operations)

    async def start(self, connection: Connection, nursery: trio.Nursery) -> None:
        if self._options.acl and not connection.handshake:
            log.warning(
                "without the handshake the kernel applies the umask before a default access control list can stand"
                " in for it: what is made in a directory with one may have fewer permissions than it should"
            )
        await nursery.start(self._control.jobs.run)
        if not self._options.read_only:
            nursery.start_soon(self._services.trees.run)
        if self._snapshots is not None:
            nursery.start_soon(self._snapshots.keep, self._options.snapshot_s)

    def interrupt(self) -> None:
        # Who waits for a command uses the mount, and cannot even be killed.
        self._control.jobs.stop()

    async def find_written(self) -> list[bytes]:
        return await self._operations.open_files.find_written()

    async def close(self) -> None:
        await self._services.images.aclose()
        await self._operations.release_all()
        if self._snapshots is not None:
            await self._take_last(self._snapshots)

    async def _take_last(self, snapshots: Snapshots) -> None:
        """Have a snapshot of the end, if anything changed."""
        store = self._services.store
        try:
            await store.sealer.seal_all()
        except Exception:
            # It is tried once more when the store is closed, and then it is told what cannot be sealed.
            pass
        if not store.namespace.read_only:
            await snapshots.take_last()
