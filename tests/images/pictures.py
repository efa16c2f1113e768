"""Pictures to resize, made here."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from PIL import Image, ImageCms

RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
YELLOW = (255, 255, 0)

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an image that is to be shown upright is stored with each EXIF orientation."""


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def quarters(width: int = 80, height: int = 60) -> Image.Image:
    """Red and green above, blue and yellow below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Colours near the four corners, each channel to the nearest of 0 and 255."""
    width, height = image.size
    places = [(width // 8, height // 8), (-width // 8, height // 8), (width // 8, -height // 8)]
    places.append((-width // 8, -height // 8))
    rgb = image.convert("RGB")
    found = []
    for x, y in places:
        pixel = rgb.getpixel((x % width, y % height))
        assert isinstance(pixel, tuple)
        found.append(tuple(255 if value > 127 else 0 for value in pixel))
    return found


def stored_turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "A maker"
    exif[0x8769] = {0x9003: "2026:11:22 10:00:00"}
    return exif.tobytes()


@cache
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@cache
def swapped_profile() -> bytes:
    """A profile that says that red is green and the other way round: whoever ignores it is found out."""
    data = bytearray(srgb())
    count = int.from_bytes(data[128:132], "big")
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data)


def frames_of(data: bytes) -> list[tuple[Image.Image, float]]:
    """The frames of an animation as they are shown, and their durations in ms."""
    image = Image.open(io.BytesIO(data))
    frames = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        image.load()
        frames.append((image.convert("RGBA"), image.info.get("duration", 0)))
    return frames


def animation(format: str, *, clear: bool, **options: Any) -> bytes:
    """Four frames of 100, 200, 300 and 400 ms: a square that wanders over a background, or over nothing."""
    frames = []
    for number in range(4):
        frame = Image.new("RGBA", (64, 48), (0, 0, 0, 0) if clear else (*BLUE, 255))
        frame.paste((*RED, 255), (number * 16, 0, number * 16 + 16, 24))
        frames.append(frame)
    durations = [100, 200, 300, 400]
    return encoded(
        frames[0], format, save_all=True, append_images=frames[1:], duration=durations, **options
    )
