"""Random reads and writes of one file, checked against the same bytes in memory.

After the example of the old fsx: writes, truncations, mapped writes, reads, fsyncs, closes and reopenings,
renames and remounts, at offsets that favour the edges of pieces and of drafts. Every read must yield what was
written; the seed tells everything.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mount.limits import small_limits
from mount.syscalls import write_back


@dataclass(frozen=True)
class Sizes:
    """What the operations choose from, in bytes."""

    file_max: int
    write_max: int
    edges: tuple[int, ...]


class Exerciser:
    """One file under random operations.

    Args:
      path: Of the file, which is made.
      remount: Called with everything closed.
      seed: Two runs with the same seed, sizes and number of steps do the same.
    """

    def __init__(self, path: Path, sizes: Sizes, seed: int, remount: Callable[[], None]) -> None:
        self._path = path
        self._sizes = sizes
        self._random = random.Random(seed)
        self._remount = remount
        self._shadow = bytearray()
        self._done: deque[str] = deque(maxlen=60)
        self._pool = self._random.randbytes(sizes.write_max * 2)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._choices: list[tuple[Callable[[], None], int]] = [
            (self._write, 30),
            (self._write_on, 12),
            (self._append, 6),
            (self._write_mapped, 8),
            (self._truncate, 6),
            (self._truncate_by_path, 2),
            (self._read, 30),
            (self._read_mapped, 5),
            (self._read_beside, 3),
            (self._drop_pages, 12),
            (self._fsync, 4),
            (self._reopen, 6),
            (self._rewrite, 3),
            (self._rename, 2),
            (self._check_all, 2),
        ]
        self.steps = 0
        self.remounts = 0

    def run(self, seconds: float, *, steps: int | None = None, remount_every: int = 400) -> None:
        """Go on for so long, or for so many steps.

        Raises:
          AssertionError: The file is not as it should be; says how it came to that.
        """
        calls, weights = zip(*self._choices, strict=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end if steps is None else self.steps < steps:
            self.steps += 1
            try:
                if self.steps % remount_every == 0:
                    self._log("remount")
                    os.close(self._fd)
                    self._remount()
                    self.remounts += 1
                    self._fd = os.open(self._path, os.O_RDWR)
                    self._check_all()
                else:
                    self._random.choices(calls, weights)[0]()
                size = os.fstat(self._fd).st_size
                assert size == len(self._shadow), f"size {size} instead of {len(self._shadow)}"
            except (AssertionError, OSError) as exc:
                done = "\n".join(self._done)
                raise AssertionError(f"step {self.steps}: {exc}\n{done}") from exc
        self._check_all()
        os.close(self._fd)

    # --- choosing ---

    def _log(self, what: str) -> None:
        self._done.append(f"{self.steps} {what}")

    def _offset(self, limit: int) -> int:
        kind = self._random.random()
        if kind < 0.3:
            near = self._random.choice(self._sizes.edges) + self._random.choice((-1, 0, 0, 1, 17))
            return max(0, min(limit, near))
        if kind < 0.5:
            near = len(self._shadow) + self._random.choice((0, 0, 0, -1, 1, -4096, 4096, 100_000))
            return max(0, min(limit, near))
        offset = self._random.randrange(limit + 1)
        return offset & ~4095 if kind < 0.7 else offset

    def _length(self) -> int:
        kind = self._random.random()
        if kind < 0.2:
            return self._random.choice((1, 10, 511, 4096, 4097, 8192))
        return self._random.randrange(1, self._sizes.write_max if kind < 0.5 else self._sizes.write_max // 10)

    def _bytes(self, length: int) -> bytes:
        if self._random.random() < 0.12:
            return bytes(length)
        start = self._random.randrange(len(self._pool) - length)
        # Repeated contents, but no two writes quite alike.
        return self.steps.to_bytes(4, "little")[:length] + self._pool[start : start + length - 4]

    # --- changing ---

    def _expect(self, offset: int, data: bytes) -> None:
        if offset > len(self._shadow):
            self._shadow.extend(bytes(offset - len(self._shadow)))
        self._shadow[offset : offset + len(data)] = data

    def _write(self) -> None:
        offset = self._offset(self._sizes.file_max)
        data = self._bytes(min(self._length(), self._sizes.file_max - offset))
        if data:
            self._write_at(offset, data)

    def _write_at(self, offset: int, data: bytes) -> None:
        self._log(f"write {offset}+{len(data)}")
        assert os.pwrite(self._fd, data, offset) == len(data)
        self._expect(offset, data)

    def _write_on(self) -> None:
        """In order from somewhere, often from the end."""
        offset = len(self._shadow) if self._random.random() < 0.6 else self._offset(len(self._shadow))
        for _ in range(self._random.randrange(1, 8)):
            data = self._bytes(self._length())
            if offset + len(data) > self._sizes.file_max:
                break
            self._write_at(offset, data)
            if self._random.random() < 0.3:
                self._write_back()
            offset += len(data)

    def _append(self) -> None:
        data = self._bytes(self._length())
        if len(self._shadow) + len(data) > self._sizes.file_max:
            return
        self._log(f"append {len(self._shadow)}+{len(data)}")
        with open(self._path, "ab", buffering=0) as file:
            assert file.write(data) == len(data)
        self._expect(len(self._shadow), data)

    def _write_mapped(self) -> None:
        size = len(self._shadow)
        if not size:
            return
        start = self._offset(size - 1)
        data = self._bytes(min(self._length(), size - start))
        self._log(f"mapped write {start}+{len(data)}")
        with mmap.mmap(self._fd, size) as mapping:
            mapping[start : start + len(data)] = data
            if self._random.random() < 0.3:
                mapping.flush()
        self._expect(start, data)

    def _truncate(self) -> None:
        size = self._offset(self._sizes.file_max)
        if self._random.random() < 0.15:
            size = 0
        self._log(f"truncate to {size}")
        os.ftruncate(self._fd, size)
        self._resize(size)

    def _truncate_by_path(self) -> None:
        size = self._offset(len(self._shadow))
        self._log(f"close, truncate to {size}, open")
        os.close(self._fd)
        os.truncate(self._path, size)
        self._fd = os.open(self._path, os.O_RDWR)
        self._resize(size)

    def _resize(self, size: int) -> None:
        if size < len(self._shadow):
            del self._shadow[size:]
        else:
            self._shadow.extend(bytes(size - len(self._shadow)))

    def _rewrite(self) -> None:
        """Anew from the start, as cp does: a stream, if it gets large enough."""
        self._log("close, open with O_TRUNC")
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_TRUNC)
        self._shadow.clear()
        while self._random.random() < 0.9:
            data = self._bytes(self._sizes.write_max // self._random.choice((1, 2, 5)))
            if len(self._shadow) + len(data) > self._sizes.file_max:
                break
            self._write_at(len(self._shadow), data)

    def _rename(self) -> None:
        """Over a file that exists, while this one is open."""
        self._log("rename")
        other = self._path.with_name("other")
        other.write_bytes(b"other")
        os.rename(self._path, other)
        self._path.write_bytes(b"old")
        os.rename(other, self._path)

    def _write_back(self) -> None:
        write_back(self._fd)

    def _fsync(self) -> None:
        self._log("fsync")
        os.fsync(self._fd)

    def _reopen(self) -> None:
        self._log("close, open")
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)

    def _drop_pages(self) -> None:
        """What is read next comes from the daemon."""
        self._log("drop pages")
        write_back(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    # --- looking ---

    def _compare(self, what: str, offset: int, got: bytes) -> None:
        expected = self._shadow[offset : offset + len(got)]
        if got == expected:
            return
        first = next(i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b)
        wrong = sum(a != b for a, b in zip(got, expected, strict=True))
        raise AssertionError(
            f"{what}: byte {offset + first} is {got[first]:#x} instead of {expected[first]:#x}"
            f" ({wrong} of {len(got)} from {offset} are wrong)"
        )

    def _read(self, fd: int | None = None) -> None:
        offset, length = self._offset(len(self._shadow)), self._length()
        self._log(f"read {offset}+{length}")
        got = os.pread(self._fd if fd is None else fd, length, offset)
        assert len(got) == min(length, len(self._shadow) - offset), f"{len(got)} bytes"
        self._compare("read", offset, got)

    def _read_beside(self) -> None:
        fd = os.open(self._path, os.O_RDONLY)
        self._read(fd)
        os.close(fd)

    def _read_mapped(self) -> None:
        if not self._shadow:
            return
        offset, length = self._offset(len(self._shadow) - 1), self._length()
        self._log(f"mapped read {offset}+{length}")
        with mmap.mmap(self._fd, len(self._shadow), prot=mmap.PROT_READ) as mapping:
            self._compare("mapped read", offset, mapping[offset : offset + length])

    def _check_all(self) -> None:
        self._log("read all")
        got = bytearray()
        while part := os.pread(self._fd, 1 << 20, len(got)):
            got += part
        assert len(got) == len(self._shadow), f"{len(got)} bytes instead of {len(self._shadow)}"
        self._compare("read all", 0, bytes(got))


LIMITS = small_limits(
    memory_max=100_000, memory_total=150_000, parked_max=200_000, feed_bytes=20_000, inline_max=10_000
)
"""Run first by a daemon: files of some 100 KiB are streamed and staged."""

ORDINARY = Sizes(24 << 20, 3 << 20, (0, 4 << 20, 8 << 20, 9 << 20, 12 << 20, 16 << 20, 24 << 20))
SMALL = Sizes(600_000, 120_000, (0, 4096, 10_000, 16_384, 65_536, 100_000, 120_000, 200_000, 300_000, 600_000))
