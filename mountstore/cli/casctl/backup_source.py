"""The store that is backed up: what keeps its blobs where they are meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from mountstore.blobs.flush import takes_no_writes
from mountstore.blobs.refs import has_refs
from mountstore.cli.casctl.client import Control
from mountstore.cli.casctl.exits import PROGRAM, AnsweredError
from mountstore.cli.exits import printable, say
from mountstore.fuse.mounts import Mount
from mountstore.store.config import read_config
from mountstore.store.layout import BLOBS_NAME
from mountstore.store.lock import unchanging

_HOLD_S = 600
"""A hold that nobody renews ends after so long."""

_RENEW_S = 60.0

_WAIT_S = 3600.0
_RETRY_S = 1.0


class Source(Protocol):
    """A store whose blobs stay where they are for now."""

    store: str

    def snapshot(self) -> None:
        """Have the latest state in a snapshot."""

    def hold(self, on_wait: Callable[[], None]) -> None:
        """From now on no blob goes away. `on_wait` is called now and then while a collection is waited for.

        Raises: Failure
        """

    def keep(self) -> None:
        """To be called at least every minute. Raises: Failure if blobs may go away from now on."""


class _MountedSource:
    """A mounted store: garbage collection is held through its control file."""

    def __init__(self, control: Control) -> None:
        self.store = control.mount.source
        self._control = control
        self._number: int | None = None
        self._renewed_s = time.monotonic()

    def snapshot(self) -> None:
        # What was closed by now is to be in it.
        self._control.run(["sync"], job=True)
        self._control.run(["snapshot", "--auto"], job=True)
        if not has_refs(os.path.join(self.store, BLOBS_NAME)):
            # Nothing changed since one was taken that somebody deleted.
            self._control.run(["snapshot"], job=True)

    def keep(self) -> None:
        if time.monotonic() - self._renewed_s > _RENEW_S:
            self._renew()

    def hold(self, on_wait: Callable[[], None]) -> None:
        # A timer may have begun a collection at the same minute.
        give_up_s = time.monotonic() + _WAIT_S
        while True:
            try:
                self._renew()
            except AnsweredError as exc:
                if exc.error != "EBUSY" or time.monotonic() > give_up_s:
                    raise
                on_wait()
                # Nobody tells when it ends.
                time.sleep(_RETRY_S)
            else:
                return

    def _renew(self) -> None:
        again = [] if self._number is None else [f"--again={self._number}"]
        answer = self._control.run(["gc", "hold", f"--timeout={_HOLD_S}", *again])
        self._number = int(answer["hold"])
        self._renewed_s = time.monotonic()

    def release(self) -> None:
        """End the hold, if it has begun; never raises for a reason that the mount may have."""
        if self._number is None:
            return
        try:
            self._control.run(["gc", "release", str(self._number)])
        except Exception as exc:
            say(PROGRAM, f"garbage collection is held for up to {_HOLD_S // 60} more minutes: {exc}")


class _QuietSource:
    """A store that nobody writes to, and nobody can as long as it is copied."""

    def __init__(self, store: str) -> None:
        self.store = store

    def snapshot(self) -> None:
        """One was taken when it was closed, if it was."""
        from mountstore.care.checking import closed_in_order

        if not closed_in_order(self.store):
            say(
                PROGRAM,
                f"{printable(self.store)}: was not closed in order, and nobody can take a snapshot of it now: the"
                " copy is going to have its contents as of the last one; mount it (not read-only) to have all",
            )

    def hold(self, on_wait: Callable[[], None]) -> None:
        """Nobody else can work in it."""

    def keep(self) -> None:
        """As `hold`."""


@contextmanager
def open_source(mount: Mount | None, store: str) -> Iterator[Source]:
    """The store in `mount`, or one that is not mounted for writing, while it is copied.

    What it holds is released at the end.

    Raises: Failure, BusyError, StoreError
    """
    if mount is None or mount.read_only or takes_no_writes(store):
        read_config(store)
        with unchanging(store):
            yield _QuietSource(os.path.realpath(store))
        return
    with Control(mount) as control:
        source = _MountedSource(control)
        try:
            yield source
        finally:
            source.release()
