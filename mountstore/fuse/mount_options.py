"""How a store is mounted: every choice that the serving process is told, with its default, once.

Light to import (no pyfuse3, no catalog): the command line makes one of these before anything is forked.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MountOptions"]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount.

    `kernel` has the generic options as mount(8) names them (nosuid, nodev, noexec, noatime, ...). Without
    `versions`, none are recorded and none are shown. With `snapshots`, one is taken every `snapshot_s` seconds and
    at the end, if anything changed. With `control` there is a directory `control_name` in the root, which listings
    don't show. With a `snapshot`, that is mounted instead, read-only and without any of these.
    """

    read_only: bool = False
    allow_other: bool = False
    acl: bool = False
    xattr: bool = True
    handshake: bool = True
    fast_loop: bool = True
    busy_poll_us: int = 200
    quick_wake: bool = True
    commit_s: float = 5.0
    versions: bool = True
    versions_name: str = ".versions"
    show_versions: bool = False
    snapshots: bool = True
    snapshot_s: float = 3600.0
    control: bool = True
    control_name: str = ".cas"
    snapshot: str | None = None
    kernel: frozenset[str] = frozenset()

    def for_kernel(self) -> set[str]:
        """What the kernel is asked for: `kernel`, and what follows from the rest."""
        chosen = {"default_permissions", *self.kernel}
        if self.allow_other:
            chosen.add("allow_other")
        if self.read_only or self.snapshot is not None:
            chosen.add("ro")
        return chosen
