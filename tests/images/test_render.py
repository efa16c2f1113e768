"""What is made of an image: size, way up, colours, transparency, frames."""

from __future__ import annotations

import io
import itertools
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from images.pictures import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    animation,
    corners,
    decoded,
    encoded,
    exif_of,
    frames_of,
    quarters,
    srgb,
    stored_turned,
    swapped_profile,
)
from mountstore.errors import MisuseError, TooLargeError
from mountstore.images.job import Format, Limits, format_of, new_job, parse_format
from mountstore.images.render import Made, UnreadableError, render

UPRIGHT = [RED, GREEN, BLUE, YELLOW]
LOSSLESS = (Format.PNG, Format.TIFF)


def make(data: bytes, geometry: str, format: Format = Format.PNG, **options: object) -> Made:
    return render(new_job(geometry, format, **options), io.BytesIO(data), Limits())  # type: ignore[arg-type]


def image_of(data: bytes, geometry: str, format: Format = Format.PNG, **options: object) -> Image.Image:
    return decoded(make(data, geometry, format, **options).data)


# --- formats and sizes ---


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
@pytest.mark.parametrize("format", Format)
def test_every_format_becomes_every_other(source: str, format: Format) -> None:
    made = make(encoded(quarters(), source), "40x40", format)
    image = decoded(made.data)
    assert image.format == format.upper()
    assert image.size == made.size == (40, 30)
    assert made.frames == 1
    assert corners(image) == UPRIGHT


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
DEEP = ("I;16", "I")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", Format)
def test_every_mode_keeps_its_brightness(mode: str, format: Format) -> None:
    grey = Image.new("L", (40, 30), 200)
    if mode == "1":
        source = Image.new("1", (40, 30), 1)
    elif mode in ("I;16", "I"):
        source = Image.new(mode, (40, 30), 200 * 257)
    else:
        source = (grey if mode in ("L", "LA", "F") else grey.convert("RGB")).convert(mode)
    # Pillow before 13 writes no TIFF of this mode that it can read.
    image = image_of(encoded(source, "JPEG" if mode == "YCbCr" else "TIFF"), "20", format)
    if image.mode in DEEP:
        image = image.convert("I").point(lambda value: value * (1 / 257))
    pixel = image.convert("L").getpixel((10, 7))
    assert pixel is not None
    assert not isinstance(pixel, tuple)
    assert abs(pixel - (255 if mode == "1" else 200)) <= 6


def test_the_kind_of_a_picture_is_kept_where_the_format_can() -> None:
    for mode, format in itertools.product(["L", "LA", "RGB", "RGBA", "I;16"], LOSSLESS):
        assert image_of(encoded(Image.new(mode, (8, 8)), "PNG"), "4", format).mode == mode
    assert image_of(encoded(Image.new("CMYK", (8, 8)), "JPEG"), "4", Format.JPEG).mode == "CMYK"


@pytest.mark.parametrize("geometry", ["100x30!", "300x300", "20x20^", "50%", "777@", "x1", "80x60"])
def test_sizes_are_those_of_the_geometry(geometry: str, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(encoded(quarters(80, 60), "PNG"))
    command = ["convert", str(source), "-resize", geometry, "-format", "%w %h", "info:"]
    expected = subprocess.run(command, capture_output=True, check=True).stdout.split()
    assert list(make(source.read_bytes(), geometry).size) == [int(side) for side in expected]


def test_filling_cuts_the_middle_out() -> None:
    wide = Image.new("RGB", (300, 100), BLUE)
    wide.paste(RED, (100, 0, 200, 100))
    image = image_of(encoded(wide, "PNG"), "50x50", fill=True)
    assert image.size == (50, 50)
    assert corners(image) == [RED] * 4


def test_a_jpeg_decoded_small_looks_the_same_as_one_decoded_whole() -> None:
    large = quarters(1600, 1200)
    large.paste(Image.linear_gradient("L").resize((800, 600)), (400, 300))
    source = encoded(large, "JPEG", quality=95)
    small = image_of(source, "100x100", quality=100).convert("RGB")
    fair = large.resize((100, 75), Image.Resampling.LANCZOS)
    differences = [abs(a - b) for a, b in zip(small.tobytes(), fair.tobytes(), strict=True)]
    assert sum(differences) / len(differences) < 3


def test_equal_requests_give_equal_bytes() -> None:
    for name, format in itertools.product(["JPEG", "PNG"], Format):
        source = encoded(quarters(), name)
        assert make(source, "50x50", format).data == make(source, "50x50", format).data


def test_quality_counts_where_there_is_one() -> None:
    noise = encoded(Image.effect_noise((200, 200), 80), "PNG")
    for format in (Format.JPEG, Format.WEBP, Format.AVIF):
        assert len(make(noise, "100", format, quality=20).data) < len(make(noise, "100", format, quality=95).data)
    assert new_job("1", Format.PNG, quality=5) == new_job("1", Format.PNG)


# --- EXIF ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_made_upright(orientation: int, source: str) -> None:
    stored = stored_turned(quarters(80, 60), orientation)
    data = encoded(stored, source, exif=exif_of(orientation))
    image = image_of(data, "40x40", Format.JPEG)
    assert image.size == (40, 30)
    assert corners(image) == UPRIGHT
    assert image.getexif().get(0x0112, 1) == 1
    # What is cut off is cut from the picture as it is shown.
    filled = image_of(data, "20x60", Format.PNG, fill=True)
    assert filled.size == (20, 60)
    assert corners(filled) == UPRIGHT


def test_orientation_is_understood_as_imagemagick_does(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        source, made = tmp_path / f"{orientation}.jpg", tmp_path / f"{orientation}.png"
        source.write_bytes(encoded(stored_turned(quarters(), orientation), "JPEG", exif=exif_of(orientation)))
        subprocess.run(["convert", str(source), "-auto-orient", "-resize", "33x44", str(made)], check=True)
        ours = image_of(source.read_bytes(), "33x44")
        with Image.open(made) as theirs:
            assert ours.size == theirs.size
            assert corners(ours) == corners(theirs)


@pytest.mark.parametrize("format", [Format.JPEG, Format.PNG, Format.WEBP, Format.TIFF, Format.AVIF])
def test_exif_data_are_kept_or_stripped(format: Format) -> None:
    source = encoded(quarters(), "JPEG", exif=exif_of(6))
    exif = image_of(source, "40", format).getexif()
    assert exif[0x010F] == "A maker"
    if format is not Format.TIFF:
        assert exif.get_ifd(0x8769)[0x9003] == "2026:11:22 10:00:00"
    stripped = image_of(source, "40", format, strip=True)
    assert 0x010F not in stripped.getexif()
    assert corners(stripped) == corners(image_of(source, "40", format))


def test_the_exif_data_of_a_tiff_do_not_say_how_it_was_stored() -> None:
    source = encoded(quarters(), "TIFF", exif=exif_of(1))
    exif = image_of(source, "40", Format.JPEG).getexif()
    assert exif[0x010F] == "A maker"
    assert not set(exif) & {256, 257, 259, 273, 278, 279}


def test_damaged_exif_data_are_no_reason_to_fail() -> None:
    source = encoded(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert image_of(source, "40", Format.JPEG).size == (40, 30)


# --- colours ---


@pytest.mark.parametrize("format", [Format.JPEG, Format.PNG, Format.WEBP, Format.TIFF, Format.AVIF])
def test_a_colour_profile_is_kept(format: Format) -> None:
    source = encoded(quarters(), "JPEG", icc_profile=swapped_profile())
    image = image_of(source, "40", format)
    assert image.info["icc_profile"] == swapped_profile()
    assert corners(image) == UPRIGHT


@pytest.mark.parametrize("format", Format)
def test_without_its_profile_a_picture_looks_the_same(format: Format) -> None:
    source = encoded(quarters(), "PNG", icc_profile=swapped_profile())
    image = image_of(source, "40", format, strip=True)
    assert "icc_profile" not in image.info
    assert corners(image) == [GREEN, RED, BLUE, YELLOW]


def test_a_gif_which_has_no_profiles_is_made_in_srgb() -> None:
    image = image_of(encoded(quarters(), "PNG", icc_profile=swapped_profile()), "40", Format.GIF)
    assert corners(image) == [GREEN, RED, BLUE, YELLOW]


def test_a_broken_or_unfitting_profile_is_dropped() -> None:
    for profile in (b"not a profile" * 20, srgb()):
        source = encoded(quarters().convert("L"), "PNG", icc_profile=profile)
        assert "icc_profile" not in image_of(source, "40", Format.PNG).info
    broken = encoded(quarters(), "PNG", icc_profile=srgb()[:300])
    assert corners(image_of(broken, "40", Format.PNG, strip=True)) == UPRIGHT


def test_transparency_is_kept_or_laid_over_the_background() -> None:
    clear = quarters().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 40, 30))
    source = encoded(clear, "PNG")
    for format in (Format.PNG, Format.WEBP, Format.TIFF, Format.AVIF, Format.GIF):
        image = image_of(source, "40x40", format).convert("RGBA")
        alpha = image.getchannel("A")
        assert (alpha.getpixel((5, 5)), alpha.getpixel((35, 25))) == (0, 255), format
    white = image_of(source, "40x40", Format.JPEG)
    assert corners(white)[0] == (255, 255, 255)
    assert corners(image_of(source, "40x40", Format.JPEG, background="#00f"))[0] == BLUE
    with pytest.raises(MisuseError, match="colour"):
        make(source, "40x40", Format.JPEG, background="no such colour")


def test_colours_do_not_bleed_out_of_what_is_transparent() -> None:
    # Green under full transparency, beside red: nothing green may show at the edge.
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    small = image_of(encoded(image, "PNG"), "16")
    pixels = [small.getpixel((x, 8)) for x in range(16)]
    assert all(isinstance(pixel, tuple) and (pixel[3] == 0 or pixel[1] < 20) for pixel in pixels)


@pytest.mark.parametrize(("mode", "key"), [("P", 1), ("L", 0), ("RGB", RED)])
def test_a_colour_that_stands_for_transparency_becomes_transparency(mode: str, key: object) -> None:
    image = Image.new(mode, (20, 20), key)  # type: ignore[arg-type]  # a colour of the mode
    if mode == "P":
        image.putpalette([*RED, *GREEN])
    image.paste(0 if mode == "P" else 255 if mode == "L" else BLUE, (10, 0, 20, 20))
    made = image_of(encoded(image, "PNG", transparency=key), "10").convert("RGBA")
    assert made.getchannel("A").getextrema() == (0, 255)


# --- animations ---

ANIMATED = [Format.GIF, Format.WEBP, Format.PNG]


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("source", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("format", ANIMATED)
def test_all_frames_are_kept_as_they_are_shown(source: str, format: Format, clear: bool) -> None:
    options = {"disposal": 2} if source == "GIF" else {"lossless": True} if source == "WEBP" else {}
    data = animation(source, clear=clear, loop=3, **options)
    made = make(data, "32x24", format)
    assert made.frames == 4
    frames = frames_of(made.data)
    originals = frames_of(data)
    assert [duration for _, duration in frames] == [100, 200, 300, 400]
    for (frame, _), (original, _) in zip(frames, originals, strict=True):
        assert frame.size == (32, 24)
        for x, y in itertools.product(range(4, 32, 8), (4, 20)):
            ours, theirs = frame.getpixel((x, y)), original.getpixel((2 * x, 2 * y))
            assert isinstance(ours, tuple)
            assert isinstance(theirs, tuple)
            assert abs(ours[3] - theirs[3]) < 30
            if theirs[3]:
                assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 60


@pytest.mark.parametrize("source", ["AVIF", "PNG", "GIF"])
def test_an_animated_avif_keeps_its_frames(source: str) -> None:
    """The durations of a PNG are fractions of milliseconds."""
    made = make(animation(source, clear=False), "32x24", Format.AVIF)
    assert [duration for _, duration in frames_of(made.data)] == [100, 200, 300, 400]


@pytest.mark.parametrize(("loop", "plays"), [(None, 1), (0, 0), (4, 5)])
def test_how_often_an_animation_is_shown_is_kept(loop: int | None, plays: int) -> None:
    data = animation("GIF", clear=False, **({} if loop is None else {"loop": loop}))
    assert image_of(data, "32", Format.GIF).info.get("loop") == loop
    for format in (Format.WEBP, Format.PNG):
        other = make(data, "32", format).data
        assert decoded(other).info["loop"] == plays
        assert image_of(other, "16", Format.GIF).info.get("loop") == loop


def test_the_first_frame_stands_for_an_animation_where_there_are_none() -> None:
    data = animation("GIF", clear=False)
    made = make(data, "32x24", Format.JPEG)
    assert made.frames == 1
    assert corners(decoded(made.data)) == [RED, BLUE, BLUE, BLUE]


# --- limits and damage ---


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_a_truncated_image_is_an_error(name: str) -> None:
    whole = encoded(Image.effect_noise((200, 200), 90).convert("RGB"), name)
    for part in (0.05, 0.5, 0.9):
        with pytest.raises(UnreadableError):
            make(whole[: int(len(whole) * part)], "50")


NO_IMAGES = [b"", b"\0" * 1000, b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]


@pytest.mark.parametrize("data", NO_IMAGES)
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(UnreadableError):
        make(data, "50")


def test_pixels_are_limited_before_they_are_decoded() -> None:
    bomb = encoded(Image.new("1", (20000, 20000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(TooLargeError):
        make(bomb, "50")
    with pytest.raises(TooLargeError, match="result"):
        make(encoded(quarters(), "PNG"), "60000x60000!")
    with pytest.raises(TooLargeError, match="webp"):
        make(encoded(quarters(), "PNG"), "16384x1!", Format.WEBP)
    with pytest.raises(TooLargeError, match="4 times"):
        job = new_job("100%", Format.GIF)
        render(job, io.BytesIO(animation("GIF", clear=False)), Limits(pixels=64 * 48 * 4 - 1))


# --- names ---


def test_the_suffix_tells_the_format() -> None:
    assert format_of(b"a.b.JPG") is Format.JPEG
    assert format_of(b"\xff\xfe.tif") is Format.TIFF
    assert parse_format("jpg") is parse_format("JPEG") is Format.JPEG
    for name in (b"jpg", b"a.bmp", b"a.", b"", b"a.\xff", b"jpg.d"):
        with pytest.raises(MisuseError):
            format_of(name)
    with pytest.raises(MisuseError):
        parse_format("bmp")
    for quality in (0, 101, -1):
        with pytest.raises(MisuseError):
            new_job("1", Format.JPEG, quality=quality)
