from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealing import SMALL, BytesSource, files, given_a_tree, noise, reader

from mountstore.blobs import descriptors as descriptors_module
from mountstore.blobs import reader as reader_module
from mountstore.blobs.chunking import DEFAULT_PARAMETERS
from mountstore.blobs.content import EMPTY, Content, ContentKind, Sealed
from mountstore.blobs.describe import describe
from mountstore.blobs.descriptors import Descriptor, DescriptorCache
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.manifest import Entry
from mountstore.blobs.reader import INLINE_READ_MAX, ContentReader
from mountstore.blobs.seal import seal, seal_small
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import VerifiedBlobs
from mountstore.errors import BlobMissingError, CorruptError, MisuseError


@pytest.fixture
def tree(tmp_path: Path) -> BalancedTree:
    return BalancedTree(str(tmp_path / "blobs"), exclusive=True)


class Mounted:
    """What the readers of one mount share."""

    def __init__(self, tree: BalancedTree, descriptors_max: int = 256) -> None:
        self.tree = tree
        self.verified = VerifiedBlobs()
        self.descriptors = DescriptorCache(descriptors_max)

    def open(self, content: Content, known_checksum: bytes | None = None) -> ContentReader:
        return ContentReader(self.tree, content, known_checksum, self.verified, self.descriptors)


@pytest.fixture
def mounted(tree: BalancedTree) -> Iterator[Mounted]:
    mounted = Mounted(tree)
    yield mounted
    assert mounted.descriptors.close_idle() <= 256
    assert len(mounted.descriptors) == 0, "a descriptor was not given back"


def damage(tree: BalancedTree, digest: Digest, how: str) -> None:
    path = tree.find(digest)
    assert path is not None
    os.chmod(path, 0o644)
    if how == "missing":
        os.unlink(path)
    elif how == "truncated":
        os.truncate(path, digest.size_bytes - 1)
    else:
        with open(path, "r+b") as file:
            file.seek(digest.size_bytes // 2)
            byte = file.read(1)[0]
            file.seek(digest.size_bytes // 2)
            file.write(bytes([byte ^ 4]))


DAMAGES = ["missing", "truncated", "flipped"]


def top(content: Content) -> Digest:
    assert content.digest is not None
    return content.digest


# --- reading ---


@given_a_tree
@given(data=files, draw=st.data())
def test_every_part_reads_as_the_bytes_do(tree: BalancedTree, data: bytes, draw: st.DataObject) -> None:
    read = reader(tree, seal(tree, SMALL, BytesSource(data)).content)
    for _ in range(5):
        offset = draw.draw(st.integers(0, len(data) + 10))
        length = draw.draw(st.integers(0, 3000))
        assert read.pread(offset, length) == data[offset : offset + length]
        assert read.pread_nowait(offset, length) == data[offset : offset + length]
    read.close()


@given_a_tree
@given(data=files)
def test_outside_the_data_ranges_everything_is_zero(tree: BalancedTree, data: bytes) -> None:
    rebuilt = bytearray(len(data))
    end = -1
    for start, stop in reader(tree, seal(tree, SMALL, BytesSource(data)).content).data_ranges():
        assert end < start < stop
        rebuilt[start:stop] = data[start:stop]
        end = stop
    assert rebuilt == data


def test_an_empty_content_reads_as_nothing(tree: BalancedTree) -> None:
    read = reader(tree, EMPTY)
    assert (read.pread(0, 10), read.pread_nowait(0, 10), list(read.data_ranges())) == (b"", b"", [])


def test_what_is_no_content_is_refused(tree: BalancedTree) -> None:
    digest = Digest.of(b"abc")
    with pytest.raises(MisuseError):
        reader(tree, Content(ContentKind.BLOB, None, 3))
    with pytest.raises(MisuseError):
        reader(tree, Content(ContentKind.EMPTY, None, 3))
    with pytest.raises(CorruptError):
        reader(tree, Content(ContentKind.BLOB, digest, 4))


def test_nowait_answers_only_what_needs_no_waiting(tree: BalancedTree, mounted: Mounted) -> None:
    data = noise(1, 6 << 20)
    sealed = seal(tree, DEFAULT_PARAMETERS, BytesSource(data))
    read = mounted.open(sealed.content)
    assert read.pread_nowait(0, 10) is None, "the manifest was not read yet"
    assert read.pread(0, 10) == data[:10]
    assert read.pread_nowait(5, 10) == data[5:15]
    assert read.pread_nowait(0, 6 << 20) is None, "pieces behind were not verified yet"
    assert read.pread(0, 6 << 20) == data
    assert read.pread_nowait(0, 6 << 20) == data


def test_nowait_verifies_small_blobs_itself(tree: BalancedTree, mounted: Mounted) -> None:
    for size, answered in ((INLINE_READ_MAX, True), (INLINE_READ_MAX + 1, False)):
        data = noise(size, size)
        found = mounted.open(seal_small(tree, data).content).pread_nowait(1, 10)
        assert found == (data[1:11] if answered else None)
    assert mounted.verified.verified == 1


def test_nowait_leaves_what_is_not_in_the_page_cache(tree: BalancedTree, mounted: Mounted) -> None:
    data = noise(1, 100_000)
    sealed = seal_small(tree, data)
    fd = os.open(sealed.blobs[0].path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    read = mounted.open(sealed.content)
    # A file system may ignore the advice, but wrong bytes it must not be.
    assert read.pread_nowait(0, 100_000) in (None, data)
    assert read.pread(0, 100_000) == data


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The blobs that the kernel was asked to fetch, in order."""
    names: list[str] = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return names


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether blobs seem to lie on the disk alone; change what it holds."""
    cold = [True]
    monkeypatch.setattr(descriptors_module, "_begins_in_cache", lambda fd: not cold[0])
    return cold


SHORT_AHEAD = 20_000


@pytest.fixture
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of 1000 bytes are long ones, and have `SHORT_AHEAD` bytes fetched ahead."""
    monkeypatch.setattr(reader_module, "_AHEAD_BYTES", SHORT_AHEAD)
    monkeypatch.setattr(reader_module, "LONG_BYTES", 1000)


@pytest.mark.usefixtures("short_streams")
@pytest.mark.parametrize("known", [False, True], ids=["unverified", "verified"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_read_in_order_has_the_next_pieces_fetched_once(
    tree: BalancedTree,
    mounted: Mounted,
    fetched: list[str],
    cold: list[bool],
    known: bool,
    swapped: bool,
) -> None:
    data = noise(1, 200_000)
    sealed = seal(tree, SMALL, BytesSource(data))
    entries = [entry for entry in describe(tree, sealed.content).entries() if entry.digest]
    starts = {entry.digest.name: entry.offset for entry in entries if entry.digest}
    for blob in sealed.blobs if known else ():
        mounted.verified.add(blob.digest)
    read = mounted.open(sealed.content)
    read_to = 0
    for start in range(0, len(data), 2000):
        for offset in (start + 1000, start) if swapped else (start, start + 1000):
            assert read.pread(offset, 1000) == data[offset : offset + 1000]
            read_to = max(read_to, offset + 1000)
            assert all(starts[name] < read_to + SHORT_AHEAD for name in fetched)
            assert read.cold
    # What the first read was at itself before its end is not.
    first_end = 2000 if swapped else 1000
    expected = [e.digest.name for e in entries if e.digest and e.offset + e.length >= first_end]
    assert fetched == expected


@pytest.mark.usefixtures("short_streams")
def test_what_the_page_cache_has_is_not_fetched_and_not_taken_for_cold(
    tree: BalancedTree,
    mounted: Mounted,
    fetched: list[str],
    cold: list[bool],
) -> None:
    data = noise(1, 200_000)
    read = mounted.open(seal(tree, SMALL, BytesSource(data)).content)
    taken_for_cold = [read.cold]
    read.pread(0, 1000)
    taken_for_cold.append(read.cold)
    cold[0] = False
    before = list(fetched)
    for offset in range(1000, 100_000, 1000):
        read.pread(offset, 1000)
    assert fetched == before
    assert [*taken_for_cold, read.cold] == [False, True, False]


@pytest.mark.usefixtures("short_streams")
def test_reads_here_and_there_and_small_ones_fetch_nothing_else(
    tree: BalancedTree,
    mounted: Mounted,
    fetched: list[str],
    cold: list[bool],
) -> None:
    data = noise(1, 200_000)
    read = mounted.open(seal(tree, SMALL, BytesSource(data)).content)
    for offset in (150_000, 20_000, 90_000, 60_000):
        assert read.pread(offset, 1000) == data[offset : offset + 1000]
    for offset in range(61_000, 70_000, 10):
        assert read.pread(offset, 10) == data[offset : offset + 10]
    assert fetched == []


# --- damage ---


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("checksum_known", [False, True])
def test_a_damaged_blob_is_never_served(
    tree: BalancedTree, mounted: Mounted, how: str, checksum_known: bool
) -> None:
    sealed = seal_small(tree, noise(1, 1000))
    damage(tree, top(sealed.content), how)
    read = mounted.open(sealed.content, sealed.blobs[0].checksum if checksum_known else None)
    for attempt in (read.pread, read.pread_nowait, read.pread):
        with pytest.raises((CorruptError, BlobMissingError), match=top(sealed.content).name):
            attempt(0, 1)
    assert mounted.verified.verified == 0
    assert mounted.verified.failed == (0 if how == "missing" else 3)
    assert top(sealed.content) not in mounted.verified


def pieces_of(tree: BalancedTree, sealed: Sealed) -> list[Entry]:
    return list(describe(tree, sealed.content).entries())


@pytest.mark.parametrize("how", DAMAGES)
def test_beside_a_damaged_piece_everything_is_readable(tree: BalancedTree, mounted: Mounted, how: str) -> None:
    data = noise(1, 5000) + bytes(1000) + noise(2, 5000)
    sealed = seal(tree, SMALL, BytesSource(data))
    pieces = pieces_of(tree, sealed)
    bad = pieces[len(pieces) // 2 + 1]
    assert bad.digest is not None
    damage(tree, bad.digest, how)
    read = mounted.open(sealed.content)
    for offset in range(len(data)):
        if bad.offset <= offset < bad.offset + bad.length:
            with pytest.raises((CorruptError, BlobMissingError), match=bad.digest.name):
                read.pread(offset, 1)
        else:
            assert read.pread(offset, 1) == data[offset : offset + 1]
    with pytest.raises((CorruptError, BlobMissingError), match=bad.digest.name):
        read.pread(0, len(data))
    with pytest.raises((CorruptError, BlobMissingError), match=bad.digest.name):
        read.pread_nowait(0, len(data))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_manifest_of_any_level_is_never_used(tree: BalancedTree, how: str) -> None:
    sealed = seal(tree, SMALL, BytesSource(noise(1, 20_000)))
    pieces = {entry.digest for entry in pieces_of(tree, sealed)}
    manifests = [blob for blob in sealed.blobs if blob.digest not in pieces]
    assert len(manifests) > 2
    for blob in manifests:
        kept = Path(blob.path).read_bytes()
        damage(tree, blob.digest, how)
        for _ in range(2):
            with pytest.raises((CorruptError, BlobMissingError), match=blob.digest.name):
                reader(tree, sealed.content).pread(0, 1)
        Path(blob.path).unlink(missing_ok=True)
        Path(blob.path).write_bytes(kept)
    assert reader(tree, sealed.content).pread(0, 1) == noise(1, 20_000)[:1]


def test_every_flipped_bit_is_noticed(tree: BalancedTree) -> None:
    data = noise(1, 40)
    sealed = seal_small(tree, data)
    path = sealed.blobs[0].path
    os.chmod(path, 0o644)
    for known in (None, sealed.blobs[0].checksum):
        for bit in range(len(data) * 8):
            bad = bytearray(data)
            bad[bit // 8] ^= 1 << bit % 8
            Path(path).write_bytes(bad)
            with pytest.raises(CorruptError):
                reader(tree, sealed.content, known).pread(0, 1)


def test_a_repaired_blob_is_served_again(tree: BalancedTree, mounted: Mounted) -> None:
    data = noise(1, 1000)
    sealed = seal_small(tree, data)
    damage(tree, top(sealed.content), "flipped")
    read = mounted.open(sealed.content)
    with pytest.raises(CorruptError):
        read.pread(0, 1)
    tree.delete(top(sealed.content))
    seal_small(tree, data)
    assert read.pread(0, 1000) == data


def test_a_blob_of_any_size_is_verified_in_little_memory(
    tree: BalancedTree, mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopted stores have blobs larger than any piece."""
    monkeypatch.setattr("mountstore.blobs.reader.PIECE_SIZE_LIMIT", 1 << 20)
    data = noise(1, (2 << 20) + 5)
    added = tree.add_bytes(data)
    content = Content(ContentKind.BLOB, added.digest, len(data))
    for known in (None, checksum(data)):
        mounted.verified.discard(added.digest)
        assert mounted.open(content, known).pread(len(data) - 7, 100) == data[-7:]
    with pytest.raises(CorruptError):
        reader(tree, content, b"x" * 16).pread(0, 1)


# --- what is shared by a mount ---


def test_a_blob_is_verified_once(tree: BalancedTree, mounted: Mounted) -> None:
    sealed = seal_small(tree, noise(1, 1000))
    for _ in range(3):
        mounted.open(sealed.content).pread(0, 10)
    assert (mounted.verified.verified, mounted.verified.failed) == (1, 0)


def test_the_verified_blobs_are_bounded() -> None:
    verified = VerifiedBlobs(limit=100)
    digests = [Digest.of(bytes([i // 256, i % 256])) for i in range(1000)]
    for digest in digests:
        verified.add(digest)
        assert digests[0] in verified, "what is asked about stays"
        assert len(verified) <= 100
    assert digests[-1] in verified
    assert digests[500] not in verified
    verified.discard(digests[0])
    assert digests[0] not in verified


def test_descriptors_are_bounded_and_used_again(tree: BalancedTree) -> None:
    mounted = Mounted(tree, descriptors_max=5)
    readers = [mounted.open(seal_small(tree, noise(i, 100)).content) for i in range(20)]
    for i, read in enumerate(readers):
        assert read.pread(0, 100) == noise(i, 100)
        assert len(mounted.descriptors) <= 5
    assert mounted.descriptors.close_idle() == 5
    first = mounted.descriptors.acquire(tree, top(readers[0].content))
    assert mounted.descriptors.acquire(tree, top(readers[0].content)) is first
    mounted.descriptors.forget(first.digest)
    assert mounted.descriptors.acquire(tree, first.digest) is not first
    assert os.pread(first.fd, 100, 0) == noise(0, 100), "in use, so still open"


class ReplacedTree(BalancedTree):
    """While a blob is being opened, somebody finds it damaged and replaces it."""

    cache: DescriptorCache
    good: bytes
    replaced = False

    def open(self, digest: Digest) -> int:
        fd = super().open(digest)
        if not self.replaced:
            self.replaced = True
            path = self.find(digest)
            assert path is not None
            with open(f"{path}.good", "wb") as file:
                file.write(self.good)
            os.rename(f"{path}.good", path)
            self.cache.forget(digest)
        return fd


def test_a_descriptor_of_a_file_that_was_replaced_meanwhile_is_not_kept(tmp_path: Path) -> None:
    tree = ReplacedTree(str(tmp_path / "blobs"), exclusive=True)
    tree.cache, tree.good = DescriptorCache(), noise(1, 100)
    digest = tree.add_bytes(tree.good).digest
    damage(tree, digest, "flipped")
    descriptor = tree.cache.acquire(tree, digest)
    assert os.pread(descriptor.fd, 200, 0) == tree.good
    tree.cache.release(descriptor)
    assert tree.cache.close_idle() == 1


class OvertakenTree(BalancedTree):
    """While a blob is being opened, somebody else opens it through the same cache."""

    cache: DescriptorCache
    overtaken: Descriptor | None = None

    def open(self, digest: Digest) -> int:
        fd = super().open(digest)
        if self.overtaken is None:
            self.overtaken = Descriptor(digest, -1)
            self.overtaken = self.cache.acquire(self, digest)
        return fd


def test_two_who_open_a_blob_at_once_share_a_descriptor(tmp_path: Path) -> None:
    tree = OvertakenTree(str(tmp_path / "blobs"), exclusive=True)
    tree.cache = DescriptorCache()
    digest = tree.add_bytes(b"abc").digest
    before = len(os.listdir("/proc/self/fd"))
    mine = tree.cache.acquire(tree, digest)
    assert mine is tree.overtaken
    assert len(os.listdir("/proc/self/fd")) == before + 1
    tree.cache.release(mine)
    tree.cache.release(mine)
    assert tree.cache.close_idle() == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_running_out_of_descriptors_is_survived(tree: BalancedTree, mounted: Mounted) -> None:
    readers = [mounted.open(seal_small(tree, noise(i, 100)).content) for i in range(30)]
    for read in readers[:20]:
        read.pread(0, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No descriptor above those now open.
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        for i, read in enumerate(readers):
            assert read.pread(0, 100) == noise(i, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("allowed", "kept"), [(40, 10), (100_000, 20), (resource.RLIM_INFINITY, 20)])
def test_how_many_descriptors_are_kept_depends_on_how_many_there_may_be(
    tree: BalancedTree, monkeypatch: pytest.MonkeyPatch, allowed: int, kept: int
) -> None:
    monkeypatch.setattr(descriptors_module, "_IDLE_MAX", 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    cache = DescriptorCache()
    for digest in [tree.add_bytes(noise(i, 100)).digest for i in range(30)]:
        cache.release(cache.acquire(tree, digest))
    assert cache.close_idle() == kept


def test_many_threads_read_at_once(tree: BalancedTree) -> None:
    data = noise(1, 60_000)
    mounted = Mounted(tree, descriptors_max=3)
    read = mounted.open(seal(tree, SMALL, BytesSource(data)).content)
    start = threading.Barrier(8)

    def work(seed: int) -> bool:
        start.wait()
        offsets = [(seed * 7919 + k * 104_729) % len(data) for k in range(150)]
        return all((read.pread_nowait(o, 500) or read.pread(o, 500)) == data[o : o + 500] for o in offsets)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    mounted.descriptors.close_idle()
    assert len(mounted.descriptors) == 0


# --- the dedup report ---


def test_a_content_is_described(tree: BalancedTree) -> None:
    block = noise(1, 20_000)
    data = block + bytes(5000) + block + bytes(3000) + noise(2, 3000)
    sealed = seal(tree, SMALL, BytesSource(data))
    found = describe(tree, sealed.content)
    assert found.logical_bytes == len(data)
    assert found.hole_bytes == 8000
    assert found.unique_bytes == 23_000
    assert found.pieces - found.unique_pieces == found.shared_pieces > 10
    assert found.manifest_bytes + found.unique_bytes == sum(blob.digest.size_bytes for blob in sealed.blobs)
    assert sum(entry.length for entry in found.entries()) == len(data)
    small = seal_small(tree, b"abc").content
    assert [entry.digest for entry in describe(tree, small).entries()] == [Digest.of(b"abc")]
    assert describe(tree, small).unique_bytes == 3
