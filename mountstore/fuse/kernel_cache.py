"""Having the kernel forget what it keeps, when the daemon itself changed it.

An entry cannot be forgotten while a request in its directory is under way, and the one who asks waits for that; so
it is asked in a thread, and the trio thread goes on answering requests.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Final

import pyfuse3
import trio
from pyfuse3 import FileNameT, InodeT

__all__ = ["KernelCache"]

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 10.0

_UNKNOWN: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
"""What the kernel answers about what it does not keep."""


class KernelCache:
    """What the kernel keeps of one mount; to be used while it is served."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(2)

    async def forget_entry(self, parent_inode: int, name: bytes) -> None:
        """Have the kernel look a name up again, and ask for the attributes of its directory again.

        Cancellation: The kernel forgets it all the same.
        """

        def forget() -> None:
            _tolerate(lambda: pyfuse3.invalidate_entry(InodeT(parent_inode), FileNameT(name)))
            _tolerate(lambda: pyfuse3.invalidate_inode(InodeT(parent_inode), attr_only=True))

        await self._in_thread(forget, f"{os.fsdecode(name)} in inode {parent_inode}")

    async def forget_attributes(self, inode: int) -> None:
        """Have the kernel ask for the attributes of an inode again."""

        def forget() -> None:
            _tolerate(lambda: pyfuse3.invalidate_inode(InodeT(inode), attr_only=True))

        await self._in_thread(forget, f"inode {inode}")

    @staticmethod
    def knows(inode: int) -> bool:
        """Whether the kernel has an inode in memory, and so will say when it forgets it. Some microseconds."""
        try:
            # Attributes alone: nothing is written back for that, so this does not wait for a request.
            pyfuse3.invalidate_inode(InodeT(inode), attr_only=True)
        except OSError as exc:
            return exc.errno != errno.ENOENT
        return True

    async def _in_thread(self, forget: Callable[[], None], what: str) -> None:
        with trio.move_on_after(_PATIENCE_S) as waited:
            await trio.to_thread.run_sync(forget, limiter=self._threads, abandon_on_cancel=True)
        if waited.cancelled_caught:
            log.warning("the kernel did not forget %s within %g s: its directory is in use", what, _PATIENCE_S)


def _tolerate(ask: Callable[[], None]) -> None:
    try:
        ask()
    except OSError as exc:
        if exc.errno not in _UNKNOWN:
            log.warning("the kernel did not forget something: %s", exc)
