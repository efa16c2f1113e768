"""What a command gets to do its work with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from mountstore.care.pins import Pins
from mountstore.care.trees import Trees
from mountstore.control.holds import Holds
from mountstore.control.statistics import Statistics
from mountstore.errors import BusyError
from mountstore.images.workers import Workers
from mountstore.store import Store

if TYPE_CHECKING:
    from mountstore.control.command import Registry
    from mountstore.control.jobs import Job, Jobs

__all__ = ["Context", "LastCollection", "Message", "Services"]

_PROGRESS_S: Final = 0.1
"""Progress is told so often at most."""


@dataclass(frozen=True, slots=True)
class Message:
    """One line of the log."""

    time_s: float
    level: str
    text: str


async def _nobody_to_tell(*what: object) -> None:
    """Without a mount there is no kernel that remembers entries."""


def _name_of(exc: Exception) -> str:
    return type(exc).__name__


class LastCollection(msgspec.Struct, frozen=True):
    """What the last collection, or dry run, of this mount found; bytes of blobs, each counted once."""

    at_s: float
    """When it ended."""
    live_bytes: int
    versions_bytes: int
    """Only old versions have them."""
    snapshots_bytes: int
    """Only snapshots have them."""
    trash_bytes: int
    reclaimable_bytes: int
    """What a dry run says would be collected."""


@dataclass(slots=True)
class Services:
    """What all commands of one mount share; belongs to the trio thread.

    Attributes:
      invalidate: Have the kernel forget an entry, given the directory's inode number and the name, and what it
        keeps of the directory's attributes. To be called after what the name stands for was changed by a
        command; returns when it is done, so that whoever waits for the command sees the change.
      forget_attributes: The same for the attributes of an inode, given its number.
      forget_versions: The same for what the kernel keeps of old versions that a collection took away.
      forget_snapshot: The same for the name of a snapshot that was deleted.
      explain: The name of the errno for an exception (`ENOENT`); what nobody foresaw is logged.
      images: The processes that resize images; none before the first is needed.
      messages: The latest lines of the log.
    """

    store: Store
    invalidate: Callable[[int, bytes], Awaitable[None]] = _nobody_to_tell
    forget_attributes: Callable[[int], Awaitable[None]] = _nobody_to_tell
    forget_versions: Callable[[], Awaitable[None]] = _nobody_to_tell
    forget_snapshot: Callable[[str], Awaitable[None]] = _nobody_to_tell
    explain: Callable[[Exception], str] = _name_of
    statistics: Statistics = field(default_factory=Statistics)
    images: Workers = field(default_factory=Workers)
    messages: deque[Message] = field(default_factory=deque)
    mountpoint: str = ""
    count_requests: Callable[[], int] = int
    holds: Holds = field(default_factory=Holds)
    last_collection: LastCollection | None = None
    exclusive: dict[str, str] = field(default_factory=dict)
    """What may be done by one command at a time and is being done, with the words for whoever comes second."""
    started_s: float = field(default_factory=time.time)
    pins: Pins = field(init=False)
    trees: Trees = field(init=False)
    """Its `run` is to run while the mount is served, or what is removed is deleted when it is next."""

    def __post_init__(self) -> None:
        self.pins = Pins(self.store)
        self.trees = Trees(self.store)


class Context:
    """What one running command gets."""

    def __init__(self, services: Services, registry: Registry, jobs: Jobs, job: Job) -> None:
        self.services = services
        self.store: Final = services.store
        self.invalidate: Final = services.invalidate
        self.statistics: Final = services.statistics
        self.registry: Final = registry
        self.jobs: Final = jobs
        self.job: Final = job
        self._told_s = 0.0

    def progress(self, done: int, total: int | None = None, unit: str = "") -> None:
        """Say how far the command is; cheap, and told ten times a second at most."""
        now = time.monotonic()
        if now - self._told_s >= _PROGRESS_S or done == total:
            self._told_s = now
            self.job.tell_progress(done, total, unit)

    @contextmanager
    def exclusively(self, what: str, busy: str) -> Iterator[None]:
        """Do something that only one command at a time may.

        Args:
          what: Its name; the same for all commands that exclude each other.
          busy: What to tell the others.

        Raises: BusyError if another command is at it.
        """
        other = self.services.exclusive.get(what)
        if other is not None:
            raise BusyError(other)
        self.services.exclusive[what] = busy
        try:
            yield
        finally:
            del self.services.exclusive[what]
