"""The files that a pattern means, as a shell's: `*`, `?` and `[...]` stand for characters other than a slash.

Symbolic links are not followed. What changes meanwhile may be found or not. On the owner's thread.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple

import trio

from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.paths import parts_of
from mountstore.store import Store

__all__ = ["Entry", "files_in", "is_pattern", "joined", "matching"]

_BATCH: Final = 500
"""Names looked at before others have their turn."""

_WILD: Final = re.compile(rb"[*?\[]")


class Entry(NamedTuple):
    """A name in a directory."""

    directory: int
    name: bytes


def is_pattern(path: bytes) -> bool:
    """Whether it has characters that mean others: `*`, `?`, `[`."""
    return _WILD.search(path) is not None


async def files_in(store: Store, directory: int, path: bytes) -> AsyncIterator[tuple[bytes, Entry]]:
    """Regular files of a directory, but for hidden ones, and their paths, given that of the directory."""
    async for name, inode in _named(store, directory, b"*"):
        if inode.is_regular:
            yield joined(path, name), Entry(directory, name)


async def matching(store: Store, pattern: bytes) -> AsyncIterator[tuple[bytes, Entry]]:
    """Regular files that a pattern means, and their paths; hidden ones only if it says so."""
    parts = parts_of(pattern)
    waiting: list[tuple[int, bytes, int]] = [(ROOT, b"/" if pattern.startswith(b"/") else b"", 0)]
    while waiting:
        directory, path, depth = waiting.pop()
        part, last = parts[depth], depth == len(parts) - 1
        async for name, inode in _named(store, directory, part):
            if last and inode.is_regular:
                yield joined(path, name), Entry(directory, name)
            elif not last and inode.is_directory:
                waiting.append((inode.id, joined(path, name), depth + 1))


async def _named(store: Store, directory: int, pattern: bytes) -> AsyncIterator[tuple[bytes, Inode]]:
    """Entries of a directory that a pattern of one name means."""
    if not is_pattern(pattern):
        inode = store.namespace.find(directory, pattern)
        if inode is not None:
            yield pattern, inode
        return
    matches = _matcher(pattern)
    for count, (name, inode) in enumerate(store.timeline.entries(directory)):
        if matches(name):
            yield name, inode
        if count % _BATCH == _BATCH - 1:
            await trio.lowlevel.checkpoint()


def _matcher(pattern: bytes) -> Callable[[bytes], object]:
    # As text of one character a byte: `fnmatch` knows no bytes that are no text.
    match = re.compile(fnmatch.translate(pattern.decode("latin-1"))).match
    hidden = pattern.startswith(b".")
    return lambda name: (hidden or not name.startswith(b".")) and match(name.decode("latin-1"))


def joined(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name if directory else name
