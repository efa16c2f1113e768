"""Taking snapshots, and their refs: listing, deletion, retention.

A snapshot shows the store at one instant T: a commit, of which a second connection reads what changed since the
last snapshot, in a worker, while others go on. What it shows of a file is the content that was sealed last.

Order of taking one, and what a crash in between leaves
  1. T; the objects are written as blobs, their records with the next commits     (blobs without a use)
  2. the catalog notes T, so that one that does not know of the snapshot can be told (`mountstore.store.lineage`);
     a hard sync: that, they, and every content of before T, survive power loss   (blobs without a use)
  3. the ref, in one step, durably                                                (a snapshot)
  4. the catalog notes its root as the one to build on, and forgets what was stale (a larger next one before)
While one is taken, garbage collection waits before it marks anything (`Store.snapshotting`).

Thread: the store's owner, under trio. What blocks runs in workers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

import trio

from mountstore.blobs.digest import Digest
from mountstore.blobs.flush import fsync_path
from mountstore.blobs.refs import REFS_NAME, Ref, check_ref_name, read_ref, read_refs, write_ref
from mountstore.care.snapshot_image import Image, Labels
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.stretches import Progress, Stretch, no_progress
from mountstore.care.switching import prompt_switching
from mountstore.errors import (
    AbsentError,
    BlobMissingError,
    CorruptError,
    ExistsError,
    MisuseError,
    MountstoreError,
    NoSpaceError,
)
from mountstore.namespace.instant import Instant
from mountstore.namespace.pages import UNREADABLE, Root
from mountstore.namespace.snapshot_policy import superfluous
from mountstore.namespace.stale import PASSED_OVER_KEY, Changes
from mountstore.store import Store
from mountstore.store.config import config_text

log = logging.getLogger(__name__)

AUTOMATIC: Final = "auto-"
"""How the names of snapshots begin that nobody asked for; only those are deleted by the policy."""

_STRETCH_S: Final = 0.02
"""How long a worker is kept at a time."""

_AHEAD_S: Final = 60.0
"""A clock that is set right by less than that is nothing to tell."""

_RETRY_S: Final = 300.0
"""An automatic snapshot that failed is tried again after this time, at most."""


class SnapshotInfo(NamedTuple):
    """A snapshot, in short. Of one whose root cannot be read, `flaw` says why and the numbers are 0."""

    name: str
    time_ns: int
    root: Digest
    inodes: int = 0
    bytes: int = 0
    """Sum of the sizes of its files."""
    flaw: str | None = None

    @property
    def automatic(self) -> bool:
        return self.name.startswith(AUTOMATIC)


class Taken(NamedTuple):
    """A snapshot that was just taken, and what it cost."""

    info: SnapshotInfo
    new_blobs: int
    new_bytes: int
    instant_s: float
    """How long the owner's thread was kept by the instant itself: its commit, and the second connection."""
    elapsed_s: float


class Snapshots:
    """The snapshots of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- taking ---

    async def take(self, name: str | None = None, progress: Progress = no_progress) -> Taken:
        """Take a snapshot; without a name, its time is the name.

        Args:
          progress: Told how many pages are written.

        Raises:
          ExistsError: There is one of that name.
          MisuseError: The name cannot be one, or is kept for automatic ones.
          ReadOnlyError: The store takes no writes.
          CorruptError: The catalog holds what it may not: fsck.cas tells.
          NoSpaceError, OSError: It could not be written. Whenever this raises, there is no snapshot, and no
            more than blobs without a use.

        Cancellation: As when it raises.
        """
        if name is not None and name.startswith(AUTOMATIC):
            raise MisuseError(f"{name}: names that begin with {AUTOMATIC} are for automatic snapshots")
        return await self._take(name, "", progress)

    async def take_automatic(self) -> Taken | None:
        """Take one if anything changed since the last, or there is none. Raises: As `take`."""
        self._store.commits.commit()
        if not self._store.catalog.stale.changed:
            refs, _ = await trio.to_thread.run_sync(read_refs, self._store.tree.root)
            if any(ref.uuid == self._store.config.uuid for ref in refs):
                return None
        return await self._take(None, AUTOMATIC, no_progress)

    async def _take(self, name: str | None, prefix: str, progress: Progress) -> Taken:
        store = self._store
        store.namespace.require_writable()
        if name is not None:
            check_ref_name(name)
        started = time.monotonic()
        async with store.snapshotting:
            refs, bad = await trio.to_thread.run_sync(read_refs, store.tree.root)
            taken_names = {ref.name for ref in refs} | {ref.name for ref in bad}
            latest = next((ref for ref in refs if ref.uuid == store.config.uuid), None)
            if name in taken_names:
                raise ExistsError(f"there is a snapshot {name} already")
            await store.sealer.settle_or_keep()
            base = store.catalog.stale.base
            try:
                return await self._take_alone(name, prefix, taken_names, latest, started, progress, heal=False)
            except (CorruptError, BlobMissingError) as exc:
                if base is None:
                    raise
                log.error("the last snapshot cannot be built on, so all of the next one is written: %s", exc)
                store.catalog.forget_snapshot()
            return await self._take_alone(name, prefix, taken_names, latest, started, progress, heal=True)

    async def _take_alone(
        self,
        name: str | None,
        prefix: str,
        taken_names: set[str],
        latest: Ref | None,
        started: float,
        progress: Progress,
        *,
        heal: bool,
    ) -> Taken:
        store = self._store
        before = time.monotonic()
        store.commits.commit()
        base = store.catalog.stale.base
        changes = store.catalog.stale.begin()
        try:
            time_ns = _time_after(latest)
            # Nothing was awaited since the commit: this sees exactly its state.
            instant = Instant(store.catalog.path)
            try:
                instant_s = time.monotonic() - before
                labels = Labels(
                    store.config.uuid,
                    name or _free_name(prefix, time_ns, taken_names),
                    time_ns,
                    config_text(store.config),
                )
                with prompt_switching():
                    image, digest, root = await self._write(instant, changes, base, labels, heal, progress)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(instant.close)
            store.catalog.announce_snapshot(time_ns)
            await store.commits.hard_sync(files=True)
            if store.catalog.stale.base != base:
                raise CorruptError("garbage collection found that it cannot be read")
            ref = Ref(labels.name, digest, labels.uuid, time_ns)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(write_ref, store.tree.root, ref)
        except BaseException:
            store.catalog.stale.put_back()
            raise
        store.catalog.settle_snapshot(digest)
        try:
            store.commits.commit()
        except NoSpaceError:
            # The snapshot is safe; that it is need not be known before there is room.
            pass
        info = SnapshotInfo(labels.name, time_ns, digest, root.inode_count, root.bytes)
        return Taken(info, image.new_blobs, image.new_bytes, instant_s, time.monotonic() - started)

    async def _write(
        self,
        instant: Instant,
        changes: Changes,
        base: Digest | None,
        labels: Labels,
        heal: bool,
        progress: Progress,
    ) -> tuple[Image, Digest, Root]:
        tree = self._store.tree
        below = None if base is None else await trio.to_thread.run_sync(SnapshotTree, tree, base)
        image = Image(tree, instant, changes, below, labels, heal=heal)
        written: list[tuple[Digest, Root]] = []

        def write() -> Iterator[None]:
            written.append((yield from image.write()))

        steps = write()

        def stretch() -> None:
            for _ in Stretch(steps, _STRETCH_S):
                pass

        try:
            while not written:
                # A worker that is left alone would go on with the connection.
                await trio.to_thread.run_sync(stretch)
                self._store.ledger.record(image.take_written())
                progress(image.pages, None, "pages")
        except BaseException:
            self._store.ledger.suspect = True
            raise
        return image, *written[0]

    # --- refs ---

    async def list(self) -> Sequence[SnapshotInfo]:
        """All snapshots, newest first, and refs that cannot be read, last."""
        return await trio.to_thread.run_sync(list_snapshots, self._store)

    async def delete(self, *names: str) -> None:
        """Delete snapshots; what only they had is collected by the next garbage collection.

        Raises:
          AbsentError: There is none of one of these names; then none is deleted.
          ReadOnlyError: The store takes no writes.
          MisuseError: Nothing can have such a name.
          OSError: As the system says.
        """
        self._store.namespace.require_writable()
        for name in names:
            check_ref_name(name)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_delete_refs, self._store.tree.root, names)

    async def open(self, name: str) -> SnapshotTree:
        """A snapshot, for reading (in workers).

        Raises:
          AbsentError: There is none of that name.
          CorruptError, BlobMissingError, OSError: Its ref or root cannot be read.
        """

        def opened() -> SnapshotTree:
            try:
                ref = read_ref(self._store.tree.root, name)
            except BlobMissingError as exc:
                raise AbsentError(str(exc)) from None
            return SnapshotTree(self._store.tree, ref.root)

        check_ref_name(name)
        return await trio.to_thread.run_sync(opened)

    async def prune(self) -> Sequence[str]:
        """Delete the automatic snapshots that the store's policy does not keep; returns their names.

        Those that were passed over when the catalog was made are left alone: it does not know what they show.

        Raises: As `delete`.
        """
        refs, _ = await trio.to_thread.run_sync(read_refs, self._store.tree.root)
        passed_over = self._store.catalog.get_meta(PASSED_OVER_KEY, "").split()
        automatic = [
            ref for ref in refs if ref.name.startswith(AUTOMATIC) and ref.name not in passed_over
        ]
        times = superfluous((ref.time_ns for ref in automatic), self._store.config.snapshots)
        gone = [ref.name for ref in automatic if ref.time_ns in times]
        for name in gone:
            await self.delete(name)
        return gone

    # --- by themselves ---

    async def keep(self, interval_s: float) -> None:
        """Take an automatic snapshot every `interval_s` if something changed, and prune them, until cancelled."""
        wait_s = await self._due_in(interval_s)
        while True:
            await trio.sleep(wait_s)
            done = await self.take_last()
            wait_s = interval_s if done else min(interval_s, _RETRY_S)

    async def take_last(self) -> bool:
        """Take an automatic snapshot if something changed, and prune; whether that went well. Never raises but
        for cancellation: why it did not is logged."""
        try:
            if await self.take_automatic() is not None:
                await self.prune()
        except Exception as exc:
            foreseen = isinstance(exc, MountstoreError | OSError)
            log.error("no snapshot could be taken: %s", exc, exc_info=None if foreseen else exc)
            return False
        return True

    async def _due_in(self, interval_s: float) -> float:
        try:
            refs, _ = await trio.to_thread.run_sync(read_refs, self._store.tree.root)
        except (OSError, RuntimeError):
            # No descriptor, or no thread to be had now.
            return interval_s
        last_ns = max((ref.time_ns for ref in refs if ref.name.startswith(AUTOMATIC)), default=0)
        passed_s = (time.time_ns() - last_ns) / 1e9
        return interval_s if passed_s < 0 or not last_ns else max(0.0, interval_s - passed_s)


def list_snapshots(store: Store) -> list[SnapshotInfo]:
    """As `Snapshots.list`; blocks."""
    refs, bad = read_refs(store.tree.root)
    found: list[SnapshotInfo] = []
    for ref in refs:
        try:
            root = SnapshotTree(store.tree, ref.root).root
        except UNREADABLE as exc:
            found.append(SnapshotInfo(ref.name, ref.time_ns, ref.root, flaw=str(exc)))
        else:
            found.append(SnapshotInfo(ref.name, ref.time_ns, ref.root, root.inode_count, root.bytes))
    found += [SnapshotInfo(name, 0, Digest.of(b""), flaw=error) for name, error in bad]
    return found


def _time_after(latest: Ref | None) -> int:
    """The time of a snapshot that is taken now: later than that of the latest one, also if the clock was set back.

    By their times it is told which one is the newest, to be brought back, and which ones go.
    """
    now_ns = time.time_ns()
    if latest is None or latest.time_ns < now_ns:
        return now_ns
    ahead_s = (latest.time_ns - now_ns) / 1e9
    if ahead_s > _AHEAD_S:
        log.warning(
            "snapshot %s is %.0f s ahead of the clock, so the next ones get the time after it; if the clock is"
            " right, delete that snapshot",
            latest.name,
            ahead_s,
        )
    return latest.time_ns + 1


def _free_name(prefix: str, time_ns: int, taken: set[str]) -> str:
    stem = prefix + datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H%M%SZ")
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _delete_refs(blobs: str, names: Sequence[str]) -> None:
    directory = os.path.join(blobs, REFS_NAME)
    for name in names:
        if not os.path.lexists(os.path.join(directory, name)):
            others = "; none was deleted" if len(names) > 1 else ""
            raise AbsentError(f"there is no snapshot {name}{others}")
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
    # Or it would be back after power loss, when its blobs may be gone.
    fsync_path(directory, os.O_DIRECTORY)
