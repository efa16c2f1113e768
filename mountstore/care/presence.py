"""Which blobs a directory of blobs has, by one pass over it: any copy of one, needing nothing else.

A blob is there if a regular file of its name and size lies on its way. With `full` its bytes must have its digest,
too. Eight bytes are remembered of each: of two digests that agree in 64 bits one may be taken for the other.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.care.rehash import read_hashes

_THREADS: Final = 2
_BATCH: Final = 32
"""Blobs handed to a thread at a time."""

_UNDER_WAY: Final = 3 * _THREADS
_REPORT_EVERY: Final = 1024
_KEY_BYTES: Final = 8

Counter = Callable[[int, int], None]
"""Told how many blobs were looked at, and how many bytes they have."""


class Presence:
    """The blobs that are whole, as far as was looked; never changes. Any thread.

    Attributes:
      blobs, size_bytes: Of these.
      damaged: Paths of those that are not, with the reason.
    """

    def __init__(self, tree: BalancedTree, *, full: bool = False, count: Counter | None = None) -> None:
        self.blobs = 0
        self.size_bytes = 0
        self.damaged: list[str] = []
        # 256 of them, by first byte, so that sorting takes little room.
        self._keys = [array("Q") for _ in range(256)]
        found = _rehashed(tree) if full else _sized(tree)
        looked_bytes = 0
        for looked, (digest, path, flaw) in enumerate(found, 1):
            looked_bytes += digest.size_bytes
            if flaw is None:
                self.blobs += 1
                self.size_bytes += digest.size_bytes
                self._keys[digest.sha256[0]].append(int.from_bytes(digest.sha256[:_KEY_BYTES], "big"))
            else:
                self.damaged.append(f"{path}: {flaw}")
            if count is not None and looked % _REPORT_EVERY == 0:
                count(looked, looked_bytes)
        self._keys = [array("Q", sorted(keys)) for keys in self._keys]

    def __contains__(self, digest: Digest) -> bool:
        keys = self._keys[digest.sha256[0]]
        key = int.from_bytes(digest.sha256[:_KEY_BYTES], "big")
        i = bisect_left(keys, key)
        return i < len(keys) and keys[i] == key


_Found = Iterator[tuple[Digest, str, str | None]]


def _sized(tree: BalancedTree) -> _Found:
    for digest, path in tree.walk():
        try:
            size_bytes = os.lstat(path).st_size
        except OSError as exc:
            yield digest, path, exc.strerror or str(exc)
            continue
        yield digest, path, None if size_bytes == digest.size_bytes else f"has {size_bytes} bytes"


def _rehashed(tree: BalancedTree) -> _Found:
    under_way: deque[Future[list[tuple[Digest, str, str | None]]]] = deque()
    with ThreadPoolExecutor(_THREADS, "rehash") as pool:
        try:
            walk = tree.walk()
            while batch := list(islice(walk, _BATCH)):
                under_way.append(pool.submit(_look_at, batch))
                if len(under_way) > _UNDER_WAY:
                    yield from under_way.popleft().result()
            for future in under_way:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _look_at(batch: list[tuple[Digest, str]]) -> list[tuple[Digest, str, str | None]]:
    return [(digest, path, _flaw_of(path, digest)) for digest, path in batch]


def _flaw_of(path: str, digest: Digest) -> str | None:
    try:
        found = read_hashes(path).digest
    except OSError as exc:
        return exc.strerror or str(exc)
    return None if found == digest else "its bytes are not those of its name"
