"""Animations: all frames, how long each is shown, and how often all are.

Frames are taken as they are shown, each whole, whatever the source says about what to leave of the one before; so
they may be scaled on their own, and every format can hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from PIL import Image

from mountstore.images.job import Format

_ANIMATED: Final = (Format.GIF, Format.WEBP, Format.PNG, Format.AVIF)
_SOURCES: Final = ("GIF", "WEBP", "PNG", "AVIF")
_KEEP: Final = 1
_CLEAR: Final = 2
_OPAQUE: Final = 128
"""A GIF's pixels are transparent or not: from this on they are not."""


class Animation:
    """The frames of an open image, to be taken once, in order."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        # The first of an animated PNG may be shown only where animations are not known.
        self._first = 1 if getattr(image, "default_image", False) else 0
        self.frames = int(getattr(image, "n_frames", 1)) - self._first
        self.plays = _plays(image)
        """How often all is shown; 0 is for ever."""
        self._durations_ms: list[float] = []

    def __iter__(self) -> Iterator[Image.Image]:
        for number in range(self._first, self._first + self.frames):
            self._image.seek(number)
            self._image.load()
            duration = self._image.info.get("duration", 0)
            self._durations_ms.append(duration if isinstance(duration, int | float) and duration > 0 else 0)
            yield self._image.copy()

    def options(self, frames: list[Image.Image], format: Format) -> dict[str, Any]:
        """Arguments of `Image.save` that write all the frames, which may be changed to suit the format."""
        options: dict[str, Any] = {"save_all": True, "duration": self._durations_ms}
        match format:
            case Format.GIF:
                clear = any(frame.mode == "RGBA" for frame in frames)
                frames[:] = [_either_or(frame) for frame in frames]
                options["disposal"] = _CLEAR if clear else _KEEP
                if self.plays != 1:
                    # Of a GIF, the repetitions are counted.
                    options["loop"] = max(self.plays - 1, 0)
            case Format.PNG:
                _same_mode(frames)
                options |= {"loop": self.plays, "blend": 0, "disposal": 0}
            case Format.WEBP:
                options |= {"loop": self.plays, "background": (0, 0, 0, 0)}
            case _:
                # An animated PNG has fractions of milliseconds, of which Pillow makes an error here.
                options["duration"] = [round(duration) for duration in self._durations_ms]
                _same_mode(frames)
        options["append_images"] = frames[1:]
        return options


def read_animation(image: Image.Image, format: Format) -> Animation | None:
    """The animation that an image is, if the format to be written can have one."""
    if format not in _ANIMATED or image.format not in _SOURCES or not getattr(image, "is_animated", False):
        return None
    animation = Animation(image)
    return animation if animation.frames > 1 else None


def _plays(image: Image.Image) -> int:
    loop = image.info.get("loop")
    if image.format == "GIF":
        if loop is None:
            return 1
        return loop + 1 if loop else 0
    return loop if isinstance(loop, int) and loop > 0 else 0


def _same_mode(frames: list[Image.Image]) -> None:
    if len({frame.mode for frame in frames}) > 1:
        clear = any(frame.mode in ("RGBA", "LA") for frame in frames)
        frames[:] = [frame.convert("RGBA" if clear else "RGB") for frame in frames]


def _either_or(frame: Image.Image) -> Image.Image:
    """A frame in which every pixel is transparent or opaque."""
    if frame.mode != "RGBA":
        return frame
    opaque = frame.getchannel("A").point(lambda value: 255 if value >= _OPAQUE else 0)
    made = Image.new("RGBA", frame.size, (0, 0, 0, 0))
    made.paste(frame, mask=opaque)
    made.putalpha(opaque)
    return made
