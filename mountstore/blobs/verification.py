"""Are these still the bytes that were written? Each blob is asked once a mount, when it is first touched.

Reading goes on from there through the page cache of the same immutable file, so what was verified once is
trusted until the mount ends. A blob that fails is never remembered: it fails at every touch.
"""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from typing import Final

from xxhash import xxh3_128

from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import CorruptError

__all__ = ["VerifiedBlobs", "check_bytes", "check_open_blob", "pread_exactly", "read_blob"]

_KEY_BYTES: Final = 16
_PART_BYTES: Final = 1 << 20


class VerifiedBlobs:
    """The blobs that were found good since mount, as many as fit; the ones not asked about go first.

    Args:
        limit: How many to remember; each takes some 110 bytes. One that was forgotten is verified again.

    Any thread. `verified` and `failed` count the checks that were made.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self._half = max(1, limit // 2)
        # Two generations: when the young one is full, it becomes the old one, and that is dropped.
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._lock = threading.Lock()
        self.verified = 0
        self.failed = 0

    def __contains__(self, digest: Digest) -> bool:
        key = digest.sha256[:_KEY_BYTES]
        if key in self._young:
            return True
        if key not in self._old:
            return False
        self.add(digest)
        return True

    def __len__(self) -> int:
        with self._lock:
            return len(self._young | self._old)

    def add(self, digest: Digest) -> None:
        """Trust a blob, because it was just verified or just written."""
        with self._lock:
            self._young.add(digest.sha256[:_KEY_BYTES])
            if len(self._young) >= self._half:
                self._old = self._young
                self._young = set()

    def discard(self, digest: Digest) -> None:
        """Have the blob verified again when it is touched next."""
        with self._lock:
            self._young.discard(digest.sha256[:_KEY_BYTES])
            self._old.discard(digest.sha256[:_KEY_BYTES])

    def record_success(self, digest: Digest) -> None:
        """The blob was checked and is good."""
        self.add(digest)
        with self._lock:
            self.verified += 1

    def record_failure(self, digest: Digest) -> None:
        """The blob was found damaged."""
        self.discard(digest)
        with self._lock:
            self.failed += 1


def check_bytes(data: bytes, digest: Digest, known_checksum: bytes | None) -> None:
    """Check that `data` is the blob `digest`: by its 16-byte checksum, or by SHA-256 if that is not known.

    Raises:
        CorruptError: It is not.
    """
    if len(data) != digest.size_bytes:
        raise CorruptError(f"blob {digest.name} is damaged: it has {len(data)} bytes")
    if known_checksum is None:
        if Digest.of(data) != digest:
            raise CorruptError(f"blob {digest.name} is damaged: its bytes have another digest")
    elif checksum(data) != known_checksum:
        raise CorruptError(f"blob {digest.name} is damaged: its bytes have another checksum")


def pread_exactly(fd: int, length: int, offset: int, digest: Digest) -> bytes:
    """Read `length` bytes of the open blob `digest`; blocks.

    Raises:
        CorruptError: The file ends before.
        OSError: As the system says (a bad sector, ...).
    """
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    done = len(data)
    while data and done < length:
        data = os.pread(fd, length - done, offset + done)
        parts.append(data)
        done += len(data)
    if done < length:
        raise CorruptError(f"blob {digest.name} is damaged: it ends at {offset + done} bytes")
    return b"".join(parts)


def check_open_blob(fd: int, digest: Digest, known_checksum: bytes | None) -> None:
    """`check_bytes` of a blob of any size, in little memory; blocks.

    Raises:
        CorruptError: The file does not hold the bytes of that blob.
        OSError: As the system says.
    """
    hasher = sha256() if known_checksum is None else xxh3_128()
    for offset in range(0, digest.size_bytes, _PART_BYTES):
        length = min(_PART_BYTES, digest.size_bytes - offset)
        hasher.update(pread_exactly(fd, length, offset, digest))
    if hasher.digest() != (digest.sha256 if known_checksum is None else known_checksum):
        raise CorruptError(f"blob {digest.name} is damaged: its bytes are not those that were written")


def read_blob(tree: BalancedTree, digest: Digest, known_checksum: bytes | None) -> bytes:
    """All bytes of a blob, verified now, for a caller that keeps no descriptors; blocks.

    Raises:
        BlobMissingError, CorruptError: The blob is not there, or not what was written.
        OSError: As the system says.
    """
    fd = tree.open(digest)
    try:
        data = pread_exactly(fd, digest.size_bytes, 0, digest)
    finally:
        os.close(fd)
    check_bytes(data, digest, known_checksum)
    return data
