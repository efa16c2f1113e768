"""A store on disk: opening it, the wiring of all parts, recovery, and the end of its use.

Paths inside it are known here and in `blobs` only; their names are in `mountstore.store.layout`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Self

import trio

from mountstore.blobs.flush import syncfs
from mountstore.blobs.refs import read_refs
from mountstore.blobs.scan import is_bare
from mountstore.blobs.trash import Trash
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import CorruptError, StaleError, StoreError
from mountstore.namespace.catalog import BlobIndex, Catalog
from mountstore.namespace.commits import Committer
from mountstore.namespace.connection import reading_catalog
from mountstore.namespace.contents import Contents
from mountstore.namespace.drafts import Drafts, inode_of_draft
from mountstore.namespace.files import Files
from mountstore.namespace.inodes import ROOT, InodeTable
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.limbo import is_limbo
from mountstore.namespace.namespace import Namespace
from mountstore.namespace.paths import find_paths
from mountstore.namespace.recall import Recall
from mountstore.namespace.recall_tree import TreeRecall
from mountstore.namespace.recovery import Recovered, recover_contents
from mountstore.namespace.renditions import Renditions
from mountstore.namespace.replaced import Replaced
from mountstore.namespace.sealing import Sealer
from mountstore.namespace.shared_inodes import SharedInodeTable
from mountstore.namespace.space import Space
from mountstore.namespace.timeline import Timeline
from mountstore.namespace.versions import Versions
from mountstore.namespace.xattrs import Attributes
from mountstore.store.config import read_config
from mountstore.store.layout import (
    BAD_NAME,
    BLOBS_NAME,
    CATALOG_NAME,
    KEPT_NAME,
    PINS_NAME,
    STAGING_NAME,
    TRASH_NAME,
)
from mountstore.store.lineage import lineage_flaw
from mountstore.store.lock import StoreLock, boot_id

__all__ = ["Store"]

log = logging.getLogger(__name__)


class Store:
    """An open store; the caller's thread, under trio, owns it. Use `Store.open`.

    Everything that changes contents needs `running`, which commits and syncs in the background.
    """

    def __init__(self, path: str, *, read_only: bool, commit_s: float, acl: bool) -> None:
        self.path = path
        self.config = read_config(path)
        self.read_only = read_only
        self._lock = None if read_only else StoreLock(path)
        try:
            with reading_catalog(os.path.join(path, CATALOG_NAME)):
                self.catalog = Catalog(
                    os.path.join(path, CATALOG_NAME), read_only=read_only, must_exist=True
                )
                self._check_catalog()
                self._open_parts(commit_s, acl)
                self._check_root()
            self._connect_parts()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _open_parts(self, commit_s: float, acl: bool) -> None:
        path = self.path
        staging = os.path.join(path, STAGING_NAME)
        if not self.read_only:
            os.makedirs(staging, exist_ok=True)
        self.tree = BalancedTree(
            os.path.join(path, BLOBS_NAME),
            staging=staging,
            dir_limit=self.config.dir_limit,
            gid=_group_to_give(os.path.join(path, BLOBS_NAME)),
            exclusive=not self.read_only,
        )
        self.trash = Trash(os.path.join(path, TRASH_NAME), self.tree)
        self.pins = os.path.join(path, PINS_NAME)
        if not self.read_only:
            self._known = BlobIndex(self.catalog.path)
        self.ledger = Ledger(self.catalog)
        self.renditions = Renditions(self.catalog)
        self.replaced = Replaced(self.catalog)
        self.inodes = SharedInodeTable(self.catalog) if self.read_only else InodeTable(self.catalog)
        # Held while a snapshot is taken, and by garbage collection at the instant whose state it marks.
        self.snapshotting = trio.Lock()
        self.space = Space(path if self.read_only else staging)
        self.versions = Versions(self.catalog, self.inodes)
        self.namespace = Namespace(self.catalog, self.inodes, self.versions, read_only=self.read_only, acl=acl)
        self.attributes = Attributes(self.catalog, self.inodes, self.namespace, acl=acl)
        self.commits = Committer(
            catalog=self.catalog,
            inodes=self.inodes,
            ledger=self.ledger,
            replaced=self.replaced,
            tree=self.tree,
            interval_s=commit_s,
            on_doubt=self._stop_writes,
        )
        parameters = self.config.chunking()
        self.contents = Contents(self.tree, self.ledger, self.catalog.small_contents)
        self.timeline = Timeline(
            catalog=self.catalog, inodes=self.inodes, versions=self.versions, contents=self.contents
        )
        self.drafts = Drafts(
            catalog=self.catalog,
            inodes=self.inodes,
            contents=self.contents,
            tree=self.tree,
            parameters=parameters,
            staging=staging,
            space=self.space,
            replaced=self.replaced,
        )
        self.sealer = Sealer(
            inodes=self.inodes,
            ledger=self.ledger,
            versions=self.versions,
            contents=self.contents,
            drafts=self.drafts,
            tree=self.tree,
            parameters=parameters,
        )
        self.recall = Recall(
            namespace=self.namespace,
            inodes=self.inodes,
            timeline=self.timeline,
            contents=self.contents,
            ledger=self.ledger,
            sealer=self.sealer,
            tree=self.tree,
            parameters=parameters,
        )
        self.tree_recall = TreeRecall(
            namespace=self.namespace,
            inodes=self.inodes,
            versions=self.versions,
            timeline=self.timeline,
            contents=self.contents,
            sealer=self.sealer,
            recall=self.recall,
        )
        self.files = Files(
            inodes=self.inodes,
            contents=self.contents,
            drafts=self.drafts,
            sealer=self.sealer,
            hard_sync=self.commits.hard_sync,
            doubt=self.commits.doubt,
        )

    def _check_catalog(self) -> None:
        """Refuse what would lose something if it were used as if nothing were wrong; for looking, it will do.

        Nothing is made before that.
        """
        blobs = os.path.join(self.path, BLOBS_NAME)
        flaw = lineage_flaw(self.catalog.get_meta, self.config.uuid, read_refs(blobs)[0])
        if flaw is not None:
            flaw = f"{self.catalog.path}: {flaw}"
        elif self.catalog.get_meta("clean", 1) and self.catalog.has_blobs() and is_bare(blobs):
            # After a crash they may still have to be made from what the catalog has of them.
            flaw = (
                f"{blobs}: has no blobs, but the catalog speaks of some: if they are on a file system of their"
                " own, mount that first; otherwise bring them back from a copy"
            )
        if flaw is None:
            return
        if not self.read_only:
            raise StoreError(flaw)
        log.warning("%s", flaw)

    def _check_root(self) -> None:
        try:
            self.inodes.get(ROOT)
        except StaleError:
            raise CorruptError(f"{self.catalog.path}: has no root directory; fsck.cas makes one") from None

    def _connect_parts(self) -> None:
        """Tell parts of those that are made after them."""
        if not self.read_only:
            self.tree.trusted = self._known
        self.commits.take_retired = self.drafts.take_retired
        self.commits.seal_closed = self.sealer.seal_closed
        self.commits.keep_open = self.files.keep_open
        self.commits.on_full = self._set_full
        self.catalog.mapped_index.on_scarce = self.space.ask_again
        self.namespace.on_replaced = self.drafts.note_taken_over
        self.namespace.is_reserved = is_limbo

    @classmethod
    def open(cls, path: str, *, read_only: bool = False, commit_s: float = 5.0, acl: bool = False) -> Self:
        """Open the store at `path`.

        Raises:
          StoreError: Not a store, or one that cannot be used.
          BusyError: Somebody has it open for writing (not if `read_only`).
          CorruptError: The catalog cannot be read.
        """
        return cls(os.path.abspath(path), read_only=read_only, commit_s=commit_s, acl=acl)

    def _stop_writes(self) -> None:
        self.namespace.read_only = True
        try:
            self.catalog.set_meta("doubt", 1)
            self.commits.commit()
        except Exception as exc:
            log.error("%s", exc)

    def _set_full(self, full: bool) -> None:
        self.namespace.no_room = full

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """The store at work: recovers what a crash left, then commits and syncs until the context ends;
        then seals what is drafted, syncs, and closes.

        Raises:
          ExceptionGroup: Contents that could not be sealed at the end; their staging files are kept.
        """
        if self.read_only:
            try:
                yield self
            finally:
                self._close()
            return
        try:
            with reading_catalog(self.catalog.path):
                self._recover()
        except BaseException:
            self._abandon()
            raise
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.commits.run)
                try:
                    yield self
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            # Shielded: whatever ended the mount, what was acknowledged is to reach the disk.
            with trio.CancelScope(shield=True):
                await self._finish()

    def _abandon(self) -> None:
        """Close what could not be brought into order, as it is."""
        self._close()
        if self._lock is not None:
            self._lock.release(safe=False)
            self._lock = None

    def _recover(self) -> None:
        """Bring the store into order after whatever ended its last use; see docs/durability.md.

        Each step may be repeated after a crash in the middle of it.
        """
        clean = bool(self.catalog.get_meta("clean", 1))
        doubt = bool(self.catalog.get_meta("doubt", 0))
        rebooted = self.catalog.get_meta("boot_id") != boot_id()
        recovered = None
        if not clean:
            recovered = recover_contents(
                self.catalog,
                self.tree,
                staging=os.path.join(self.path, STAGING_NAME),
                aside=os.path.join(self.path, BAD_NAME),
                cold=doubt,
            )
        # Of files that had been removed, if it was.
        self.catalog.delete_draft_changes(self.catalog.draft_changes())
        orphans = self.inodes.remove_orphans()
        drafts = self.drafts.restore()
        if recovered is not None:
            log.warning(
                "the store was not unmounted cleanly%s; %d drafts brought back, %d removed files dropped,"
                " %d blobs checked",
                " before the machine went down" if rebooted else "",
                drafts,
                orphans,
                recovered.checked,
            )
        self._clear_staging()
        self.catalog.set_meta("clean", 0)
        self.catalog.set_meta("boot_id", boot_id())
        self.catalog.set_meta("doubt", 0)
        self.commits.commit()
        self.catalog.flush_wal()
        if recovered is not None:
            self._report(recovered)

    def _report(self, recovered: Recovered) -> None:
        for inode in recovered.restored:
            log.warning("%s: the last changes did not reach the disk; it is as before", self._name(inode))
        for inode in recovered.lost:
            log.error("%s: its content did not reach the disk; it cannot be read", self._name(inode))

    def _name(self, inode: int) -> str:
        paths = find_paths(self.catalog.path, inode)
        return " = ".join(os.fsdecode(path) for path in paths) or f"inode {inode}"

    def _clear_staging(self) -> None:
        """Half-written blobs of the last run go, and drafts of files that were removed; others that are nobody's
        are kept aside."""
        staging = os.path.join(self.path, STAGING_NAME)
        used = self.drafts.staging_in_use()
        for entry in os.scandir(staging):
            if entry.name in used or entry.is_dir(follow_symlinks=False):
                continue
            inode = inode_of_draft(entry.name)
            if inode is not None and not self.catalog.was_removed(inode):
                kept = os.path.join(staging, KEPT_NAME)
                os.makedirs(kept, exist_ok=True)
                os.rename(entry.path, os.path.join(kept, entry.name))
                log.warning("%s: a draft that nothing speaks of any more is kept in %s", entry.name, kept)
            else:
                os.unlink(entry.path)

    async def _finish(self) -> None:
        safe = False
        try:
            try:
                await self._put_on_disk()
            finally:
                self._close()
                syncfs(self.path)
            safe = True
        finally:
            if self._lock is not None:
                self._lock.release(safe=safe)
                self._lock = None

    async def _put_on_disk(self) -> None:
        for inode in self.namespace.forget_all():
            try:
                await self.files.drop(inode)
            except Exception as exc:
                log.error("inode %d: a removed file stays until the next mount: %s", inode.id, exc)
        sealed = False
        try:
            await self.sealer.seal_all()
            sealed = True
        finally:
            try:
                await self.commits.sync_now()
            except BaseException:
                # It may not survive power loss; but it was done, and nothing else stands in its way.
                self.commits.commit()
                raise
            if sealed:
                self.catalog.set_meta("clean", 1)
                self.commits.commit()

    def _close(self) -> None:
        self.contents.close()
        self.commits.close()
        if not self.read_only:
            self._known.close()
        self.catalog.close()

    def open_scratch(self) -> IO[bytes]:
        """A file without a name on the store's disk, unbuffered, for reading and writing; blocks."""
        return tempfile.TemporaryFile(buffering=0, dir=os.path.join(self.path, STAGING_NAME))

    def statvfs(self) -> os.statvfs_result:
        """The file system below."""
        return self.space.statvfs()

    @property
    def no_room(self) -> bool:
        """Whether changes are refused for want of room: names, because the catalog has none, or contents."""
        return self.namespace.no_room or (not self.read_only and self.space.is_full)


def _group_to_give(blobs: str) -> int | None:
    """The group of the blobs; None if what this process makes has it anyway, or cannot be given to it."""
    try:
        gid = os.stat(blobs).st_gid
    except FileNotFoundError:
        return None
    may = os.geteuid() == 0 or gid in os.getgroups()
    return gid if may and gid != os.getegid() else None
