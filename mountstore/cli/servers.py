"""Finding the process that serves a mount, from the mount table and the store's lock file."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

from mountstore.fuse.mounts import Mount, read_mounts


@dataclass(frozen=True, slots=True)
class Server:
    """A serving process; `pidfd` belongs to who got this, and stays right when the number is used again."""

    pid: int
    pidfd: int


def store_of(mount: Mount) -> str:
    """The directory of the store behind a mount of ours."""
    return mount.source


def mounts_of(store: str) -> list[Mount]:
    """The mounts of a store, oldest first, made by whom it concerns: its owner, root, or whoever asks.

    Anybody may mount something of his own and say that it is this store (`fsname`): that is none of them.
    """
    try:
        concerned = {0, os.geteuid(), os.stat(store).st_uid}
    except OSError:
        concerned = {0, os.geteuid()}
    return [m for m in read_mounts() if m.ours and store_of(m) == store and m.user_id in concerned]


def find_server(mount: Mount) -> Server | None:
    """The process that serves `mount` and may have to write, or None if there is none in sight.

    It is the one that holds the store's lock. The lock file names it; that it has the file open tells it
    from a process that has the same number on another machine, in another container, or after a crash.
    A read-only mount holds no lock and has nothing to write.
    """
    if mount.read_only or _was_succeeded(mount):
        return None
    lock = _lock_of(mount)
    pid = _holder(lock)
    if pid is None:
        return None
    pidfd = None
    try:
        pidfd = os.pidfd_open(pid)
        # After the pidfd, so that it is this very process that is looked at.
        if any(_leads_to(f"/proc/{pid}/fd/{name}", lock) for name in os.listdir(f"/proc/{pid}/fd")):
            return Server(pid, pidfd)
    except OSError:
        pass
    if pidfd is not None:
        os.close(pidfd)
    return None


def _was_succeeded(mount: Mount) -> bool:
    """Whether the store was mounted for writing again since: then the daemon of `mount` is gone."""
    writing = (m.device for m in mounts_of(store_of(mount)) if not m.read_only)
    # Each but once, since a bind mount is younger than what it shows.
    latest = [*dict.fromkeys(writing)][-1:]
    return latest not in ([], [mount.device])


def ended_safely(mount: Mount, server: Server) -> bool:
    """Whether a server that has ended put everything on disk: then it is not named in the lock file any more."""
    return _holder(_lock_of(mount)) != server.pid


def was_left_unsafe(mount: Mount) -> bool:
    """Whether whoever wrote last to the store of `mount` has ended before everything was on disk.

    The lock file goes on to name such a process, though nobody holds the lock. Asking is needed only if no server
    is in sight: it may be in another container, or hidden from this user. A read-only mount loses nothing.
    """
    if mount.read_only or _holder(lock := _lock_of(mount)) is None:
        return False
    try:
        with open(lock, "rb") as file:
            # Shared: two who ask are not in each other's way.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_of(mount: Mount) -> str:
    # Reading the file here, and not through mountstore.store, saves importing all of that.
    return os.path.join(store_of(mount), "lock")


def _holder(lock: str) -> int | None:
    """The process that a lock file names; None for none, or if it cannot be read."""
    try:
        with open(lock, "rb") as file:
            return int(file.read(100).split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _leads_to(link: str, path: str) -> bool:
    try:
        return os.readlink(link) == path
    except OSError:
        return False
