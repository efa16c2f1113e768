"""Manifests: blobs that list, in order, the pieces and holes of a larger file.

`docs/format.md`, "Contents and manifests", specifies the bytes. A manifest carries the checksum of every
piece, so that a file can be read and verified from the tree alone. One that is itself too large for a blob is
cut into pieces, which a manifest one level higher lists; only level 0 describes a file.

Decoding yields an index that is searched as it came: packed columns, some 60 bytes a piece.
Everything here is pure; an index never changes and may be read from any thread.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Annotated, Final, NamedTuple

import msgspec

from mountstore.blobs.chunking import PIECE_SIZE_LIMIT
from mountstore.blobs.digest import CHECKSUM_BYTES, SHA256_BYTES, Digest
from mountstore.errors import CorruptError

__all__ = [
    "FORMAT",
    "LEVEL_LIMIT",
    "MAGIC",
    "Entry",
    "LoadedManifest",
    "Manifest",
    "ManifestBuilder",
    "Part",
    "decode_manifest",
    "load_manifest",
]

MAGIC: Final = b"CASMANIF"
FORMAT: Final = 1
LEVEL_LIMIT: Final = 15
_HEADER: Final = MAGIC + bytes([FORMAT])
_SIZE_LIMIT: Final = (1 << 63) - 1
# What msgpack can hold in one string of digests is reached before this.
_UPPER_SIZE_LIMIT: Final = 1 << 33


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The msgpack array behind the header."""

    level: Annotated[int, msgspec.Meta(ge=0, le=LEVEL_LIMIT)]
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=_SIZE_LIMIT)]
    lengths: list[int]
    digests: bytes
    checksums: bytes


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Wire)


class Entry(NamedTuple):
    """One line of a manifest: a piece, or a hole if `digest` is None. `checksum` is the piece's XXH3-128."""

    offset: int
    length: int
    digest: Digest | None
    checksum: bytes | None


Part = tuple[Digest | None, bytes | None, int, int]
"""Some bytes of a piece, with its digest and checksum, or of a hole, which has none: where in it they begin,
and how many they are."""


class Manifest:
    """A decoded manifest, searchable by offset.

    `size_bytes` is the size of what it describes: the file at level 0, else the manifest one level lower.
    `entry_ends[i]` is the offset at which entry i ends; there is at least one entry.
    """

    __slots__ = ("_checksums", "_digests", "_ordinals", "entry_ends", "level", "size_bytes")

    def __init__(
        self,
        level: int,
        size_bytes: int,
        entry_ends: array[int],
        ordinals: array[int] | None,
        digests: bytes,
        checksums: bytes,
    ) -> None:
        self.level = level
        self.size_bytes = size_bytes
        self.entry_ends = entry_ends
        # The number of pieces before entry i, for i up to and including len; None when there are no holes.
        self._ordinals = ordinals
        self._digests = digests
        self._checksums = checksums

    def __len__(self) -> int:
        return len(self.entry_ends)

    def find(self, offset: int) -> int:
        """The number of the entry that contains `offset`, 0 <= offset < size_bytes."""
        return bisect_right(self.entry_ends, offset)

    def entry_at(self, offset: int) -> int | None:
        """The number of the entry that begins at `offset` (len for the end), or None if none does."""
        if offset == 0:
            return 0
        i = bisect_left(self.entry_ends, offset)
        return i + 1 if i < len(self.entry_ends) and self.entry_ends[i] == offset else None

    def start(self, i: int) -> int:
        """The offset at which entry `i` begins."""
        return self.entry_ends[i - 1] if i else 0

    def is_hole(self, i: int) -> bool:
        return self._ordinals is not None and self._ordinals[i] == self._ordinals[i + 1]

    def entry(self, i: int) -> Entry:
        start = self.start(i)
        length = self.entry_ends[i] - start
        k = i
        if self._ordinals is not None:
            k = self._ordinals[i]
            if k == self._ordinals[i + 1]:
                return Entry(start, length, None, None)
        digest = Digest(self._digests[k * SHA256_BYTES : (k + 1) * SHA256_BYTES], length)
        return Entry(start, length, digest, self._checksums[k * CHECKSUM_BYTES : (k + 1) * CHECKSUM_BYTES])

    def parts(self, offset: int, end: int) -> list[Part]:
        """Where the bytes [offset, end) are, which must be within `size_bytes`."""
        parts: list[Part] = []
        i = self.find(offset)
        while offset < end:
            start, length, digest, checksum = self.entry(i)
            stop = min(end, start + length)
            parts.append((digest, checksum, offset - start, stop - offset))
            offset = stop
            i += 1
        return parts

    def __iter__(self) -> Iterator[Entry]:
        return map(self.entry, range(len(self.entry_ends)))

    def data_ranges(self) -> list[tuple[int, int]]:
        """The parts that are not holes, as (start, end), in order; neighbouring pieces are one range."""
        if self._ordinals is None:
            return [(0, self.size_bytes)]
        ranges: list[tuple[int, int]] = []
        start = 0
        for i in range(len(self.entry_ends)):
            if self.is_hole(i):
                if (hole_start := self.start(i)) > start:
                    ranges.append((start, hole_start))
                start = self.entry_ends[i]
        if start < self.size_bytes:
            ranges.append((start, self.size_bytes))
        return ranges

    def columns(self, first: int, end: int) -> tuple[list[int], bytes, bytes]:
        """Entries [first, end) as they stand in the encoded form: lengths, digests, checksums."""
        bounds = [self.start(first), *self.entry_ends[first:end]] if first < end else []
        lengths = [after - before for before, after in pairwise(bounds)]
        a, b = first, end
        if self._ordinals is not None:
            a, b = self._ordinals[first], self._ordinals[end]
            lengths = [-n if self.is_hole(first + i) else n for i, n in enumerate(lengths)]
        return (
            lengths,
            self._digests[a * SHA256_BYTES : b * SHA256_BYTES],
            self._checksums[a * CHECKSUM_BYTES : b * CHECKSUM_BYTES],
        )


class ManifestBuilder:
    """Collects entries in order and encodes them. Neighbouring holes become one."""

    __slots__ = ("_checksums", "_digests", "_lengths", "size_bytes")

    def __init__(self) -> None:
        self._lengths = array("q")
        self._digests = bytearray()
        self._checksums = bytearray()
        self.size_bytes = 0

    def add_piece(self, digest: Digest, checksum: bytes) -> None:
        self._lengths.append(digest.size_bytes)
        self._digests += digest.sha256
        self._checksums += checksum
        self.size_bytes += digest.size_bytes

    def add_hole(self, length: int) -> None:
        if self._lengths and self._lengths[-1] < 0:
            self._lengths[-1] -= length
        else:
            self._lengths.append(-length)
        self.size_bytes += length

    def add_entries(self, manifest: Manifest, first: int, end: int) -> None:
        """Take over the entries [first, end) of `manifest`."""
        if first >= end:
            return
        lengths, digests, checksums = manifest.columns(first, end)
        if lengths[0] < 0:
            self.add_hole(-lengths[0])
            self.size_bytes += lengths[0]
            del lengths[0]
        self._lengths.extend(lengths)
        self._digests += digests
        self._checksums += checksums
        self.size_bytes += manifest.entry_ends[end - 1] - manifest.start(first)

    @property
    def hole_bytes(self) -> int:
        return -sum(length for length in self._lengths if length < 0)

    def encode(self, level: int) -> bytes:
        """The manifest of everything added, which is one or more entries."""
        assert self._lengths, "a manifest has at least one entry"
        wire = _Wire(level, self.size_bytes, self._lengths.tolist(), bytes(self._digests), bytes(self._checksums))
        return _HEADER + _encoder.encode(wire)


def decode_manifest(data: bytes, name: str = "manifest") -> Manifest:
    """The manifest that `data` encodes; `name` says in errors which blob it is.

    Raises:
        CorruptError: It encodes none; nothing else is raised whatever the bytes are.
    """

    def corrupt(what: str) -> CorruptError:
        return CorruptError(f"{name}: {what}")

    if not data.startswith(MAGIC):
        raise corrupt("not a manifest")
    if not data.startswith(_HEADER):
        raise corrupt(f"a manifest of an unknown format {data[len(MAGIC) : len(MAGIC) + 1].hex()}")
    try:
        wire = _decoder.decode(memoryview(data)[len(_HEADER) :])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise corrupt(f"malformed manifest: {exc}") from exc
    lengths = wire.lengths
    if not lengths:
        raise corrupt("a manifest without entries")
    if 0 in lengths:
        raise corrupt("an entry of no length")
    if max(lengths) > PIECE_SIZE_LIMIT:
        raise corrupt(f"a piece of {max(lengths)} bytes")
    if sum(map(abs, lengths)) != wire.size_bytes:
        raise corrupt(f"entries of {sum(map(abs, lengths))} bytes in all for {wire.size_bytes}")
    holes = sum(length < 0 for length in lengths) if min(lengths) < 0 else 0
    pieces = len(lengths) - holes
    if len(wire.digests) != pieces * SHA256_BYTES or len(wire.checksums) != pieces * CHECKSUM_BYTES:
        raise corrupt(
            f"{len(wire.digests)} bytes of digests and {len(wire.checksums)} of checksums for {pieces} pieces"
        )
    ordinals: array[int] | None = None
    if holes:
        if any(a < 0 and b < 0 for a, b in pairwise(lengths)):
            raise corrupt("two holes in succession")
        ordinals = array("I", accumulate((length > 0 for length in lengths), initial=0))
    if wire.level and (holes or wire.size_bytes > _UPPER_SIZE_LIMIT):
        raise corrupt(f"holes, or a size of {wire.size_bytes}, in a manifest of level {wire.level}")
    entry_ends = array("Q", accumulate(map(abs, lengths)))
    return Manifest(wire.level, wire.size_bytes, entry_ends, ordinals, wire.digests, wire.checksums)


class LoadedManifest(NamedTuple):
    """The level 0 manifest of a file, and every blob read for it (manifests and their pieces)."""

    manifest: Manifest
    blobs: list[Digest]


def load_manifest(
    read_blob: Callable[[Digest, bytes | None], bytes],
    digest: Digest,
    checksum: bytes | None,
    size_bytes: int | None,
) -> LoadedManifest:
    """Read the manifest of a file of `size_bytes` (None: nobody knows), through all its levels.

    Args:
        read_blob: Yields the verified bytes of a blob, given its digest and, if known, its checksum. Is not
            asked for one that is larger than any piece.
        digest, checksum: Of the topmost manifest blob, which a content names.

    Raises:
        CorruptError: A manifest is malformed, or describes something else.
        Whatever `read_blob` raises.
    """
    if digest.size_bytes > PIECE_SIZE_LIMIT:
        raise CorruptError(f"{digest.name}: is too large for a manifest")
    blobs = [digest]
    manifest = decode_manifest(read_blob(digest, checksum), digest.name)
    while manifest.level:
        parts: list[bytes] = []
        for entry in manifest:
            assert entry.digest is not None, "holes stand in level 0 only"
            parts.append(read_blob(entry.digest, entry.checksum))
            blobs.append(entry.digest)
            if not parts[0].startswith(_HEADER):
                raise CorruptError(f"{digest.name}: lists {entry.digest.name}, which does not begin a manifest")
        below = decode_manifest(b"".join(parts), f"{digest.name} (level {manifest.level - 1})")
        if below.level != manifest.level - 1:
            raise CorruptError(f"{digest.name}: level {below.level} below level {manifest.level}")
        manifest = below
    if size_bytes is not None and manifest.size_bytes != size_bytes:
        raise CorruptError(f"{digest.name}: describes {manifest.size_bytes} bytes instead of {size_bytes}")
    return LoadedManifest(manifest, blobs)
