"""Streamed drafts: what is appended in order is cut, hashed and placed while it arrives.

Who may change a draft, and when, stands in `draft.py`.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from mountstore.blobs.content import Content, Sealed
from mountstore.blobs.digest import Digest
from mountstore.blobs.seal import StreamingSeal
from mountstore.namespace.turn import Turn

PARKED_MAX = 64 << 20
"""How far ahead of a stream, and how much, bytes may arrive. A page that is changed while the kernel writes it
back comes again only after what else is dirty: 15 to 30 MiB later."""

TAIL_BYTES = mmap.PAGESIZE
"""So much of the end of a stream may come again."""


class StreamedDraft:
    """Bytes that arrive in order, sealed while they arrive.

    What comes a little too early is parked in memory until its turn (the kernel writes back in parallel). What
    ends amid a page may come again with the rest of that page (the kernel writes back whole pages).
    `feed` and `finish` are called by one worker at a time, on behalf of who holds `turn`; anything else ends the
    stream: it is sealed as it is, and changed as a base.

    Taken, but not fed yet, are the bytes `[fed_bytes, end)`. `feed` goes on while more are taken, so that a
    worker who is as quick as the writers never has to be called again.

    Args:
      base: The content that was sealed before; none of it is part of the stream.
      head: The first bytes.
    """

    __slots__ = (
        "_finishing",
        "_parked_at",
        "_pending",
        "_stream",
        "_tail",
        "_waiting",
        "base",
        "claimed",
        "end",
        "fed_bytes",
        "feeding",
        "file_claimed",
        "parked",
        "parked_bytes",
        "stuck",
        "turn",
    )

    def __init__(self, base: Content, stream: StreamingSeal, head: bytearray) -> None:
        self.base = base
        self.claimed = 0
        self.file_claimed = False
        self._stream = stream
        # The owner appends, a worker takes from the other end.
        self._pending: deque[bytes | bytearray] = deque([head])
        self.end = len(head)
        self._tail = bytes(head[-TAIL_BYTES:])
        self.fed_bytes = 0
        # Whether `feed` is under way, and who waits until it has come far enough.
        self.feeding = False
        self._waiting: deque[tuple[int, trio.Event]] = deque()
        self.parked: dict[int, bytes] = {}
        self._parked_at: list[int] = []
        self.parked_bytes = 0
        self.turn = Turn()
        # Whether the last `feed` failed: there are bytes in memory that should be on the disk.
        self.stuck = False
        self._finishing = False

    @property
    def size_bytes(self) -> int:
        if not self._parked_at:
            return self.end
        last = self._parked_at[-1]
        return last + len(self.parked[last])

    @property
    def allocated_bytes(self) -> int:
        return self.end + self.parked_bytes

    @property
    def pending_bytes(self) -> int:
        return self.end - self.fed_bytes

    def write(self, offset: int, data: bytes, room: int = PARKED_MAX) -> bool:
        """Take bytes that continue the stream, or will soon and fit into `room` bytes of memory; False if they
        do neither, if they would change what it has, or if it is ending."""
        if self._finishing:
            return False
        known = self._known(offset, data)
        if known == len(data):
            return True
        if known:
            offset += known
            data = data[known:]
        stop = offset + len(data)
        if self._parked_below(stop)[1] > offset:
            return False
        if offset == self.end:
            self._append(data)
            self._append_parked()
            return True
        far = stop - self.end > PARKED_MAX
        if far or self.parked_bytes + len(data) > PARKED_MAX or len(data) > room:
            return False
        self.parked[offset] = data
        insort(self._parked_at, offset)
        self.parked_bytes += len(data)
        return True

    def _known(self, offset: int, data: bytes) -> int:
        """How many of these bytes, from the first on, repeat the end of the stream or of what was early."""
        start, stop = self.end - len(self._tail), self.end
        had = self._tail
        if offset >= stop:
            start, stop = self._parked_below(offset + 1)
            had = self.parked.get(start, b"")
        if not start <= offset < stop:
            return 0
        repeated = had[offset - start : offset - start + len(data)]
        return len(repeated) if data.startswith(repeated) else 0

    def _parked_below(self, stop: int) -> tuple[int, int]:
        """Start and end of the last bytes parked that begin before `stop`; of none, the end of the stream."""
        index = bisect_left(self._parked_at, stop)
        if index == 0:
            return self.end, self.end
        start = self._parked_at[index - 1]
        return start, start + len(self.parked[start])

    def _append_parked(self) -> None:
        taken = 0
        while taken < len(self._parked_at) and self._parked_at[taken] == self.end:
            early = self.parked.pop(self.end)
            self.parked_bytes -= len(early)
            self._append(early)
            taken += 1
        del self._parked_at[:taken]

    def _append(self, data: bytes) -> None:
        self._pending.append(data)
        self.end += len(data)
        self._tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]

    async def wait_fed(self, length: int) -> None:
        """Return when the first `length` bytes are fed, or at the next `wake_next`."""
        woken = trio.Event()
        entry = (length, woken)
        self._waiting.append(entry)
        try:
            await woken.wait()
        finally:
            # Who was cancelled must not be woken instead of another.
            if not woken.is_set():
                self._waiting.remove(entry)

    def wake_next(self) -> None:
        """Have one of those in `wait_fed` see to it that what is pending is fed, unless somebody does."""
        if self._waiting and not self.feeding:
            self._waiting.popleft()[1].set()

    def note_fed(self, length: int) -> None:
        """So many more bytes are fed."""
        # What a worker tells of may be known by `note_taken` already.
        self.fed_bytes = min(self.fed_bytes + length, self.end)
        while self._waiting and self._waiting[0][0] <= self.fed_bytes:
            self._waiting.popleft()[1].set()

    def note_taken(self) -> None:
        """`feed` has failed, or something that takes all has ended, either way: what the stream has taken it has,
        placed or not. In the thread that owns the draft."""
        self.note_fed(self.pending_bytes - sum(map(len, self._pending)))

    def feed(self, most: int, fed: Callable[[int], None]) -> None:
        """Cut and place what was taken, and is taken meanwhile, up to about `most` bytes; blocks, in a worker.

        Args:
          fed: Told in the worker how many bytes more have been fed.

        Raises: As `StreamingSeal.feed`. Then `stuck` is set, and what failed comes first in the next call.
        """
        try:
            if self.stuck:
                self._stream.feed()
                self.stuck = False
            while most > 0 and self._pending:
                part = self._pending.popleft()
                self._stream.feed(part)
                fed(len(part))
                most -= len(part)
        except BaseException:
            self.stuck = True
            raise

    def take_no_more(self) -> None:
        """Before a worker does something that takes all: `write` refuses from now on, in the thread of both."""
        self._finishing = True

    def stored(self) -> list[Digest]:
        """Blobs placed so far; whoever asks holds `turn`."""
        return self._stream.stored()

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """All that was written to a stream that could not be finished, with offsets, but for zeros; blocks. `turn`
        is held, and `note_taken` called next.

        Raises: CorruptError, BlobMissingError, OSError: A piece that was placed cannot be read.
        """
        return self._contents(0, self.size_bytes)

    def pread(self, offset: int, length: int) -> bytes:
        """After a `finish` that failed: bytes, fewer only at the end; as `contents`.

        Raises: As `contents`.
        """
        stop = min(offset + length, self.size_bytes)
        found = bytearray(max(stop - offset, 0))
        for start, data in self._contents(offset, stop):
            first, last = max(start, offset), min(start + len(data), stop)
            if first < last:
                found[first - offset : last - offset] = data[first - start : last - start]
        return bytes(found)

    def _contents(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        self.take_no_more()
        # Whatever it is that fails, everything the stream was given is in pieces then, placed or not.
        while self._pending:
            with suppress(Exception):
                self._stream.feed(self._pending.popleft())
        with suppress(Exception):
            self._stream.finish()
        yield from self._stream.contents(start, stop)
        yield from self.parked.items()

    def finish(self) -> Sealed:
        """The content of the stream, with what is pending; blocks. `turn` is held, and `note_taken` called next.

        Nothing can be written to it any more, even if this fails; then it can be called again.

        Raises: as `StreamingSeal.finish`.
        """
        self.take_no_more()
        while self._pending:
            self._stream.feed(self._pending.popleft())
        return self._stream.finish()
