"""Who may write to a store: one process at a time, which holds its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from typing import Final

from mountstore.blobs.flush import takes_no_writes
from mountstore.blobs.opening import give_to_owner
from mountstore.errors import BusyError, StoreError
from mountstore.store.layout import BAD_NAME, LOCK_NAME, PINS_NAME, STAGING_NAME, TRASH_NAME

__all__ = ["StoreLock", "boot_id", "unchanging"]

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class StoreLock:
    """The store's lock, held from `__init__` to `release`.

    The file is never deleted, and says who holds it; what counts is the flock, which ends with the process.
    Whoever was killed, or could not put everything on disk, goes on to be named in it until the next holder:
    `umount.cas` waits for the process to end, and has nothing else that tells how it ended.

    Raises:
      BusyError: Somebody holds it.
      StoreError: Parts of the store lead to what belongs to somebody else.
    """

    def __init__(self, path: str) -> None:
        _require_own_parts(path)
        self.path = os.path.join(path, LOCK_NAME)
        self._fd = _open(self.path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 4096, 0).decode(errors="replace").split()
            os.close(self._fd)
            who = f"pid {holder[0]} on {holder[1]}" if len(holder) >= 2 else "another process"
            raise BusyError(f"{path}: the store is in use by {who}") from None
        # Only for the message that somebody else gets: a full disk is no reason not to mount.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()} {socket.gethostname()} {boot_id()}\n".encode(), 0)

    def release(self, *, safe: bool = True) -> None:
        """Let others have the store; `safe` is whether all that was done is on disk."""
        if safe:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _require_own_parts(path: str) -> None:
    """What lies in these is deleted and moved: root is not to do that elsewhere for the owner of a store."""
    owner = os.stat(path).st_uid
    for name in (STAGING_NAME, TRASH_NAME, BAD_NAME, PINS_NAME):
        part = os.path.join(path, name)
        if os.path.islink(part) and os.path.exists(part) and os.stat(part).st_uid != owner:
            raise StoreError(f"{part}: leads to a directory that does not belong to the owner of the store")


def _open(path: str) -> int:
    # The store may belong to somebody who wants root to write elsewhere.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        give_to_owner(fd, os.path.dirname(path))
        return fd
    try:
        _make_private(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_private(fd: int, path: str) -> None:
    """Whoever may read the file may take the lock, and keep the store from its owner.

    Raises:
      StoreError: It is no file of the store, but one of somebody else under another name, or no file.
    """
    status = os.fstat(fd)
    of_owner = status.st_uid == os.stat(os.path.dirname(path)).st_uid
    if not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and not of_owner):
        raise StoreError(f"{path}: is not a file of the store; remove it, the next mount makes another")
    if status.st_mode & 0o077 and os.geteuid() in (0, status.st_uid):
        os.fchmod(fd, 0o600)


@contextlib.contextmanager
def unchanging(path: str) -> Iterator[None]:
    """The store at `path` while nobody can write to it: its lock is held, unless its file system takes no writes.

    Raises:
      BusyError: Somebody has it open for writing.
      OSError: It cannot be locked.
    """
    if takes_no_writes(path):
        yield
        return
    lock = StoreLock(path)
    try:
        yield
    finally:
        lock.release()


def boot_id() -> str:
    """Tells one boot of this machine from the next."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
