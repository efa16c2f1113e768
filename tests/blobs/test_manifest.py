from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sealing import unhurried

from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.manifest import (
    FORMAT,
    LEVEL_LIMIT,
    MAGIC,
    Entry,
    Manifest,
    ManifestBuilder,
    decode_manifest,
    load_manifest,
)
from mountstore.errors import CorruptError

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
HELLO, WORLD = b"hello ", b"world"
HOLE = 65536


def piece(data: bytes) -> tuple[Digest, bytes]:
    return Digest.of(data), checksum(data)


def example_manifest() -> bytes:
    builder = ManifestBuilder()
    builder.add_piece(*piece(HELLO))
    builder.add_hole(HOLE)
    builder.add_piece(*piece(WORLD))
    return builder.encode(0)


def upper_manifest(below: bytes, level: int) -> bytes:
    """The one of `level` that lists `below` in two pieces, of 100 bytes and the rest."""
    builder = ManifestBuilder()
    builder.add_piece(*piece(below[:100]))
    builder.add_piece(*piece(below[100:]))
    return builder.encode(level)


def golden(level: int) -> bytes:
    return (GOLDEN / f"manifest-level{level}.bin").read_bytes()


def wire(*fields: object, header: bytes = MAGIC + bytes([FORMAT])) -> bytes:
    return header + msgspec.msgpack.encode(fields)


entries = st.lists(
    st.one_of(st.integers(1, 300).map(lambda n: bytes([n % 251]) * n), st.integers(1, 1 << 40)),
    min_size=1,
    max_size=20,
)


def build(content: list[bytes | int]) -> tuple[ManifestBuilder, list[Entry]]:
    """A builder with these pieces and holes, and what it should hold."""
    builder = ManifestBuilder()
    expected: list[Entry] = []
    offset = 0
    for item in content:
        if isinstance(item, bytes):
            builder.add_piece(*piece(item))
            expected.append(Entry(offset, len(item), *piece(item)))
            offset += len(item)
            continue
        builder.add_hole(item)
        if expected and expected[-1].digest is None:
            last = expected.pop()
            expected.append(Entry(last.offset, last.length + item, None, None))
        else:
            expected.append(Entry(offset, item, None, None))
        offset += item
    assert builder.size_bytes == offset
    return builder, expected


def decoded(builder: ManifestBuilder) -> Manifest:
    return decode_manifest(builder.encode(0))


@unhurried
@given(entries)
def test_what_was_encoded_is_decoded(content: list[bytes | int]) -> None:
    builder, expected = build(content)
    manifest = decoded(builder)
    assert list(manifest) == expected
    assert len(manifest) == len(expected)
    assert manifest.size_bytes == builder.size_bytes
    assert manifest.level == 0


@unhurried
@given(entries)
def test_entries_are_found_by_offset(content: list[bytes | int]) -> None:
    builder, expected = build(content)
    manifest = decoded(builder)
    for i, entry in enumerate(expected):
        end = entry.offset + entry.length
        assert {manifest.find(o) for o in (entry.offset, end - 1, (entry.offset + end) // 2)} == {i}
        assert manifest.entry_at(entry.offset) == i
        assert manifest.entry_at(end) == i + 1
        assert entry.length == 1 or manifest.entry_at(end - 1) is None
        assert manifest.is_hole(i) == (entry.digest is None)
        assert manifest.start(i) == entry.offset
    assert manifest.entry_at(manifest.size_bytes + 1) is None


@unhurried
@given(entries)
def test_data_ranges_are_what_no_hole_covers(content: list[bytes | int]) -> None:
    builder, expected = build(content)
    merged: list[tuple[int, int]] = []
    for entry in expected:
        if entry.digest is not None:
            if merged and merged[-1][1] == entry.offset:
                merged[-1] = (merged[-1][0], entry.offset + entry.length)
            else:
                merged.append((entry.offset, entry.offset + entry.length))
    assert decoded(builder).data_ranges() == merged


@unhurried
@given(entries, entries, st.data())
def test_entries_can_be_taken_over(
    head: list[bytes | int], content: list[bytes | int], draw: st.DataObject
) -> None:
    builder, expected = build(content)
    manifest = decoded(builder)
    first = draw.draw(st.integers(0, len(expected)))
    end = draw.draw(st.integers(first, len(expected)))
    taken: list[bytes | int] = [
        entry.length if entry.digest is None else bytes([entry.length % 251]) * entry.length
        for entry in expected[first:end]
    ]
    once, _ = build(head)
    once.add_entries(manifest, first, end)
    assert once.encode(0) == build(head + taken)[0].encode(0)


# --- bad input ---


def test_every_truncation_is_refused() -> None:
    for data in (example_manifest(), upper_manifest(example_manifest(), 1)):
        for size in range(len(data)):
            with pytest.raises(CorruptError):
                decode_manifest(data[:size])
        with pytest.raises(CorruptError):
            decode_manifest(data + b"\0")


def test_every_flipped_bit_is_refused_or_gives_another_manifest() -> None:
    data = example_manifest()
    good = list(decode_manifest(data))
    for bit in range(len(data) * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            manifest = decode_manifest(bytes(bad))
        except CorruptError:
            continue
        assert list(manifest) != good or manifest.level == 1
        assert sum(entry.length for entry in manifest) == manifest.size_bytes


@unhurried
@given(st.one_of(st.binary(), st.binary().map(lambda tail: MAGIC + bytes([FORMAT]) + tail)))
@example(b"")
@example(MAGIC)
@example(MAGIC + bytes([FORMAT]))
@example(MAGIC + bytes([FORMAT]) + b"\x91" * 100_000)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_manifest(data)


ONE = (b"d" * 32, b"c" * 16)


@pytest.mark.parametrize(
    "data",
    [
        wire(0, 5, [5], *ONE, header=b"CASMANIX\1"),
        wire(0, 5, [5], *ONE, header=MAGIC + bytes([FORMAT + 1])),
        wire(0, 5, [5], *ONE, 0),
        wire(0, 5, [5], ONE[0]),
        wire(-1, 5, [5], *ONE),
        wire(LEVEL_LIMIT + 1, 5, [5], *ONE),
        wire(0, 0, [], b"", b""),
        wire(0, 0, [0], *ONE),
        wire(0, 5, [5, 0], *ONE),
        wire(0, 6, [5], *ONE),
        wire(0, 5.0, [5], *ONE),
        wire(0, 5, [5.0], *ONE),
        wire(0, 5, ["5"], *ONE),
        wire(0, 5, [5], "d" * 32, ONE[1]),
        wire(0, 5, [5], ONE[0][:-1], ONE[1]),
        wire(0, 5, [5], ONE[0], ONE[1] + b"c"),
        wire(0, 5, [5], b"", b""),
        wire(0, 5, [-5], *ONE),
        wire(0, 9, [-5, -4], b"", b""),
        wire(0, 1 << 63, [-(1 << 62), -(1 << 62)], b"", b""),
        wire(0, (1 << 63) - 1, [5, -(1 << 63)], *ONE),
        wire(0, 17 << 20, [17 << 20], *ONE),
        wire(0, 1 << 64 - 1, [(1 << 64) - 1], *ONE),
        wire(1, 10, [5, -5], *ONE),
        wire(0, 5, {5: 5}, *ONE),
        wire(0, 5, None, *ONE),
    ],
)
def test_what_contradicts_itself_is_refused(data: bytes) -> None:
    assert list(decode_manifest(wire(0, 5, [5], *ONE))) == [Entry(0, 5, Digest(ONE[0], 5), ONE[1])]
    with pytest.raises(CorruptError, match="name of the blob"):
        decode_manifest(data, "name of the blob")


# --- levels ---


class Blobs:
    """Blobs by digest, as a tree would read them."""

    def __init__(self, *blobs: bytes) -> None:
        self.blobs = {Digest.of(blob): blob for blob in blobs}

    def read(self, digest: Digest, known_checksum: bytes | None) -> bytes:
        assert known_checksum in (None, checksum(self.blobs[digest]))
        return self.blobs[digest]


def test_levels_are_read_down_to_the_file() -> None:
    zero = example_manifest()
    one = upper_manifest(zero, 1)
    two = upper_manifest(one, 2)
    parts = [zero[:100], zero[100:], one[:100], one[100:], two]
    loaded = load_manifest(Blobs(*parts).read, Digest.of(two), None, 6 + HOLE + 5)
    assert list(loaded.manifest) == list(decode_manifest(zero))
    assert set(loaded.blobs) == set(map(Digest.of, parts))


def test_a_level_that_does_not_fit_is_refused() -> None:
    zero = example_manifest()
    for level in (0, 2):
        top = upper_manifest(upper_manifest(zero, level), 2 if level == 2 else 3)
        below = upper_manifest(zero, level)
        blobs = Blobs(zero[:100], zero[100:], below[:100], below[100:], top)
        with pytest.raises(CorruptError):
            load_manifest(blobs.read, Digest.of(top), None, 6 + HOLE + 5)


def test_a_manifest_of_another_size_than_the_content_is_refused() -> None:
    zero = example_manifest()
    with pytest.raises(CorruptError):
        load_manifest(Blobs(zero).read, Digest.of(zero), None, 6 + HOLE + 6)


# --- what is on disk already stays readable ---


def test_golden_manifests_are_decoded() -> None:
    expected = [
        Entry(0, 6, *piece(HELLO)),
        Entry(6, HOLE, None, None),
        Entry(6 + HOLE, 5, *piece(WORLD)),
    ]
    assert list(decode_manifest(golden(0))) == expected
    blobs = Blobs(golden(0)[:100], golden(0)[100:], golden(1)[:100], golden(1)[100:], golden(2))
    assert list(load_manifest(blobs.read, Digest.of(golden(2)), None, 6 + HOLE + 5).manifest) == expected


def test_golden_manifests_are_encoded_alike() -> None:
    assert example_manifest() == golden(0)
    assert upper_manifest(golden(0), 1) == golden(1)
    assert upper_manifest(golden(1), 2) == golden(2)


def test_the_worked_examples_of_the_format_are_the_golden_files() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    section = text.split("## Contents and manifests")[1].split("\n## ")[0]
    for level in (0, 1):
        example_text = section.split(f"Worked example, level {level}")[1].split("```")[1]
        digits = "".join(re.findall(r"^([0-9a-f ]+?)(?:  .*)?$", example_text, re.MULTILINE))
        assert bytes.fromhex(digits) == golden(level)


# --- a million pieces ---


def test_the_index_takes_less_than_a_hundred_bytes_a_piece() -> None:
    n = 100_000
    lengths = [1000] * n
    lengths[::10] = [-100_000] * (n // 10)
    pieces = n - n // 10
    size = pieces * 1000 + n // 10 * 100_000
    manifest = decode_manifest(wire(0, size, lengths, bytes(32 * pieces), bytes(16 * pieces)))
    size_bytes = sum(
        sys.getsizeof(column)
        for column in (manifest.entry_ends, manifest._ordinals, manifest._digests, manifest._checksums)
    )
    assert size_bytes / n < 70
    assert manifest.entry(n - 1).offset == size - 1000
