"""Digests have one name each; checksums and digests are the same however the bytes arrive."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mountstore.blobs.digest import Digest, Hasher, checksum, digest_and_checksum
from mountstore.errors import MisuseError

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_names_are_those_of_the_published_test_vectors() -> None:
    assert Digest.of(b"").name == f"{EMPTY}_0"
    assert Digest.of(b"abc").name == f"{ABC}_3"
    assert Digest.of(b"abc" * 10).name.endswith("_1e")
    assert str(Digest.of(b"abc")) == f"{ABC}_3"


def test_checksum_is_the_canonical_form_of_xxh3() -> None:
    # From the XXH3-128 of no bytes, as published with xxHash, seed 0.
    assert checksum(b"").hex() == "99aa06d3014798d86001c324468d497f"


@given(st.binary(), st.lists(st.integers(0, 100)))
def test_parts_give_the_same_as_the_whole(data: bytes, cuts: list[int]) -> None:
    hasher = Hasher()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        hasher.update(memoryview(data)[begin:end])
    assert (hasher.digest(), hasher.checksum()) == digest_and_checksum(data)
    assert hasher.digest() == Digest(hashlib.sha256(data).digest(), len(data))
    assert hasher.checksum() == xxhash.xxh3_128(data).digest()


@given(st.binary())
def test_every_kind_of_buffer_gives_the_same(data: bytes) -> None:
    assert Digest.of(data) == Digest.of(bytearray(data)) == Digest.of(memoryview(data))
    assert checksum(data) == checksum(bytearray(data)) == checksum(memoryview(data))


def test_size_of_a_view_is_counted_in_bytes() -> None:
    view = memoryview(bytes(16)).cast("Q")
    assert Digest.of(view) == Digest.of(bytes(16))
    hasher = Hasher()
    hasher.update(view)
    assert hasher.digest() == Digest.of(bytes(16))


def test_a_hasher_goes_on_after_it_was_asked() -> None:
    hasher = Hasher()
    hasher.update(b"a")
    assert hasher.digest() == Digest.of(b"a")
    hasher.update(b"b")
    assert (hasher.digest(), hasher.checksum()) == digest_and_checksum(b"ab")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1))
def test_a_name_is_read_back(sha256: bytes, size_bytes: int) -> None:
    digest = Digest(sha256, size_bytes)
    assert Digest.parse(digest.name) == digest


@pytest.mark.parametrize(
    "name",
    [
        "",
        ABC,
        f"{ABC}_",
        f"{ABC.upper()}_3",
        f"{ABC}_A",
        f"{ABC}_03",
        f"{ABC}_00",
        f"{ABC}_-3",
        f"{ABC}_3\n",
        f" {ABC}_3",
        f"{ABC}-3",
        f"{ABC[:-1]}_3",
        f"{ABC}a_3",
        f"{ABC[:-1]}g_3",
        f"{ABC[:-1]}٣_3",
        f"{ABC}_٣",
        f"{ABC}_8000000000000000",
        f"{ABC}_10000000000000000",
        f"{ABC}_3/..",
        f"../{ABC}_3",
    ],
)
def test_anything_else_is_not_a_name(name: str) -> None:
    with pytest.raises(MisuseError):
        Digest.parse(name)


@given(st.text())
def test_parsing_raises_nothing_but_misuse(name: str) -> None:
    try:
        assert Digest.parse(name).name == name
    except MisuseError:
        pass
