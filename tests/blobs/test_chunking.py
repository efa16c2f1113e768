from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealing import SMALL, files, noise, unhurried

from mountstore.blobs.chunking import DEFAULT_PARAMETERS, Chunker, ChunkingParameters
from mountstore.blobs.extents import Extent, Segmenter
from mountstore.errors import MisuseError


def lengths_of(extents: list[Extent]) -> list[int]:
    """Pieces positive, holes negative."""
    return [-extent if isinstance(extent, int) else len(extent) for extent in extents]


def bytes_of(extents: list[Extent]) -> bytes:
    return b"".join(bytes(extent) if isinstance(extent, int) else extent for extent in extents)


def segment(data: bytes, parameters: ChunkingParameters = SMALL) -> list[Extent]:
    segmenter = Segmenter(parameters)
    return segmenter.feed(data) + segmenter.finish()


@pytest.mark.parametrize(
    "values",
    [
        {"min_size": 63},
        {"avg_size": 8 << 20, "max_size": 16 << 20, "piece_max": 16 << 20},
        {"max_size": 32 << 20, "piece_max": 32 << 20},
        {"piece_max": 32 << 20},
        {"min_size": 1 << 20, "avg_size": 1 << 19},
        {"avg_size": 1 << 22, "max_size": 1 << 21},
        {"piece_max": 1 << 20},
        {"hole_min": 1},
        {"hole_min": 8 << 20},
    ],
)
def test_unusable_parameters_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(MisuseError):
        ChunkingParameters(**values)


LARGER = ChunkingParameters(min_size=256 << 10, avg_size=1 << 20)

CUTS_OF_NOISE_2026 = {
    DEFAULT_PARAMETERS: [723670, 150217, 861289, 1195119, 630993, 750123, 694940, 961077, 803860, 844886, 772434],
    LARGER: [873887, 2156184, 1281340, 756061, 1187425, 1361277, 772434],
}


@pytest.mark.parametrize("parameters", CUTS_OF_NOISE_2026)
def test_cut_points_never_change(parameters: ChunkingParameters) -> None:
    """Another release of the chunker that cuts elsewhere would make every store grow: it must not pass."""
    data = noise(2026, 8 << 20)
    assert Chunker(parameters).cut(data, len(data), final=True) == CUTS_OF_NOISE_2026[parameters]


@unhurried
@given(files)
def test_pieces_keep_to_their_bounds(data: bytes) -> None:
    extents = segment(data)
    assert bytes_of(extents) == data
    lengths = lengths_of(extents)
    for i, length in enumerate(lengths):
        last_of_stretch = i + 1 == len(lengths) or lengths[i + 1] < 0
        assert (
            -length >= SMALL.hole_min
            or SMALL.min_size <= length <= SMALL.max_size
            or (last_of_stretch and 0 < length <= SMALL.max_size)
        )


@unhurried
@given(files)
def test_holes_are_exactly_the_long_runs_of_zeros(data: bytes) -> None:
    expected = []
    position = 0
    while (start := data.find(bytes(SMALL.hole_min), position)) >= 0:
        position = start + len(data[start:]) - len(data[start:].lstrip(b"\0"))
        expected.append((start, position))
    found = []
    position = 0
    for length in lengths_of(segment(data)):
        if length < 0:
            found.append((position, position - length))
        position += abs(length)
    assert found == expected


@unhurried
@given(files, st.data())
def test_extents_do_not_depend_on_how_the_bytes_arrive(data: bytes, draw: st.DataObject) -> None:
    step = draw.draw(st.one_of(st.integers(1, 40), st.integers(100, 5000)))
    segmenter = Segmenter(SMALL)
    extents: list[Extent] = []
    for offset in range(0, len(data), step):
        part = data[offset : offset + step]
        if not any(part) and draw.draw(st.booleans()):
            extents += segmenter.feed_zeros(len(part))
        else:
            extents += segmenter.feed(part)
    assert extents + segmenter.finish() == segment(data)
    parts = [data[offset : offset + step] for offset in range(0, len(data), step)]
    assert segmenter.feed(*parts) + segmenter.finish() == segment(data)


@unhurried
@given(files)
def test_memory_is_bounded(data: bytes) -> None:
    segmenter = Segmenter(SMALL)
    given_out = 0
    for offset in range(0, len(data), 50):
        given_out += sum(map(abs, lengths_of(segmenter.feed(data[offset : offset + 50]))))
        waiting = min(offset + 50, len(data)) - given_out
        assert segmenter.feed_zeros(0) == []
        assert waiting <= SMALL.max_size + SMALL.hole_min + 50 or not any(data[given_out : given_out + waiting])


def test_cut_points_meet_again_after_an_insertion() -> None:
    data = noise(1, 200_000)
    before = segment(data)
    after = segment(b"!" + data)
    assert len([piece for piece in after if piece not in before]) <= 3


def test_zeros_cost_nothing_however_many() -> None:
    segmenter = Segmenter(SMALL)
    extents = segmenter.feed(b"x") + segmenter.feed_zeros(1 << 60) + segmenter.feed(b"y") + segmenter.finish()
    assert extents == [b"x", 1 << 60, b"y"]


def test_a_segmenter_is_as_new_after_finish() -> None:
    segmenter = Segmenter(SMALL)
    data = noise(1, 5000) + bytes(50)
    first = segmenter.feed(data) + segmenter.finish()
    assert segmenter.feed(data) + segmenter.finish() == first
    segmenter.feed(bytes(1000))
    assert segmenter.finish() == [1000]
    assert segmenter.feed(data) + segmenter.finish() == first
