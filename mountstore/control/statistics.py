"""Counters of one mount, since it began."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass(slots=True)
class Statistics:
    """What happened since the mount began. Bare numbers: whoever does the work adds to them, on the trio thread.

    What parts of the store count by themselves is not here: `mountstore.control.state` reads it there.
    """

    read_bytes: int = 0
    """Of file data that the kernel asked for, because it did not have it."""
    write_bytes: int = 0
    """Of file data that the kernel handed over."""
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
