"""Digests, which identify blobs, and checksums, which only tell whether bytes are still the same.

A digest is the SHA-256 of a byte string together with its length; written out, it is the name of the blob's
file (`docs/format.md`, "Blobs and the balanced tree"). A checksum is the XXH3-128 of the same bytes: ten
times as fast, not resistant to an attacker, and so never an identity.

Everything here is pure and may be called from any thread; hashing of more than 2 KiB releases the GIL.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final, NamedTuple

from xxhash import xxh3_128, xxh3_128_digest

from mountstore.errors import MisuseError

__all__ = ["CHECKSUM_BYTES", "SHA256_BYTES", "Buffer", "Digest", "Hasher", "checksum", "digest_and_checksum"]

SHA256_BYTES: Final = 32
CHECKSUM_BYTES: Final = 16

Buffer = bytes | bytearray | memoryview

# A size fits into 63 bits, as file sizes do; no leading zeros, so that a digest has one name only.
_NAME = re.compile(r"[0-9a-f]{64}_(?:0|[1-9a-f][0-9a-f]{0,14}|[1-7][0-9a-f]{15})", re.ASCII)


class Digest(NamedTuple):
    """The identity of a blob."""

    sha256: bytes
    """32 bytes."""
    size_bytes: int

    @property
    def name(self) -> str:
        """`<sha256 hex>_<size hex>`, both in lower case: the name of the blob's file."""
        return f"{self.sha256.hex()}_{self.size_bytes:x}"

    @classmethod
    def parse(cls, name: str) -> Digest:
        """The digest that is called `name`.

        Raises:
            MisuseError: No digest has that name (it must be exactly what `Digest.name` yields).
        """
        if _NAME.fullmatch(name) is None:
            raise MisuseError(f"not the name of a blob: {name!r}")
        return cls(bytes.fromhex(name[:64]), int(name[65:], 16))

    @classmethod
    def of(cls, data: Buffer) -> Digest:
        """The digest of `data`, which must be contiguous."""
        return cls(sha256(data).digest(), data.nbytes if isinstance(data, memoryview) else len(data))

    def __str__(self) -> str:
        return self.name


def checksum(data: Buffer) -> bytes:
    """The XXH3-128 of `data` in its canonical (big-endian) form, 16 bytes."""
    return xxh3_128_digest(data)


def digest_and_checksum(data: Buffer) -> tuple[Digest, bytes]:
    """Both for one buffer; quicker than a `Hasher` when the bytes are at hand in one piece."""
    return Digest.of(data), xxh3_128_digest(data)


class Hasher:
    """Digest and checksum of bytes that arrive in parts, in one pass.

    Not to be used from two threads at once.
    """

    __slots__ = ("_sha256", "_size_bytes", "_xxh3")

    def __init__(self) -> None:
        self._sha256 = sha256()
        self._xxh3 = xxh3_128()
        self._size_bytes = 0

    def update(self, data: Buffer) -> None:
        self._sha256.update(data)
        self._xxh3.update(data)
        self._size_bytes += data.nbytes if isinstance(data, memoryview) else len(data)

    def digest(self) -> Digest:
        """The digest of everything so far; more may follow."""
        return Digest(self._sha256.digest(), self._size_bytes)

    def checksum(self) -> bytes:
        """The checksum of everything so far, 16 bytes; more may follow."""
        return self._xxh3.digest()
