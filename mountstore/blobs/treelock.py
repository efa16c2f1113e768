"""Who may change a balanced tree at a moment, and how much was changed since one last looked.

If this process is the only one that adds (it holds the store's lock), a `threading.Lock` will do, and what
it counted stays true. Otherwise `SharedLock`: processes exclude each other with flock(2) on the file `.lock`
in the tree's root, for the few system calls between look-up and rename (contents are written outside the
lock). That file also holds the tally, by which each process knows for how long its counts are good enough.
Without it, each would have to list a directory for every blob it adds: 340 us a blob instead of 30 with 1,250
in a directory (2 KiB blobs, ext4, 2026), and more as it fills.

The file is specified in `docs/format.md`. An addition is noted before it is made, a removal after; so a crash
makes directories look fuller than they are, never emptier.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import threading
from types import TracebackType
from typing import Final, Protocol

__all__ = ["LOCK_NAME", "SharedLock", "Tally", "TreeLock", "outdate_counts"]

LOCK_NAME: Final = ".lock"
_SLOTS: Final = 16
_TABLE: Final = struct.Struct(f"<{2 * _SLOTS}Q")
_PAIR: Final = struct.Struct("<QQ")
# More than any directory holds, so that no count from before says anything.
_FAR: Final = 1 << 32


class TreeLock(Protocol):
    """Held around every change of the tree; not re-entrant."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Tally:
    """Additions and removals below each first-level directory; this one is for a tree nobody else adds to."""

    def __init__(self) -> None:
        self.added = [0] * _SLOTS
        self.removed = [0] * _SLOTS

    def note(self, slot: int, added: int, removed: int) -> int:
        """Tell the others. Returns by how much that moved each number that was to be moved: 0 or 1."""
        return 0


class SharedLock(Tally):
    """Excludes threads and processes; the tally is up to date while it is held.

    The descriptor is opened anew each time: flock belongs to the open file, which a forked child shares.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self._root = root
        self._path = f"{root}/{LOCK_NAME}"
        self._threads = threading.Lock()
        self._fd = -1

    def note(self, slot: int, added: int, removed: int) -> int:
        self.added[slot] += added
        self.removed[slot] += removed
        os.pwrite(self._fd, _PAIR.pack(self.added[slot], self.removed[slot]), slot * _PAIR.size)
        return 1

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                table = _TABLE.unpack(os.pread(fd, _TABLE.size, 0).ljust(_TABLE.size, b"\0"))
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            self._threads.release()
            raise
        self._fd = fd
        self.added[:] = table[0::2]
        self.removed[:] = table[1::2]

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        os.close(self._fd)
        self._threads.release()

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            # Whoever may add to the root may lock it.
            mode = stat.S_IMODE(os.stat(self._root).st_mode) & 0o666 | 0o600
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def outdate_counts(root: str) -> None:
    """Make everybody count anew: from now on somebody adds who notes nothing."""
    if os.path.exists(f"{root}/{LOCK_NAME}"):
        lock = SharedLock(root)
        with lock:
            for slot in range(_SLOTS):
                lock.note(slot, _FAR, _FAR)
