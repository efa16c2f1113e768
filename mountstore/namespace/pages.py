"""What a snapshot is made of: records of inodes, histories and names, in pages that are ordinary blobs.

`docs/format.md`, "Snapshots", specifies the bytes. A snapshot is an image of the catalog's rows:

    root -> map of inode pages   -> records of 64 inode numbers -> listings of directories, contents
         -> map of history pages -> rows of 64 histories        -> segments of long ones, contents

A page that did not change is the same blob in the next snapshot. How pages are found is
`mountstore.namespace.page_map`, how listings are cut `mountstore.namespace.listing`.

Everything here is pure. Decoding checks every field and the bounds of every number, so that what is decoded can be
put into a catalog; it raises CorruptError and nothing else, whatever the bytes are.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Final, Protocol, TypeVar

import msgspec

from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import CHECKSUM_BYTES, SHA256_BYTES, Digest
from mountstore.errors import BlobMissingError, CorruptError
from mountstore.namespace.history import RowKind
from mountstore.namespace.stale import PAGE_SHIFT

FORMAT: Final = 1
"""Of every object below; raised by any change that an old reader would misread."""

INODES_MAGIC: Final = b"CASINODE"
HISTORIES_MAGIC: Final = b"CASHISTO"
SEGMENT_MAGIC: Final = b"CASHSEGM"
NODE_MAGIC: Final = b"CASRADIX"
LEAF_MAGIC: Final = b"CASNAMES"
INDEX_MAGIC: Final = b"CASINDEX"
ROOT_MAGIC: Final = b"CASSROOT"
MAGICS: Final = frozenset(
    (INODES_MAGIC, HISTORIES_MAGIC, SEGMENT_MAGIC, NODE_MAGIC, LEAF_MAGIC, INDEX_MAGIC, ROOT_MAGIC)
)
"""What the first bytes of an object may be; a manifest has another one."""
MAGIC_BYTES: Final = 8

NODE_SHIFT: Final = 8
"""A node of a map has at most `1 << NODE_SHIFT` children."""
SEGMENT_SHIFT: Final = 8
"""Rows of a history with equal `number >> SEGMENT_SHIFT` make a segment, but for the last ones."""
MAP_LEVELS_MAX: Final = 8
LISTING_LEVELS_MAX: Final = 8
INLINE_LISTING_MAX: Final = 1024
"""A listing of at most so many bytes stands in its directory's record."""

_NAME_MAX: Final = 255
_HEADER_BYTES: Final = len(ROOT_MAGIC) + 1

_Number = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
# Each time a catalog is made of a snapshot, counters go on beyond all that were used (67 million further).
_Counter = Annotated[int, msgspec.Meta(ge=1, le=(1 << 62) - (1 << 40))]
_Small = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_Signed = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Sha256 = Annotated[bytes, msgspec.Meta(min_length=SHA256_BYTES, max_length=SHA256_BYTES)]
_Checksum = Annotated[bytes, msgspec.Meta(max_length=CHECKSUM_BYTES)]
_Name = Annotated[bytes, msgspec.Meta(min_length=1, max_length=_NAME_MAX)]


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """A msgpack array of a fixed number of fields. None refers to itself, so the collector need not look."""


class Reference(_Record, frozen=True):
    """A page or a leaf (level 0), or what leads to those (level n: its children have level n - 1)."""

    level: Annotated[int, msgspec.Meta(ge=0, le=MAP_LEVELS_MAX)]
    sha256: _Sha256
    size_bytes: _Number

    @property
    def digest(self) -> Digest:
        return Digest(self.sha256, self.size_bytes)

    @classmethod
    def to(cls, level: int, digest: Digest) -> Reference:
        return cls(level, *digest)


class InodeRecord(_Record, frozen=True):
    """A row of the catalog's table `inode`, and what other tables have of it.

    A *ghost* (mode 0) is a directory that was removed and in which names still have histories: all but its number
    and listing is 0, None or empty.
    """

    number: _Number
    mode: _Small
    uid: _Small
    gid: _Small
    nlink: _Count
    rdev: _Count
    size: _Count
    """Logical size in bytes; of a directory whatever stat(2) shows."""
    allocated: _Count
    atime_ns: _Signed
    mtime_ns: _Signed
    ctime_ns: _Signed
    btime_ns: _Signed
    parent: _Count
    """A directory's own directory; else 0."""
    kind: Annotated[int, msgspec.Meta(ge=0, le=2)]
    """ContentKind, with the blob or the topmost manifest."""
    sha256: _Sha256 | None
    blob_size: _Count | None
    checksum: _Checksum
    """XXH3-128 of that blob; empty if it has none, or nobody knows."""
    target: bytes | None
    """Of a symbolic link."""
    xattrs: list[tuple[_Name, bytes]]
    """Sorted by name."""
    history: _Count
    """Of contents superseded in place; 0: none."""
    listing: Reference | bytes | None
    """Of a directory: None if no name in it exists or has a history; bytes: the one leaf itself."""

    @property
    def is_ghost(self) -> bool:
        return self.mode == 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def content(self) -> Content:
        if not self.kind:
            return EMPTY
        assert self.sha256 is not None and self.blob_size is not None, "checked when it was decoded"
        return Content(ContentKind(self.kind), Digest(self.sha256, self.blob_size), self.size)


class ListingEntry(_Record, frozen=True):
    """A name in a directory."""

    name: _Name
    inode: _Count
    """0: the name is gone and has a history."""
    cookie: _Count
    """Its position in the directory; 0 if it is gone."""
    history: _Count
    """Of contents that the name used to have; 0: none."""


class HistoryRow(_Record, frozen=True):
    """A row of the catalog's table `version`, without the history's number; see `mountstore.namespace.history`."""

    number: _Number
    kind: Annotated[int, msgspec.Meta(ge=1, le=6)]
    sha256: _Sha256 | None
    blob_size: _Count
    size: _Count
    mode: _Small
    uid: _Small
    gid: _Small
    mtime_ns: _Signed
    until_ns: _Signed
    checksum: _Checksum
    """XXH3-128 of the blob; empty if there is none, or nobody knows."""

    @property
    def content(self) -> Content:
        """EMPTY if the row itself has no bytes."""
        if self.sha256 is None:
            return EMPTY
        return Content(ContentKind(self.kind), Digest(self.sha256, self.blob_size), self.size)


class HistoryRecord(_Record, frozen=True):
    """One history: its rows in order are those of the segments, then `rows`."""

    number: _Number
    segments: list[tuple[_Sha256, _Number]]
    rows: list[HistoryRow]


class Node(_Record, frozen=True):
    """Of a map: the children of level - 1, in ascending order of their slots."""

    level: Annotated[int, msgspec.Meta(ge=1, le=MAP_LEVELS_MAX)]
    slots: bytes
    sha256s: bytes
    sizes: list[_Number]

    def child(self, i: int) -> Digest:
        return Digest(self.sha256s[i * SHA256_BYTES : (i + 1) * SHA256_BYTES], self.sizes[i])


class Index(_Record, frozen=True):
    """Of a listing: the children of level - 1, each with its first name."""

    level: Annotated[int, msgspec.Meta(ge=1, le=LISTING_LEVELS_MAX)]
    names: list[_Name]
    sha256s: bytes
    sizes: list[_Number]

    def child(self, i: int) -> Digest:
        return Digest(self.sha256s[i * SHA256_BYTES : (i + 1) * SHA256_BYTES], self.sizes[i])


class Root(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One instant of a store. A msgpack map, with these names as keys."""

    uuid: str
    """Of the store."""
    name: str
    """Under which the snapshot was taken."""
    time_ns: _Signed
    settings: str
    """What stands in `store.toml`."""
    adopted: bool
    """The store took over blobs that something else may need."""
    inodes: Reference | None
    histories: Reference | None
    next_inode: _Counter
    next_cookie: _Counter
    """Also the next number of a history."""
    inode_count: _Count
    bytes: _Count
    """Sum of the sizes of regular files."""


T = TypeVar("T")

Put = Callable[[bytes], Digest]
"""Stores an object as a blob."""


class Source(Protocol):
    """Where objects come from."""

    def load(self, digest: Digest, decode: Callable[[bytes, str], T]) -> T:
        """The object that a blob decodes to; `decode` is one of the functions below.

        Raises: BlobMissingError, CorruptError, OSError
        """


UNREADABLE: Final = (BlobMissingError, CorruptError, OSError)
"""What a source raises."""

OnBad = Callable[[Exception], None]
"""Is told why an object cannot be read."""

_encoder: Final = msgspec.msgpack.Encoder()
_inodes_decoder: Final = msgspec.msgpack.Decoder(list[InodeRecord])
_histories_decoder: Final = msgspec.msgpack.Decoder(list[HistoryRecord])
_segment_decoder: Final = msgspec.msgpack.Decoder(list[HistoryRow])
_node_decoder: Final = msgspec.msgpack.Decoder(Node)
_leaf_decoder: Final = msgspec.msgpack.Decoder(list[ListingEntry])
_index_decoder: Final = msgspec.msgpack.Decoder(Index)
_root_decoder: Final = msgspec.msgpack.Decoder(Root)


def _encode(magic: bytes, value: object) -> bytes:
    return b"%b%c%b" % (magic, FORMAT, _encoder.encode(value))


def _decode(magic: bytes, decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    if data[: len(magic)] != magic:
        raise CorruptError(f"{what}: begins with {data[: len(magic)]!r} instead of {magic!r}")
    if data[len(magic) : _HEADER_BYTES] != bytes([FORMAT]):
        raise CorruptError(
            f"{what}: format {data[len(magic) : _HEADER_BYTES].hex()} of {magic.decode()} is unknown;"
            " use the release that wrote it"
        )
    try:
        return decoder.decode(memoryview(data)[_HEADER_BYTES:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise CorruptError(f"{what}: malformed: {exc}") from exc


# --- inode pages ---


def encode_inodes(records: Sequence[InodeRecord]) -> bytes:
    """A page: at least one record, of one page, in ascending order of their numbers."""
    return _encode(INODES_MAGIC, records)


def decode_inodes(data: bytes, what: str = "inode page") -> list[InodeRecord]:
    """Raises: CorruptError"""
    records = _decode(INODES_MAGIC, _inodes_decoder, data, what)
    _check_numbers([record.number for record in records], what)
    for record in records:
        flaw = _inode_flaw(record)
        if flaw is not None:
            raise CorruptError(f"{what}: inode {record.number}: {flaw}")
    return records


def _inode_flaw(record: InodeRecord) -> str | None:
    kind = stat.S_IFMT(record.mode)
    if (record.sha256 is None) != (record.kind == ContentKind.EMPTY) or (record.sha256 is None) != (
        record.blob_size is None
    ):
        return "its content is not of its kind"
    if record.kind:
        if kind != stat.S_IFREG or (record.kind == ContentKind.BLOB and record.blob_size != record.size):
            return "a content that it cannot have"
        if not record.size or not record.blob_size:
            return "a content of no bytes"
    elif kind == stat.S_IFREG and record.size:
        return f"no content for {record.size} bytes"
    if len(record.checksum) not in (0, CHECKSUM_BYTES) or (record.checksum and not record.kind):
        return "a checksum of nothing, or of a wrong length"
    if (record.target is None) == (kind == stat.S_IFLNK):
        return "a target without a symbolic link, or the reverse"
    if kind == stat.S_IFDIR or not record.mode:
        if type(record.listing) is Reference and record.listing.level > LISTING_LEVELS_MAX:
            return "a listing of too many levels"
    elif record.listing is not None:
        return "a listing, and it is no directory"
    if (kind == stat.S_IFDIR) != (record.parent > 0):
        return "a parent without a directory, or the reverse"
    if record.mode:
        if kind not in _KINDS or record.mode > 0o177777:
            return f"mode {record.mode:o}"
        if not record.nlink:
            return "no link to it"
    elif record.nlink or record.xattrs or record.history or record.listing is None:
        return "a removed directory with attributes, or without names"
    if any(a[0] >= b[0] for a, b in pairwise(record.xattrs)):
        return "extended attributes out of order"
    return None


_KINDS: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
)


def _check_numbers(numbers: list[int], what: str) -> None:
    if not numbers:
        raise CorruptError(f"{what}: is empty")
    if numbers[0] >> PAGE_SHIFT != numbers[-1] >> PAGE_SHIFT or any(a >= b for a, b in pairwise(numbers)):
        raise CorruptError(f"{what}: numbers out of order, or not of one page")


# --- history pages ---


def write_histories(put: Put, histories: Mapping[int, Sequence[HistoryRow]]) -> Digest:
    """Store a page, and the segments of its long histories.

    Args:
      histories: Of one page; at least one, each with its rows in order of their numbers, at least one.
    """
    records: list[HistoryRecord] = []
    for number in sorted(histories):
        rows = histories[number]
        segments: list[tuple[bytes, int]] = []
        start = 0
        last = rows[-1].number >> SEGMENT_SHIFT
        for i in range(1, len(rows)):
            part = rows[i - 1].number >> SEGMENT_SHIFT
            if part != rows[i].number >> SEGMENT_SHIFT and part < last:
                sha256, size_bytes = put(encode_segment(rows[start:i]))
                segments.append((sha256, size_bytes))
                start = i
        records.append(HistoryRecord(number, segments, list(rows[start:])))
    return put(encode_histories(records))


def encode_histories(records: Sequence[HistoryRecord]) -> bytes:
    return _encode(HISTORIES_MAGIC, records)


def decode_histories(data: bytes, what: str = "history page") -> list[HistoryRecord]:
    """Raises: CorruptError"""
    records = _decode(HISTORIES_MAGIC, _histories_decoder, data, what)
    _check_numbers([record.number for record in records], what)
    for record in records:
        _check_rows(record.rows, f"{what}: history {record.number}")
    return records


def encode_segment(rows: Sequence[HistoryRow]) -> bytes:
    return _encode(SEGMENT_MAGIC, rows)


def decode_segment(data: bytes, what: str = "history segment") -> list[HistoryRow]:
    """Raises: CorruptError"""
    rows = _decode(SEGMENT_MAGIC, _segment_decoder, data, what)
    _check_rows(rows, what)
    return rows


def _check_rows(rows: list[HistoryRow], what: str) -> None:
    if not rows:
        raise CorruptError(f"{what}: has no rows")
    if any(a.number >= b.number for a, b in pairwise(rows)):
        raise CorruptError(f"{what}: rows out of order")
    for row in rows:
        stored = row.kind in (RowKind.BLOB, RowKind.MANIFEST)
        if stored != (row.sha256 is not None) or (
            stored and (not row.size or not row.blob_size or len(row.checksum) not in (0, CHECKSUM_BYTES))
        ):
            raise CorruptError(f"{what}: row {row.number} has a content that is not of its kind")
        if (row.kind == RowKind.BLOB and row.size != row.blob_size) or (not stored and row.checksum):
            raise CorruptError(f"{what}: row {row.number} has a size or a checksum that is not its content's")


# --- nodes of maps ---


def encode_node(level: int, children: Sequence[tuple[int, Digest]]) -> bytes:
    """A node of at least one child (slot, digest), in ascending order of the slots."""
    return _encode(
        NODE_MAGIC,
        Node(
            level,
            bytes(slot for slot, _ in children),
            b"".join(digest.sha256 for _, digest in children),
            [digest.size_bytes for _, digest in children],
        ),
    )


def decode_node(data: bytes, what: str = "map node") -> Node:
    """Raises: CorruptError"""
    node = _decode(NODE_MAGIC, _node_decoder, data, what)
    if not node.slots or any(a >= b for a, b in pairwise(node.slots)):
        raise CorruptError(f"{what}: slots out of order, or none")
    _check_children(len(node.slots), node.sha256s, node.sizes, what)
    return node


def _check_children(children: int, sha256s: bytes, sizes: list[int], what: str) -> None:
    if len(sha256s) != children * SHA256_BYTES or len(sizes) != children:
        raise CorruptError(f"{what}: {len(sha256s)} bytes of digests and {len(sizes)} sizes for {children}")


# --- listings ---


def encode_leaf(entries: Sequence[ListingEntry]) -> bytes:
    """At least one entry, in ascending order of the names."""
    return _encode(LEAF_MAGIC, entries)


def decode_leaf(data: bytes, what: str = "listing") -> list[ListingEntry]:
    """Raises: CorruptError"""
    entries = _decode(LEAF_MAGIC, _leaf_decoder, data, what)
    if not entries:
        raise CorruptError(f"{what}: is empty")
    if any(a.name >= b.name for a, b in pairwise(entries)):
        raise CorruptError(f"{what}: names out of order")
    for entry in entries:
        if b"/" in entry.name or b"\0" in entry.name or entry.name in (b".", b".."):
            raise CorruptError(f"{what}: {entry.name!r} is no name")
        if (not entry.inode and not entry.history) or (entry.inode == 0) != (entry.cookie == 0):
            raise CorruptError(f"{what}: {entry.name!r} stands for nothing")
    return entries


def encode_index(level: int, children: Sequence[tuple[bytes, Digest]]) -> bytes:
    """At least one child (first name, digest), in ascending order of the names."""
    return _encode(
        INDEX_MAGIC,
        Index(
            level,
            [name for name, _ in children],
            b"".join(digest.sha256 for _, digest in children),
            [digest.size_bytes for _, digest in children],
        ),
    )


def decode_index(data: bytes, what: str = "listing index") -> Index:
    """Raises: CorruptError"""
    index = _decode(INDEX_MAGIC, _index_decoder, data, what)
    if not index.names or any(a >= b for a, b in pairwise(index.names)):
        raise CorruptError(f"{what}: names out of order, or none")
    _check_children(len(index.names), index.sha256s, index.sizes, what)
    return index


# --- the root ---


def encode_root(root: Root) -> bytes:
    return _encode(ROOT_MAGIC, root)


def decode_root(data: bytes, what: str = "snapshot root") -> Root:
    """Raises: CorruptError"""
    return _decode(ROOT_MAGIC, _root_decoder, data, what)
