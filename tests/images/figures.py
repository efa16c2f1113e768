"""How long resizing takes through a mount, next to what Pillow takes by itself.

    python -m images.figures --times 12
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mount.live import LiveMount
from PIL import Image


def make_photograph(path: Path) -> None:
    """A JPEG of 24 megapixels, as busy as a photograph."""
    noise = Image.effect_noise((6000, 4000), 40)
    slope = Image.linear_gradient("L").resize((6000, 4000))
    mixed = Image.blend(noise, slope, 0.7)
    Image.merge("RGB", (mixed, slope, mixed.transpose(Image.Transpose.ROTATE_180))).save(path, quality=90)


def bare_s(path: Path) -> float:
    """Seconds that `Image.thumbnail` takes, from the file to the pixels."""
    begin = time.perf_counter()
    with Image.open(path) as image:
        image.thumbnail((300, 300))
    return time.perf_counter() - begin


class Control:
    def __init__(self, mount: LiveMount) -> None:
        self._fd = os.open(mount.path / ".cas" / "control", os.O_RDWR)

    def resize_s(self, words: str, *, remembered: bool) -> float:
        """Seconds that the command takes, from the file to the file."""
        line = f"resize {words}\n".encode()
        begin = time.perf_counter()
        os.write(self._fd, line)
        took_s = time.perf_counter() - begin
        answer = b""
        while part := os.read(self._fd, 1 << 16):
            answer += part
        assert json.loads(answer.splitlines()[-1])["remembered"] is remembered
        return took_s

    def close(self) -> None:
        os.close(self._fd)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=12, help="rounds of everything (default: 12)")
    times = parser.parse_args(arguments).times
    with tempfile.TemporaryDirectory(prefix="images-") as directory:
        base = Path(directory)
        photograph = base / "photograph.jpg"
        make_photograph(photograph)
        mount = LiveMount(base)
        try:
            measure(mount, photograph, times)
        finally:
            mount.finish()
    return 0


def measure(mount: LiveMount, photograph: Path, times: int) -> None:
    data = photograph.read_bytes()
    control = Control(mount)
    (mount.path / "a.jpg").write_bytes(data)
    first = control.resize_s("a.jpg 300x300 first.jpg", remembered=False)
    bare, fresh, known = [], [], []
    for number in range(times):
        # In turns, since the machine has other things to do as well.
        (mount.path / "b.jpg").write_bytes(data + bytes([number]))
        bare.append(bare_s(photograph))
        fresh.append(control.resize_s("b.jpg 300x300 fresh.jpg", remembered=False))
        known += [control.resize_s(f"a.jpg 300x300 {number}-{i}.jpg", remembered=True) for i in range(20)]
    control.close()
    ratio = statistics.median(one / other for one, other in zip(fresh, bare, strict=True))
    known.sort()
    print(f"photograph: 6000x4000, {len(data):,} bytes")
    print(f"the first resize of a mount: {first * 1e3:.0f} ms")
    print(f"Image.thumbnail alone:       {statistics.median(bare) * 1e3:.0f} ms (median of {times})")
    print(f"resize, fresh:               {statistics.median(fresh) * 1e3:.0f} ms, {ratio:.2f} times that (median)")
    print(
        f"resize, remembered:          {statistics.median(known) * 1e3:.2f} ms (median of {len(known)}),"
        f" 95 of 100 within {known[len(known) * 95 // 100] * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
