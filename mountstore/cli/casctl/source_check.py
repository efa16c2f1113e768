"""What of a store is damaged, and so must not take the place of what a backup has of it.

A blob's name tells its size and its SHA-256: the backup need not be asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum, auto

from mountstore.blobs.digest import Digest
from mountstore.blobs.scan import scan
from mountstore.errors import MisuseError

_BEAT_EVERY = 4096


class Condition(Enum):
    """Of one file of a store."""

    WHOLE = auto()
    """Its bytes are those of its name; or it is no blob, and nobody can tell."""
    DAMAGED = auto()
    """They are not, or it cannot be read."""
    ABSENT = auto()


def blobs_of_wrong_size(blobs: str, beat: Callable[[], None]) -> list[str]:
    """Paths, from the store's `blobs`, of those that have not the size that their names tell; sorted.

    Costs an lstat(2) of each blob. `beat` is called every few thousand.
    """
    wrong = []
    found = (item for _, item in scan(blobs, frozenset()) if isinstance(item, tuple))
    for looked, (digest, path) in enumerate(found, 1):
        if looked % _BEAT_EVERY == 0:
            beat()
        try:
            right = os.lstat(path).st_size == digest.size_bytes
        except FileNotFoundError:
            continue
        except OSError:
            right = False
        if not right:
            wrong.append(os.path.relpath(path, blobs))
    return sorted(wrong)


def condition_of(blobs: str, path: str) -> Condition:
    """Read a file of a store and compare it with its name; `path` is from the store's `blobs`."""
    from mountstore.care.rehash import read_hashes

    try:
        found = read_hashes(os.path.join(blobs, path)).digest
    except FileNotFoundError:
        return Condition.ABSENT
    except OSError:
        return Condition.DAMAGED
    try:
        return Condition.WHOLE if Digest.parse(os.path.basename(path)) == found else Condition.DAMAGED
    except MisuseError:
        return Condition.WHOLE
