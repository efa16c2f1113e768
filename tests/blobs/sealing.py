"""Sources and small chunking parameters for the tests of seals, manifests and readers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.content import Content
from mountstore.blobs.descriptors import DescriptorCache
from mountstore.blobs.reader import ContentReader
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import VerifiedBlobs

SMALL = ChunkingParameters(min_size=64, avg_size=256, max_size=1024, piece_max=1024, hole_min=128)
"""So small that a file of some kilobytes meets every boundary, and manifests soon have levels."""

unhurried = settings(deadline=None)
# Blobs pile up in the tree of one test, which is how a tree is used.
given_a_tree = settings(unhurried, suppress_health_check=[HealthCheck.function_scoped_fixture])


class BytesSource:
    """Bytes, and how many of them were asked for."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)
        self.size_bytes = len(data)
        self.read_bytes = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.data[offset : offset + length]


class IslandSource:
    """Zeros, but for some stretches of data: as large as wanted. Reading zeros is an error."""

    def __init__(self, size_bytes: int, islands: dict[int, bytes]) -> None:
        self.size_bytes = size_bytes
        self.islands = islands

    def pread(self, offset: int, length: int) -> bytes:
        for start, data in self.islands.items():
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        raise AssertionError(f"read zeros at {offset}")

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        for start, data in sorted(self.islands.items()):
            yield start, start + len(data)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def reader(tree: BalancedTree, content: Content, checksum: bytes | None = None) -> ContentReader:
    """A reader that knows nothing yet."""
    return ContentReader(tree, content, checksum, VerifiedBlobs(), DescriptorCache())


# Lengths around all the bounds of SMALL; runs of zeros, of noise, and of few different bytes.
_lengths = st.one_of(st.integers(1, 3000), st.sampled_from([1, 63, 64, 65, 126, 127, 128, 129, 1023, 1024, 1025]))
runs = st.one_of(
    st.builds(bytes, _lengths),
    st.builds(noise, st.integers(0, 7), _lengths),
    st.builds(lambda n: (b"\0" * 100 + b"x") * (n // 101 + 1), _lengths),
)
files = st.lists(runs, max_size=8).map(b"".join)
