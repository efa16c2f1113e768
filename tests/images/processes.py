"""The worker processes that resize images, as /proc shows them."""

from __future__ import annotations

from pathlib import Path


def children_of(process: int) -> list[int]:
    """Of all its threads, whichever started them."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").glob("*"):
        try:
            found += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            # It has ended since it was listed.
            continue
    return found


def workers_of(process: int) -> list[int]:
    """Worker processes, alive, of a process."""
    found = []
    for child in children_of(process):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"mountstore.images.worker" in command:
            found.append(child)
    return found
