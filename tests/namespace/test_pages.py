"""The objects of a snapshot: what is encoded is decoded, and any other bytes are CorruptError."""

from __future__ import annotations

import random
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import Ref, check_ref_name, decode_ref, encode_ref
from mountstore.errors import BlobMissingError, CorruptError, MisuseError
from mountstore.namespace import listing, page_map
from mountstore.namespace.pages import (
    INLINE_LISTING_MAX,
    HistoryRecord,
    HistoryRow,
    Index,
    InodeRecord,
    ListingEntry,
    Node,
    Reference,
    Root,
    decode_histories,
    decode_index,
    decode_inodes,
    decode_leaf,
    decode_node,
    decode_root,
    decode_segment,
    encode_histories,
    encode_index,
    encode_inodes,
    encode_leaf,
    encode_node,
    encode_root,
    encode_segment,
    write_histories,
)
from mountstore.namespace.rebuilding import CatalogBuilder

T = TypeVar("T")
Decode = Callable[[bytes, str], Any]

DECODERS: tuple[Decode, ...] = (
    decode_inodes,
    decode_histories,
    decode_segment,
    decode_node,
    decode_leaf,
    decode_index,
    decode_root,
)


class Blobs:
    """Objects in memory."""

    def __init__(self) -> None:
        self.data: dict[Digest, bytes] = {}
        self.loads = 0

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.data[digest] = data
        return digest

    def load(self, digest: Digest, decode: Callable[[bytes, str], T]) -> T:
        self.loads += 1
        if digest not in self.data:
            raise BlobMissingError(digest.name)
        return decode(self.data[digest], digest.name)


def a_digest(number: int) -> Digest:
    return Digest.of(b"%d" % number)


def an_inode(number: int, file_type: int = stat.S_IFREG, **fields: Any) -> InodeRecord:
    """A record that is right; a regular file has a blob."""
    digest = a_digest(number) if file_type == stat.S_IFREG else None
    values: dict[str, Any] = {
        "number": number,
        "mode": file_type | 0o644 if file_type else 0,
        "uid": 0,
        "gid": 0,
        "nlink": 1 if file_type else 0,
        "rdev": 0,
        "size": 0 if digest is None else digest.size_bytes,
        "allocated": 0,
        "atime_ns": 1,
        "mtime_ns": -5,
        "ctime_ns": 1 << 60,
        "btime_ns": 0,
        "parent": 1 if file_type == stat.S_IFDIR else 0,
        "kind": 0 if digest is None else 1,
        "sha256": None if digest is None else digest.sha256,
        "blob_size": None if digest is None else digest.size_bytes,
        "checksum": b"" if digest is None else bytes(16),
        "target": b"somewhere" if file_type == stat.S_IFLNK else None,
        "xattrs": [],
        "history": 0,
        "listing": None,
    }
    return InodeRecord(**{**values, **fields})


def a_row(number: int, kind: int = 1, **fields: Any) -> HistoryRow:
    digest = a_digest(number)
    stored = kind in (1, 2)
    values: dict[str, Any] = {
        "number": number,
        "kind": kind,
        "sha256": digest.sha256 if stored else None,
        "blob_size": digest.size_bytes if stored else 0,
        "size": digest.size_bytes,
        "mode": 0o100644,
        "uid": 1,
        "gid": 2,
        "mtime_ns": 3,
        "until_ns": 4,
        "checksum": bytes(16) if stored else b"",
    }
    return HistoryRow(**{**values, **fields})


def a_root(**fields: Any) -> Root:
    values: dict[str, Any] = {
        "uuid": "00000000-0000-4000-8000-000000000000",
        "name": "a-name",
        "time_ns": 5,
        "settings": "format = 1\n",
        "adopted": False,
        "inodes": Reference.to(1, a_digest(1)),
        "histories": None,
        "next_inode": 7,
        "next_cookie": 8,
        "inode_count": 9,
        "bytes": 10,
    }
    return Root(**{**values, **fields})


def an_entry(name: bytes, inode: int = 1, history: int = 0) -> ListingEntry:
    return ListingEntry(name, inode, inode, history)


INODES = [
    an_inode(64, xattrs=[(b"user.a", b""), (b"user.b", b"\0" * 300)], history=3),
    an_inode(65, stat.S_IFDIR, listing=encode_leaf([an_entry(b"\xff"), an_entry(b"\xff\xff", 0, 4)])),
    an_inode(70, stat.S_IFDIR, listing=Reference.to(2, a_digest(3)), size=4096, nlink=17),
    an_inode(71, stat.S_IFLNK),
    an_inode(72, stat.S_IFCHR, rdev=0x103),
    an_inode(73, 0, listing=encode_leaf([an_entry(b"gone", 0, 4)])),
    an_inode(80, kind=2, size=1 << 50, checksum=b""),
    an_inode(81, kind=0, sha256=None, blob_size=None, size=0, checksum=b""),
    an_inode(127, stat.S_IFSOCK, uid=(1 << 32) - 1),
]
ROWS = [a_row(1), a_row(2, 3), a_row(3, 2, size=1 << 40), a_row(4, 4, blob_size=9), a_row(13, 5), a_row(14, 6)]

VALID: list[tuple[bytes, Decode, Any]] = [
    (encode_inodes(INODES), decode_inodes, INODES),
    (
        encode_histories([HistoryRecord(65, [], ROWS), HistoryRecord(66, [(bytes(32), 9)], ROWS[2:])]),
        decode_histories,
        [HistoryRecord(65, [], ROWS), HistoryRecord(66, [(bytes(32), 9)], ROWS[2:])],
    ),
    (encode_segment(ROWS), decode_segment, ROWS),
    (
        encode_node(3, [(0, a_digest(1)), (255, a_digest(2))]),
        decode_node,
        Node(3, b"\x00\xff", a_digest(1).sha256 + a_digest(2).sha256, [1, 1]),
    ),
    (encode_leaf([an_entry(b"a"), an_entry(b"b", 9, 8)]), decode_leaf, [an_entry(b"a"), an_entry(b"b", 9, 8)]),
    (
        encode_index(1, [(b"a", a_digest(1)), (b"ab", a_digest(22))]),
        decode_index,
        Index(1, [b"a", b"ab"], a_digest(1).sha256 + a_digest(22).sha256, [1, 2]),
    ),
    (encode_root(a_root()), decode_root, a_root()),
]


@pytest.mark.parametrize(("data", "decode", "value"), VALID, ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_encoded_is_decoded(data: bytes, decode: Decode, value: object) -> None:
    assert decode(data, "x") == value


def test_a_record_knows_its_content() -> None:
    assert INODES[0].content == Content(ContentKind.BLOB, a_digest(64), 2)
    assert INODES[6].content == Content(ContentKind.MANIFEST, a_digest(80), 1 << 50)
    assert INODES[1].content.kind is ContentKind.EMPTY
    assert INODES[1].is_directory
    assert INODES[5].is_ghost


# --- what is not one ---


def only_corrupt(decode: Decode, data: bytes) -> Any:
    try:
        return decode(data, "x")
    except CorruptError:
        return None


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for valid, decode, _ in VALID:
        only_corrupt(decode, data)
        only_corrupt(decode, valid[:9] + data)


@given(st.integers(0, len(VALID) - 1), st.randoms(use_true_random=False))
@settings(max_examples=400)
def test_changed_bytes(which: int, rng: random.Random) -> None:
    valid, decode, value = VALID[which]
    data = bytearray(valid)
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(3):
            case 0:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 1:
                del data[rng.randrange(len(data)) :]
                data += b"\0"
            case 2:
                at = rng.randrange(len(data))
                data[at:at] = rng.randbytes(rng.randrange(1, 4))
    got = only_corrupt(decode, bytes(data))
    assert got is None or type(got) is type(value)


def changed(value: Any, rng: random.Random) -> Any:
    """A msgpack value with one part replaced."""
    odd: list[Any] = [None, -1, 0, 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 1.5, True]
    odd += [b"", bytes(32), "", [], {}, [[]], b"/", b".", b"a" * 256]
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:i] + value[i + 1 :]
            case 1:
                return [*value, value[i]]
            case 2:
                return value[::-1]
            case _:
                return [*value[:i], changed(value[i], rng), *value[i + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: changed(value[key], rng)}
    return rng.choice(odd)


@given(st.integers(0, len(VALID) - 1), st.randoms(use_true_random=False))
@settings(max_examples=600)
def test_changed_fields(which: int, rng: random.Random) -> None:
    """Well-formed msgpack that says something else: refused, or such that it can be encoded again."""
    valid, decode, _ = VALID[which]
    value = msgspec.msgpack.decode(valid[9:])
    for _ in range(rng.randrange(1, 3)):
        value = changed(value, rng)
    try:
        data = valid[:9] + msgspec.msgpack.encode(value)
    except OverflowError:
        return
    only_corrupt(decode, data)


def test_what_is_decoded_fits_into_a_catalog(tmp_path: Path) -> None:
    """Numbers that SQLite could not hold are refused."""
    rng = random.Random(3)
    pages, rows = msgspec.msgpack.decode(VALID[0][0][9:]), msgspec.msgpack.decode(VALID[2][0][9:])
    accepted = 0
    for _ in range(1500):
        data = only_corrupt(decode_inodes, VALID[0][0][:9] + msgspec.msgpack.encode(changed(pages, rng)))
        history = only_corrupt(decode_segment, VALID[2][0][:9] + msgspec.msgpack.encode(changed(rows, rng)))
        if data is None and history is None:
            continue
        accepted += 1
        with CatalogBuilder(str(tmp_path / "catalog.db")) as builder:
            builder.add_inodes(data or [])
            builder.add_history(1, history or [])
            builder.finish({})
        if accepted > 60:
            return


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (stat.S_IFREG, {"sha256": None}, "content"),
        (stat.S_IFREG, {"kind": 0}, "content"),
        (stat.S_IFREG, {"size": 1}, "cannot have"),
        (stat.S_IFDIR, {"kind": 1, "sha256": bytes(32), "blob_size": 1}, "cannot have"),
        (stat.S_IFREG, {"checksum": bytes(15)}, "checksum"),
        (stat.S_IFDIR, {"checksum": bytes(16)}, "checksum"),
        (stat.S_IFLNK, {"target": None}, "target"),
        (stat.S_IFREG, {"target": b"x"}, "target"),
        (stat.S_IFREG, {"listing": b"x"}, "no directory"),
        (stat.S_IFDIR, {"parent": 0}, "parent"),
        (stat.S_IFREG, {"parent": 1}, "parent"),
        (stat.S_IFREG, {"nlink": 0}, "no link"),
        (stat.S_IFREG, {"mode": 0o644}, "cannot have"),
        (stat.S_IFIFO, {"mode": 0o1010644 | stat.S_IFIFO}, "mode"),
        (0, {}, "without names"),
        (stat.S_IFREG, {"xattrs": [(b"b", b""), (b"a", b"")]}, "out of order"),
    ],
)
def test_records_that_contradict_themselves(kind: int, fields: dict[str, Any], message: str) -> None:
    record = an_inode(64, kind, **fields)
    with pytest.raises(CorruptError, match=message):
        decode_inodes(encode_inodes([record]))


def test_pages_that_are_none() -> None:
    for records in ([], [INODES[1], INODES[0]], [INODES[0], INODES[0]], [an_inode(63), an_inode(64)]):
        with pytest.raises(CorruptError):
            decode_inodes(encode_inodes(records))
    with pytest.raises(CorruptError, match="begins with"):
        decode_inodes(VALID[1][0])
    with pytest.raises(CorruptError, match="format 02"):
        decode_inodes(b"CASINODE\x02\x90")
    for entries in (
        [],
        [an_entry(b"b"), an_entry(b"a")],
        [an_entry(b"..")],
        [an_entry(b"a/b")],
        [an_entry(b"a", 0, 0)],
        [ListingEntry(b"a", 1, 0, 0)],
    ):
        with pytest.raises(CorruptError):
            decode_leaf(encode_leaf(entries))


# --- histories ---


def test_long_histories_are_cut() -> None:
    blobs = Blobs()
    rows = [a_row(number) for number in range(1, 700)]
    first = write_histories(blobs.put, {64: rows, 65: rows[:3]})
    (long, short) = decode_histories(blobs.data[first])
    assert [len(decode_segment(blobs.data[Digest(*part)])) for part in long.segments] == [255, 256]
    assert [row.number for row in long.rows] == list(range(512, 700))
    assert not short.segments
    before = set(blobs.data)
    write_histories(blobs.put, {64: [*rows, a_row(700)], 65: rows[:3]})
    assert len(set(blobs.data) - before) == 1, "only the page is new"


# --- listings ---


def entries_of(model: dict[bytes, int]) -> list[ListingEntry]:
    return [an_entry(name, inode) for name, inode in sorted(model.items())]


@given(st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_listing_that_changes_is_as_if_made_anew(rng: random.Random) -> None:
    blobs = Blobs()
    model = {b"%d" % rng.randrange(20_000): 1 for _ in range(rng.choice([0, 3, 50, 3000]))}
    place = listing.write_listing(blobs.put, entries_of(model))
    for _ in range(4):
        names = [b"%d" % rng.randrange(20_000) for _ in range(rng.choice([1, 2, 30]))]
        # Those that begin leaves matter most.
        names += rng.sample([name for name in model if listing.begins(name, 0)] or [b"x"], 1)
        for name in names:
            if rng.random() < 0.5:
                model[name] = rng.randrange(1, 9)
            else:
                model.pop(name, None)
        if rng.random() < 0.1:
            names += list(model)
            model = {}
        keys = sorted(model)
        read = 0

        def stretch(
            low: bytes, high: bytes | None, keys: list[bytes] = keys, model: dict[bytes, int] = model
        ) -> Iterator[ListingEntry]:
            nonlocal read
            end = len(keys) if high is None else bisect_left(keys, high)
            for name in keys[bisect_left(keys, low) : end]:
                read += 1
                yield an_entry(name, model[name])

        place = listing.update_listing(blobs, blobs.put, place, sorted(set(names)), stretch)
        assert place == listing.write_listing(Blobs().put, entries_of(model))
        assert list(listing.entries(blobs, place)) == entries_of(model)
        for name in [*names, *keys[:5]]:
            entry = listing.lookup(blobs, place, name)
            assert (entry.inode if entry else None) == model.get(name)
        after = rng.choice(keys or [b""])
        assert [entry.name for entry in listing.entries(blobs, place, after)] == [k for k in keys if k > after]
        if len(names) < 3:
            assert read < 3000


def test_small_listings_stand_in_the_record() -> None:
    blobs = Blobs()
    assert listing.write_listing(blobs.put, []) is None
    small = listing.write_listing(blobs.put, [an_entry(b"a" * 250, n) for n in (1,)])
    assert isinstance(small, bytes)
    assert len(small) <= INLINE_LISTING_MAX
    assert not blobs.data
    large = listing.write_listing(blobs.put, [an_entry(bytes([65 + n]) * 250) for n in range(5)])
    assert isinstance(large, Reference)
    assert list(listing.objects(blobs, large)) == [large.digest]


def test_missing_leaves_are_told() -> None:
    blobs = Blobs()
    place = listing.write_listing(blobs.put, (an_entry(b"%05d" % number) for number in range(5000)))
    assert isinstance(place, Reference)
    objects = list(listing.objects(blobs, place))
    assert set(objects) == set(blobs.data)
    del blobs.data[objects[3]]
    with pytest.raises(BlobMissingError):
        list(listing.entries(blobs, place))
    bad: list[Exception] = []
    left = list(listing.entries(blobs, place, on_bad=bad.append))
    assert 0 < len(left) < 5000
    assert len(bad) == 1


# --- maps ---


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_a_map_that_changes_is_as_if_made_anew(rng: random.Random) -> None:
    blobs = Blobs()
    model: dict[int, Digest] = {}
    root: Reference | None = None
    for _ in range(8):
        changes: dict[int, Digest | None] = {}
        for _ in range(rng.choice([0, 1, 5, 40])):
            page = rng.choice([rng.randrange(3), rng.randrange(600), rng.getrandbits(rng.randrange(1, 57))])
            changes[page] = a_digest(rng.randrange(100)) if rng.random() < 0.6 else None
        changes.update({page: None for page in model if rng.random() < 0.3})
        root = page_map.update_map(blobs, blobs.put, root, changes)
        model = {page: digest for page, digest in {**model, **changes}.items() if digest is not None}
        assert root == page_map.update_map(blobs, blobs.put, None, model)
        pages = [(entry.page, entry.digest) for entry in page_map.walk(blobs, root) if entry.page is not None]
        assert pages == sorted(model.items())
        for page in [*changes, 5, 1 << 56]:
            assert page_map.find_page(blobs, root, page) == model.get(page)


def test_what_was_seen_is_left_out() -> None:
    blobs = Blobs()
    model = {page: a_digest(page) for page in range(1000)}
    first = page_map.update_map(blobs, blobs.put, None, model)
    seen: set[bytes] = set()
    assert len(list(page_map.walk(blobs, first, seen))) == 1000 + 4 + 1
    second = page_map.update_map(blobs, blobs.put, first, {3: a_digest(5000)})
    assert len(list(page_map.walk(blobs, second, seen))) == 3


# --- refs ---


def test_refs() -> None:
    ref = Ref("a-name", a_digest(1), "00000000-0000-4000-8000-000000000000", -5)
    data = encode_ref(ref)
    assert decode_ref(data, "a-name") == ref
    rng = random.Random(1)
    for _ in range(500):
        wrong = bytearray(data)
        wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptError):
            decode_ref(bytes(wrong), "a-name")


@given(st.binary(max_size=400))
def test_any_bytes_are_no_ref(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_ref(data, "x")


@pytest.mark.parametrize("name", ["", ".", ".a", "a/b", "a b", "-a", "a:b", "a\n", "ä", "a" * 101])
def test_names_that_no_snapshot_has(name: str) -> None:
    with pytest.raises(MisuseError):
        check_ref_name(name)
