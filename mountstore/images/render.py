"""Making one image of another, with Pillow. Runs in a worker, which may die of it.

The order of things: the header says how large the image is, and limits are checked; a JPEG is decoded no larger
than is needed; it is cut and scaled in one step; then it is turned as its EXIF data say, given the colours and the
transparency that the format can have, and encoded. What can be done in the new size is not done in the old one.

Equal sources and jobs give equal bytes (`mountstore.images.job.encoder_version` aside).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

from PIL import Image, ImageColor, UnidentifiedImageError

from mountstore.errors import MisuseError, TooLargeError
from mountstore.images.animation import Animation, read_animation
from mountstore.images.colours import Profile, flatten, for_format, plain
from mountstore.images.geometry import Geometry, Size, parse_geometry
from mountstore.images.job import Format, Job, Limits
from mountstore.images.metadata import read_exif

__all__ = ["READ_FORMATS", "Made", "UnreadableError", "prepare", "render"]

READ_FORMATS: Final = (
    *("JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"),
    *("BMP", "DIB", "PPM", "JPEG2000", "TGA", "ICO", "PCX", "PSD", "QOI", "XBM"),
)
"""What is tried. Not among them is what starts other programs (EPS) or opens other files."""

_SIDE_MAX: Final = {Format.WEBP: 16383}

_DRAFT_GAP: Final = 2
"""A JPEG is decoded at least so many times larger than the result; as `Image.thumbnail` does by default."""

_REDUCING_GAP: Final = 3.0

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_SIDEWAYS: Final = 5

# Good to look at, and small; Pillow's own defaults are for speed.
_QUALITY: Final = {Format.JPEG: 85, Format.WEBP: 80, Format.AVIF: 65}


class UnreadableError(Exception):
    """The source is no image, or a damaged one."""


class Made(NamedTuple):
    """An encoded image."""

    data: bytes
    size: Size
    frames: int


class _Plan(NamedTuple):
    """How an image as it is stored becomes one of the right size, still to be turned."""

    scaled: Size
    """The whole, if nothing was cut off."""
    cut: Size
    """What is left of that, of its middle."""
    turn: Image.Transpose | None


def prepare() -> None:
    """Load all decoders, as long as files can be opened."""
    Image.init()
    ImageColor.getrgb("white")
    Profile.prepare()


def render(job: Job, source: BinaryIO, limits: Limits) -> Made:
    """Make what the job asks for of the image that `source` has from its start on.

    Raises:
      UnreadableError: It is no image that can be decoded.
      TooLargeError: The image, or what is asked for, is beyond the limits.
      MisuseError: The job does not fit the image.
      MemoryError: As it says.
    """
    before = Image.MAX_IMAGE_PIXELS
    # Pillow warns there, and raises at twice of it.
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _rendered(job, source, limits)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _rendered(job: Job, source: BinaryIO, limits: Limits) -> Made:
    geometry = parse_geometry(job.geometry)
    try:
        background = ImageColor.getrgb(job.background)
    except ValueError:
        raise MisuseError(f"{job.background!r}: not a colour; give a name, or #rrggbb") from None
    image = _open(source, limits)
    try:
        if image.format == "TIFF":
            # Pillow turns these itself, when they are loaded.
            image.load()
        exif, orientation = read_exif(image, job.format)
        plan = _plan(image, geometry, job, orientation, limits)
        profile = Profile(image.info.get("icc_profile"))
        animation = read_animation(image, job.format)
        if animation is not None:
            _check_pixels(limits, plan.cut, animation.frames, "the result")
        elif plan.scaled.width < image.width:
            image.draft(None, (plan.scaled.width * _DRAFT_GAP, plan.scaled.height * _DRAFT_GAP))
        made = []
        for frame in [image] if animation is None else animation:
            small, own = for_format(_scaled(plain(frame, job.format), plan), profile, job.format, strip=job.strip)
            made.append(flatten(small, background[:3]) if job.format is Format.JPEG else small)
    except (MisuseError, TooLargeError, MemoryError):
        raise
    except Image.DecompressionBombError as exc:
        raise TooLargeError(str(exc)) from exc
    except Exception as exc:
        # Decoders raise anything at bad input: SyntaxError, struct.error, EOFError, ...
        raise UnreadableError(f"a damaged {image.format} image: {exc or type(exc).__name__}") from exc
    options = dict(_options(job))
    if exif and not job.strip:
        options["exif"] = exif
    if own is not None:
        options["icc_profile"] = own
    return _encoded(made, job.format, options, animation)


def _open(source: BinaryIO, limits: Limits) -> Image.Image:
    try:
        image = Image.open(source, formats=READ_FORMATS)
    except UnidentifiedImageError:
        raise UnreadableError("not an image, or in a format that is not read here") from None
    except Image.DecompressionBombError as exc:
        raise TooLargeError(str(exc)) from exc
    except MemoryError:
        raise
    except Exception as exc:
        raise UnreadableError(f"a damaged image: {exc or type(exc).__name__}") from exc
    _check_pixels(limits, Size(*image.size), 1, "the image")
    return image


def _check_pixels(limits: Limits, size: Size, frames: int, what: str) -> None:
    if size.width * size.height * frames > limits.pixels:
        times = "" if frames == 1 else f"{frames} times "
        raise TooLargeError(
            f"{what} has {times}{size.width}x{size.height} pixels; the limit is {limits.pixels:,} in all"
        )


def _plan(image: Image.Image, geometry: Geometry, job: Job, orientation: int, limits: Limits) -> _Plan:
    sideways = orientation >= _FIRST_SIDEWAYS
    shown = Size(*(reversed(image.size) if sideways else image.size))
    scaled, cut = geometry.fill(shown) if job.fill else (geometry.apply(shown),) * 2
    longest = _SIDE_MAX.get(job.format, max(cut))
    if max(cut) > longest:
        raise TooLargeError(f"{cut.width}x{cut.height}: the sides of a {job.format} have at most {longest} pixels")
    _check_pixels(limits, cut, 1, "the result")
    if sideways:
        scaled, cut = Size(*reversed(scaled)), Size(*reversed(cut))
    return _Plan(scaled, cut, _TURNS.get(orientation))


def _scaled(image: Image.Image, plan: _Plan) -> Image.Image:
    width = image.width * plan.cut.width / plan.scaled.width
    height = image.height * plan.cut.height / plan.scaled.height
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    larger = plan.scaled.width > image.width or plan.scaled.height > image.height
    small = image.resize(
        plan.cut,
        Image.Resampling.BICUBIC if larger else Image.Resampling.LANCZOS,
        box=box,
        reducing_gap=_REDUCING_GAP,
    )
    return small if plan.turn is None else small.transpose(plan.turn)


def _options(job: Job) -> Iterator[tuple[str, Any]]:
    if job.format in _QUALITY:
        yield "quality", job.quality or _QUALITY[job.format]
    match job.format:
        case Format.JPEG:
            yield from (("optimize", True), ("progressive", True))
        case Format.WEBP:
            yield "method", 4
        case Format.TIFF:
            yield "compression", "tiff_adobe_deflate"
        case Format.AVIF:
            # One thread: the bytes must not depend on the machine.
            yield from (("speed", 6), ("max_threads", 1))


def _encoded(
    frames: list[Image.Image], format: Format, options: dict[str, Any], animation: Animation | None
) -> Made:
    first = frames[0]
    if animation is not None:
        options |= animation.options(frames, format)
    # What decoders leave there would be written as it is.
    for frame in frames:
        frame.info = {}
    while True:
        result = io.BytesIO()
        try:
            first.save(result, format=format.upper(), **options)
            return Made(result.getvalue(), Size(*first.size), len(frames))
        except MemoryError:
            raise
        except Exception as exc:
            # What stands in EXIF data that could be read need not be fit to be written.
            if options.pop("exif", None) is None:
                raise UnreadableError(f"cannot be written as {format}: {exc or type(exc).__name__}") from exc
