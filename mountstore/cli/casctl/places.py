"""Which mount is meant, and how a path in it is called from its root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mountstore.cli.casctl.exits import Exit, Failure
from mountstore.cli.exits import printable
from mountstore.cli.servers import mounts_of
from mountstore.fuse.mounts import Mount, read_mounts

MOUNT_VARIABLE = "CASCTL_MOUNT"


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a mount of ours."""

    mount: Mount
    path: str
    """From the root of the mount, with a leading slash."""


def find_place(path: str) -> Place | None:
    """Where a path of the user leads to; None if that is in no mount of ours.

    The last part is taken as it is, a symbolic link or a name that is gone; those before it are resolved.
    """
    directory, name = os.path.split(path.rstrip("/") or path)
    if name in ("", ".", ".."):
        return _locate(os.path.realpath(path))
    found = _locate(os.path.join(os.path.realpath(directory), name))
    # A link from outside into the mount, or to its root.
    return found or _locate(os.path.realpath(path))


def _locate(path: str) -> Place | None:
    mounts = read_mounts()
    best: Mount | None = None
    for mount in mounts:
        # Of two on one mount point the later one is on top.
        if _is_at_or_below(path, mount.mountpoint) and (
            best is None or len(mount.mountpoint) >= len(best.mountpoint)
        ):
            best = mount
    if best is None or not best.ours:
        return None
    inside = os.path.join("/", best.root, os.path.relpath(path, best.mountpoint))
    return Place(_whole(best, mounts), os.path.normpath(inside))


def _whole(mount: Mount, mounts: Sequence[Mount]) -> Mount:
    """Of a directory that is mounted elsewhere as well (mount --bind), the mount that has the root."""
    if mount.root == "/":
        return mount
    for other in mounts:
        if other.device == mount.device and other.root == "/":
            return other
    raise Failure(
        Exit.NO_MOUNT,
        f"{printable(mount.mountpoint)} shows only {printable(mount.root)} of a mount; its root is not to be seen"
        " here",
    )


def _is_at_or_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def find_mount(given: str | None) -> Mount:
    """The mount of a command without paths: the one given, of the environment, of the current directory, or the
    only one there is.

    Raises: Failure
    """
    for source, path in (("--mount", given), (MOUNT_VARIABLE, os.environ.get(MOUNT_VARIABLE))):
        if path:
            found = find_place(path)
            if found is None:
                raise Failure(Exit.NO_MOUNT, f"{source} {printable(path)}: is not in a mount of mountstore")
            return found.mount
    here = find_place(".")
    if here is not None:
        return here.mount
    ours = [mount for mount in read_mounts() if mount.ours and mount.root == "/"]
    if not ours:
        raise Failure(Exit.NO_MOUNT, "no store is mounted; mount.cas STORE DIRECTORY mounts one")
    if len(ours) > 1:
        names = ", ".join(sorted({printable(mount.mountpoint) for mount in ours}))
        raise Failure(Exit.NO_MOUNT, f"which mount? Go into it, or give it with --mount: there are {names}")
    return ours[0]


def mount_of(store: str) -> Mount | None:
    """The mount of a store in which it can be changed; None if there is none to be seen."""
    for mount in reversed(mounts_of(os.path.realpath(store))):
        if mount.root == "/" and not mount.read_only:
            return mount
    return None


class Resolver:
    """Turns the paths of one command into paths in its mount, and sees that all are in the same one."""

    def __init__(self, given: str | None) -> None:
        self._given = given
        self._mount: Mount | None = None
        if given is not None:
            self._mount = find_mount(given)

    def inside(self, path: str) -> str:
        """Raises: Failure"""
        found = find_place(path)
        if found is None:
            hint = ""
            if self._mount is not None:
                hint = f" (the mount is {printable(self._mount.mountpoint)})"
            raise Failure(Exit.NO_MOUNT, f"{printable(path)}: is not in a mount of mountstore{hint}")
        if self._mount is None:
            self._mount = found.mount
        elif found.mount.device != self._mount.device:
            raise Failure(
                Exit.USAGE,
                f"{printable(path)} is in another mount than {printable(self._mount.mountpoint)}",
            )
        return found.path

    def mount(self) -> Mount:
        """Raises: Failure"""
        if self._mount is None:
            self._mount = find_mount(self._given)
        return self._mount
