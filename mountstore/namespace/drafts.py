"""The drafts of all inodes: opened over contents, grown from one form into the next, retired.

Bounds: all drafts in memory together, and what streams have in it, hold at most `MEMORY_TOTAL` bytes; beyond, they
go to staging files. What a draft will need on the disk is claimed from `Space` when it is accepted.
"""

from __future__ import annotations

import logging
import os
import time

import trio

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.content import EMPTY, Content
from mountstore.blobs.reader import ContentReader
from mountstore.blobs.seal import StreamingSeal
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import CorruptError, MisuseError, StaleError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.contents import Contents
from mountstore.namespace.draft import MEMORY_MAX, Draft, MemoryDraft
from mountstore.namespace.inodes import Change, Inode, InodeTable, kept_mode
from mountstore.namespace.recorded_drafts import DraftRecords
from mountstore.namespace.replaced import Replaced
from mountstore.namespace.space import Space
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.namespace.streamed_draft import StreamedDraft

log = logging.getLogger(__name__)

MEMORY_TOTAL = 256 << 20
"""Bytes of all drafts in memory together."""

STREAM_BYTES = 6 << 20
"""What a stream is reckoned to hold in memory: a piece whose end is not found yet, up to 4 MiB, and what waits to
be cut. Less than a draft in memory has when it grows too long for that, so it always has room as a stream."""


def inode_of_draft(name: str) -> int | None:
    """The inode whose draft a file in staging is, going by its name; None for what is no draft."""
    prefix, _, rest = name.partition("-")
    if prefix != "draft":
        return None
    number = rest.partition("-")[0]
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else 0


class Drafts:
    """Drafts of one store.

    Args:
      staging: Directory for the files of staged drafts.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        inodes: InodeTable,
        contents: Contents,
        tree: BalancedTree,
        parameters: ChunkingParameters,
        staging: str,
        space: Space,
        replaced: Replaced,
    ) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._contents = contents
        self._tree = tree
        self._parameters = parameters
        self._staging = staging
        self._space = space
        self._replaced = replaced
        self.records = DraftRecords(catalog, contents)
        """What the catalog has of staged drafts."""
        self._memory_bytes = 0
        self.inodes: set[Inode] = set()
        """Those that have a draft."""
        # Staging files whose content is sealed, to be deleted when the seal survives power loss.
        self._retired: list[str] = []

    @property
    def memory_bytes(self) -> int:
        """What all drafts hold in memory, as counted against `MEMORY_TOTAL`."""
        return self._memory_bytes

    # --- opening ---

    async def open(self, inode: Inode, *, keep: int) -> Draft:
        """The draft of an inode, opened over its content if there is none; of that the first `keep` bytes
        are wanted. Waits for a change in progress.

        Raises: What reading the content raises, NoSpaceError; then there is no draft.
        """
        await wait_idle(inode)
        if inode.draft is not None:
            return inode.draft
        base = inode.content
        wanted = min(base.size_bytes, keep)
        # A file that is fsynced again and again (a database) is not to be rewritten whole for each fsync.
        large = wanted > MEMORY_MAX or (wanted > 0 and self._memory_bytes + wanted > MEMORY_TOTAL)
        if large or (inode.syncs > 0 and base.size_bytes > 0):
            staged = self._new_staged(inode, base, self._contents.open_reader(base))
            staged.base_allocated = inode.allocated
            self._begin(inode, staged)
            return staged
        draft = MemoryDraft(base, bytearray())
        if wanted:
            inode.busy = done = trio.Event()
            try:
                draft.data += await self._contents.read(inode, 0, wanted)
            finally:
                inode.busy = None
                done.set()
            if len(draft.data) != wanted:
                raise CorruptError(f"inode {inode.id}: its content is shorter than recorded")
            self.claim(draft, wanted)
            self._memory_bytes += wanted
        self._begin(inode, draft)
        return draft

    def _begin(self, inode: Inode, draft: Draft) -> None:
        """From now on the inode has this draft. Not earlier: a writer that closes ends a change without one."""
        if inode.change is None:
            inode.change = self._change_of(inode, draft.base)
        inode.draft = draft
        self.inodes.add(inode)

    def _change_of(self, inode: Inode, origin: Content) -> Change:
        mode = kept_mode(self._catalog, inode)
        return Change(origin, inode.mtime_ns, mode=mode, uid=inode.uid, gid=inode.gid)

    def _new_staged(self, inode: Inode, base: Content, reader: ContentReader | None) -> StagedDraft:
        path = self._new_path(inode)
        try:
            try:
                return StagedDraft(path, base, reader, sparing=True)
            except OSError:
                # Most likely EMFILE; whatever it was, the second attempt tells.
                if not self._contents.close_idle():
                    raise
                return StagedDraft(path, base, reader, sparing=True)
        except OSError:
            if reader is not None:
                reader.close()
            raise

    def _new_path(self, inode: Inode) -> str:
        return os.path.join(self._staging, f"draft-{inode.id}-{time.time_ns():x}")

    # --- growing ---

    def claim(self, draft: Draft, length: int) -> None:
        """Promise the draft room for `length` more bytes. Raises: NoSpaceError."""
        self._space.claim(length, new_file=not draft.file_claimed)
        draft.claimed += length
        draft.file_claimed = True

    def ask_for_room(self, failure: Exception) -> None:
        """A seal failed, or a write: ask the disk before anything more is accepted."""
        self._space.ask_again(failure)

    def claim_in_all(self, draft: Draft, length: int) -> None:
        """Promise the draft room for `length` bytes altogether: what is written again and again needs room
        once. Raises: NoSpaceError."""
        if length > draft.claimed:
            self.claim(draft, length - draft.claimed)

    def resize(self, draft: MemoryDraft, size: int) -> bool:
        """Account for a draft that is about to get another size; False if that is too large for memory.

        Raises: NoSpaceError
        """
        growth = size - len(draft.data)
        if size > MEMORY_MAX or (growth > 0 and self._memory_bytes + growth > MEMORY_TOTAL):
            return False
        self.claim_in_all(draft, size)
        self._memory_bytes += growth
        return True

    def spill(self, inode: Inode, memory: MemoryDraft) -> StagedDraft:
        """Move a draft from memory into a staging file."""
        staged = self._new_staged(inode, memory.base, None)
        staged.base_limit = staged.size_bytes = 0
        try:
            staged.put(0, memory.data)
        except OSError:
            staged.close()
            staged.discard()
            raise
        staged.mark(0, len(memory.data))
        self._replace(inode, memory, staged)
        return staged

    def stream(self, inode: Inode, memory: MemoryDraft) -> StreamedDraft | None:
        """Seal a draft from memory while more of it arrives in order; None, and nothing done, if no memory is left
        for what a stream holds."""
        if self._memory_bytes - len(memory.data) + STREAM_BYTES > MEMORY_TOTAL:
            return None
        streamed = StreamedDraft(memory.base, StreamingSeal(self._tree, self._parameters), memory.data)
        self._replace(inode, memory, streamed)
        self._memory_bytes += STREAM_BYTES
        return streamed

    def write_streamed(self, draft: StreamedDraft, offset: int, data: bytes) -> bool:
        """As `StreamedDraft.write`, within the memory that is left for what comes early."""
        parked = draft.parked_bytes
        taken = draft.write(offset, data, MEMORY_TOTAL - self._memory_bytes)
        self._memory_bytes += draft.parked_bytes - parked
        return taken

    def _replace(self, inode: Inode, memory: MemoryDraft, draft: Draft) -> None:
        draft.claimed = memory.claimed
        draft.file_claimed = memory.file_claimed
        self._memory_bytes -= len(memory.data)
        inode.draft = draft

    def stage_parked(self, inode: Inode, streamed: StreamedDraft) -> StagedDraft:
        """Write what is parked ahead of a stream to a staging file, for `lay_over`; blocks, any thread.

        Raises: OSError; then nothing is left of it.
        """
        staged = StagedDraft(self._new_path(inode), EMPTY, None)
        try:
            for offset, data in streamed.parked.items():
                staged.put(offset, data)
                staged.mark(offset, len(data))
        except OSError:
            staged.close()
            staged.discard()
            raise
        return staged

    def stage_stream(self, inode: Inode, streamed: StreamedDraft) -> StagedDraft:
        """Write a whole stream that cannot be finished to a staging file, for `unstream`; blocks, any thread.

        Raises: OSError, CorruptError, BlobMissingError; then nothing is left of it.
        """
        staged = StagedDraft(self._new_path(inode), streamed.base, None)
        staged.base_limit = staged.size_bytes = 0
        try:
            for offset, data in streamed.contents():
                staged.put(offset, data)
                staged.mark(offset, len(data))
            # Holes at the end.
            staged.truncate(max(staged.size_bytes, streamed.end))
        except BaseException:
            staged.close()
            staged.discard()
            raise
        return staged

    def unstream(self, inode: Inode, streamed: StreamedDraft, staged: StagedDraft) -> None:
        """What was a stream is a draft in a staging file from now on."""
        staged.claimed = streamed.claimed
        staged.file_claimed = streamed.file_claimed
        self._memory_bytes -= STREAM_BYTES + streamed.parked_bytes
        inode.draft = staged
        inode.view = None

    def lay_over(self, inode: Inode, staged: StagedDraft, claimed: int) -> None:
        """What was parked ahead of a stream, which is sealed now, becomes a draft over it."""
        staged.claimed = claimed
        staged.file_claimed = True
        staged.lay_over(inode.content, self._contents.open_reader(inode.content))
        staged.base_allocated = inode.allocated
        inode.draft = staged
        self.inodes.add(inode)
        inode.size = staged.size_bytes
        inode.view = None

    # --- ending ---

    def retire(self, inode: Inode) -> None:
        """Let go of an inode's draft, which is sealed or no longer wanted."""
        draft = inode.draft
        assert draft is not None
        inode.draft = None
        self.inodes.discard(inode)
        self._space.release(draft.claimed, file=draft.file_claimed)
        if type(draft) is MemoryDraft:
            self._memory_bytes -= len(draft.data)
        elif type(draft) is StreamedDraft:
            self._memory_bytes -= STREAM_BYTES + draft.parked_bytes
        elif type(draft) is StagedDraft:
            draft.close()
            if self.records.forget(inode, draft):
                self._retired.append(draft.path)
            else:
                draft.discard()

    def note_replaced(self, inode: Inode) -> None:
        """The inode's draft is about to become its content: note what that replaces."""
        self._replaced.note(inode.id, inode.content, inode.allocated, self.records.promised(inode))

    def note_taken_over(self, inode: Inode, replaced: Inode) -> None:
        """A file took the name of another by a rename: note what the name stood for."""
        if inode.is_regular and replaced.is_regular:
            row = self.records.promised(replaced)
            self._replaced.inherit(
                inode.id, replaced.id, replaced.content, replaced.allocated, row, still_open=inode.writers > 0
            )

    def settled(self, inode: Inode) -> None:
        """The content of a file, or its recorded draft, is what its writers wanted, as far as they said so."""
        self._replaced.closed(inode.id)

    def take_retired(self) -> list[str]:
        """Staging files to delete after the hard sync that is about to start."""
        retired, self._retired = self._retired, []
        return retired

    def placed(self, draft: StreamedDraft, length: int) -> None:
        """So many bytes of a stream have found their place on the disk."""
        released = min(length, draft.claimed)
        self._space.release(released)
        draft.claimed -= released

    # --- after a crash ---

    def restore(self) -> int:
        """At start: take up the drafts that a crash left recorded. Returns how many.

        A draft that cannot be brought back is reported and its staging file kept.
        """
        restored = 0
        rows = self._catalog.drafts()
        sealed = set(self._replaced.load()) - {row.staging for row in rows}
        self._retired += [os.path.join(self._staging, name) for name in sealed]
        for row in rows:
            try:
                inode = self._inodes.get(row.inode)
                if not inode.is_regular:
                    raise MisuseError(f"inode {row.inode} is no regular file")
                base = inode.content
                draft = StagedDraft.from_row(row, self._staging, base, self._contents.open_reader(base))
            except (CorruptError, StaleError, MisuseError) as exc:
                log.error("%s: a draft cannot be brought back, its file is kept: %s", row.staging, exc)
                self._catalog.delete_draft(row.inode)
                continue
            draft.base_allocated = inode.allocated
            inode.draft = draft
            self.inodes.add(inode)
            inode.size = draft.size_bytes
            inode.view = None
            inode.change = self._change_of(inode, base)
            # The mode may have been widened since the draft was begun.
            inode.change.mode &= ~0o077
            inode.change.ended = True
            inode.change.touch(min((start for start, _ in draft.dirty_ranges()), default=draft.size_bytes))
            restored += 1
        return restored

    def staging_in_use(self) -> set[str]:
        """Base names of the staging files that belong to drafts, or did until they were sealed."""
        return {os.path.basename(path) for path in self._retired} | {
            os.path.basename(inode.draft.path)
            for inode in self.inodes
            if type(inode.draft) is StagedDraft
        }


async def wait_idle(inode: Inode) -> None:
    """Return when no seal, and no opening of a draft, is in progress."""
    while inode.busy is not None:
        await inode.busy.wait()
