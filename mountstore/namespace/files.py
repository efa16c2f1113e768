"""Regular files: open, read, write, truncate, fsync, release.

One thread owns everything here. What blocks (reading cold blobs, cutting and hashing large contents, staging
files) goes to worker threads; meanwhile `Inode.busy` is set, and whoever would change the content waits for
it. Between two awaits every method leaves the inode consistent.

A draft is sealed when the last writer closes. If that fails (a full disk), the draft stays, is read as
before, and is tried again every few seconds: nothing acknowledged is given up while the process lives.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from mountstore.blobs.flush import FlushFailedError
from mountstore.errors import NoSpaceError, TooLargeError
from mountstore.namespace.contents import Contents
from mountstore.namespace.draft import Draft, MemoryDraft
from mountstore.namespace.drafts import Drafts, wait_idle
from mountstore.namespace.inodes import Inode, InodeTable
from mountstore.namespace.sealing import INLINE_WRITE_MAX, Sealer
from mountstore.namespace.staged_draft import Recorded, StagedDraft
from mountstore.namespace.streamed_draft import StreamedDraft

log = logging.getLogger(__name__)

FILE_MAX = (1 << 63) - 1
"""Largest size of a file in bytes (off_t)."""

_PAGE_BYTES = 4096

FAST_BYTES = 64 << 20
"""A stream that grows by so much from one `keep_open` to the next is a copy under way."""

_FEED_BYTES = 1 << 20
# A stream is fed if there is so much at least: a trip to a worker costs as much as 100 KiB of hashing, far more if
# no core is free. So it stays there while there is more, until others should have the worker.
_TURN_BYTES = 32 << 20
# How much a stream may take while what it took before is being placed: so that neither waits for the other.
_AHEAD_BYTES = 8 << 20
_AHEAD_TOTAL = 16 << 20


class Handle:
    """An open file.

    `privileged` is whether its opener may write without clearing setuid and setgid, `member` whether the
    opener is known to belong to the file's group.
    """

    __slots__ = ("inode", "member", "privileged", "writable")

    def __init__(self, inode: Inode, writable: bool, privileged: bool, member: bool) -> None:
        self.inode = inode
        self.writable = writable
        self.privileged = privileged
        self.member = member


class Files:
    """The regular files of one store.

    Args:
      hard_sync: Makes everything sealed and named so far survive power loss.
      doubt: Told when a flush failed, so that nobody knows what is on the disk.
    """

    def __init__(
        self,
        *,
        inodes: InodeTable,
        contents: Contents,
        drafts: Drafts,
        sealer: Sealer,
        hard_sync: Callable[[], Awaitable[None]],
        doubt: Callable[[Exception], None],
    ) -> None:
        self._inodes = inodes
        self._contents = contents
        self._drafts = drafts
        self._sealer = sealer
        self._hard_sync = hard_sync
        self._doubt = doubt
        # Files that were open for writing and changed at the last `keep_open`: their size then.
        self._lasting: dict[int, int] = {}
        self.seal = sealer.seal

    # --- opening and closing ---

    def open(self, inode: Inode, *, writable: bool, privileged: bool, member: bool = False) -> Handle:
        """Open a regular file; every handle must be given to `release` once."""
        inode.handles += 1
        if writable:
            inode.writers += 1
        return Handle(inode, writable, privileged, member)

    async def release(self, handle: Handle) -> None:
        """Close a handle; the last writer's close seals the draft."""
        inode = handle.inode
        if handle.writable:
            inode.writers -= 1
            if inode.writers == 0:
                inode.syncs = 0
                if inode.draft is None:
                    inode.change = None
                    self._drafts.settled(inode)
                elif inode.change is not None:
                    inode.change.ended = True
                if inode.draft is not None and inode.nlink > 0:
                    await self._sealer.seal_or_keep(inode)
        inode.handles -= 1
        if inode.handles == 0:
            self._contents.close_reader(inode)
            if inode.nlink == 0 and inode.forgotten:
                await self.drop(inode)

    async def drop(self, inode: Inode) -> None:
        """Remove an orphan that nobody uses any more."""
        await wait_idle(inode)
        if inode.nlink > 0 or inode.handles > 0:
            return
        if inode.draft is not None:
            self._drafts.retire(inode)
        self._drafts.settled(inode)
        self._contents.close_reader(inode)
        self._inodes.remove(inode)

    # --- reading ---

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer than `length` only at the end of the file.

        Raises:
          CorruptError, BlobMissingError: The store's bytes are not those that were written.
        """
        while (draft := inode.draft) is not None:
            if type(draft) is MemoryDraft:
                return draft.pread(offset, length)
            if type(draft) is StagedDraft:
                stretches = draft.stretches(offset, length)
                with draft.in_use():
                    return await self._contents.in_thread(draft.pread_stretches, stretches)
            # The kernel has what was just written, so this is rare: read it sealed, or staged.
            unsealed = await self._seal_or_read(inode, draft, offset, length)
            if unsealed is not None:
                return unsealed
        return await self._contents.read(inode, offset, length)

    async def _seal_or_read(self, inode: Inode, draft: Draft, offset: int, length: int) -> bytes | None:
        """Seal a stream; if that cannot be done now, on a full disk for instance, bytes of it as it is."""
        try:
            await self._sealer.seal(inode)
            return None
        except Exception as exc:
            # Whatever it was: the bytes are here, and who writes is told by his own call.
            self._drafts.ask_for_room(exc)
            if type(draft) is not StreamedDraft or inode.draft is not draft:
                raise
        async with draft.turn:
            draft.take_no_more()
            try:
                return await self._contents.in_thread(draft.pread, offset, length)
            finally:
                draft.note_taken()

    # --- writing ---

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Put all of `data` at `offset`; a gap before it reads as zeros.

        Raises:
          NoSpaceError, TooLargeError: Nothing was written.
        """
        inode = handle.inode
        end = offset + len(data)
        if end > FILE_MAX:
            raise TooLargeError(f"inode {inode.id}: would end at {end}")
        draft = inode.draft
        if draft is None or inode.busy is not None:
            draft = await self._drafts.open(inode, keep=FILE_MAX)
        assert inode.change is not None
        if offset < inode.change.lowest:
            lowest = await self._first_changed(inode, draft, offset, data)
            if inode.draft is not draft or inode.busy is not None:
                draft = await self._drafts.open(inode, keep=FILE_MAX)
            inode.change.touch(lowest)
        written = False
        try:
            while not written:
                if type(draft) is MemoryDraft:
                    size = len(draft.data)
                    if end <= size or self._drafts.resize(draft, end):
                        draft.write(offset, data)
                        written = True
                    else:
                        in_order = offset == size and inode.syncs == 0
                        streamed = self._drafts.stream(inode, draft) if in_order else None
                        draft = streamed or self._drafts.spill(inode, draft)
                elif type(draft) is StreamedDraft:
                    written = await self._write_streamed(inode, draft, offset, data)
                    if not written:
                        # The stream is over; its content may be short enough for any form of draft.
                        await self._sealer.seal(inode)
                        draft = await self._drafts.open(inode, keep=FILE_MAX)
                        inode.change.touch(offset)
                else:
                    assert type(draft) is StagedDraft
                    if draft.is_fixed:
                        draft = await self._reopen(inode, draft)
                        inode.change.touch(offset)
                        continue
                    await self._write_staged(draft, offset, data)
                    written = True
        except OSError as exc:
            # What was promised is not there: who writes next is told before it is accepted.
            self._drafts.ask_for_room(exc)
            raise
        if inode.draft is draft:
            inode.size = draft.size_bytes
        inode.view = None
        if not handle.privileged and inode.mode & 0o6000:
            self._clear_privileges(inode, handle.member)
        return len(data)

    async def _first_changed(self, inode: Inode, draft: Draft, offset: int, data: bytes) -> int:
        """Where a write begins to change what the origin had.

        The kernel writes back whole pages: bytes appended to a file come with those before them.
        """
        assert inode.change is not None
        overlap = inode.change.lowest - offset
        if overlap > _PAGE_BYTES or overlap >= len(data):
            return offset
        if type(draft) is MemoryDraft:
            known = bytes(memoryview(draft.data)[offset : offset + overlap])
        elif type(draft) is StagedDraft:
            stretches = draft.stretches(offset, overlap)
            with draft.in_use():
                known = await self._contents.in_thread(draft.pread_stretches, stretches)
        else:
            return offset
        return offset + overlap if known == data[:overlap] else offset

    async def _write_streamed(self, inode: Inode, draft: StreamedDraft, offset: int, data: bytes) -> bool:
        """Write to a stream; False if the bytes do not continue it."""
        try:
            if draft.stuck:
                # What it took before goes first: a stream that cannot be placed must not fill the memory.
                await self._feed(inode, draft, 0)
                if inode.draft is not draft or inode.busy is not None:
                    return False
            self._drafts.claim(draft, len(data))
            if not self._drafts.write_streamed(draft, offset, data):
                return False
            inode.size = draft.size_bytes
            await self._keep_up(inode, draft)
            return True
        finally:
            # However this ends: whoever relied on it is not to wait for ever.
            draft.wake_next()

    async def _keep_up(self, inode: Inode, draft: StreamedDraft) -> None:
        """Have what a stream took be placed, and return when no more of what came before is left than is allowed.

        One of those who write calls a worker for all; the others go on as soon as it has come near their bytes.
        """
        end = draft.end
        placed = 0
        while inode.draft is draft and draft.pending_bytes >= _FEED_BYTES and placed < _TURN_BYTES:
            if not draft.feeding:
                placed += await self._feed(inode, draft, _FEED_BYTES)
            elif (near := end - self._room_ahead()) > draft.fed_bytes:
                await draft.wait_fed(near)
            else:
                break

    def _room_ahead(self) -> int:
        """How much a stream may have taken that is not placed; the more drafts there are, the less."""
        return min(_AHEAD_BYTES, _AHEAD_TOTAL // len(self._drafts.inodes))

    async def _feed(self, inode: Inode, draft: StreamedDraft, least: int) -> int:
        """Place what the stream has taken, in turn, if that still is `least` bytes; return how much was placed."""
        async with draft.turn:
            if draft.pending_bytes < least or inode.draft is not draft:
                return 0
            before = draft.fed_bytes
            token = trio.lowlevel.current_trio_token()

            def tell(length: int) -> None:
                token.run_sync_soon(self._note_fed, draft, length)

            draft.feeding = True
            try:
                # Nothing may come between taking the bytes and feeding them.
                with trio.CancelScope(shield=True):
                    await self._contents.in_thread(draft.feed, _TURN_BYTES, tell)
            except BaseException:
                draft.note_taken()
                raise
            finally:
                draft.feeding = False
            return draft.fed_bytes - before

    def _note_fed(self, draft: StreamedDraft, length: int) -> None:
        draft.note_fed(length)
        self._drafts.placed(draft, length)

    async def _write_staged(self, draft: StagedDraft, offset: int, data: bytes) -> None:
        self._drafts.claim_in_all(draft, draft.dirty.total_with(offset, offset + len(data)))
        if len(data) <= INLINE_WRITE_MAX:
            draft.put(offset, data)
        else:
            with draft.put_begun():
                await self._contents.in_thread(draft.put, offset, data)
        draft.mark(offset, len(data))

    async def truncate(self, inode: Inode, size: int, *, privileged: bool, member: bool = False) -> None:
        """Set the size; what is added reads as zeros. Sealed at once if nobody has it open for writing.

        Raises:
          NoSpaceError, TooLargeError: Nothing was changed.
        """
        if not 0 <= size <= FILE_MAX:
            raise TooLargeError(f"inode {inode.id}: size {size}")
        if inode.mode & 0o6000 and not privileged:
            self._clear_privileges(inode, member)
        if inode.draft is None and inode.busy is None and size == inode.content.size_bytes:
            return
        while not await self._truncate_draft(inode, await self._drafts.open(inode, keep=size), size):
            pass
        inode.size = size
        inode.view = None
        assert inode.change is not None
        if inode.writers == 0 and inode.nlink > 0:
            inode.change.ended = True
            # The truncation is done; what cannot be sealed now stays a draft and is tried again.
            await self._sealer.seal_or_keep(inode)

    async def _truncate_draft(self, inode: Inode, draft: Draft, size: int) -> bool:
        """Truncate a draft; False if it has to be opened anew first."""
        assert inode.change is not None
        if type(draft) is StreamedDraft:
            await self._sealer.seal(inode)
            return False
        if type(draft) is MemoryDraft:
            inode.change.touch(size)
            if self._drafts.resize(draft, size):
                draft.truncate(size)
                return True
            draft = self._drafts.spill(inode, draft)
        assert type(draft) is StagedDraft
        if draft.is_fixed:
            await self._reopen(inode, draft)
            return False
        # What a flush under way records is as it was before.
        async with draft.turn:
            if inode.draft is not draft or inode.busy is not None or draft.is_fixed:
                return False
            # What has no name is promised to nobody, but for a note of what its name stood for.
            recorded = draft.recorded is Recorded.FLUSHED and inode.nlink > 0
            if recorded and self._drafts.records.outgrown(inode, draft, size):
                await draft.wait_quiet()
                if inode.draft is draft and not self._drafts.records.keep_changes(inode, draft):
                    await self._flush_staged(inode, draft)
                return False
            inode.change.touch(size)
            draft.truncate(size)
            if recorded:
                self._drafts.records.keep_size(inode, draft, size)
        return True

    async def _reopen(self, inode: Inode, draft: StagedDraft) -> Draft:
        """Flush and record a draft that `is_fixed`, before it is changed. Returns the one to change."""
        if inode.busy is None and inode.draft is draft:
            inode.busy = done = trio.Event()
            try:
                async with draft.turn:
                    await self._flush_staged(inode, draft)
                # Not within the turn: whoever syncs may have to wait for that.
                await self._hard_sync()
            finally:
                inode.busy = None
                done.set()
        return await self._drafts.open(inode, keep=FILE_MAX)

    def _clear_privileges(self, inode: Inode, member: bool) -> None:
        """What the kernel leaves to us with FUSE_HANDLE_KILLPRIV_V2; see file_remove_privs in the kernel:
        setuid goes always, setgid where it means execution as the group or the writer is not in the group."""
        drop = inode.mode & 0o4000
        if inode.mode & 0o0010 or not member:
            drop |= inode.mode & 0o2000
        if drop:
            inode.mode &= ~drop
            self._inodes.changed(inode)

    # --- durability ---

    async def fsync(self, inode: Inode) -> None:
        """Make content and name survive power loss (fsync(2))."""
        await wait_idle(inode)
        draft = inode.draft
        if draft is not None and inode.nlink > 0:
            if type(draft) is StagedDraft:
                await self._promise_staged(inode, draft)
            else:
                try:
                    await self._sealer.seal(inode)
                except Exception as exc:
                    self._drafts.ask_for_room(exc)
                    raise
            inode.syncs += 1
        self._drafts.settled(inode)
        await self._hard_sync()

    async def _gather(self, inode: Inode, draft: StagedDraft) -> None:
        """Bound what is recorded of a draft: many small changes that lie close become fewer larger ones."""
        gaps = draft.gaps()
        if not gaps:
            return
        try:
            self._drafts.claim_in_all(draft, draft.dirty.total() + sum(end - start for start, end in gaps))
        except NoSpaceError:
            return
        inode.busy = done = trio.Event()
        try:
            with draft.in_use():
                await self._contents.in_thread(draft.fill, gaps)
        finally:
            inode.busy = None
            done.set()

    async def _promise_staged(self, inode: Inode, draft: StagedDraft) -> None:
        """Have what is in a staged draft survive power loss, once the catalog does."""
        async with draft.turn:
            await draft.wait_quiet()
            if inode.draft is draft and not self._drafts.records.keep_changes(inode, draft):
                await self._flush_staged(inode, draft)

    async def _flush_staged(self, inode: Inode, draft: StagedDraft) -> None:
        """Flush the staging file, and record it, unless it has been sealed; whoever calls holds `draft.turn`."""
        await draft.wait_quiet()
        if inode.busy is None and inode.draft is draft:
            await self._gather(inode, draft)
        if inode.draft is not draft:
            return
        row = draft.to_row(inode.id)
        fresh = draft.take_fresh()
        try:
            with draft.in_use():
                await self._contents.in_thread(draft.flush)
        except BaseException as exc:
            draft.put_back_fresh(fresh)
            if isinstance(exc, FlushFailedError):
                self._doubt(exc)
            raise
        if inode.draft is draft:
            self._drafts.records.keep_flushed(inode, draft, row)

    async def keep_open(self) -> bool:
        """Have what stays open for writing survive a crash as far as it has arrived; called now and then.

        Only what was open and changed at the call before, too: most files are closed by then. A stream that is
        growing fast is left alone, since a file that is being copied is worth nothing before its end. What was
        closed and takes so long to be sealed is kept in its staging file.

        Returns: Whether something is recorded that a hard sync has yet to make safe.
        """
        lasting, self._lasting = self._lasting, {}
        kept = False
        for inode in list(self._drafts.inodes):
            draft = inode.draft
            if draft is None or inode.nlink == 0:
                continue
            if type(draft) is StagedDraft:
                if draft.is_promised:
                    continue
            elif inode.writers == 0:
                continue
            if inode.writers > 0 and inode.busy is not None:
                continue
            size = draft.size_bytes
            self._lasting[inode.id] = size
            if inode.id not in lasting:
                continue
            try:
                if type(draft) is StreamedDraft:
                    if size - lasting[inode.id] < FAST_BYTES:
                        await self._sealer.seal(inode)
                        kept = True
                    continue
                if type(draft) is MemoryDraft:
                    draft = self._drafts.spill(inode, draft)
                if type(draft) is StagedDraft:
                    async with draft.turn:
                        await self._flush_staged(inode, draft)
                    kept = True
            except Exception as exc:
                log.error("inode %d: what is written to it cannot be kept yet: %s", inode.id, exc)
        return kept

