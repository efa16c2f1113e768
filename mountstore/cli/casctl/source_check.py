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
from mountstore.store.layout import BLOBS_NAME, NOTES_NAME

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


def blobs_noted(store: str, beat: Callable[[], None]) -> list[str]:
    """Paths, from the store's `blobs`, of those that a scrub or a check found damaged and that still are; sorted.

    Costs reading each of them.
    """
    from mountstore.care.notes import read_notes

    damaged = []
    for bad in read_notes(os.path.join(store, NOTES_NAME)).bad_blobs:
        beat()
        if bad.digest() is not None:
            path = os.path.join(*bad.name[: bad.level], bad.name)
            if condition_of(os.path.join(store, BLOBS_NAME), path) is Condition.DAMAGED:
                damaged.append(path)
    return sorted(damaged)


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
