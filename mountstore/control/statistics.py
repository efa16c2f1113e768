"""Counters of one mount, since it began."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass(slots=True)
class Statistics:
    """What happened since the mount began. Bare numbers: whoever does the work adds to them, on the trio thread.

    What parts of the store count by themselves is not here: `mountstore.control.gauges` reads it there.
    """

    reads: int = 0
    """Requests to read file data that the kernel did not have."""
    read_bytes: int = 0
    writes: int = 0
    write_bytes: int = 0
    commands: int = 0
    """Lines of the control file that were run."""
    failed_commands: int = 0
    collections: int = 0
    collected_blobs: int = 0
    collected_bytes: int = 0
    purged_blobs: int = 0
    purged_bytes: int = 0
    scrubbed_blobs: int = 0
    scrubbed_bytes: int = 0
    scrub_damaged_blobs: int = 0
