"""Who may change a balanced tree at a moment.

If this process is the only one that adds (it holds the store's lock), a `threading.Lock` will do, and counts
stay valid for good. With `SharedLock` several processes add and delete: they exclude each other with flock(2)
on the tree's root directory, for the few system calls between look-up and rename. Contents are written
outside the lock in both cases.
"""

from __future__ import annotations

import fcntl
import os
import threading
from types import TracebackType
from typing import Protocol

from mountstore.blobs.levels import Levels

__all__ = ["SharedLock", "TreeLock"]


class TreeLock(Protocol):
    """Held around every change of the tree; not re-entrant."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...




class SharedLock:
    """Excludes threads and processes, and drops what is known of the directories on entry.

    The descriptor is opened anew each time: flock belongs to the open file, which a forked child shares.
    """

    def __init__(self, root: str, levels: Levels) -> None:
        self._root = root
        self._levels = levels
        self._threads = threading.Lock()
        self._fd = -1

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            self._threads.release()
            raise
        self._fd = fd
        self._levels.forget()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        os.close(self._fd)
        self._threads.release()
