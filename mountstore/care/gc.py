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

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import msgspec
import trio

from mountstore.blobs.content import Content, ContentKind, SealedBlob
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.refs import read_refs
from mountstore.blobs.verification import read_blob
from mountstore.care.expiry import Expiry, Only
from mountstore.care.marks import Marks
from mountstore.care.roots import Listed, await_seals, hashes_below, hashes_of, in_memory, read_lists
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.stretches import Progress, in_stretches, no_progress
from mountstore.care.sweep import COLLECTED, Fate, Sweep, Tally
from mountstore.care.switching import prompt_switching
from mountstore.errors import BlobMissingError, BusyError, CorruptError, MisuseError
from mountstore.namespace.inventory import Inventory
from mountstore.store import Store

__all__ = [
    "GRACE_S",
    "OLDER_THAN_DAYS",
    "Only",
    "Options",
    "Report",
    "Roots",
    "Tally",
    "collect",
    "prune",
    "purge",
    "untrash",
]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

GRACE_S = 3600.0
"""Blobs placed later than so long ago stay: somebody may be about to use them."""

OLDER_THAN_DAYS = 7.0
"""What `purge` leaves in the trash."""

_ROWS = 100
"""Rows dropped in one go on the owner's thread: about a millisecond."""

Roots = Callable[[], Iterable[Digest]]
"""Yields blobs that something needs of which the catalog does not know; called in a worker after T."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    `keep_files` are lists of blobs to keep (`mountstore.care.roots.read_lists`), beside those in `pins/`.
    """

    dry_run: bool = False
    purge: bool = False
    older_than_days: float = OLDER_THAN_DAYS
    keep_files: tuple[str, ...] = ()
    grace_s: float = GRACE_S
    adopted: bool = False
    """Collect also what was in the tree before it became a store and was never used."""
    despite_damage: bool = False
    """Collect although contents cannot be read, whose pieces may then be lost for good."""


class Report(msgspec.Struct, kw_only=True):
    """What was found and done; `--dry-run` tells the same."""

    dry_run: bool
    live: Tally
    versions: Tally
    """Blobs that only old versions have."""
    snapshots: Tally
    """Blobs that only snapshots have, and those they consist of."""
    kept: dict[str, Tally]
    """Others that stay, by reason."""
    collected: dict[str, Tally]
    """Moved to the trash, by reason; in a dry run what would be."""
    trash: Tally
    """What lies there now."""
    purged: Tally
    versions_kept: int
    versions_dropped: dict[str, int]
    """By reason."""
    flaws: list[str]
    """What could not be understood or read."""
    elapsed_s: float

    @property
    def reclaimable(self) -> Tally:
        """What is, or would be, collected."""
        tallies = self.collected.values()
        return Tally(sum(tally.blobs for tally in tallies), sum(tally.bytes for tally in tallies))


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


async def purge(store: Store, older_than_days: float = OLDER_THAN_DAYS) -> Tally:
    """Delete what was collected on days that ended longer ago; 0: all of the trash."""
    purged = Tally()
    await in_stretches(store.trash.purge(older_than_days), purged.count)
    return purged


async def untrash(store: Store, digest: Digest) -> list[Digest]:
    """Bring a blob back from the trash and, if it is a manifest, whatever it lists. The next collection takes
    it again, unless something uses it by then or it is pinned.

    Returns: What was brought back; empty if all of it was in the tree.

    Raises:
      BlobMissingError: It is neither in the tree nor in the trash.
      CorruptError: Its bytes are not those of its name.
      ReadOnlyError: The store takes no writes.
    """
    store.namespace.require_writable()
    returned: list[Digest] = []
    waiting = [digest]
    while waiting:
        wanted = waiting.pop()
        blob = await trio.to_thread.run_sync(_put_back, store, wanted)
        if blob is not None:
            store.ledger.record([blob])
            returned.append(wanted)
        if wanted == digest:
            below = await trio.to_thread.run_sync(_missing_below, store, digest)
            waiting += below
    return returned


def _put_back(store: Store, digest: Digest) -> SealedBlob | None:
    if store.tree.want(digest):
        return None
    added = store.trash.put_back(digest)
    return SealedBlob(digest, checksum(read_blob(store.tree, digest, None)), added.path, True)


def _missing_below(store: Store, digest: Digest) -> list[Digest]:
    missing: list[Digest] = []
    hashes = set(hashes_below(store.tree, digest)) - {digest.sha256}
    if hashes:
        found = {gone.digest for gone in store.trash.walk() if gone.digest.sha256 in hashes}
        missing = [gone for gone in found if store.tree.find(gone) is None]
    return missing


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
        self._marked = 0
        self._store = store
        self._options = options
        self._roots = roots
        self._step = step
        fates = (Fate.LIVE, Fate.VERSIONS, Fate.SNAPSHOTS, Fate.LISTED, Fate.DROPPED)
        self._marks = {fate: Marks() for fate in fates}
        self._flaws: list[str] = []
        self._unreadable = 0

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
            self._marks[Fate.LIVE].update(digest.sha256 for digest in streams)
            await self._mark(inventory, contents, listed)
            await self._step("marked")
            sweep = await self._sweep(inventory)
        finally:
            inventory.close()
        purged = await self._purge()
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
            flaws=self._flaws,
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
        await self._mark_contents(inventory.superseded(kept=False), Fate.DROPPED)
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

    # --- marking ---

    async def _mark(self, inventory: Inventory, contents: set[Content], listed: list[Listed]) -> None:
        await self._mark_contents(iter(contents), Fate.LIVE, "a content in memory")
        await self._mark_contents(inventory.current(), Fate.LIVE, "a file")
        await self._mark_contents(inventory.superseded(), Fate.VERSIONS, "an old version")
        await self._mark_snapshots(inventory)
        marks = self._marks[Fate.LISTED]
        for roots in self._roots:
            await in_stretches(iter(roots()), lambda digest: marks.add(digest.sha256))
        tree = self._store.tree

        def mark_listed(line: Listed) -> None:
            marks.add(line.sha256)
            sizes = inventory.sizes_of(line.sha256) if line.size_bytes is None else [line.size_bytes]
            for size_bytes in sizes:
                marks.update(hashes_below(tree, Digest(line.sha256, size_bytes)))

        await in_stretches(iter(listed), mark_listed)
        if self._unreadable and not (self._options.dry_run or self._options.despite_damage):
            raise CorruptError(
                f"{self._unreadable} contents cannot be read, so it is not known which blobs they need, and"
                " nothing is collected (fsck.cas tells which; --despite-damage collects all the same):"
                f" {self._flaws[-1]}"
            )

    async def _mark_snapshots(self, inventory: Inventory) -> None:
        """Each page is walked once, in however many snapshots it is."""
        tree = self._store.tree
        base = inventory.snapshot_base()
        if base is not None and not await self._mark_base(base) and not self._options.dry_run:
            # It could lose pages that nothing else has, and so be nothing to build on.
            self._store.catalog.forget_snapshot()
        refs, bad = await trio.to_thread.run_sync(read_refs, tree.root)
        for name, error in bad:
            self._unreadable += 1
            self._flaws.append(f"snapshot {name} cannot be read: {error}")
        walked: set[bytes] = set()
        manifests: set[bytes] = set()

        def contents(root: Digest) -> Iterator[Content]:
            for content in SnapshotTree(tree, root).references(walked):
                if content.kind is not ContentKind.MANIFEST:
                    yield content
                elif content.digest is not None and content.digest.sha256 not in manifests:
                    manifests.add(content.digest.sha256)
                    yield content

        for ref in refs:
            what = f"snapshot {ref.name}"
            try:
                await self._mark_contents(contents(ref.root), Fate.SNAPSHOTS, f"a file in {what}")
            except (BlobMissingError, CorruptError, OSError) as exc:
                self._unreadable += 1
                self._flaws.append(f"{what} cannot be read; if it is not needed, delete it: {exc}")
                # What lies below what could not be read was not walked.
                walked = set()

    async def _mark_base(self, base: Digest) -> bool:
        """Mark the pages on which the next snapshot is built; what they refer to is in the catalog, as far as
        they are still right."""
        marks = self._marks[Fate.SNAPSHOTS]
        tree = self._store.tree

        def pages() -> Iterator[Digest]:
            yield from SnapshotTree(tree, base).pages()

        try:
            await in_stretches(pages(), lambda page: marks.add(page.sha256))
        except (BlobMissingError, CorruptError, OSError) as exc:
            self._flaws.append(f"the last snapshot cannot be read, so the next one is written whole: {exc}")
            return False
        return True

    async def _mark_contents(self, contents: Iterator[Content], fate: Fate, what: str = "") -> None:
        marks = self._marks[fate]
        tree = self._store.tree

        def mark(content: Content) -> None:
            self._marked += 1
            if content.digest is None:
                return
            marks.add(content.digest.sha256)
            if content.kind is not ContentKind.MANIFEST:
                return
            try:
                marks.update(hashes_of(tree, content))
            except (BlobMissingError, CorruptError, OSError) as exc:
                # What belongs to dropped versions is only told apart for the report.
                if fate is not Fate.DROPPED:
                    self._unreadable += 1
                    self._flaws.append(f"{what} cannot be read: {exc}")

        await in_stretches(contents, mark, lambda: self._progress(self._marked, None, "contents"))

    # --- sweeping ---

    async def _sweep(self, inventory: Inventory) -> Sweep:
        store, options = self._store, self._options
        sweep = Sweep(
            tree=store.tree,
            trash=store.trash,
            marks=self._marks,
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

    async def _purge(self) -> Tally:
        if not self._options.purge:
            return Tally()
        if self._options.dry_run:
            return Tally()
        return await purge(self._store, self._options.older_than_days)
