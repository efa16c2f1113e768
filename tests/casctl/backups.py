"""What there is to back up, and whether a backup of it is good."""

from __future__ import annotations

import os
import random
from pathlib import Path

from mountstore.care.verify import verify_blobs


def fill(directory: Path, seed: int, count: int = 40, size: int = 50_000) -> dict[str, bytes]:
    """Files that do not compress or deduplicate; what they hold."""
    source = random.Random(seed)
    files = {f"f{seed}-{number}": source.randbytes(size) for number in range(count)}
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return files


def check(backup: Path) -> None:
    """Everything in it is whole, and so is every snapshot; nothing else lies there."""
    found = verify_blobs(str(backup))
    assert found.ok and found.snapshots, found
    assert not [name for _, _, names in os.walk(backup) for name in names if name.startswith(".")]
