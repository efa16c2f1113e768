"""Commits: when the changes in memory reach the catalog, and when they survive power loss.

A *soft commit* every 250 ms writes the changed rows and commits the open transaction: a WAL append without a
flush, which survives the death of this process. A *hard sync* makes everything survive power loss. It runs
every `interval_s` seconds if something changed, and whenever somebody asks for one; all who ask before it
starts share it, and one of them does it.

Order of a hard sync, and what a crash in between leaves:
  1. flush the blobs placed since the last one       (catalog: they are still listed as unsynced)
  2. list only later blobs as unsynced, and commit   (WAL not flushed: after power loss an older commit)
  3. fdatasync the WAL
  4. delete the staging files of drafts that were sealed before 1.
If all it would flush in 1 are a few small blobs, and somebody waits, their bytes go into the catalog's journal
instead, in the commit of 3: one flush for what takes three. They stay listed as unsynced, and recovery takes the
bytes from the journal if the blob's file did not reach the disk.
A commit that reaches the disk by itself, before its blobs are flushed, lists them as unsynced, so that
recovery knows which contents to check.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

import trio

from mountstore.blobs.flush import FlushFailedError, syncfs
from mountstore.blobs.staging import drop_file
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import NoSpaceError, ReadOnlyError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import InodeTable
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.replaced import Replaced
from mountstore.namespace.turn import Turn
from mountstore.namespace.workers import Workers

log = logging.getLogger(__name__)

SOFT_INTERVAL_S = 0.25

_RETRY_S = 5.0
"""What could not be sealed is tried again at least so often."""

_FAILURES_MAX = 8
"""Timed commits that may fail one after the other, but for a full disk, before writes are stopped."""

_FEW = 32
"""Up to so many blobs are flushed one by one; beyond, flushing the file system is cheaper."""


WAL_MAX = 64 << 20
"""A WAL longer than this begins anew, even if that holds up the owner's thread for two flushes of the disk."""


class _Cycle:
    """One hard sync that several have asked for."""

    __slots__ = ("ended", "error", "files")

    def __init__(self) -> None:
        self.files = False
        """The journal will not do: somebody wants the blobs' own files flushed."""
        self.ended = False
        self.error: Exception | None = None


class Committer:
    """Commits of one store.

    Args:
      interval_s: At most so long after a change it survives power loss.
      on_doubt: Called once when data already acknowledged may not be safe; the store must then take no
        more writes.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        inodes: InodeTable,
        ledger: Ledger,
        replaced: Replaced,
        tree: BalancedTree,
        interval_s: float,
        on_doubt: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._ledger = ledger
        self._replaced = replaced
        self._retired: list[str] = []
        self._tree = tree
        self._interval_s = interval_s
        self._on_doubt = on_doubt
        # The hard sync that has been asked for and not begun; there is one at a time.
        self._waiting: _Cycle | None = None
        self._turn = Turn()
        # A flush is not to wait for contents.
        self._worker = Workers(1)
        self._next_flush = 0.0
        self._synced_at_change = -1
        self._doubt: Exception | None = None
        self._full = False
        self._failures = 0
        self.commits = 0
        """Since the mount began."""
        self.syncs = 0
        """Hard ones, since the mount began."""
        # Set by the store: staging files to delete after the sync, drafts to try again, and those to record
        # because their files stay open.
        self.take_retired: Callable[[], list[str]] = list
        self.seal_closed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.keep_open: Callable[[], Awaitable[bool]] = _nothing
        self.on_full: Callable[[bool], None] = lambda full: None

    # --- soft ---

    @property
    def has_changes(self) -> bool:
        """Whether the death of this process would cost anything now, but for drafts."""
        return (
            self._inodes.has_changes
            or self._ledger.has_changes
            or self._replaced.has_changes
            or self._catalog.uncommitted()
        )

    def commit(self, *, pause: bool = False) -> None:
        """Write all changed rows and commit; `pause` as of `Catalog.commit`.

        Raises:
          NoSpaceError: The disk is full; everything is kept and will be tried again.
        """
        self._inodes.flush()
        self._ledger.flush()
        self._replaced.flush()
        try:
            self._catalog.commit(pause=pause)
        except NoSpaceError:
            self._set_full(True)
            raise
        self._set_full(False)
        self._failures = 0
        self.commits += 1

    def _checkpoint(self) -> None:
        try:
            self._catalog.checkpoint()
        except Exception as exc:
            # Nothing depends on it: the WAL has it all, and grows until a checkpoint succeeds.
            log.error("the catalog cannot be checkpointed: %s", exc)

    def _commit_or_keep(self) -> None:
        """The timed commit: on a full disk the changes wait for room."""
        try:
            self.commit()
        except NoSpaceError:
            pass
        except Exception as exc:
            # Nothing that was committed is in doubt, and nothing since is forgotten; but for how long?
            self._failures += 1
            log.error("%s; changes are kept in memory", exc)
            if self._failures > _FAILURES_MAX:
                self.doubt(exc)

    def _set_full(self, full: bool) -> None:
        if full != self._full:
            self._full = full
            self.on_full(full)
            if full:
                log.error("no room for the catalog; changes are kept in memory until there is")
            else:
                log.warning("there is room again, and the changes kept in memory are written")

    # --- hard ---

    async def hard_sync(self, *, files: bool = False) -> None:
        """Return when everything done before this call survives power loss.

        Args:
          files: And nothing is listed as unsynced any more: whoever copies the tree has every blob in its own
            file, not only in the journal.

        Raises:
          OSError, NoSpaceError: It does not.
          ReadOnlyError: An earlier sync failed, so nobody can say.
        """
        self._require_no_doubt()
        if self._catalog.read_only:
            # Nothing was done here, and nobody would answer.
            return
        if self._waiting is None:
            # What a sync under way has taken is in the journal no more, and in its file not yet.
            files_unsafe = files and (self._ledger.has_journaled or self._turn.taken)
            if not self._is_unsafe() and not files_unsafe:
                return
            self._waiting = _Cycle()
        cycle = self._waiting
        cycle.files = cycle.files or files
        async with self._turn:
            # Not ended either if whoever began it was cancelled.
            if not cycle.ended:
                if self._waiting is cycle:
                    self._waiting = None
                try:
                    await self._sync(cycle)
                except Exception as exc:
                    cycle.error = exc
                cycle.ended = True
        if cycle.error is not None:
            raise cycle.error

    async def _sync(self, cycle: _Cycle) -> None:
        self._require_no_doubt()
        if not cycle.files and trio.current_time() < self._next_flush and self._ledger.journal():
            # In the same transaction: with it everything so far survives, and nothing goes back behind it.
            self._replaced.take()
            self._replaced.settle()
            await self._flush_catalog()
        else:
            await self.sync_now()

    def _is_unsafe(self) -> bool:
        """Whether power loss would cost anything now."""
        return (
            self._inodes.has_changes
            or self._ledger.has_changes
            or self._ledger.has_unsynced
            or self._replaced.has_changes
            or self._replaced.has_lapsed
            or self._catalog.changes() != self._synced_at_change
        )

    async def sync_now(self) -> None:
        """A hard sync that flushes the blobs' own files, while nobody else is at one.

        Raises: As `hard_sync`.
        """
        self._next_flush = trio.current_time() + self._interval_s
        if self._doubt is not None:
            # Write what can be written, but promise nothing: a flush that works after one that failed says
            # nothing about the bytes of the first (fsync(2), "EIO"), and their blobs stay listed as unsynced.
            self.commit()
            self._require_no_doubt()
        retired, self._retired = [*self._retired, *self.take_retired()], []
        taken = self._ledger.take_unsynced()
        self._replaced.take()
        everything, self._ledger.suspect = self._ledger.suspect, False
        try:
            await self._worker.run(self._flush_blobs, list(taken.values()), everything)
        except BaseException as exc:
            self._ledger.put_back(taken)
            self._replaced.put_back()
            self._ledger.suspect = True
            self._retired += retired
            if isinstance(exc, FlushFailedError):
                self.doubt(exc)
            raise
        self._ledger.settle()
        self._replaced.settle()
        self._catalog.delete_draft_changes([os.path.basename(path) for path in retired])
        try:
            await self._flush_catalog()
        except BaseException:
            # The next one flushes for nothing, but deletes these.
            self._retired += retired
            raise
        for path in retired:
            drop_file(path)

    async def _flush_catalog(self) -> None:
        """Commit, and have all commits survive power loss."""
        self.commit()
        self._catalog.extend_wal()
        self.syncs += 1
        changes = self._catalog.changes()
        try:
            await self._worker.run(self._catalog.flush_wal)
        except FlushFailedError as exc:
            self.doubt(exc)
            raise
        self._synced_at_change = changes
        if self._catalog.wants_checkpoint():
            try:
                await self._fold_wal()
            except Exception as exc:
                # What was asked for is done. What this could not write is kept, and told of by the next commit.
                log.error("the catalog's log cannot be folded: %s", exc)

    async def _fold_wal(self) -> None:
        """Move what the WAL holds into the database file, so that SQLite begins it anew with the next change."""
        await self._worker.run(self._checkpoint)
        if self._catalog.wal_bytes() <= WAL_MAX:
            # Now nearly nothing is left to move: if that can be done before the next change, the WAL begins anew.
            self.commit(pause=True)
            await self._worker.run(self._checkpoint)
            return
        # The changes never pause, and it has grown for long: the rest is moved while nobody can change anything.
        self.commit()
        await self._worker.run(self._checkpoint)
        self.commit(pause=True)
        self._checkpoint()

    def _flush_blobs(self, paths: list[str], everything: bool) -> None:
        if everything or len(paths) > _FEW:
            syncfs(self._tree.root)
        else:
            self._tree.fsync(*paths)

    def _require_no_doubt(self) -> None:
        if self._doubt is not None:
            raise ReadOnlyError("an earlier flush to disk failed") from self._doubt

    @property
    def in_doubt(self) -> bool:
        """Whether a flush failed, so that no more writes are taken."""
        return self._doubt is not None

    def doubt(self, exc: Exception) -> None:
        """Data already acknowledged may be lost: stop the writes, and say so once."""
        if self._doubt is None:
            self._doubt = exc
            log.critical(
                "the store cannot be written: %s; no more writes are taken, since some that were"
                " acknowledged may be lost; unmount, check the disk, mount again",
                exc,
            )
            self._on_doubt()

    def close(self) -> None:
        """End the worker; no sync may be under way."""
        self._worker.close()

    # --- running ---

    async def run(self) -> None:
        """Commit and sync until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_soft)
            nursery.start_soon(self._run_hard)
            # In tasks of their own: sealing takes seconds if there is much, and nothing is to wait for it.
            nursery.start_soon(self._run_now_and_then, min(self._interval_s, _RETRY_S), self.seal_closed)
            nursery.start_soon(self._run_now_and_then, self._interval_s, self._keep_drafts)

    async def _run_soft(self) -> None:
        while self._doubt is None:
            await trio.sleep(SOFT_INTERVAL_S)
            if self.has_changes:
                self._commit_or_keep()

    async def _run_hard(self) -> None:
        self._next_flush = trio.current_time() + self._interval_s
        while self._doubt is None:
            await trio.sleep_until(self._next_flush)
            async with self._turn:
                if trio.current_time() < self._next_flush:
                    continue
                if not self._is_unsafe() and not self._ledger.has_journaled:
                    self._next_flush = trio.current_time() + self._interval_s
                    continue
                try:
                    await self.sync_now()
                except Exception as exc:
                    log.error("timed sync failed: %s", exc)

    async def _run_now_and_then(self, interval_s: float, act: Callable[[], Awaitable[None]]) -> None:
        while self._doubt is None:
            # Also after one that took long: what cannot be sealed is read and written in vain.
            await trio.sleep(interval_s)
            try:
                await act()
            except Exception as exc:
                # Whatever it was, the mount goes on: what is not done is tried again.
                log.error("unforeseen while drafts were looked after", exc_info=exc)

    async def _keep_drafts(self) -> None:
        if await self.keep_open():
            try:
                await self.hard_sync()
            except Exception as exc:
                log.error("what was kept of open files is not safe yet: %s", exc)


async def _nothing() -> bool:
    return False
