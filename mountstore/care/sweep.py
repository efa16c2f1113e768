"""The sweep: every blob of the tree is looked at once, and those that nothing needs are moved to the trash.

Runs in worker threads, a stretch at a time. It may run beside writers: a blob that is added while it runs, or
found when it was to be added, stays (`BalancedTree.retire`).
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Final

import msgspec

from mountstore.blobs.digest import Digest
from mountstore.blobs.trash import Trash
from mountstore.blobs.tree import BalancedTree
from mountstore.care.marks import Marks, key_of
from mountstore.care.stretches import Stretch
from mountstore.namespace.inventory import Inventory


class Tally(msgspec.Struct):
    """A number of blobs and their bytes."""

    blobs: int = 0
    bytes: int = 0

    def count(self, size_bytes: int) -> None:
        self.blobs += 1
        self.bytes += size_bytes


class Fate(StrEnum):
    """Why a blob stays, or is collected."""

    LIVE = "live"
    VERSIONS = "versions"
    """Only old versions have it."""
    SNAPSHOTS = "snapshots"
    """Only snapshots have it, or it is a part of one."""
    LISTED = "listed"
    """In a keep list or a pin."""
    RECENT = "recent"
    """Placed within the grace period."""
    WANTED = "wanted"
    """Added while garbage was collected."""
    ADOPTED = "adopted"
    """In the tree before it became a store, and never used since."""

    DROPPED = "dropped versions"
    SUPERSEDED = "unused"
    """Something had it once: no version of it is kept, or was never made."""
    UNRECORDED = "never used"
    """A write that was not finished."""


COLLECTED: Final = (Fate.DROPPED, Fate.SUPERSEDED, Fate.UNRECORDED)


class Sweep:
    """One pass over a tree.

    Args:
      marks: What stays, by the reason, the first that applies being told; and under `Fate.DROPPED` what
        belongs to dropped versions.
      inventory: Knows which blobs were ever recorded.
      placed_before_s: Blobs whose inode changed later stay.
      adopted: Blobs that were never recorded stay.
      dry_run: Nothing is moved.
    """

    def __init__(
        self,
        *,
        tree: BalancedTree,
        trash: Trash,
        marks: dict[Fate, Marks],
        inventory: Inventory,
        placed_before_s: float,
        adopted: bool,
        dry_run: bool,
    ) -> None:
        self.tallies = {fate: Tally() for fate in Fate}
        self._tree = tree
        self._trash = trash
        self._marks = marks
        self._inventory = inventory
        self._placed_before_s = placed_before_s
        self._adopted = adopted
        self._dry_run = dry_run
        self._walk = tree.walk()
        self._failure: OSError | None = None
        self._first = -1
        self._slices: dict[Fate, set[int]] = {}

    def stretch(self) -> list[Digest] | None:
        """Go on for a stretch; the blobs that were moved to the trash, or None at the end.

        Raises:
          OSError: In an earlier stretch a blob could not be moved; it stays.
        """
        if self._failure is not None:
            raise self._failure
        stretch = Stretch(self._walk)
        moved = []
        for digest, path in stretch:
            fate = self._fate_of(digest, path)
            if fate is None:
                continue
            if fate in COLLECTED and not self._dry_run:
                try:
                    if self._trash.discard(digest):
                        moved.append(digest)
                    else:
                        fate = Fate.WANTED
                except OSError as exc:
                    # Not before the caller knows what was moved until now.
                    self._failure = exc
                    return moved
            self.tallies[fate].count(digest.size_bytes)
        return moved if stretch.more else moved or None

    def close(self) -> None:
        self._walk.close()  # type: ignore[attr-defined]  # it is a generator

    def _fate_of(self, digest: Digest, path: str) -> Fate | None:
        """None if it is gone."""
        sha256 = digest.sha256
        first = sha256[0] >> 4
        if first != self._first:
            self._first = first
            self._slices = {fate: marks.slice_of(sha256) for fate, marks in self._marks.items()}
        key = key_of(sha256)
        for fate, keys in self._slices.items():
            if key in keys and fate is not Fate.DROPPED:
                return fate
        if self._tree.is_wanted(digest):
            return Fate.WANTED
        try:
            # A rename sets ctime, whatever the time of the file says.
            if os.lstat(path).st_ctime >= self._placed_before_s:
                return Fate.RECENT
        except FileNotFoundError:
            return None
        if key in self._slices[Fate.DROPPED]:
            return Fate.DROPPED
        if self._inventory.is_recorded(digest):
            return Fate.SUPERSEDED
        return Fate.ADOPTED if self._adopted else Fate.UNRECORDED
