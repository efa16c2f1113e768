"""Reading streams of any kind: short reads and unknown lengths."""

from __future__ import annotations

import io
from typing import BinaryIO, Final

from mountstore.blobs.digest import Digest, Hasher
from mountstore.errors import MisuseError

__all__ = ["PART_BYTES", "digest_of_rest", "read_up_to"]

PART_BYTES: Final = 1 << 20


def read_up_to(stream: BinaryIO, size_bytes: int) -> bytes:
    """The next `size_bytes` of a stream, fewer only at its end.

    Raises:
        MisuseError: It is in non-blocking mode and has no data now, which must not be taken for the end.
    """
    parts = io.BytesIO()
    while (room := size_bytes - parts.tell()) > 0:
        part = stream.read(room)
        if part is None:
            raise MisuseError("the stream is in non-blocking mode and has no data now")
        if not part:
            break
        parts.write(part)
    return parts.getvalue()


def digest_of_rest(stream: BinaryIO, head: bytes) -> Digest:
    """The digest of `head` and all that the stream still yields. Raises: as `read_up_to`."""
    hasher = Hasher()
    part = head or read_up_to(stream, PART_BYTES)
    while part:
        hasher.update(part)
        part = read_up_to(stream, PART_BYTES)
    return hasher.digest()
