"""EXIF data: what is kept of them, and which way up the image is."""

from __future__ import annotations

from typing import Final

from PIL import ExifTags, Image

from mountstore.images.job import Format

_SIZE_MAX: Final = 65000
"""Bytes; a JPEG has room for hardly more."""

# How the source's own pixels are stored, and what stands elsewhere: not true of the new image.
_STRUCTURE: Final = frozenset(
    [
        *range(254, 260),
        *(262, 266, 273, 274, 277, 278, 279, 284, 317, 318, 319, 320, 322, 323, 324, 325, 330, 332, 338, 339, 347),
        *range(512, 533),
        *(700, 33723, 34377, 34675, 37724),
    ]
)
_SUBDIRECTORIES: Final = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_TURNED_SIZE: Final = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)


def read_exif(image: Image.Image, format: Format) -> tuple[bytes, int]:
    """The EXIF data to keep, without the orientation, and the orientation, 1 to 8. Damaged ones count as none.

    A compressed TIFF keeps the main directory only: libtiff, as Pillow uses it, writes no others.
    """
    orientation = 1
    try:
        found = image.getexif()
        given = found.get(ExifTags.Base.Orientation)
        if isinstance(given, int) and 1 <= given <= 8:
            orientation = given
        kept = Image.Exif()
        for tag, value in found.items():
            if tag not in _STRUCTURE and tag not in _SUBDIRECTORIES:
                kept[tag] = value
        for directory in () if format is Format.TIFF else _SUBDIRECTORIES:
            values = dict(found.get_ifd(directory))
            for tag in _TURNED_SIZE:
                values.pop(tag, None)
            if values:
                kept[directory] = values
        data = kept.tobytes() if kept else b""
    except MemoryError:
        raise
    except Exception:
        return b"", orientation
    return (data if len(data) <= _SIZE_MAX else b""), orientation
