"""A set of digests in eight bytes each: what is marked as needed.

It may say of a digest that it is in although another one is whose hash begins with the same eight bytes. So it
is for keeping only: of what it does not have, nobody marked anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

_BUCKETS: Final = 256
_KEY_BYTES: Final = 8
_LEAST: Final = 1024
"""Keys in a bucket before it is looked through for those that it has twice."""


class Marks:
    """Keys in buckets by the first byte; whoever asks about many asks bucket by bucket (`slice_of`)."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(_BUCKETS)]
        self._full = [_LEAST] * _BUCKETS

    def add(self, sha256: bytes) -> None:
        first = sha256[0]
        bucket = self._buckets[first]
        bucket.append(int.from_bytes(sha256[:_KEY_BYTES]))
        if len(bucket) >= self._full[first]:
            self._buckets[first] = bucket = array("Q", set(bucket))
            self._full[first] = max(_LEAST, 2 * len(bucket))

    def update(self, hashes: Iterable[bytes]) -> None:
        for sha256 in hashes:
            self.add(sha256)

    def slice_of(self, sha256: bytes) -> set[int]:
        """The keys whose first half byte is that of `sha256`."""
        first = sha256[0] & 0xF0
        return set().union(*self._buckets[first : first + 16])


def key_of(sha256: bytes) -> int:
    """What stands for a digest in a slice."""
    return int.from_bytes(sha256[:_KEY_BYTES])
