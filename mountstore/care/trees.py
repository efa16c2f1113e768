"""Whole trees: copies of which no byte is copied, getting one back from a snapshot, and removal in an instant.

What is made grows in limbo (`mountstore.namespace.limbo`), some names at a time, and gets its name in one step;
what is removed goes there in one step, and is deleted bit by bit. So nobody sees anything half done, also after a
crash: what lay in limbo is dealt with when the store is mounted again.

Contents are shared, so nothing is written but rows. Why garbage collection takes none of them: one that begins
later waits until the rows are there (`Contents.adding`). For one that is under way, what had the contents may be
removed before its instant, and a snapshot may be deleted before it is read; so they are wanted anew
(`BalancedTree.want`).

Thread: the store's owner, under trio. What blocks runs in workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Final, NamedTuple

import trio

from mountstore.blobs.completeness import blobs_of
from mountstore.blobs.tree import BalancedTree
from mountstore.care.snapshot_browser import follow, records_of_instant, records_of_snapshot
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.stretches import Progress, no_progress
from mountstore.care.switching import prompt_switching
from mountstore.errors import (
    AbsentError,
    BlobMissingError,
    CorruptError,
    ExistsError,
    MisuseError,
    MountstoreError,
    ReadOnlyError,
    WantsDirectoryError,
    shown,
)
from mountstore.namespace.grafting import Graft, Twig
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.instant import Instant
from mountstore.namespace.limbo import Limbo, removed_at
from mountstore.store import Store

__all__ = ["Made", "Place", "Trees"]

log = logging.getLogger(__name__)

_BATCH: Final = 512
"""Names that a worker reads at a time."""
_STEP: Final = 48
"""Of these, names that are made at a time: about a millisecond."""
_WORK_S: Final = 0.001
"""Removal works so long, then rests as long."""
_RETRY_S: Final = 60.0


class Place(NamedTuple):
    """A name in a directory."""

    parent: int
    name: bytes


class Made(NamedTuple):
    """What was made, and where; `replaced` is what was removed for it, which is being deleted."""

    place: Place
    files: int
    directories: int
    size_bytes: int
    """Of its files, none of which was copied."""
    replaced: bytes | None = None


class Trees:
    """Work on whole trees of one store.

    Attributes:
      kernel_knows: Whether the kernel of the mount knows an inode: then a removed one stays until it forgets it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limbo = Limbo(store.catalog, store.inodes, store.namespace, store.versions)
        self._making: set[bytes] = set()
        self._wanted = trio.Event()
        self._gone: dict[bytes, trio.Event] = {}
        self.kernel_knows: Callable[[int], bool] = lambda inode: False

    # --- making ---

    async def clone(self, source: bytes, target: bytes, progress: Progress = no_progress) -> Made:
        """Make a copy of a file or a directory that can be written on its own, as it is at one instant.

        Files that somebody has open for writing are copied as they were at their last close (or first fsync
        since). Links between files of the tree remain; old versions stay with the original.

        Raises:
          AbsentError, WantsDirectoryError: The source is not there, or there is no directory for the target.
          ExistsError: The target is there.
          MisuseError: A path is none.
          ReadOnlyError, NoSpaceError, CorruptError: Nothing is there of it.

        Cancellation: As an error.
        """
        store = self._store
        store.namespace.require_writable()
        await store.sealer.settle_or_keep()
        place = self.place_of(target)
        if store.namespace.find(*place) is not None:
            raise ExistsError(f"{shown(target)} is there already")
        with store.contents.adding():
            number = self._follow(source).id
            store.commits.commit()
            # Nothing was awaited since the commit: this sees exactly its state.
            instant = Instant(store.catalog.path)
            try:
                records = records_of_instant(instant)
                top = await store.contents.in_thread(records.inode, number)
                twigs = records.walk(place.name, top)
                if store.tree.is_watched:
                    twigs = _wanted(store.tree, twigs, strict=False)
                made, graft = await self._build(twigs, progress)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(instant.close)
            return await self._reveal(made, graft, place, replace=False)

    async def restore(
        self,
        snapshot: SnapshotTree,
        path: bytes,
        *,
        to: bytes | None = None,
        replace: bool = False,
        progress: Progress = no_progress,
    ) -> Made:
        """Bring back a file, or a directory with all below it, as it was in a snapshot.

        A file that is there under the name becomes a version.

        Args:
          to: Another path, which gets it instead.
          replace: A directory that is there, and not empty, is removed as by `remove`.

        Raises: As `clone`; AbsentError also if the snapshot does not have it; BlobMissingError if not all of its
          blobs are there.

        Cancellation: As an error.
        """
        store = self._store
        store.namespace.require_writable()
        target = path if to is None else to
        place = self.place_of(target)
        top = await store.contents.in_thread(follow, snapshot, path)
        taken = store.namespace.find(*place)
        if taken is not None and top.is_directory and not replace and store.catalog.has_entries(taken.id):
            raise ExistsError(f"{shown(target)} is there, not empty: replace it, or restore to another path")
        with store.contents.adding():
            twigs = _wanted(store.tree, records_of_snapshot(snapshot).walk(place.name, top), strict=True)
            made, graft = await self._build(twigs, progress, foreign=True)
            return await self._reveal(made, graft, place, replace=replace)

    async def _build(
        self, twigs: Generator[Twig, None, None], progress: Progress, *, foreign: bool = False
    ) -> tuple[bytes, Graft]:
        """Make a tree in limbo, of contents that may be unknown to the catalog if `foreign`.

        Returns: its name there, and what it is.
        """
        store = self._store
        limbo, made = self._limbo.begin()
        self._making.add(made)
        graft = Graft(store.catalog, store.inodes, limbo.id)
        done = 0
        try:
            try:
                while batch := await self._next(twigs):
                    for start in range(0, len(batch), _STEP):
                        if foreign:
                            self._record(batch[start : start + _STEP])
                        self._add(graft, batch[start : start + _STEP], made if not done else None)
                        done += len(batch[start : start + _STEP])
                        progress(done, None, "names")
                        await trio.lowlevel.checkpoint()
            finally:
                # What it reads from is closed next.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(twigs.close)
        except BaseException:
            self._give_up(made)
            raise
        return made, graft

    async def _next(self, twigs: Iterator[Twig]) -> list[Twig]:
        with prompt_switching():
            return await trio.to_thread.run_sync(list, islice(twigs, _BATCH))

    def _record(self, twigs: list[Twig]) -> None:
        """Have the catalog know the checksums that a snapshot knows."""
        unknown = [
            (*digest, record.checksum)
            for _, _, record in twigs
            if record.checksum
            and (digest := record.content.digest) is not None
            and self._store.ledger.checksum(digest) is None
        ]
        if unknown:
            self._store.catalog.add_blobs(unknown)

    def _add(self, graft: Graft, twigs: list[Twig], first: bytes | None) -> None:
        store = self._store
        store.namespace.require_writable()
        store.namespace.require_room()
        if first is not None:
            twigs[0] = twigs[0]._replace(name=first)
        graft.add(twigs)

    async def _reveal(self, made: bytes, graft: Graft, place: Place, *, replace: bool) -> Made:
        store = self._store
        try:
            taken = store.namespace.find(*place)
            if taken is not None and taken.draft is not None and taken.writers == 0:
                # Just closed: what it has becomes a version.
                await store.sealer.seal(taken)
            replaced = self._limbo.reveal(made, *place, replace=replace)
        except BaseException:
            self._give_up(made)
            raise
        self._making.discard(made)
        if replaced is not None:
            self._begin_removal(replaced)
        elif not self._making:
            self._limbo.settle()
        return Made(place, graft.files, graft.directories, graft.bytes, replaced)

    def _give_up(self, made: bytes) -> None:
        self._making.discard(made)
        self._wanted.set()

    # --- removing ---

    def remove(self, path: bytes) -> tuple[Place, bytes]:
        """Remove a directory with all that is in it, in an instant; what is left to do `run` does.

        Its names keep their histories as if each had been removed now.

        Returns: Where it was, and what to give to `wait_removed`.

        Raises: AbsentError, WantsDirectoryError, MisuseError (the root), ReadOnlyError, NoSpaceError.
        """
        place = self.place_of(path)
        name = self._limbo.take_out(*place)
        self._begin_removal(name)
        return place, name

    def _begin_removal(self, name: bytes) -> None:
        self._gone[name] = trio.Event()
        self._wanted.set()

    async def wait_removed(self, name: bytes) -> None:
        """Return when nothing is left of what was removed; `run` has to run meanwhile."""
        gone = self._gone.get(name)
        if gone is not None:
            await gone.wait()

    async def run(self) -> None:
        """Delete what lies in limbo, what a crash left there too, until cancelled."""
        while True:
            self._wanted = trio.Event()
            try:
                for name in self._limbo.names():
                    if name not in self._making:
                        await self._delete(name)
                        gone = self._gone.pop(name, None)
                        if gone is not None:
                            gone.set()
                if not self._making:
                    self._limbo.settle()
            except ReadOnlyError:
                return
            except Exception as exc:
                foreseen = isinstance(exc, MountstoreError | OSError)
                log.error("removed trees cannot be deleted now: %s", exc, exc_info=None if foreseen else exc)
                with trio.move_on_after(_RETRY_S):
                    await self._wanted.wait()
            else:
                await self._wanted.wait()

    async def _delete(self, name: bytes) -> None:
        """Delete a tree in limbo, from the leaves on; an interruption leaves a smaller tree."""
        store = self._store
        limbo = self._limbo.directory()
        top = None if limbo is None else store.namespace.find(limbo.id, name)
        if limbo is None or top is None:
            return
        at_ns = removed_at(name)
        recorded = at_ns is not None
        if not top.is_directory:
            await self._drop(store.namespace.unlink(limbo.id, name, recorded=False))
            return
        way = [(limbo.id, name, top.id)]
        until = time.monotonic() + _WORK_S
        while way:
            parent, called, directory = way[-1]
            found = self._first_in(directory)
            if found is None:
                way.pop()
                gone = store.namespace.rmdir(parent, called, at_ns=at_ns, recorded=recorded and bool(way))
                await self._drop(gone)
            elif found[1].is_directory:
                way.append((directory, found[0], found[1].id))
            else:
                inode = found[1]
                if recorded and inode.draft is not None and inode.writers == 0:
                    await store.sealer.seal_or_keep(inode)
                    if store.namespace.find(directory, found[0]) is not inode:
                        continue
                await self._drop(store.namespace.unlink(directory, found[0], at_ns=at_ns, recorded=recorded))
            if time.monotonic() >= until:
                await trio.sleep(_WORK_S)
                until = time.monotonic() + _WORK_S

    def _first_in(self, directory: int) -> tuple[bytes, Inode] | None:
        with closing(self._store.catalog.listing(directory, 0)) as listing:  # type: ignore[type-var]  # a generator
            for row in listing:
                return row.name, self._store.inodes.get(row.inode)
        return None

    async def drop_displaced(self) -> None:
        """Let go of what commands have put other files in place of, unless the kernel knows it, or somebody has it
        open: else it would stay in memory, and its content in the tree, until the mount ends.
        """
        displaced, self._store.namespace.displaced = self._store.namespace.displaced, []
        for inode in displaced:
            await self._drop(inode)

    async def _drop(self, inode: Inode) -> None:
        """Nobody will tell of an inode that the kernel never heard of, so it goes at once."""
        if inode.nlink == 0 and inode.handles == 0 and not self.kernel_knows(inode.id):
            for unused in self._store.namespace.forget([inode.id]):
                await self._store.files.drop(unused)

    # --- paths ---

    def place_of(self, path: bytes) -> Place:
        """Where a path leads to, whether or not anything is there.

        Raises: AbsentError, WantsDirectoryError; MisuseError for the root, or with `..`.
        """
        *above, name = _parts(path) or [b""]
        if not name:
            raise MisuseError(f"{shown(path)}: is the root")
        parent = self._follow(b"/".join(above))
        if not parent.is_directory:
            raise WantsDirectoryError(shown(path))
        if self._store.namespace.is_reserved(parent.id, name):
            raise MisuseError(f"{shown(path)}: this name is not free for use")
        return Place(parent.id, name)

    def _follow(self, path: bytes) -> Inode:
        namespace = self._store.namespace
        inode = namespace.get(ROOT)
        for part in _parts(path):
            if not inode.is_directory:
                raise WantsDirectoryError(shown(path))
            found = None if namespace.is_reserved(inode.id, part) else namespace.find(inode.id, part)
            if found is None:
                raise AbsentError(shown(path))
            inode = found
        return inode


def _parts(path: bytes) -> list[bytes]:
    parts = [part for part in path.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise MisuseError(f"{shown(path)}: a path must not have '..' in it")
    return parts


def _wanted(tree: BalancedTree, twigs: Iterable[Twig], *, strict: bool) -> Generator[Twig, None, None]:
    """The same, when their contents are sure not to be collected and, if `strict`, all there; blocks.

    Raises: BlobMissingError, CorruptError, if `strict`.
    """
    for twig in twigs:
        try:
            for digest in blobs_of(tree, twig.record.content):
                if not tree.want(digest):
                    raise BlobMissingError(f"blob {digest.name} is not there")
        except (BlobMissingError, CorruptError) as exc:
            if strict:
                raise type(exc)(f"{shown(twig.name)} cannot be read: {exc}") from exc
        yield twig
