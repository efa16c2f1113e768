"""What garbage collection is asked to do, and what it tells."""

from __future__ import annotations

import msgspec

from mountstore.care.sweep import Tally
from mountstore.care.trash_commands import OLDER_THAN_DAYS

__all__ = ["GRACE_S", "Options", "Report"]

GRACE_S = 3600.0
"""Blobs placed later than so long ago stay: somebody may be about to use them."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    `keep_files` are lists of blobs to keep (`mountstore.care.roots.read_lists`), beside those in `pins/`.
    """

    dry_run: bool = False
    purge: bool = False
    older_than_days: float = OLDER_THAN_DAYS
    keep_files: tuple[str, ...] = ()
    grace_s: float = GRACE_S
    adopted: bool = False
    """Collect also what was in the tree before it became a store and was never used."""
    despite_damage: bool = False
    """Collect although contents cannot be read, whose pieces may then be lost for good."""


class Report(msgspec.Struct, kw_only=True):
    """What was found and done; `--dry-run` tells the same."""

    dry_run: bool
    live: Tally
    versions: Tally
    """Blobs that only old versions have."""
    snapshots: Tally
    """Blobs that only snapshots have, and those they consist of."""
    kept: dict[str, Tally]
    """Others that stay, by reason."""
    collected: dict[str, Tally]
    """Moved to the trash, by reason; in a dry run what would be."""
    trash: Tally
    """What lies there now."""
    purged: Tally
    versions_kept: int
    versions_dropped: dict[str, int]
    """By reason."""
    flaws: list[str]
    """What could not be understood or read."""
    elapsed_s: float

    @property
    def reclaimable(self) -> Tally:
        """What is, or would be, collected."""
        tallies = self.collected.values()
        return Tally(sum(tally.blobs for tally in tallies), sum(tally.bytes for tally in tallies))
