"""What is looked at before mounting, so that a refusal names the file and says what to do.

The kernel and fusermount3 have the last word; these checks only say it better and sooner.
"""

from __future__ import annotations

import os

from mountstore.cli.exits import Exit, Failure
from mountstore.cli.servers import find_server, store_of
from mountstore.errors import MountError
from mountstore.fuse.mounts import Mount, find_fusermount, is_dead, mount_at, unmount

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"


def check_platform(*, device: str = FUSE_DEVICE) -> None:
    """
    Raises:
      Failure: FUSE is not to be had on this system.
    """
    if not os.path.exists(device):
        raise Failure(
            Exit.SYSTEM,
            f"{device} does not exist: load the kernel module with modprobe fuse "
            "(in a container: pass the device in)",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise Failure(
            Exit.SYSTEM, f"{device} is closed to this user: root opens it to everybody with chmod 666 {device}"
        )
    if os.geteuid() != 0 and find_fusermount() is None:
        raise Failure(Exit.SYSTEM, "fusermount3 not found: install the package fuse3, or mount as root")


def check_allow_other(*, conf: str = FUSE_CONF) -> None:
    """
    Raises:
      Failure: An ordinary user may not let other users in.
    """
    if os.geteuid() == 0:
        return
    try:
        with open(conf, encoding="utf-8", errors="replace") as lines:
            allowed = any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        allowed = False
    if not allowed:
        raise Failure(
            Exit.USAGE,
            f"allow_other is for root, unless root puts the line user_allow_other into {conf}",
        )


def check_apart(store: str, mountpoint: str) -> None:
    """
    Args:
      store: Real path, as `mountpoint`.

    Raises:
      Failure: One lies in the other; the mount would cover the store, or lie in it.
    """
    if store == mountpoint:
        raise Failure(Exit.USAGE, f"{store} cannot be both the store and the mount point")
    if _is_below(mountpoint, store):
        raise Failure(Exit.USAGE, f"the mount point {mountpoint} lies inside the store {store}")
    if _is_below(store, mountpoint):
        raise Failure(
            Exit.USAGE, f"the store {store} lies inside the mount point {mountpoint}, which would cover it"
        )


def check_log_file(log: str, store: str, mountpoint: str) -> None:
    """
    Raises:
      Failure: The log would be written through the mount that it is the log of, or into the store.
    """
    directory = os.path.realpath(os.path.dirname(log))
    for place, what in ((mountpoint, "mount point"), (store, "store")):
        if directory == place or _is_below(directory, place):
            raise Failure(Exit.USAGE, f"log={log}: the log cannot lie inside the {what} {place}")


def _is_below(path: str, directory: str) -> bool:
    return path != directory and os.path.commonpath([path, directory]) == directory


def check_mountpoint(mountpoint: str, given: str) -> Mount | None:
    """
    Args:
      mountpoint: Real path.
      given: As the user wrote it, for messages.

    Returns:
      A dead mount of ours that `clear_dead_mount` has to take away first, if there is one.

    Raises:
      Failure: It is missing, not a directory, a store is mounted there, or a dead mount of something else is.
    """
    covering = mount_at(mountpoint)
    if covering is not None and covering.ours and find_server(covering) is not None:
        raise _mounted_already(covering, given)
    if is_dead(mountpoint):
        if covering is None:
            raise Failure(
                Exit.FAILED, f"{given} lies inside a dead mount (its server is gone): unmount that first"
            )
        if not covering.ours:
            raise Failure(
                Exit.FAILED,
                f"{given} is a dead mount of type {covering.filesystem_type}: unmount it first (umount -l)",
            )
        return covering
    if covering is not None and covering.ours:
        raise _mounted_already(covering, given)
    if not os.path.lexists(mountpoint):
        raise Failure(Exit.FAILED, f"the mount point {given} does not exist: make it with mkdir")
    if not os.path.isdir(mountpoint):
        raise Failure(Exit.FAILED, f"the mount point {given} is not a directory")
    return None


def clear_dead_mount(dead: Mount, given: str) -> None:
    """Take away mounts of ours that nobody serves, until the directory itself or a living mount shows.

    Raises:
      Failure: That is not possible.
    """
    current: Mount | None = dead
    while current is not None and current.ours and is_dead(current.mountpoint):
        try:
            unmount(current.mountpoint, lazy=True)
        except MountError as exc:
            raise Failure(Exit.FAILED, f"{given} is a dead mount that cannot be taken away: {exc}") from exc
        current = mount_at(current.mountpoint)
    if current is not None and current.ours:
        raise _mounted_already(current, given)


def _mounted_already(mount: Mount, given: str) -> Failure:
    server = find_server(mount)
    served = "" if server is None else f", served by pid {server.pid}"
    return Failure(Exit.FAILED, f"{given} is mounted already: {store_of(mount)} is there{served}")
