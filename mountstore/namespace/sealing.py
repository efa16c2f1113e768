"""Sealing: a draft becomes blobs, and the inode points at them."""

from __future__ import annotations

import logging

import trio

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.content import EMPTY, ContentKind, Sealed
from mountstore.blobs.seal import seal, seal_small
from mountstore.blobs.tree import BalancedTree
from mountstore.namespace.contents import Contents
from mountstore.namespace.draft import Draft, MemoryDraft
from mountstore.namespace.drafts import Drafts, wait_idle
from mountstore.namespace.inodes import Inode, InodeTable
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.namespace.streamed_draft import StreamedDraft
from mountstore.namespace.versions import Versions

log = logging.getLogger(__name__)

INLINE_WRITE_MAX = 128 << 10
"""Bytes that the owner's thread handles itself: hashing and writing them takes some 100 us, as much as the way
to a worker and back."""


_LONG_SEAL_BYTES = 32 << 20
"""Sealing a draft of so much takes a quarter second and more, in which the process may die."""


class Sealer:
    """Seals the drafts of one store."""

    def __init__(
        self,
        *,
        inodes: InodeTable,
        ledger: Ledger,
        versions: Versions,
        contents: Contents,
        drafts: Drafts,
        tree: BalancedTree,
        parameters: ChunkingParameters,
    ) -> None:
        self._inodes = inodes
        self._ledger = ledger
        self._versions = versions
        self._contents = contents
        self._drafts = drafts
        self._tree = tree
        self._parameters = parameters
        # What was last said of the drafts that could not be sealed.
        self._kept: dict[int, str] = {}
        self._inline_max = min(INLINE_WRITE_MAX, parameters.piece_max)

    async def seal(self, inode: Inode) -> None:
        """Turn the draft, if there is one, into the inode's content.

        Raises: What the blobs raise; the draft is then as before.
        """
        await wait_idle(inode)
        while (draft := inode.draft) is not None:
            data = self._small_content(draft)
            if data is not None:
                # Without an await: most files come and go here.
                self._adopt(inode, draft, seal_small(self._tree, data) if data else Sealed(EMPTY, ()))
                return
            parked: StagedDraft | None = None
            inode.busy = done = trio.Event()
            try:
                if type(draft) is StreamedDraft and draft.parked:
                    # Before the stream ends: if there is no room for them, everything is as before.
                    parked = await self._contents.in_thread(self._drafts.stage_parked, inode, draft)
                sealed = await self._seal_in_thread(inode, draft)
            except BaseException:
                self._ledger.suspect = True
                if parked is not None:
                    parked.close()
                    parked.discard()
                if type(draft) is MemoryDraft:
                    # Whoever looks at the exception may hold views of the bytes, which could not grow then.
                    draft.data = bytearray(draft.data)
                raise
            finally:
                inode.busy = None
                done.set()
            if type(draft) is not StreamedDraft or parked is None:
                self._adopt(inode, draft, sealed)
                return
            # What is promised for these bytes, and for the file, stays promised.
            claimed = draft.parked_bytes
            draft.claimed -= claimed
            draft.file_claimed = False
            change = inode.change
            self._adopt(inode, draft, sealed)
            # The stream's content is no version: the change goes on.
            inode.change = change
            self._drafts.lay_over(inode, parked, claimed)

    def _small_content(self, draft: Draft) -> bytes | bytearray | None:
        """All of a draft, if it is small enough to be sealed by the owner's thread."""
        if type(draft) is MemoryDraft:
            return draft.data if len(draft.data) <= self._inline_max else None
        if type(draft) is StagedDraft and draft.size_bytes <= self._inline_max and draft.quiet:
            return draft.pread(0, draft.size_bytes)
        return None

    async def _seal_in_thread(self, inode: Inode, draft: Draft) -> Sealed:
        in_thread = self._contents.in_thread
        if type(draft) is MemoryDraft:
            return await in_thread(self._seal_memory, draft.data)
        if type(draft) is StreamedDraft:
            async with draft.turn:
                draft.take_no_more()
                try:
                    return await in_thread(draft.finish)
                finally:
                    # Also if it failed; then the next attempt goes on with what is left.
                    draft.note_taken()
        assert type(draft) is StagedDraft
        await draft.wait_quiet()
        if inode.writers == 0 and draft.dirty.total() >= _LONG_SEAL_BYTES:
            await self._drafts.records.keep_closed(inode, draft)
        return await in_thread(self._seal_staged, draft)

    def _seal_memory(self, data: bytearray) -> Sealed:
        if len(data) <= self._parameters.piece_max:
            return seal_small(self._tree, data)
        return seal(self._tree, self._parameters, _Bytes(data))

    def _seal_staged(self, draft: StagedDraft) -> Sealed:
        if draft.base.kind is ContentKind.MANIFEST:
            dirty = draft.dirty_ranges()
            return seal(self._tree, self._parameters, draft, base=draft.base, dirty=dirty)
        return seal(self._tree, self._parameters, draft)

    def _adopt(self, inode: Inode, draft: Draft, sealed: Sealed) -> None:
        """The sealed content becomes the inode's."""
        self._ledger.record(sealed.blobs)
        content = sealed.content
        if content.kind is ContentKind.MANIFEST:
            # Just written: not to be read again for the sake of it. What was there before may be damaged.
            for blob in sealed.blobs:
                if blob.new:
                    self._contents.verified.add(blob.digest)
        if content != inode.content:
            self._drafts.note_replaced(inode)
            self._versions.sealed(inode, content)
            self._contents.close_reader(inode)
            inode.content = content
        inode.size = content.size_bytes
        inode.allocated = content.size_bytes - sealed.hole_bytes
        self._drafts.retire(inode)
        if inode.writers == 0:
            self._drafts.settled(inode)
        if inode.change is not None and inode.change.ended:
            inode.change = None
        self._inodes.changed(inode)

    async def seal_or_keep(self, inode: Inode) -> None:
        """Seal when there is nobody left to tell of a failure: the draft is kept, and tried again."""
        try:
            await self.seal(inode)
        except Exception as exc:
            self._drafts.ask_for_room(exc)
            self._contents.close_idle()
            # It is tried every few seconds, perhaps for days: said once.
            if self._kept.get(inode.id) != str(exc):
                self._kept[inode.id] = str(exc)
                log.error("inode %d: cannot be sealed now, kept as a draft: %s", inode.id, exc)
        else:
            self._kept.pop(inode.id, None)

    async def settle(self) -> None:
        """Return when what was closed before this call is sealed.

        Raises: Why something could not be; everything else is sealed all the same.
        """
        failure: Exception | None = None
        for inode in list(self._drafts.inodes):
            if inode.writers == 0 and inode.nlink > 0:
                try:
                    await self.seal(inode)
                except Exception as exc:
                    failure = failure or exc
        if failure is not None:
            raise failure

    async def settle_or_keep(self) -> None:
        """Return when what was closed before this call is sealed, or cannot be and stays a draft."""
        for inode in list(self._drafts.inodes):
            if inode.writers == 0 and inode.nlink > 0:
                await self.seal_or_keep(inode)

    async def seal_closed(self) -> None:
        """Try again what could not be sealed when it was closed; what is being sealed is not waited for."""
        if self._kept:
            drafted = {inode.id for inode in self._drafts.inodes}
            self._kept = {number: said for number, said in self._kept.items() if number in drafted}
        for inode in list(self._drafts.inodes):
            if inode.writers == 0 and inode.nlink > 0 and inode.busy is None:
                await self.seal_or_keep(inode)

    async def seal_all(self) -> None:
        """Seal every draft of a file that still has a name, at unmount.

        Raises: ExceptionGroup of what could not be sealed. It is recorded, if there is room for that, and so is
            a draft again at the next mount.
        """
        failures: list[Exception] = []
        for inode in list(self._drafts.inodes):
            if inode.nlink > 0:
                try:
                    await self.seal(inode)
                except Exception as exc:
                    exc.add_note(f"inode {inode.id}, {inode.size} bytes")
                    failures.append(exc)
                    await self._record_unsealed(inode, failures)
        if failures:
            raise ExceptionGroup("contents that could not be sealed", failures)

    async def _record_unsealed(self, inode: Inode, failures: list[Exception]) -> None:
        try:
            draft = inode.draft
            if type(draft) is MemoryDraft:
                draft = self._drafts.spill(inode, draft)
            elif type(draft) is StreamedDraft:
                staged = await self._contents.in_thread(self._drafts.stage_stream, inode, draft)
                self._drafts.unstream(inode, draft, staged)
                draft = staged
            if type(draft) is StagedDraft:
                await self._contents.in_thread(draft.flush)
                self._drafts.records.keep_flushed(inode, draft, draft.to_row(inode.id))
        except Exception as exc:
            failures.append(exc)


class _Bytes:
    """A content in memory as a source of a seal."""

    def __init__(self, data: bytearray) -> None:
        self._view = memoryview(data)

    @property
    def size_bytes(self) -> int:
        return len(self._view)

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])
