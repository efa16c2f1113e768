"""Modes, transparency and colour profiles: from what was decoded to what a format can have."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, ImageCms

from mountstore.images.job import Format

_TRANSPARENT: Final = ("LA", "RGBA")
_DEEP: Final = ("I;16", "I;16L", "I;16B", "I;16N")
_WHITE: Final = 255
_OF_16_BITS: Final = 257

# What is written as it is; anything else becomes RGB, or RGBA.
_MODES: Final = {
    Format.JPEG: ("L", "LA", "RGB", "RGBA", "CMYK"),
    Format.PNG: ("L", "LA", "RGB", "RGBA", "I;16"),
    Format.WEBP: ("RGB", "RGBA"),
    Format.TIFF: ("L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    Format.AVIF: ("L", "RGB", "RGBA"),
    Format.GIF: ("L", "RGB", "RGBA"),
}
_SPACE_OF: Final = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "CMYK": b"CMYK", "RGB": b"RGB ", "RGBA": b"RGB "}
_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Profile:
    """The colour profile of an image, or none. One that cannot be read counts as none."""

    def __init__(self, data: object) -> None:
        self.data = data if isinstance(data, bytes) and len(data) > 128 else None

    @staticmethod
    def prepare() -> None:
        """Have everything loaded."""
        ImageCms.profileToProfile(Image.new("RGB", (1, 1)), _SRGB, _SRGB)

    def fits(self, mode: str) -> bool:
        """Whether it says what the colours of this mode are."""
        return self.data is not None and self.data[16:20] == _SPACE_OF.get(mode)

    def to_srgb(self, image: Image.Image, mode: str) -> Image.Image:
        """The image in sRGB, in a mode RGB or RGBA; if the profile is of no use, as if there was none."""
        if self.data is not None and self.fits(image.mode):
            try:
                source = ImageCms.ImageCmsProfile(io.BytesIO(self.data))
                made = ImageCms.profileToProfile(image, source, _SRGB, outputMode=mode)
                if made is not None:
                    return made
            except (ImageCms.PyCMSError, ValueError, OSError):
                pass
        return image if image.mode == mode else image.convert(mode)


def plain(image: Image.Image, format: Format) -> Image.Image:
    """The image in a mode in which it can be scaled without loss of what the format could keep."""
    mode = image.mode
    if mode in _DEEP:
        if "I;16" in _MODES[format]:
            return image if mode == "I;16" else image.convert("I;16")
        return _to_8_bits(image.convert("I"))
    if mode in ("I", "F"):
        if mode in _MODES[format]:
            return image
        # Nothing says how white white is; what is beyond 8 bits has 16, in all files that are known.
        _, lightest = image.getextrema()
        deep = mode == "I" and not isinstance(lightest, tuple) and lightest > _WHITE
        return _to_8_bits(image) if deep else image.convert("L")
    if mode == "1":
        image = image.convert("L")
        mode = "L"
    if image.has_transparency_data:
        wanted = "LA" if mode in ("L", "La", "LA") else "RGBA"
        return image if mode == wanted else image.convert(wanted)
    if mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.profileToProfile(image, lab, _SRGB, outputMode="RGB") or image
    return image if mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value * (1 / _OF_16_BITS)).convert("L")


def for_format(
    image: Image.Image, profile: Profile, format: Format, *, strip: bool
) -> tuple[Image.Image, bytes | None]:
    """The image in a mode that the format has, and the profile to write with it.

    Colours that lose their profile, because the format has none or nothing but the picture is wanted, are
    converted to sRGB, which is what is assumed then.
    """
    profiled = format is not Format.GIF and not strip
    mode = image.mode
    wanted = mode if mode in _MODES[format] and (mode != "CMYK" or profiled) else _nearest(mode, format)
    if wanted == mode and profiled:
        return image, profile.data if profile.fits(mode) else None
    if wanted == "CMYK" or _SPACE_OF.get(wanted) != b"RGB ":
        return (image if wanted == mode else image.convert(wanted)), None
    if profiled and _SPACE_OF.get(mode) == b"RGB ":
        return image.convert(wanted), profile.data if profile.fits(wanted) else None
    return profile.to_srgb(image, wanted), None


def flatten(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """The image without transparency, laid over a colour."""
    if image.mode not in _TRANSPARENT:
        return image
    under = Image.new("RGBA", image.size, (*background[:3], 255))
    under.alpha_composite(image.convert("RGBA"))
    flat = under.convert("RGB")
    grey = image.mode == "LA" and len(set(background[:3])) == 1
    return flat.convert("L") if grey else flat


def _nearest(mode: str, format: Format) -> str:
    if mode in _TRANSPARENT:
        return "RGBA"
    if mode in ("L", *_DEEP, "I", "F") and "L" in _MODES[format]:
        return "L"
    return "RGB"
