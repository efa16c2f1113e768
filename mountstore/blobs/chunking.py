"""Where a large file is cut into pieces: content-defined chunking with FastCDC.

Guarantees: a cut point depends only on the bytes since the previous cut (at most `max_size` of them) and on
the parameters. So the same stretch of bytes is cut the same wherever it stands, and after a change the cut
points meet the old ones again.

Relies on `pyfastcdc` in its compiled form: the pure Python one is a hundred times slower, and is refused at
import. Normalisation level 1 and seed 0 are part of the format of a store as much as the parameters are;
readers need none of them (`docs/format.md`, "Contents and manifests").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyfastcdc import FastCDC

from mountstore.errors import MisuseError

__all__ = ["DEFAULT_PARAMETERS", "PIECE_SIZE_LIMIT", "Chunker", "ChunkingParameters"]

if not FastCDC.__module__.startswith("pyfastcdc.cy"):
    raise ImportError("pyfastcdc is installed without its compiled extension; install a wheel of it")

KIB: Final = 1 << 10
MIB: Final = 1 << 20

PIECE_SIZE_LIMIT: Final = 16 * MIB
"""No piece of any store is larger: what a reader must be ready to hold in memory at once."""


@dataclass(frozen=True, slots=True)
class ChunkingParameters:
    """How files become pieces. Fixed for the life of a store: other values cut the same bytes elsewhere.

    `min_size`, `avg_size`, `max_size` bound a piece (the last of a stretch may be smaller than `min_size`);
    a file up to `piece_max` is one blob; a run of at least `hole_min` zero bytes in a larger one is a hole.
    All in bytes.

    Raises:
        MisuseError: The values are not usable, or not in order.
    """

    # A small edit costs a piece and a half: of 1 MiB each, a hundred versions of 200 MiB took 1.73 times the
    # file, of 512 KiB 1.45 times. Cutting and placing 256 MiB takes 0.52 s of processor time either way.
    min_size: int = 128 * KIB
    avg_size: int = 512 * KIB
    max_size: int = 4 * MIB
    piece_max: int = 4 * MIB
    hole_min: int = 64 * KIB

    def __post_init__(self) -> None:
        if not 64 <= self.min_size <= 1 * MIB:
            raise MisuseError(f"min_size must be 64 bytes to 1 MiB, not {self.min_size}")
        if not 256 <= self.avg_size <= 4 * MIB:
            raise MisuseError(f"avg_size must be 256 bytes to 4 MiB, not {self.avg_size}")
        if not 1 * KIB <= self.max_size <= PIECE_SIZE_LIMIT:
            raise MisuseError(f"max_size must be 1 KiB to {PIECE_SIZE_LIMIT} bytes, not {self.max_size}")
        if not self.min_size <= self.avg_size <= self.max_size <= self.piece_max:
            raise MisuseError("min_size, avg_size, max_size and piece_max must not decrease in this order")
        if self.piece_max > PIECE_SIZE_LIMIT:
            raise MisuseError(f"piece_max must be at most {PIECE_SIZE_LIMIT} bytes, not {self.piece_max}")
        if not 64 <= self.hole_min <= self.piece_max:
            raise MisuseError(f"hole_min must be 64 bytes to piece_max, not {self.hole_min}")


DEFAULT_PARAMETERS: Final = ChunkingParameters()


class Chunker:
    """Finds the cut points of a stretch of data. Any thread; the search releases the GIL."""

    __slots__ = ("_fastcdc", "_worthwhile", "max_size")

    def __init__(self, parameters: ChunkingParameters) -> None:
        self.max_size = parameters.max_size
        # Most pieces end before twice the average; with less in sight the search would mostly be in vain.
        self._worthwhile = min(2 * parameters.avg_size, parameters.max_size)
        self._fastcdc = FastCDC(
            parameters.avg_size,
            min_size=parameters.min_size,
            max_size=parameters.max_size,
            normalized_chunking=1,
            seed=0,
        )

    def cut(self, buffer: bytes | bytearray, end: int, *, final: bool) -> list[int]:
        """The lengths of the pieces that `buffer[:end]`, which begins at a cut point, falls into.

        With `final` the stretch ends at `end`, and the lengths add up to `end`. Without, more data may
        follow: only the pieces that no further data can change are returned.

        The buffer is not referred to any more on return, so a bytearray may be resized.
        """
        lengths: list[int] = []
        if end == 0 or not (final or end >= self._worthwhile):
            return lengths
        offset = 0
        chunks = self._fastcdc.cut_buf(memoryview(buffer)[:end])
        while offset < end and (final or end - offset >= self._worthwhile):
            length = next(chunks).length
            if not final and length == end - offset < self.max_size:
                # The search came to the end: more data may move this cut.
                break
            lengths.append(length)
            offset += length
        return lengths
