"""The control directory of a mount, put together: commands, jobs, what they say, and what the kernel forgets."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from mountstore.control.commands import REGISTRY
from mountstore.control.context import Services
from mountstore.control.jobs import Jobs
from mountstore.control.state import metrics, statistics, status, text_of
from mountstore.fuse.control_view import ControlDirectory
from mountstore.fuse.errnos import errno_of
from mountstore.fuse.kernel_cache import KernelCache
from mountstore.fuse.snapshots_view import SNAPSHOTS_KEY

if TYPE_CHECKING:
    from mountstore.fuse.operations import Operations

__all__ = ["Control", "explain"]


class Control:
    """Everything behind `.cas`; belongs to the trio thread. `jobs.run` has to run while the mount is served."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.jobs = Jobs(services, REGISTRY)
        self.directory = ControlDirectory(
            services,
            REGISTRY,
            self.jobs,
            texts={
                b"status": (0o444, lambda: text_of(status(services, self.jobs))),
                b"stats": (0o444, lambda: text_of(statistics(services, self.jobs))),
                b"metrics": (0o444, lambda: metrics(services, self.jobs)),
            },
        )
        cache = KernelCache()
        services.invalidate = cache.forget_entry
        services.forget_attributes = cache.forget_attributes
        services.trees.kernel_knows = cache.knows
        self._cache = cache

    def connect(self, operations: Operations) -> None:
        """Have what commands change be forgotten by the kernel of the mount that `operations` serve."""

        async def forget_versions() -> None:
            for parent, name in await operations.gone_versions():
                await self._cache.forget_entry(parent, name)

        async def forget_snapshot(name: str) -> None:
            number = operations.number_of(SNAPSHOTS_KEY)
            if number is not None:
                await self._cache.forget_entry(number, os.fsencode(name))

        self.services.store.namespace.is_reserved = operations.reserved.is_reserved
        self.services.forget_versions = forget_versions
        self.services.forget_snapshot = forget_snapshot


def explain(exc: Exception) -> str:
    """The name of the errno for an exception; what nobody foresaw is logged."""
    return errno.errorcode.get(errno_of(exc, "control"), "EIO")
