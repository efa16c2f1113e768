"""Geometries: the sizes are those of ImageMagick itself."""

from __future__ import annotations

import itertools
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountstore.errors import MisuseError
from mountstore.images.geometry import SIDE_MAX, Geometry, Size, parse_geometry

SIZES = [Size(300, 200), Size(200, 300), Size(641, 479), Size(7, 1000), Size(3, 2), Size(1, 1), Size(100, 100)]

GEOMETRIES = [
    *("100x100", "x100", "100x", "100", "333x77", "77x333", "1000x1000", "300x200", "100X50", "100.5x20.4"),
    *("100x100!", "100x!", "x100!", "1000x100!", "!20x30", "20x!30"),
    *("100x100^", "100^", "x100^", "1000x10^", "^20x30"),
    *("100x100>", "1000x1000>", "100x1000>", "100x>", "x1000>", "1000x100!>", "100x1000>!", "300x200>"),
    *("100x100<", "1000x1000<", "100x1000<", "100<", "x1000<", "1000x100!<", "100x1000!<"),
    *("100x100^>", "1000x1000^>", "150x1000^>", "1000x1000^<", "150x1000^<", "10x10^<"),
    *("50%", "50%x30%", "50x30%", "x50%", "12.5%", "200%", "33.3%x", "150%x10%"),
    *("10000@", "10000@>", "100000@>", "60000@", "59999@", "306739@", "1234@", "7000@>"),
]


def by_imagemagick(size: Size, geometries: list[str]) -> list[str]:
    """What `convert -resize` makes of an image of that size."""
    command = ["convert", "-size", f"{size.width}x{size.height}", "xc:red"]
    for geometry in geometries:
        command += ["(", "-clone", "0", "-resize", geometry, ")"]
    command += ["-delete", "0", "-format", "%wx%h\n", "info:"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.width}x{size.height}")
def test_sizes_are_those_of_imagemagick(size: Size) -> None:
    # Where a side would vanish, it refuses and we do not; sides beyond 16,000 are forbidden it by Debian's policy.
    ours = {}
    for geometry in GEOMETRIES:
        with suppress(MisuseError):
            ours[geometry] = parse_geometry(geometry).apply(size)
    asked = [geometry for geometry, made in ours.items() if min(made) > 1 and max(made) < 16000]
    assert len(asked) > len(GEOMETRIES) // 4
    assert [f"{ours[geometry].width}x{ours[geometry].height}" for geometry in asked] == by_imagemagick(size, asked)


def test_a_side_that_would_vanish_is_one_pixel() -> None:
    assert parse_geometry("10x10").apply(Size(7, 1000)) == (1, 10)
    assert parse_geometry("1%").apply(Size(7, 1000)) == (1, 10)
    assert parse_geometry("1@").apply(Size(7, 1000)) == (1, 11)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "%", "@", "abc", "100x100x100", "100*50", "-5", "1e2", "100,50", "100x100+10+10", "3:2"),
        *("0", "0x0", "0x50", "50x0!", "0%", "0.4", "0@", "0.0", "x0", "9999999999x1"),
        *("100x100<>", "100x100!^", "100x100@", "50@!", "50%@", "5@^", "5@<", "50%!", "200%>", "50%<", "50%^"),
        *("\N{ARABIC-INDIC DIGIT FIVE}", "1 00", "100x100\n50", "nan", "inf", "0x10p3"),
    ],
)
def test_what_is_no_geometry_is_refused(text: str) -> None:
    with pytest.raises(MisuseError):
        parse_geometry(text)


def test_an_offset_is_named_as_such() -> None:
    with pytest.raises(MisuseError, match="offsets"):
        parse_geometry("100x100+10+10")


def test_no_side_is_made_longer_than_a_jpeg_can_have() -> None:
    assert parse_geometry(f"{SIDE_MAX}x").apply(Size(10, 1)) == (SIDE_MAX, 6554)
    for text in (f"{SIDE_MAX + 1}x", "1000000%", "999999999x999999999!", "99999999999@"[:9] + "@", "x60000"):
        with pytest.raises(MisuseError):
            parse_geometry(text).apply(Size(1000, 10))


@pytest.mark.parametrize(
    ("geometry", "size", "expected"),
    [
        ("100x100", (300, 200), ((150, 100), (100, 100))),
        ("100x100", (200, 300), ((100, 150), (100, 100))),
        ("600x600", (300, 200), ((900, 600), (600, 600))),
        ("600x600>", (300, 200), ((300, 200), (300, 200))),
        ("100x600>", (300, 200), ((300, 200), (100, 200))),
        ("100x100^", (300, 200), ((150, 100), (100, 100))),
    ],
)
def test_to_fill_covers_and_cuts(geometry: str, size: Size, expected: tuple[Size, Size]) -> None:
    assert parse_geometry(geometry).fill(Size(*size)) == expected


@pytest.mark.parametrize("text", ["100", "x100", "50%", "1000@", "100x100!", "100x100<"])
def test_only_two_sides_can_be_filled(text: str) -> None:
    with pytest.raises(MisuseError):
        parse_geometry(text).fill(Size(10, 10))


@given(st.text("0123456789.xX%!^><@ +-", max_size=12))
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_geometry_or_refused_and_written_one_way(text: str) -> None:
    try:
        geometry = parse_geometry(text)
    except MisuseError:
        return
    assert isinstance(geometry, Geometry)
    again = parse_geometry(str(geometry))
    assert again == geometry
    assert str(again) == str(geometry)


@given(
    st.sampled_from(GEOMETRIES),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
@settings(max_examples=300, deadline=None)
def test_sizes_keep_what_the_signs_promise(text: str, width: int, height: int) -> None:
    geometry = parse_geometry(text)
    size = Size(width, height)
    try:
        made = geometry.apply(size)
    except MisuseError:
        return
    assert min(made) >= 1
    if geometry.shrink_only:
        assert made.width <= width
        assert made.height <= height
    if geometry.enlarge_only:
        assert made.width >= width
        assert made.height >= height
    fits = not (geometry.percent or geometry.area or geometry.exact or geometry.cover or geometry.enlarge_only)
    if fits:
        assert made.width <= (geometry.width or made.width)
        assert made.height <= (geometry.height or made.height)


def test_signs_may_stand_anywhere() -> None:
    for order in itertools.permutations(["100x50", "^", ">"]):
        assert str(parse_geometry("".join(order))) == "100x50^>"
