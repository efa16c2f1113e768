"""Everything that lies in a balanced tree, told apart into blobs, directories and what is foreign.

Needs no lock; what comes or goes meanwhile may be seen or not. Sizes are those in the names. Which is which
is specified in `docs/format.md`, "Blobs and the balanced tree".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mountstore.blobs.digest import Digest
from mountstore.errors import MisuseError

__all__ = ["LEVELS_MAX", "TreeStatistics", "count", "is_bare", "scan"]

LEVELS_MAX: Final = 64
"""One for each hex character of a SHA-256."""

_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class TreeStatistics:
    """One pass over a tree."""

    blobs: int
    bytes: int
    """Sum of the sizes in the names."""
    directories: int
    """Without the root."""
    deepest_level: int
    """Of a directory; 0 for an empty tree."""
    foreign: int
    """Entries that are neither blobs nor directories of the tree (their own content is not counted)."""


def scan(root: str, own: frozenset[str]) -> Iterator[tuple[int, tuple[Digest, str] | bool]]:
    """Everything below the root, with its level: a blob, True for a directory, False for something foreign.

    Args:
        own: Paths in the root that are neither part of the tree nor foreign.

    Memory does not grow with the number of blobs: one directory is open at a time, and at most 16 for each
    level are still to be visited.
    """
    below = [""]
    while below:
        prefix = below.pop()
        directory = "/".join((root, *prefix))
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                name = entry.name
                if len(name) == 1 and name in _HEX and len(prefix) < LEVELS_MAX:
                    if entry.is_dir(follow_symlinks=False):
                        below.append(prefix + name)
                        yield len(prefix) + 1, True
                        continue
                elif prefix and name.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    try:
                        yield len(prefix), (Digest.parse(name), entry.path)
                        continue
                    except MisuseError:
                        pass
                elif not prefix and entry.path in own:
                    continue
                yield len(prefix), False


def is_bare(root: str) -> bool:
    """Whether not even the first directory of a blob is there, or no root. Raises: OSError"""
    try:
        with os.scandir(root) as entries:
            return not any(entry.name in _HEX and entry.is_dir(follow_symlinks=False) for entry in entries)
    except FileNotFoundError:
        return True


def count(root: str, own: frozenset[str]) -> TreeStatistics:
    """Sum up what `scan` yields."""
    blobs = size_bytes = directories = deepest = foreign = 0
    for level, found in scan(root, own):
        if isinstance(found, tuple):
            blobs += 1
            size_bytes += found[0].size_bytes
        elif found:
            directories += 1
            deepest = max(deepest, level)
        else:
            foreign += 1
    return TreeStatistics(blobs, size_bytes, directories, deepest, foreign)
