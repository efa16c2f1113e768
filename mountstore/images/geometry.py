"""ImageMagick's geometry: which size a text like `100x100>` gives an image. Pure.

    WxH    fit into W by H pixels, keeping the proportions    W, Wx, xH   one side; the other follows
    WxH!   exactly W by H                                     WxH^        cover W by H (N^: the shorter side is N)
    WxH>   as WxH, but never larger than it is                WxH<        as WxH, but never smaller than it is
    P%     per cent of the size; P%xQ%, or PxQ%, of each side N@          at most N pixels in all

The signs may stand anywhere. For every geometry that is accepted the size is the one that `convert -resize` of
ImageMagick 6 makes, to the pixel; where that refuses because a side would vanish, one pixel is left. What it
ignores or misreads is refused here: offsets, contradictions, sizes of nought.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from mountstore.errors import MisuseError

SIDE_MAX: Final = 65535
"""Pixels of a side; also the most that a JPEG can have."""

_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_SIZES: Final = re.compile(rf"({_NUMBER})?(?:([xX])({_NUMBER})?)?")
_SIGNS: Final = "%!^><@"
_HELP: Final = "a geometry is like 100x100, x100, 100x100!, 100x100^, 100x100>, 50% or 10000@"

# ImageMagick adds the root of its epsilon to an area, so that an image of just that area stays as it is.
_AREA_EPSILON: Final = 1e-6


class Size(NamedTuple):
    """Of an image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """A geometry as it was understood; `str` of it is the same for all ways to write it."""

    width: float | None
    """Pixels, whole; per cent with `percent`; the area with `area`. None: not given."""
    height: float | None
    percent: bool = False
    area: bool = False
    exact: bool = False
    cover: bool = False
    shrink_only: bool = False
    enlarge_only: bool = False

    def __str__(self) -> str:
        signs = (self.percent, self.exact, self.cover, self.shrink_only, self.enlarge_only, self.area)
        sides = f"{_text(self.width)}" + ("" if self.height is None else f"x{_text(self.height)}")
        return sides + "".join(sign for sign, given in zip(_SIGNS, signs, strict=True) if given)

    def apply(self, size: Size) -> Size:
        """The size that an image of `size` gets.

        Raises: MisuseError if a side would be longer than `SIDE_MAX`.
        """
        if self.percent:
            wanted = self._percent(size)
        elif self.area:
            wanted = self._area(size)
        else:
            wanted = self._sides(size)
        if max(wanted) > SIDE_MAX:
            raise MisuseError(
                f"{self}: an image of {size.width}x{size.height} would become {wanted.width}x{wanted.height};"
                f" the longest side that can be made has {SIDE_MAX} pixels"
            )
        return wanted

    def fill(self, size: Size) -> tuple[Size, Size]:
        """Cover both sides and cut off what stands out: the size to scale to, and what is cut out of its middle.

        Raises: MisuseError if not both sides are given in pixels, or something is asked for that does not go
            with cutting.
        """
        self.require_fillable()
        assert self.width is not None
        assert self.height is not None
        scale = max(self.width / size.width, self.height / size.height)
        if self.shrink_only:
            scale = min(scale, 1.0)
        scaled = Size(_rounded(scale * size.width), _rounded(scale * size.height))
        if max(scaled) > 4 * SIDE_MAX or max(self.width, self.height) > SIDE_MAX:
            raise MisuseError(f"{self}: cannot be filled from an image of {size.width}x{size.height}")
        return scaled, Size(min(int(self.width), scaled.width), min(int(self.height), scaled.height))

    def require_fillable(self) -> None:
        """Raises: MisuseError if `fill` could not be asked for, whatever the image."""
        if self.percent or self.area or self.exact or self.enlarge_only or not (self.width and self.height):
            raise MisuseError(f"{self}: to fill, give both sides in pixels, as 100x100 or 100x100>")

    def _percent(self, size: Size) -> Size:
        across = 100.0 if self.width is None else self.width
        down = across if self.height is None else self.height
        return Size(_rounded(across * size.width / 100.0), _rounded(down * size.height / 100.0))

    def _area(self, size: Size) -> Size:
        assert self.width is not None
        shrink = math.sqrt(size.width * size.height) / math.sqrt(self.width + _AREA_EPSILON)
        wanted = Size(max(int(size.width / shrink), 1), max(int(size.height / shrink), 1))
        return size if self.shrink_only and wanted.width >= size.width else wanted

    def _sides(self, size: Size) -> Size:
        width, height = self.width, self.height
        if self.exact:
            wanted = Size(int(width or size.width), int(height or size.height))
        else:
            scale = self._scale(size)
            wanted = Size(_rounded(scale * size.width), _rounded(scale * size.height))
        if self.shrink_only:
            wanted = Size(min(wanted.width, size.width), min(wanted.height, size.height))
        if self.enlarge_only:
            wanted = Size(max(wanted.width, size.width), max(wanted.height, size.height))
        return wanted

    def _scale(self, size: Size) -> float:
        width, height = self.width, self.height
        if width is not None and height is not None:
            if width == size.width and height == size.height:
                return 1.0
            choose = max if self.cover else min
            return choose(width / size.width, height / size.height)
        side = width if width is not None else height
        assert side is not None
        if self.cover:
            return max(side / size.width, side / size.height)
        return side / (size.height if width is None else size.width)


def parse_geometry(text: str) -> Geometry:
    """Raises: MisuseError if it is none, or says nothing sensible."""
    found = set(text) & set(_SIGNS)
    sizes = _SIZES.fullmatch("".join(character for character in text if character not in _SIGNS).strip())
    if sizes is None or not (sizes[1] or sizes[3]):
        offset = " (offsets are not for resizing)" if re.search(r"\d[+-]\d", text) else ""
        raise MisuseError(f"{text!r}: not a geometry{offset}; {_HELP}")
    area, percent = "@" in found, "%" in found
    if ">" in found and "<" in found:
        raise MisuseError(f"{text!r}: neither smaller nor larger leaves every image as it is; give one of them")
    if "!" in found and "^" in found:
        raise MisuseError(f"{text!r}: '!' gives both sides and '^' keeps the proportions; give one of them")
    if area and (percent or sizes[2] or found & set("!^<")):
        raise MisuseError(f"{text!r}: an area is one number of pixels, as 10000@ or 10000@>")
    if percent and found & set("!^<>"):
        raise MisuseError(f"{text!r}: a percentage stands alone, as 50% or 50%x30%")
    width, height = (_side(side, whole=not (percent or area)) for side in (sizes[1], sizes[3]))
    if 0 in (width, height):
        raise MisuseError(f"{text!r}: no side can have nought pixels")
    return Geometry(
        width,
        height,
        percent=percent,
        area=area,
        exact="!" in found,
        cover="^" in found,
        shrink_only=">" in found,
        enlarge_only="<" in found,
    )


def _side(text: str | None, *, whole: bool) -> float | None:
    if not text:
        return None
    return math.floor(float(text) + 0.5) if whole else float(text)


def _rounded(side: float) -> int:
    return max(math.floor(side + 0.5), 1)


def _text(side: float | None) -> str:
    return "" if side is None else f"{side:.9f}".rstrip("0").rstrip(".")
