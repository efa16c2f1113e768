from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealing import SMALL, BytesSource, IslandSource, files, given_a_tree, noise, reader

from mountstore.blobs.chunking import DEFAULT_PARAMETERS
from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.describe import describe, references
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.seal import StreamingSeal, seal, seal_small
from mountstore.blobs.tree import Added, BalancedTree
from mountstore.errors import CancelledError, MisuseError


@pytest.fixture
def tree(tmp_path: Path) -> BalancedTree:
    return BalancedTree(str(tmp_path / "blobs"), exclusive=True)


class SparseBytesSource(BytesSource):
    """Bytes that know where they are zero, to the byte or less exactly."""

    def __init__(self, data: bytes | bytearray, grain: int) -> None:
        super().__init__(data)
        self.grain = grain

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.size_bytes, self.grain):
            if any(self.data[start : start + self.grain]):
                yield start, min(self.size_bytes, start + self.grain)


class PlainSource:
    """Another source without what it knows of zeros."""

    def __init__(self, source: IslandSource) -> None:
        self.size_bytes = source.size_bytes
        self.pread = source.pread


def content_of(tree: BalancedTree, data: bytes) -> Content:
    return seal(tree, SMALL, BytesSource(data)).content


# --- round trips ---


@given_a_tree
@given(data=files)
def test_what_was_sealed_is_read(tree: BalancedTree, data: bytes) -> None:
    sealed = seal(tree, SMALL, BytesSource(data))
    content = sealed.content
    assert content.size_bytes == len(data)
    expected = ContentKind.BLOB if len(data) <= SMALL.piece_max else ContentKind.MANIFEST
    assert content.kind == (expected if data else ContentKind.EMPTY)
    assert reader(tree, content).pread(0, len(data) + 1) == data


@given_a_tree
@given(data=files)
def test_the_blobs_of_a_fresh_seal_are_all_its_content_needs(tree: BalancedTree, data: bytes) -> None:
    sealed = seal(tree, SMALL, BytesSource(data))
    assert {blob.digest for blob in sealed.blobs} == set(references(tree, sealed.content))
    assert len({blob.digest for blob in sealed.blobs}) == len(sealed.blobs)
    for blob in sealed.blobs:
        stored = Path(blob.path).read_bytes()
        assert (blob.digest, blob.checksum) == (Digest.of(stored), checksum(stored))
    again = seal(tree, SMALL, BytesSource(data))
    assert again.content == sealed.content
    assert not any(blob.new for blob in again.blobs)


@given_a_tree
@given(data=files, grain=st.sampled_from([1, 7, 64, 500]))
def test_a_sparse_source_gives_the_same_content(tree: BalancedTree, data: bytes, grain: int) -> None:
    assert seal(tree, SMALL, SparseBytesSource(data, grain)).content == content_of(tree, data)


@given_a_tree
@given(data=files, step=st.integers(1, 3000))
def test_streaming_gives_the_same_content(tree: BalancedTree, data: bytes, step: int) -> None:
    stream = StreamingSeal(tree, SMALL)
    for offset in range(0, len(data), step):
        stream.feed(data[offset : offset + step])
    assert stream.size_bytes == len(data)
    assert stream.finish().content == content_of(tree, data)


@pytest.mark.parametrize("size", [1, 1023, 1024])
def test_a_small_file_is_one_blob(tree: BalancedTree, size: int) -> None:
    data = noise(1, size)
    sealed = seal_small(tree, bytearray(data))
    assert sealed.content == (ContentKind.BLOB, Digest.of(data), size)
    assert [blob.new for blob in sealed.blobs] == [True]


def test_seal_of_known_bytes_never_changes(tree: BalancedTree) -> None:
    """Contents of a store that exists must stay what they are, or the same file would be stored again."""
    data = noise(7, 30_000) + bytes(1000) + noise(8, 30_000)
    content = content_of(tree, data)
    assert content.digest is not None
    assert content.digest.name == "5cbcb3099d1785cacfd2ac9a18c559a048f3dcce8ada28425bfffeb6c6a6bb47_110"


# --- changes ---


@st.composite
def changed_files(draw: st.DrawFn) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """A file, what it was changed into, and where."""
    before = draw(files)
    after = bytearray(before)
    dirty = []
    if draw(st.booleans()):
        size = draw(st.integers(0, len(after)))
        if size < len(after):
            # What is cut off and perhaps grown over again is no longer what it was.
            dirty.append((size, len(before)))
            del after[size:]
    if draw(st.booleans()):
        after += bytes(draw(st.integers(1, 3000)))
    for _ in range(draw(st.integers(0, 4))):
        offset = draw(st.integers(0, len(after) + 300))
        data = draw(st.sampled_from([b"\0" * 200, b"\0", b"x", noise(3, 300), noise(4, 1500)]))
        after.extend(bytes(max(0, offset - len(after))))
        after[offset : offset + len(data)] = data
        dirty.append((offset, offset + len(data)))
    return before, bytes(after), dirty


@given_a_tree
@given(change=changed_files())
def test_resealing_a_change_gives_what_sealing_everything_gives(
    tree: BalancedTree, change: tuple[bytes, bytes, list[tuple[int, int]]]
) -> None:
    before, after, dirty = change
    base = content_of(tree, before)
    sealed = seal(tree, SMALL, BytesSource(after), base=base, dirty=dirty)
    assert sealed.content == content_of(tree, after)
    assert reader(tree, sealed.content).pread(0, len(after)) == after


def long_changes(seed: int) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """A file of some hundred pieces, with holes, and a few changes far apart."""
    rng = random.Random(seed)
    before = bytearray()
    while len(before) < 150_000:
        before += rng.choice([rng.randbytes(rng.randrange(20_000)), bytes(rng.randrange(400))])
    after = bytearray(before)
    dirty = []
    for _ in range(rng.randrange(1, 8)):
        offset = rng.randrange(len(after))
        data = rng.choice([rng.randbytes(30), bytes(rng.randrange(1, 400))])
        after[offset : offset + len(data)] = data
        dirty.append((offset, offset + len(data)))
    return bytes(before), bytes(after), dirty


@pytest.mark.parametrize("seed", range(12))
def test_several_changes_of_a_long_file(tree: BalancedTree, seed: int) -> None:
    before, after, dirty = long_changes(seed)
    base = content_of(tree, before)
    assert seal(tree, SMALL, BytesSource(after), base=base, dirty=dirty).content == content_of(tree, after)


def test_changes_that_touch_a_boundary(tree: BalancedTree) -> None:
    before = noise(1, 3000) + bytes(200) + noise(2, 3000) + bytes(128) + noise(3, 3000)
    base = content_of(tree, before)
    for entry in list(describe(tree, base).entries())[1:]:
        for start, end in ((-1, 0), (0, 1), (-1, 1)):
            after = bytearray(before)
            dirty = [(entry.offset + start, entry.offset + end)]
            for offset in range(*dirty[0]):
                after[offset] = after[offset] ^ 0x55 or 1
            sealed = seal(tree, SMALL, BytesSource(after), base=base, dirty=dirty)
            assert sealed.content == content_of(tree, bytes(after))


def test_a_change_costs_what_changed(tree: BalancedTree) -> None:
    before = noise(1, 1_000_000)
    after = bytearray(before)
    after[500_000:500_010] = b"0123456789"
    base = seal(tree, SMALL, BytesSource(before))
    sealed = seal(tree, SMALL, BytesSource(after), base=base.content, dirty=[(500_000, 500_010)])
    pieces = {entry.digest for entry in describe(tree, sealed.content).entries()}
    old = {entry.digest for entry in describe(tree, base.content).entries()}
    assert 1 <= len(pieces - old) <= 3


def test_only_the_surroundings_of_a_change_are_read(tree: BalancedTree) -> None:
    before = noise(1, 40 << 20)
    base = seal(tree, DEFAULT_PARAMETERS, BytesSource(before))
    after = bytearray(before)
    after[20 << 20 : (20 << 20) + 4096] = bytes(4096)
    source = BytesSource(after)
    dirty = [(20 << 20, (20 << 20) + 4096)]
    sealed = seal(tree, DEFAULT_PARAMETERS, source, base=base.content, dirty=dirty)
    assert source.read_bytes <= 12 << 20
    assert sum(blob.digest.size_bytes for blob in sealed.blobs if blob.new) <= 8 << 20
    assert sealed.content == seal(tree, DEFAULT_PARAMETERS, BytesSource(after)).content


def test_nothing_changed_gives_the_base_unread(tree: BalancedTree) -> None:
    data = noise(1, 50_000)
    base = content_of(tree, data)
    source = BytesSource(data)
    assert seal(tree, SMALL, source, base=base, dirty=[]) == (base, (), 0)
    assert source.read_bytes == 0


def test_an_appended_byte_leaves_the_pieces_before_it(tree: BalancedTree) -> None:
    data = noise(1, 500_000)
    base = content_of(tree, data)
    old = set(references(tree, base))
    sealed = seal(tree, SMALL, BytesSource(data + b"!"), base=base, dirty=[(500_000, 500_001)])
    pieces = {entry.digest for entry in describe(tree, sealed.content).entries()}
    assert len(pieces - old) <= 2


def test_one_byte_in_front_leaves_nearly_all_pieces(tree: BalancedTree) -> None:
    data = noise(1, 500_000)
    old = {entry.digest for entry in describe(tree, content_of(tree, data)).entries()}
    after = describe(tree, content_of(tree, b"!" + data))
    assert sum(entry.digest not in old for entry in after.entries()) <= 3


# --- zeros ---


def test_a_sparse_tebibyte_is_not_read(tree: BalancedTree) -> None:
    size = 1 << 40
    source = IslandSource(size, {0: b"head" * 1024, size // 2: noise(1, 100_000), size - 4096: b"tail" * 1024})
    content = seal(tree, DEFAULT_PARAMETERS, source).content
    assert content.size_bytes == size
    read = reader(tree, content).pread
    assert read(0, 8) == b"headhead"
    assert read(size // 2 - 5, 100_010) == bytes(5) + noise(1, 100_000) + bytes(5)
    assert read(size - 6, 100) == b"iltail"[-6:]
    assert read(size // 4, 1000) == bytes(1000)
    assert describe(tree, content).pieces == 3


def test_zeros_that_the_base_vouches_for_are_not_read(tree: BalancedTree) -> None:
    size = 1 << 40
    base = seal(tree, DEFAULT_PARAMETERS, IslandSource(size, {0: b"x"})).content
    source = IslandSource(2 * size, {0: b"x", size + 5: b"new"})
    plain = PlainSource(source)
    sealed = seal(tree, DEFAULT_PARAMETERS, plain, base=base, dirty=[(size + 5, size + 8)])
    assert sealed.content == seal(tree, DEFAULT_PARAMETERS, source).content


def test_only_zeros_are_only_a_hole(tree: BalancedTree) -> None:
    sealed = seal(tree, SMALL, BytesSource(bytes(100_000)))
    assert [(entry.length, entry.digest) for entry in describe(tree, sealed.content).entries()] == [
        (100_000, None)
    ]
    assert len(sealed.blobs) == 1


# --- levels ---


def test_a_manifest_too_large_for_a_blob_gets_a_level(tree: BalancedTree) -> None:
    data = noise(1, 300_000)
    sealed = seal(tree, SMALL, BytesSource(data))
    assert all(blob.digest.size_bytes <= SMALL.piece_max for blob in sealed.blobs)
    assert reader(tree, sealed.content).pread(0, len(data)) == data


# --- failures ---


def test_a_cancelled_seal_stops(tree: BalancedTree) -> None:
    source = BytesSource(noise(1, 20 << 20))
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(CancelledError):
        seal(tree, DEFAULT_PARAMETERS, source, cancelled=cancelled)
    assert source.read_bytes <= 5 << 20


def test_a_source_that_ends_early_is_refused(tree: BalancedTree) -> None:
    for size in (500, 5000):
        source = BytesSource(noise(1, size))
        source.size_bytes += 1
        with pytest.raises(MisuseError):
            seal(tree, SMALL, source)


class FullDisk(BalancedTree):
    """A tree that has no room after so many blobs."""

    room = 10

    def add_bytes(self, data: bytes | bytearray | memoryview, digest: Digest | None = None) -> Added:
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return super().add_bytes(data, digest)


@pytest.mark.parametrize("room", [0, 1, 10, 200])
def test_a_full_disk_shows(tmp_path: Path, room: int) -> None:
    full = FullDisk(str(tmp_path / "blobs"))
    full.room = room
    with pytest.raises(OSError, match="No space"):
        seal(full, SMALL, BytesSource(noise(1, 100_000)))


def test_empty_is_empty(tree: BalancedTree) -> None:
    assert seal(tree, SMALL, BytesSource(b"")) == (EMPTY, (), 0)
    assert StreamingSeal(tree, SMALL).finish() == (EMPTY, (), 0)
    assert list(references(tree, EMPTY)) == []
    assert describe(tree, EMPTY).pieces == 0
