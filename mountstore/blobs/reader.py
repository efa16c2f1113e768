"""Reading a content: from offsets to pieces to verified bytes.

1. Bytes are returned only from blobs that were found good since mount; otherwise an exception names the blob.
2. A missing or damaged blob concerns the bytes in it alone; everything else of the file stays readable.
3. Zeros are returned for holes only.
4. Memory: the manifest (some 60 bytes a piece) from the first read to `close`, and each piece under
   verification.

`pread_nowait` is meant for a thread that must not wait for the disk: it answers from the page cache or not at
all. Everything else blocks, and may be called from any number of worker threads at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Final

from mountstore.blobs.chunking import PIECE_SIZE_LIMIT
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.descriptors import DescriptorCache
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import Manifest, Part, load_manifest
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import VerifiedBlobs, check_bytes, check_open_blob, pread_exactly
from mountstore.errors import CorruptError, MisuseError

__all__ = ["INLINE_READ_MAX", "LONG_BYTES", "ContentReader", "DescriptorCache", "VerifiedBlobs"]

INLINE_READ_MAX: Final = 128 << 10
"""A blob up to this size is verified where it is read, without a thread: that takes some 10 us."""

_SCRATCH_BYTES: Final = 1 << 20


class _Scratch(threading.local):
    """A buffer for preadv: a fresh one would be zeroed first, which costs as much as the read."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SCRATCH_BYTES))


_scratch: Final = _Scratch()


_AHEAD_BYTES: Final = 4 << 20
"""How far ahead of a sequential read the kernel fetches pieces: eight of the usual ones."""

LONG_BYTES: Final = 128 << 10
"""A shorter read is not part of a stream: the kernel makes long ones of those."""


class ContentReader:
    """One content, open for reading.

    Args:
        checksum: XXH3-128 of the blob or manifest blob that `content` names, from the catalog; None if it is
            not known, or not worth asking for: then that blob is verified by its SHA-256.
        verified, descriptors: Shared by all readers of a mount.

    Nothing is read before the first call. Between calls no descriptor is held.
    """

    __slots__ = (
        "__weakref__",
        "_checksum",
        "_descriptors",
        "_digest",
        "_fetched",
        "_loading",
        "_manifest",
        "_read_to",
        "_tree",
        "_verified",
        "cold",
        "content",
        "size_bytes",
    )

    def __init__(
        self,
        tree: BalancedTree,
        content: Content,
        checksum: bytes | None,
        verified: VerifiedBlobs,
        descriptors: DescriptorCache,
    ) -> None:
        kind, digest, size_bytes = content
        if (digest is None) != (kind is ContentKind.EMPTY) or (digest is None and size_bytes):
            raise MisuseError(f"not a content: {content}")
        if kind is ContentKind.BLOB and digest is not None and digest.size_bytes != size_bytes:
            raise CorruptError(f"blob {digest.name} stands for a content of {size_bytes} bytes")
        self._tree = tree
        self.content = content
        self.size_bytes = size_bytes
        self._digest = digest
        self._checksum = checksum
        self._verified = verified
        self._descriptors = descriptors
        self._manifest: Manifest | None = None
        self._loading = threading.Lock()
        self.cold = False
        """Whether a long read will most likely have to wait for the disk."""
        # How far it was read in order, and fetched; only hints for reading ahead.
        self._read_to = 0
        self._fetched = 0

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), as far as the content reaches; blocks.

        Raises:
            BlobMissingError, CorruptError: A blob that is needed is not there, or not what was written.
            OSError: As the system says. None of these concerns later calls.
        """
        parts = self._parts_of_one(offset, length)
        if parts is None:
            assert self._digest is not None
            end = min(offset + length, self.size_bytes)
            manifest = self._manifest or self._load(self._digest)
            if length >= LONG_BYTES:
                self._read_ahead(manifest, offset, end)
            parts = manifest.parts(offset, end)
        return self.read(parts)

    def pread_nowait(self, offset: int, length: int) -> bytes | None:
        """As `pread` if the disk need not be waited for, else None: then `pread`, in a worker thread.

        None means that the manifest was not read yet, or what it means for `read_nowait`. Raises: as `pread`.
        """
        parts = self.parts(offset, length)
        return None if parts is None else self.read_nowait(parts)

    def parts(self, offset: int, length: int) -> list[Part] | None:
        """Where the bytes [offset, offset + length) are, as far as the content reaches; None if the manifest has
        to be read first."""
        parts = self._parts_of_one(offset, length)
        if parts is None and (manifest := self._manifest) is not None:
            parts = manifest.parts(offset, min(offset + length, self.size_bytes))
        return parts

    def _parts_of_one(self, offset: int, length: int) -> list[Part] | None:
        """As `parts`, of a content without a manifest; None if there is one."""
        end = min(offset + length, self.size_bytes)
        if offset >= end or self._digest is None:
            return []
        if self.content.kind is ContentKind.BLOB:
            return [(self._digest, self._checksum, offset, end - offset)]
        return None

    def cost_bytes(self, parts: list[Part]) -> int:
        """How much `read` would have to read, with what has to be verified first."""
        verified = self._verified
        cost = 0
        for digest, _, _, length in parts:
            if digest is not None:
                cost += length if digest in verified else digest.size_bytes
        return cost

    def read(self, parts: list[Part]) -> bytes:
        """The bytes of all parts; blocks. Raises: as `pread`."""
        found = [
            bytes(length) if digest is None else self._read(digest, checksum, start, length)
            for digest, checksum, start, length in parts
        ]
        return found[0] if len(found) == 1 else b"".join(found)

    def read_nowait(self, parts: list[Part]) -> bytes | None:
        """As `read` if the disk need not be waited for, else None.

        None means that a blob larger than INLINE_READ_MAX was not verified yet, or that something is not in the
        page cache. The name of a blob that is not open yet is looked up here all the same. Raises: as `pread`.
        """
        found: list[bytes] = []
        for digest, checksum, start, length in parts:
            part = bytes(length) if digest is None else self._read_nowait(digest, checksum, start, length)
            if part is None:
                self.cold = self.content.kind is not ContentKind.BLOB
                return None
            found.append(part)
        return found[0] if len(found) == 1 else b"".join(found)

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """The ranges (start, end), in order, outside which everything is zero; blocks. Raises: as `pread`."""
        if self._digest is None:
            return iter(())
        if self.content.kind is ContentKind.BLOB:
            return iter([(0, self.size_bytes)])
        return iter((self._manifest or self._load(self._digest)).data_ranges())

    def close(self) -> None:
        """Let go of the manifest. Reads under way end as usual."""
        self._manifest = None

    def _load(self, digest: Digest) -> Manifest:
        with self._loading:
            if self._manifest is None:
                self._manifest = load_manifest(self._whole, digest, self._checksum, self.size_bytes).manifest
            return self._manifest

    def _whole(self, digest: Digest, checksum: bytes | None) -> bytes:
        return self._read(digest, checksum, 0, digest.size_bytes)

    def _read(self, digest: Digest, checksum: bytes | None, start: int, length: int) -> bytes:
        """Part of one blob, which is verified unless it was; blocks."""
        try:
            descriptor = self._descriptors.acquire(self._tree, digest)
            try:
                if digest in self._verified:
                    return pread_exactly(descriptor.fd, length, start, digest)
                if digest.size_bytes <= PIECE_SIZE_LIMIT:
                    data = pread_exactly(descriptor.fd, digest.size_bytes, 0, digest)
                    check_bytes(data, digest, checksum)
                    data = data[start : start + length]
                else:
                    check_open_blob(descriptor.fd, digest, checksum)
                    data = pread_exactly(descriptor.fd, length, start, digest)
                self._verified.record_success(digest)
                return data
            finally:
                self._descriptors.release(descriptor)
        except CorruptError:
            self._distrust(digest)
            raise

    def _read_nowait(self, digest: Digest, checksum: bytes | None, start: int, length: int) -> bytes | None:
        known = digest in self._verified
        if not known and digest.size_bytes > INLINE_READ_MAX:
            return None
        try:
            descriptor = self._descriptors.acquire(self._tree, digest)
            try:
                if known:
                    return _read_cached(descriptor.fd, length, start)
                data = _read_cached(descriptor.fd, digest.size_bytes, 0)
                if data is None:
                    return None
                check_bytes(data, digest, checksum)
                self._verified.record_success(digest)
                return data[start : start + length]
            finally:
                self._descriptors.release(descriptor)
        except CorruptError:
            self._distrust(digest)
            raise

    def _distrust(self, digest: Digest) -> None:
        self._verified.record_failure(digest)
        self._tree.distrust(digest)
        # Its file may be replaced by a good one; an open descriptor would keep the bad one.
        self._descriptors.forget(digest)

    def _read_ahead(self, manifest: Manifest, offset: int, end: int) -> None:
        """The bytes [offset, end) are read, maybe from the disk: have the kernel fetch those that follow, if the
        file is being read in order, or by several in parallel in nearly that order."""
        if abs(offset - self._read_to) > _AHEAD_BYTES:
            self._fetched = self._read_to = end
            return
        self._read_to = max(self._read_to, end)
        first = manifest.find(max(self._fetched, self._read_to - 1))
        stop = min(self._read_to + _AHEAD_BYTES, self.size_bytes)
        cold: list[bool] = []
        for i in range(first, len(manifest)):
            start, size, digest, _ = manifest.entry(i)
            if start >= stop:
                break
            self._fetched = start + size
            if digest is not None:
                cold.append(self._descriptors.fetch_cold(self._tree, digest))
        if cold:
            self.cold = any(cold)


def _read_cached(fd: int, length: int, offset: int) -> bytes | None:
    """Bytes of a file that lie in the page cache, all of them or None."""
    view = _scratch.view[:length] if length <= _SCRATCH_BYTES else memoryview(bytearray(length))
    try:
        if os.preadv(fd, [view], offset, os.RWF_NOWAIT) != length:
            return None
    except OSError:
        # Not in the cache, or not supported by this file system; a real error shows in the blocking read.
        return None
    return bytes(view)
