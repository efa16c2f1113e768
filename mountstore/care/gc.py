"""Garbage collection: old versions that the policy lets go, then blobs that nothing needs.

Runs beside normal work, on the thread that owns the store, which it never keeps for more than some milliseconds;
what takes long runs in workers.

Order, and why no blob is taken that something needs
  1. The tree is watched: from now on every addition is noted, also of a blob that is there already. Seals that had
     begun before are waited for.
  2. Versions are judged on the state of one commit and dropped, in small steps. A hard sync: now no power loss
     brings them back.
  3. T: a commit; the catalog as of T is what is marked, with the contents that are in memory at T. A hard sync: no
     power loss takes the catalog back behind T.
  4. Marking, also from snapshots: what their refs lead to when they are listed after T, and the pages of the one
     on which the next is built. Whatever anything refers to after T, it referred to at T, or it was added since 1:
     contents move between names, versions and snapshots, but come into being by additions only. No snapshot is
     being taken at T (`Store.snapshotting`): one from before, of an instant at which dropped versions were
     there, has its ref by then; one from after has nothing but what the catalog has.
  5. Sweeping: what is not marked is moved to the trash, unless it was noted; asking that and moving are one step
     for whoever adds (`BalancedTree.retire`). The records of moved blobs are removed afterwards.

Interrupted anywhere, the store is as if what was not done yet had never been begun: blobs without a use, or
records of blobs without a blob, which the next run, or the next write of the same content, puts right.

Whoever refers to blobs without having added them (a pin of something unused) calls `BalancedTree.want`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import trio

from mountstore.blobs.content import Content
from mountstore.blobs.digest import Digest
from mountstore.care.expiry import Expiry, Only
from mountstore.care.gc_report import Options, Report
from mountstore.care.marking import Marking, Roots
from mountstore.care.roots import await_seals, in_memory, read_lists
from mountstore.care.stretches import Progress, in_stretches, no_progress
from mountstore.care.sweep import COLLECTED, Fate, Sweep, Tally
from mountstore.care.switching import prompt_switching
from mountstore.care.trash_commands import purge
from mountstore.errors import BusyError, MisuseError
from mountstore.namespace.inventory import Inventory
from mountstore.store import Store

__all__ = ["Step", "collect", "prune"]

_T = TypeVar("_T")

_ROWS = 100
"""Rows dropped in one go on the owner's thread: about a millisecond."""

Step = Callable[[str], Awaitable[None]]
"""Told what has just been done: watched, judged, dropped, synced, marked, moved, forgotten, swept."""


async def _no_step(done: str) -> None:
    pass


async def collect(
    store: Store,
    options: Options | None = None,
    *,
    roots: Sequence[Roots] = (),
    step: Step = _no_step,
    progress: Progress = no_progress,
) -> Report:
    """Collect garbage in a store that is `running`, beside whatever else happens there.

    Args:
      roots: Of those parts of the store that refer to blobs outside the catalog.
      progress: First contents are counted, then blobs.

    Raises:
      BusyError: Somebody collects already.
      ReadOnlyError: The store takes no writes.
      CorruptError: Contents cannot be read, so it is not known which blobs they need: nothing was moved.
      MisuseError, OSError: A list of blobs to keep cannot be read or understood: nothing was moved.
      NoSpaceError: No room for the catalog or for temporary tables: nothing was moved.

    Cancellation: Between two small steps; what was done stays.
    """
    options = options or Options()
    if not options.dry_run:
        store.namespace.require_writable()
    with _watched(store), prompt_switching():
        await step("watched")
        return await _Collection(store, options, roots, step, progress).run()


async def prune(store: Store, only: Only, *, dry_run: bool = False) -> dict[str, int]:
    """Drop versions of a part of the tree, without regard to the policies there. Their blobs are for the next
    collection, and what other names have of them stays.

    Returns: How many were, or would be, dropped, by reason.

    Raises: As `collect`.
    """
    if not dry_run:
        store.namespace.require_writable()
    with _watched(store), prompt_switching():
        return await _Collection(store, Options(dry_run=dry_run), (), _no_step, no_progress).prune(only)


@contextmanager
def _watched(store: Store) -> Iterator[None]:
    try:
        store.tree.watch()
    except MisuseError:
        raise BusyError(f"{store.path}: garbage is being collected already") from None
    try:
        yield
    finally:
        store.tree.unwatch()


class _Collection:
    """One run."""

    def __init__(
        self, store: Store, options: Options, roots: Sequence[Roots], step: Step, progress: Progress
    ) -> None:
        self._progress = progress
        self._store = store
        self._options = options
        self._roots = roots
        self._step = step
        self._marking = Marking(store, progress, dry_run=options.dry_run)
        self._flaws: list[str] = []

    async def run(self) -> Report:
        started = time.monotonic()
        listed = await trio.to_thread.run_sync(read_lists, self._options.keep_files, self._store.pins)
        streams = await await_seals(self._store)
        if not self._store.read_only:
            # Or all that was placed since the last one would be told to be in use.
            await self._store.commits.hard_sync(files=True)
        inventory, contents = await self._take_inventory()
        try:
            kept, dropped = await self._judge(inventory)
            if not self._options.dry_run:
                await self._drop(inventory)
                inventory.close()
                inventory, contents = await self._take_inventory()
                # Not only for T: the cycle before it may still have to flush blobs that are not needed now.
                await self._store.commits.hard_sync(files=True)
            await self._step("synced")
            await self._marking.mark_needed(inventory, contents, streams, listed, self._roots)
            if not (self._options.dry_run or self._options.despite_damage):
                self._marking.require_readable()
            await self._step("marked")
            sweep = await self._sweep(inventory)
        finally:
            inventory.close()
        purged = Tally()
        if self._options.purge and not self._options.dry_run:
            purged = await purge(self._store, self._options.older_than_days)
        trash = Tally()
        await in_stretches(self._store.trash.walk(), lambda gone: trash.count(gone.digest.size_bytes))
        others = (Fate.LISTED, Fate.RECENT, Fate.WANTED, Fate.ADOPTED)
        return Report(
            dry_run=self._options.dry_run,
            live=sweep.tallies[Fate.LIVE],
            versions=sweep.tallies[Fate.VERSIONS],
            snapshots=sweep.tallies[Fate.SNAPSHOTS],
            kept={fate.value: sweep.tallies[fate] for fate in others},
            collected={fate.value: sweep.tallies[fate] for fate in COLLECTED},
            trash=trash,
            purged=purged,
            versions_kept=kept,
            versions_dropped=dropped,
            flaws=self._flaws + self._marking.flaws,
            elapsed_s=time.monotonic() - started,
        )

    async def _take_inventory(self) -> tuple[Inventory, set[Content]]:
        """The catalog as of a moment at which no snapshot is being taken, and what is in memory then."""
        async with self._store.snapshotting:
            if not self._store.read_only:
                self._store.commits.commit()
            return Inventory(self._store.catalog.path), in_memory(self._store)

    # --- versions ---

    async def _judge(self, inventory: Inventory) -> tuple[int, dict[str, int]]:
        if not await trio.to_thread.run_sync(inventory.has_versions):
            return 0, {}
        expiry = Expiry(inventory, self._store.config.versions, time.time_ns())
        await in_stretches(expiry.run(), lambda _: None)
        self._flaws += expiry.policies.flaws
        await self._marking.mark_dropped(inventory)
        await self._step("judged")
        return await trio.to_thread.run_sync(inventory.kept_versions)

    async def prune(self, only: Only) -> dict[str, int]:
        """Drop versions of a part of the tree."""
        await await_seals(self._store)
        inventory, _ = await self._take_inventory()
        try:
            expiry = Expiry(inventory, self._store.config.versions, time.time_ns(), only)
            await in_stretches(expiry.run(), lambda _: None)
            _, dropped = await trio.to_thread.run_sync(inventory.kept_versions)
            if dropped and not self._options.dry_run:
                await self._drop(inventory)
            return dropped
        finally:
            inventory.close()

    async def _drop(self, inventory: Inventory) -> None:
        """Remove the rows that were judged, from the catalog as it is by now."""
        histories = self._store.versions.histories
        self._store.versions.dropped()
        await self._in_slices(inventory.dropped_rows(), lambda row: histories.drop(*row))
        await self._in_slices(inventory.unreached_histories(), histories.drop_history)
        await self._in_slices(inventory.stray_inode_histories(), lambda inode: histories.give_inode(inode, 0))
        await self._in_slices(inventory.bare_names(), lambda name: histories.drop_name(*name))
        self._store.versions.dropped()
        await self._step("dropped")
        await self._store.commits.hard_sync(files=True)

    async def _in_slices(self, items: Iterator[_T], work: Callable[[_T], None]) -> None:
        """Do the work for all items on this thread, some at once; others have their turn in between."""
        while batch := await trio.to_thread.run_sync(list, islice(items, _ROWS)):
            for item in batch:
                work(item)

    # --- sweeping ---

    async def _sweep(self, inventory: Inventory) -> Sweep:
        store, options = self._store, self._options
        sweep = Sweep(
            tree=store.tree,
            trash=store.trash,
            marks=self._marking.marks,
            inventory=inventory,
            placed_before_s=time.time() - options.grace_s,
            adopted=bool(store.catalog.get_meta("adopted", 0)) and not options.adopted,
            dry_run=options.dry_run,
        )
        total = await trio.to_thread.run_sync(inventory.count_blobs)
        try:
            while (moved := await trio.to_thread.run_sync(sweep.stretch)) is not None:
                seen = sum(tally.blobs for tally in sweep.tallies.values())
                self._progress(seen, max(seen, total), "blobs")
                if moved:
                    await self._step("moved")
                    await self._in_slices(iter(moved), self._forget)
                    await self._step("forgotten")
        finally:
            sweep.close()
        await self._step("swept")
        return sweep

    def _forget(self, digest: Digest) -> None:
        """Remove the record of a blob that was moved, unless it is there again, or is just being added."""
        if not self._store.tree.is_wanted(digest):
            self._store.catalog.delete_blob(digest)
            self._store.renditions.forget(digest)
