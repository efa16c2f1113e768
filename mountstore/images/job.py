"""What is asked of a worker, what it answers, and the limits it works in.

All are values. Requests and outcomes travel as JSON, each in a message of at most `MESSAGE_MAX` bytes.
"""

from __future__ import annotations

import importlib.metadata
from enum import StrEnum
from functools import cache
from typing import Final

import msgspec

from mountstore.errors import MisuseError, shown
from mountstore.images.geometry import parse_geometry

RENDERING: Final = 1
"""Raised by every change that makes other bytes of the same image and job."""


MESSAGE_MAX: Final = 1 << 16


class Format(StrEnum):
    """A format that can be written."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    TIFF = "tiff"
    AVIF = "avif"
    GIF = "gif"


_SUFFIXES: Final = {
    "jpg": Format.JPEG,
    "jpeg": Format.JPEG,
    "jpe": Format.JPEG,
    "jfif": Format.JPEG,
    "png": Format.PNG,
    "apng": Format.PNG,
    "webp": Format.WEBP,
    "tif": Format.TIFF,
    "tiff": Format.TIFF,
    "avif": Format.AVIF,
    "gif": Format.GIF,
}

SUFFIX: Final = {
    Format.JPEG: "jpg",
    Format.PNG: "png",
    Format.WEBP: "webp",
    Format.TIFF: "tif",
    Format.AVIF: "avif",
    Format.GIF: "gif",
}
"""The usual end of a name, without the dot."""


class Limits(msgspec.Struct, frozen=True):
    """What one job may use. A job that reaches a limit fails; nothing else is concerned."""

    pixels: int = 256_000_000
    """Of the source, of one frame and of all frames of the result together."""
    memory_bytes: int = 2 << 30
    """Address space beyond what a worker has before it begins."""
    cpu_s: int = 60
    wall_s: float = 120.0
    source_bytes: int = 1 << 30
    result_bytes: int = 256 << 20


class Job(msgspec.Struct, frozen=True):
    """One image to make of another. Make one with `new_job`, which checks it."""

    geometry: str
    format: Format
    fill: bool = False
    quality: int | None = None
    """1 to 100; None: what is usual for the format."""
    strip: bool = False
    background: str = "white"
    """Colour under what is transparent, where the format has no transparency."""


class Request(msgspec.Struct, frozen=True):
    """What is sent to a worker, beside the descriptors of the image to read and of the file to write."""

    job: Job
    limits: Limits


class Outcome(msgspec.Struct, frozen=True):
    """What became of a job; `error` is empty if it was done."""

    width: int = 0
    height: int = 0
    frames: int = 0
    size_bytes: int = 0
    error: str = ""
    too_large: bool = False
    """The error is a limit."""


def new_job(
    geometry: str,
    format: Format,
    *,
    fill: bool = False,
    quality: int | None = None,
    strip: bool = False,
    background: str = "white",
) -> Job:
    """A job in its one way to write it, so that equal requests are equal jobs.

    Raises: MisuseError if something is out of range.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise MisuseError(f"quality {quality}: must be from 1 to 100")
    if format in (Format.PNG, Format.GIF, Format.TIFF):
        quality = None
    if format is not Format.JPEG:
        background = "white"
    return Job(str(parse_geometry(geometry)), format, fill, quality, strip, background.strip().lower())


def parse_format(text: str) -> Format:
    """Raises: MisuseError if it is not a format that can be written."""
    try:
        return _SUFFIXES[text.lower().removeprefix(".")]
    except KeyError:
        raise MisuseError(f"{text!r}: not a format that can be written; give {_choices()}") from None


def format_of(name: bytes) -> Format:
    """The format that a file of this name is to have.

    Raises: MisuseError if the name's suffix does not tell.
    """
    _, dot, suffix = name.rpartition(b".")
    try:
        return _SUFFIXES[suffix.decode("ascii").lower() if dot else ""]
    except (KeyError, UnicodeDecodeError):
        raise MisuseError(
            f"{shown(name)}: the suffix does not tell in which format to write; end the name in .jpg, .png,"
            " .webp, .tif, .avif or .gif, or give --format"
        ) from None


def _choices() -> str:
    return ", ".join(Format)


@cache
def encoder_version() -> str:
    """Changes when the same job may give other bytes. Reads a file the first time."""
    return f"{RENDERING} pillow {importlib.metadata.version('pillow')}"
