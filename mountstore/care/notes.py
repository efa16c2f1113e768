"""The findings file: what the last check, and scrubs since, found: a repair need not read every blob again.

`fsck.json` in the store, one JSON object. A damaged blob is listed with the size and mtime its file had; the
record counts as long as the file has both. The file is for this program and for people; when it is absent,
old or unreadable, nothing but time is lost.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

import msgspec

from mountstore.blobs.digest import Digest
from mountstore.blobs.opening import give_to_owner, open_fresh, read_limited
from mountstore.errors import MisuseError
from mountstore.store.layout import NEW_SUFFIX

_FORMAT: Final = 1
_SIZE_LIMIT: Final = 256 << 20
FINDINGS_MAX: Final = 1000
"""So many findings are written out in words."""


class BadBlob(msgspec.Struct, frozen=True):
    """A blob whose bytes were read and are wrong."""

    name: str
    level: int
    size_bytes: int
    mtime_ns: int

    def digest(self) -> Digest | None:
        try:
            return Digest.parse(self.name) if 1 <= self.level <= 64 else None
        except MisuseError:
            return None


class NotedFinding(msgspec.Struct, frozen=True):
    kind: str
    what: str
    change: str | None


class Notes(msgspec.Struct, frozen=True):
    """What is kept between checks; times are seconds since the epoch."""

    format: int = _FORMAT
    checked_s: float = 0.0
    """When the last check ended."""
    full_s: float | None = None
    """When the last one that read every blob ended."""
    errors: int = 0
    bad_blobs: list[BadBlob] = msgspec.field(default_factory=list)
    findings: list[NotedFinding] = msgspec.field(default_factory=list)


def read_notes(path: str) -> Notes:
    """The notes at `path`, empty ones if they are not to be had."""
    try:
        notes = msgspec.json.decode(read_limited(path, _SIZE_LIMIT), type=Notes)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return Notes()
    return notes if notes.format == _FORMAT else Notes()


def note_bad_blobs(path: str, found: Collection[BadBlob], unreadable: int) -> None:
    """Add what a scrub found to the notes at `path`. Raises: OSError; the old ones are then as they were.

    Args:
      unreadable: How many blobs the disk did not give; it may another time, so they count, and are not noted.
    """
    old = read_notes(path)
    known = {(bad.name, bad.level) for bad in found}
    others = [bad for bad in old.bad_blobs if (bad.name, bad.level) not in known]
    new = len(others) + len(found) - len(old.bad_blobs)
    errors = old.errors + new + unreadable
    write_notes(path, msgspec.structs.replace(old, errors=errors, bad_blobs=[*others, *found]))


def write_notes(path: str, notes: Notes) -> None:
    """Put `notes` at `path`. Raises: OSError; the old ones are then as they were.

    Durability: none; what power loss leaves of them is not taken for notes, and a check makes them anew.
    """
    fresh = path + NEW_SUFFIX
    # Findings name files of directories that not everybody may list.
    fd = open_fresh(fresh)
    with open(fd, "wb") as file:
        give_to_owner(fd, os.path.dirname(path))
        file.write(msgspec.json.format(msgspec.json.encode(notes), indent=1))
    os.rename(fresh, path)
