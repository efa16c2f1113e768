"""Programs that change files in a mount and remember what they were told: the load of the crash tests.

Each `Client` works in a directory of its own, one operation after the other, and keeps for every name the
history of its states. An operation adds its state before it starts, since a crash may show it from then on;
what an fsync or a `sync` promised is a floor: no earlier state may be seen again.

A state is a content (bytes), None for a name that does not exist. What is in between is not in the history,
because nobody must ever see it: a file that is rewritten after O_TRUNC, or renamed over, has the old content
or the new. Only a file that is made anew is empty for a moment.
"""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PAGE = 4096

_SIZES = (0, 1, 100, 3000, 4096, 20_000, 60_000, 150_000, 700_000)


class State(NamedTuple):
    """A content, or absence, that a name had from `since_ns` (CLOCK_MONOTONIC) on."""

    since_ns: int
    content: bytes | None
    cause: str = ""
    earlier: tuple[bytes, ...] = ()
    """What else may be seen in this state: a file that was changed and then moved may lose the change."""


class Promise(NamedTuple):
    """At `time_ns` it was known that no state before number `state` will be seen again."""

    time_ns: int
    state: int


@dataclass(slots=True)
class History:
    """The states of one name, oldest first, and what was promised about them."""

    states: list[State] = field(default_factory=lambda: [State(0, None)])
    promises: list[Promise] = field(default_factory=list)
    done: list[Promise] = field(default_factory=list)
    """When the operation that brought about each state had returned."""

    @property
    def content(self) -> bytes | None:
        return self.states[-1].content

    def add(self, cause: str, *contents: bytes | None) -> None:
        """An operation starts that brings these states about, one after the other."""
        now = time.monotonic_ns()
        self.states += [State(now, content, cause) for content in contents]

    def add_moved(self, cause: str, source: History) -> None:
        """The name starts to stand for the file that had this history."""
        floor = max((state for _, state in source.promises), default=0)
        earlier = tuple(state.content for state in source.states[floor:] if state.content)
        earlier += tuple(content for state in source.states[floor:] for content in state.earlier)
        self.states.append(State(time.monotonic_ns(), source.content, cause, earlier))

    def finished(self) -> None:
        """The operation has returned."""
        self.done.append(Promise(time.monotonic_ns(), len(self.states) - 1))

    def promised(self) -> None:
        """What is there now will survive."""
        self.promises.append(Promise(time.monotonic_ns(), len(self.states) - 1))

    def allowed(self, crash_ns: int, *, unsynced_ns: int) -> tuple[int, list[State]]:
        """The index of the earliest state, and the states, that may be seen after a crash at `crash_ns`, when
        what had returned `unsynced_ns` before it had to survive without a promise."""
        floor = 0
        for time_ns, state in self.promises:
            if time_ns < crash_ns:
                floor = max(floor, state)
        for time_ns, state in self.done:
            if time_ns < crash_ns - unsynced_ns:
                floor = max(floor, state)
        begun = sum(state.since_ns < crash_ns for state in self.states)
        return floor, self.states[floor : max(begun, floor + 1)]


class PageStates(NamedTuple):
    """A page of the file that is changed in place: number of its latest write, and of the promised one."""

    time_ns: int
    page: int
    number: int


class Client(threading.Thread):
    """Works in `directory` until told to stop, or until the mount is gone.

    Args:
      names: How many names it uses.
    """

    def __init__(self, directory: Path, seed: int, *, names: int = 12) -> None:
        super().__init__(name=f"client-{seed}")
        self.directory = directory
        self.names = names
        self.histories: dict[str, History] = {}
        self.page_writes: list[PageStates] = []
        self.page_promises: list[PageStates] = []
        self.appended = b""
        self.failure: Exception | None = None
        self.operations = 0
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self._gone_ok = False

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def expect_crash(self) -> None:
        """From now on errors mean that the mount is gone."""
        self._gone_ok = True

    def run(self) -> None:
        try:
            pages = os.open(self.directory / "pages", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                while not self._stopped.is_set():
                    self._step(pages)
                    self.operations += 1
            finally:
                os.close(pages)
        except OSError as exc:
            if not self._gone_ok:
                self.failure = exc
        except Exception as exc:
            self.failure = exc

    def _step(self, pages: int) -> None:
        name = f"f{self._random.randrange(self.names)}"
        history = self.histories.setdefault(name, History())
        kind = self._random.choices(
            ("rename", "rewrite", "append", "fsync", "fsyncdir", "unlink", "pages", "rename open", "move"),
            (6, 5, 4, 4, 1, 1, 3, 1, 1),
        )[0]
        if kind == "rename":
            self._replace(name, history, left_open=False)
        elif kind == "rename open":
            self._replace(name, history, left_open=True)
        elif kind == "rewrite":
            self._rewrite(name, history)
        elif kind == "append":
            self._append(name, history)
        elif kind == "fsync":
            self._fsync(name, history)
        elif kind == "fsyncdir":
            self._sync_directory()
        elif kind == "unlink":
            self._unlink(name, history)
        elif kind == "move":
            self._move(name, history)
        else:
            self._write_pages(pages)

    def _content(self) -> bytes:
        size = self._random.choice(_SIZES)
        if size and self._random.random() < 0.1:
            # Clients share these, so that seals of the same content meet.
            return b"%d" % self._random.randrange(3) * size
        return self._random.randbytes(size)

    def _path(self, name: str) -> str:
        return str(self.directory / name)

    def _replace(self, name: str, history: History, *, left_open: bool) -> None:
        """As editors do: write a new file and rename it over the old one."""
        # A name that was free may stand for what has been written back so far.
        left_open = left_open and history.content is not None
        content = self._content()
        fd = os.open(self._path("new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _write(fd, content)
            synced = self._random.random() < 0.2
            if synced:
                os.fsync(fd)
            if not left_open:
                os.close(fd)
                fd = -1
            history.add("rename open" if left_open else "rename", content)
            os.rename(self._path("new"), self._path(name))
            history.finished()
        finally:
            if fd >= 0:
                os.close(fd)

    def _rewrite(self, name: str, history: History) -> None:
        content = self._content()
        history.add("rewrite", *((content,) if history.content is not None else (b"", content)))
        fd = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            half = len(content) // 2
            _write(fd, content[:half])
            _write(fd, content[half:])
            if self._random.random() < 0.3:
                os.fsync(fd)
                history.promised()
        finally:
            os.close(fd)
        history.finished()

    def _append(self, name: str, history: History) -> None:
        content = history.content
        if content is None or len(content) > 1_000_000:
            return
        more = self._random.randbytes(self._random.randrange(1, 5000))
        history.add("append", content + more)
        fd = os.open(self._path(name), os.O_WRONLY | os.O_APPEND)
        try:
            _write(fd, more)
            if self._random.random() < 0.3:
                os.fdatasync(fd)
                history.promised()
        finally:
            os.close(fd)
        history.finished()

    def _fsync(self, name: str, history: History) -> None:
        if history.content is None:
            return
        fd = os.open(self._path(name), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        history.promised()

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        for history in self.histories.values():
            history.promised()

    def _unlink(self, name: str, history: History) -> None:
        if history.content is not None:
            history.add("unlink", None)
            os.unlink(self._path(name))
            history.finished()

    def _move(self, name: str, history: History) -> None:
        """Rename to a name that may exist."""
        other = f"f{self._random.randrange(self.names)}"
        if history.content is None or other == name:
            return
        target = self.histories.setdefault(other, History())
        target.add_moved(f"move from {name}", history)
        history.add(f"move to {other}", None)
        os.rename(self._path(name), self._path(other))
        target.finished()
        history.finished()

    def _write_pages(self, fd: int) -> None:
        """As databases do: change pages in place, and fsync now and then; the file stays open."""
        written = []
        for _ in range(self._random.randrange(1, 4)):
            page = self._random.randrange(40)
            number = len(self.page_writes) + 1
            self.page_writes.append(PageStates(time.monotonic_ns(), page, number))
            _write(fd, b"%016d" % number * (PAGE // 16), page * PAGE)
            written.append((page, number))
        if self._random.random() < 0.7:
            os.fsync(fd)
            now = time.monotonic_ns()
            latest = {page: number for _, page, number in self.page_writes}
            self.page_promises += [PageStates(now, page, number) for page, number in latest.items()]


def _write(fd: int, content: bytes, offset: int | None = None) -> None:
    view = memoryview(content)
    while view:
        done = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        view = view[done:]
        if offset is not None:
            offset += done
