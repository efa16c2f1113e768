"""The contents of regular files: open, read, write, truncate, fsync, release, and sealing.

One thread owns everything here. What blocks (reading cold blobs, cutting and hashing large contents, staging
files) goes to worker threads; meanwhile `Inode.busy` is set, and whoever would change the content waits for
it. Between two awaits every method leaves the inode consistent.

A draft is sealed when the last writer closes. If that fails (a full disk), the draft stays, is read as
before, and is tried again at every hard sync: nothing acknowledged is given up while the process lives.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import trio

from mountstore.blobs.chunking import ChunkingParameters
from mountstore.blobs.content import EMPTY, Content, ContentKind, Sealed
from mountstore.blobs.reader import ContentReader, DescriptorCache, VerifiedBlobs
from mountstore.blobs.seal import seal, seal_small
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import CorruptError, MisuseError, TooLargeError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.draft import MEMORY_MAX, Draft, MemoryDraft, StagedDraft
from mountstore.namespace.inodes import Inode, InodeTable
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.space import Space

log = logging.getLogger(__name__)

_T = TypeVar("_T")

FILE_MAX = (1 << 63) - 1
"""Largest size of a file in bytes (off_t)."""

MEMORY_TOTAL = 256 << 20
"""All drafts in memory together."""

_INLINE_MAX = 128 << 10
"""Contents up to this size are hashed and written by the owner's thread: about 100 us, as much as the way
to a worker and back."""

_WORKERS = 4
"""Threads for contents; two would keep two cores busy, the others wait for the disk."""


class Handle:
    """An open file.

    `privileged` is whether its opener may write without clearing setuid and setgid.
    """

    __slots__ = ("inode", "privileged", "writable")

    def __init__(self, inode: Inode, writable: bool, privileged: bool) -> None:
        self.inode = inode
        self.writable = writable
        self.privileged = privileged


class Staging(NamedTuple):
    """Where drafts too large for memory are kept."""

    directory: str

    def new_path(self, inode: Inode) -> str:
        return os.path.join(self.directory, f"draft-{inode.id}-{time.time_ns():x}")


class Files:
    """Contents of the inodes of one store.

    Args:
      hard_sync: Makes everything sealed and named so far survive power loss.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        inodes: InodeTable,
        ledger: Ledger,
        tree: BalancedTree,
        parameters: ChunkingParameters,
        staging: str,
        space: Space,
        hard_sync: Callable[[], Awaitable[None]],
    ) -> None:
        self._catalog = catalog
        self._inodes = inodes
        self._ledger = ledger
        self._tree = tree
        self._parameters = parameters
        self._staging = Staging(staging)
        self._space = space
        self._hard_sync = hard_sync
        self._memory_bytes = 0
        self._workers = trio.CapacityLimiter(_WORKERS)
        self._verified = VerifiedBlobs()
        self._descriptors = DescriptorCache()
        # Staging files whose content is sealed, to be deleted when the seal survives power loss.
        self._retired: list[StagedDraft] = []

    # --- opening and closing ---

    def open(self, inode: Inode, *, writable: bool, privileged: bool) -> Handle:
        """Open a regular file; every handle must be given to `release` once."""
        inode.handles += 1
        if writable:
            inode.writers += 1
        return Handle(inode, writable, privileged)

    async def release(self, handle: Handle) -> None:
        """Close a handle; the last writer's close seals the draft."""
        inode = handle.inode
        if handle.writable:
            inode.writers -= 1
            if inode.writers == 0:
                inode.syncs = 0
                if inode.draft is not None and inode.nlink > 0:
                    await self._seal_or_keep(inode)
        inode.handles -= 1
        if inode.handles == 0:
            self._close_reader(inode)
            if inode.nlink == 0 and inode.forgotten:
                await self.drop(inode)

    async def drop(self, inode: Inode) -> None:
        """Remove an orphan that nobody uses any more."""
        await self._wait_idle(inode)
        if inode.nlink > 0 or inode.handles > 0:
            return
        if inode.draft is not None:
            self._retire(inode, inode.draft)
        self._close_reader(inode)
        self._inodes.remove(inode)

    # --- reading ---

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer than `length` only at the end of the file.

        Raises:
          CorruptError, BlobMissingError: The store's bytes are not those that were written.
        """
        draft = inode.draft
        if draft is not None:
            if type(draft) is MemoryDraft:
                return draft.pread(offset, length)
            return await self._in_thread(draft.pread, offset, length)
        content = inode.content
        if offset >= content.size_bytes:
            return b""
        reader = inode.reader
        if reader is None:
            reader = inode.reader = self._open_reader(content)
        data = reader.pread_nowait(offset, length)
        if data is None:
            data = await self._in_thread(reader.pread, offset, length)
        return data

    def _open_reader(self, content: Content) -> ContentReader:
        assert content.digest is not None
        checksum = self._ledger.checksum(content.digest)
        return ContentReader(self._tree, content, checksum, self._verified, self._descriptors)

    def _close_reader(self, inode: Inode) -> None:
        if inode.reader is not None:
            inode.reader.close()
            inode.reader = None

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
            draft = await self._draft(inode)
        if type(draft) is MemoryDraft:
            growth = end - len(draft.data)
            if growth > 0:
                if end > MEMORY_MAX or self._memory_bytes + growth > MEMORY_TOTAL:
                    draft = self._spill(inode, draft)
                else:
                    self._claim(draft, growth)
                    self._memory_bytes += growth
                    draft.write(offset, data)
            else:
                draft.write(offset, data)
        if type(draft) is StagedDraft:
            self._claim(draft, len(data))
            if len(data) <= _INLINE_MAX:
                draft.put(offset, data)
            else:
                await self._put(draft, offset, data)
            draft.mark(offset, len(data))
        inode.size = draft.size_bytes
        inode.view = None
        if not handle.privileged and inode.mode & 0o6000:
            self._clear_privileges(inode)
        return len(data)

    async def _put(self, draft: StagedDraft, offset: int, data: bytes) -> None:
        """Write to the staging file from a worker; a seal waits for it."""
        draft.puts += 1
        try:
            await self._in_thread(draft.put, offset, data)
        finally:
            draft.puts -= 1
            if draft.puts == 0 and draft.quiet is not None:
                draft.quiet.set()
                draft.quiet = None

    async def truncate(self, inode: Inode, size: int, *, privileged: bool) -> None:
        """Set the size; what is added reads as zeros. Sealed at once if nobody has it open for writing.

        Raises:
          NoSpaceError, TooLargeError: Nothing was changed.
        """
        if not 0 <= size <= FILE_MAX:
            raise TooLargeError(f"inode {inode.id}: size {size}")
        if inode.mode & 0o6000 and not privileged:
            self._clear_privileges(inode)
        if inode.draft is None and inode.busy is None and size == inode.content.size_bytes:
            return
        draft = await self._draft(inode, keep=size)
        if type(draft) is MemoryDraft:
            growth = size - len(draft.data)
            if size > MEMORY_MAX or (growth > 0 and self._memory_bytes + growth > MEMORY_TOTAL):
                draft = self._spill(inode, draft)
            else:
                if growth > 0:
                    self._claim(draft, growth)
                self._memory_bytes += growth
                draft.truncate(size)
        if type(draft) is StagedDraft:
            draft.truncate(size)
            if draft.recorded:
                self._catalog.put_draft(draft.to_row(inode.id))
        inode.size = size
        inode.view = None
        if inode.writers == 0 and inode.nlink > 0:
            await self.seal(inode)

    def _clear_privileges(self, inode: Inode) -> None:
        """What the kernel leaves to us with FUSE_HANDLE_KILLPRIV_V2; see file_remove_privs in the kernel:
        setuid goes always, setgid only where it means execution as the group."""
        drop = inode.mode & 0o4000
        if inode.mode & 0o2010 == 0o2010:
            drop |= 0o2000
        if drop:
            inode.mode &= ~drop
            self._inodes.changed(inode)

    def _claim(self, draft: Draft, length: int) -> None:
        self._space.claim(length)
        draft.claimed += length

    async def _draft(self, inode: Inode, *, keep: int = FILE_MAX) -> Draft:
        """The draft of an inode, opened over its content if there is none; of that the first `keep` bytes
        are wanted. Waits for a change in progress."""
        await self._wait_idle(inode)
        if inode.draft is not None:
            return inode.draft
        base = inode.content
        draft: Draft
        # A file that is fsynced again and again (a database) is not rewritten whole for each fsync.
        if min(base.size_bytes, keep) <= MEMORY_MAX and (inode.syncs == 0 or base.size_bytes == 0):
            draft = MemoryDraft(base, bytearray())
            wanted = min(base.size_bytes, keep)
            if wanted:
                inode.busy = done = trio.Event()
                try:
                    draft.data += await self.read(inode, 0, wanted)
                finally:
                    inode.busy = None
                    done.set()
                if len(draft.data) != wanted:
                    raise CorruptError(f"inode {inode.id}: its content is shorter than recorded")
                self._memory_bytes += wanted
                draft.claimed = wanted
                self._space.claim(wanted)
        else:
            reader = self._open_reader(base) if base.digest is not None else None
            draft = StagedDraft(self._staging.new_path(inode), base, reader)
        inode.draft = draft
        return draft

    def _spill(self, inode: Inode, memory: MemoryDraft) -> StagedDraft:
        """Move a draft from memory into a staging file."""
        staged = StagedDraft(self._staging.new_path(inode), memory.base, None)
        staged.base_limit = 0
        staged.size_bytes = 0
        try:
            staged.put(0, memory.data)
        except OSError:
            staged.close()
            staged.discard()
            raise
        staged.mark(0, len(memory.data))
        staged.claimed = memory.claimed
        self._memory_bytes -= len(memory.data)
        inode.draft = staged
        return staged

    # --- sealing ---

    async def seal(self, inode: Inode) -> None:
        """Turn the draft, if there is one, into the inode's content.

        Raises: What the blobs raise; the draft is then as before.
        """
        await self._wait_idle(inode)
        draft = inode.draft
        if draft is None:
            return
        if type(draft) is StagedDraft and draft.puts:
            draft.quiet = draft.quiet or trio.Event()
            await draft.quiet.wait()
            await self.seal(inode)
            return
        size = draft.size_bytes
        if size == 0:
            sealed = Sealed(EMPTY, ())
        elif size <= _INLINE_MAX and type(draft) is MemoryDraft:
            sealed = seal_small(self._tree, draft.data)
        else:
            inode.busy = done = trio.Event()
            try:
                sealed = await self._in_thread(self._seal_large, draft)
            except BaseException:
                self._ledger.suspect = True
                raise
            finally:
                inode.busy = None
                done.set()
        self._adopt(inode, draft, sealed)

    def _seal_large(self, draft: Draft) -> Sealed:
        if type(draft) is MemoryDraft:
            if len(draft.data) <= self._parameters.piece_max:
                return seal_small(self._tree, draft.data)
            return seal(self._tree, self._parameters, draft)
        assert type(draft) is StagedDraft
        if draft.base.kind is ContentKind.MANIFEST:
            return seal(
                self._tree, self._parameters, draft, base=draft.base, dirty=draft.dirty_ranges()
            )
        return seal(self._tree, self._parameters, draft)

    def _adopt(self, inode: Inode, draft: Draft, sealed: Sealed) -> None:
        """The sealed content becomes the inode's."""
        self._ledger.record(sealed.blobs)
        content = sealed.content
        if content != inode.content:
            self._close_reader(inode)
            inode.content = content
            inode.size = content.size_bytes
        inode.allocated = min(draft.allocated_bytes, content.size_bytes)
        self._retire(inode, draft)
        self._inodes.changed(inode)

    def _retire(self, inode: Inode, draft: Draft) -> None:
        """Let go of a draft that is sealed or no longer wanted."""
        inode.draft = None
        self._space.release(draft.claimed)
        if type(draft) is MemoryDraft:
            self._memory_bytes -= len(draft.data)
            return
        assert type(draft) is StagedDraft
        draft.close()
        if draft.recorded:
            self._catalog.delete_draft(inode.id)
            self._retired.append(draft)
        else:
            draft.discard()

    async def _seal_or_keep(self, inode: Inode) -> None:
        try:
            await self.seal(inode)
        except Exception as exc:
            # There is nobody left to tell: the close has been answered. The draft is kept and retried.
            log.error("inode %d: cannot be sealed now, kept as a draft: %s", inode.id, exc)

    async def seal_closed(self) -> None:
        """Try again what could not be sealed when it was closed."""
        for inode in self._inodes.drafted():
            if inode.writers == 0 and inode.nlink > 0 and inode.busy is None:
                await self._seal_or_keep(inode)

    async def seal_all(self) -> None:
        """Seal every draft of a file that still has a name, at unmount.

        Raises: ExceptionGroup of what could not be sealed; such drafts were recorded if they are staged.
        """
        failures: list[Exception] = []
        for inode in self._inodes.drafted():
            if inode.nlink > 0:
                try:
                    await self.seal(inode)
                except Exception as exc:
                    exc.add_note(f"inode {inode.id}, {inode.size} bytes")
                    failures.append(exc)
        if failures:
            raise ExceptionGroup("contents that could not be sealed", failures)

    # --- durability ---

    async def fsync(self, inode: Inode) -> None:
        """Make content and name survive power loss (fsync(2))."""
        await self._wait_idle(inode)
        draft = inode.draft
        if draft is not None and inode.nlink > 0:
            if type(draft) is StagedDraft:
                row = draft.to_row(inode.id)
                await self._in_thread(draft.flush)
                if inode.draft is draft:
                    draft.recorded = True
                    self._catalog.put_draft(row)
            else:
                await self.seal(inode)
            inode.syncs += 1
        await self._hard_sync()

    def take_retired(self) -> list[StagedDraft]:
        """Staging files to delete after the hard sync that is about to start."""
        retired, self._retired = self._retired, []
        return retired

    def restore_drafts(self) -> int:
        """At start: take up the drafts that a crash left recorded. Returns how many.

        A draft that cannot be brought back is reported and its staging file kept.
        """
        restored = 0
        for row in self._catalog.drafts():
            try:
                inode = self._inodes.get(row.inode)
                if not inode.is_regular:
                    raise MisuseError(f"inode {row.inode} is no regular file")
                base = inode.content
                reader = self._open_reader(base) if base.digest is not None else None
                draft = StagedDraft.from_row(row, self._staging.directory, base, reader)
            except Exception as exc:
                log.error("%s: a draft cannot be brought back, its file is kept: %s", row.staging, exc)
                self._catalog.delete_draft(row.inode)
                continue
            inode.draft = draft
            inode.size = draft.size_bytes
            inode.view = None
            restored += 1
        return restored

    def staging_in_use(self) -> set[str]:
        """Base names of the staging files that belong to drafts."""
        return {
            os.path.basename(inode.draft.path)
            for inode in self._inodes.drafted()
            if type(inode.draft) is StagedDraft
        }

    # --- threads ---

    async def _wait_idle(self, inode: Inode) -> None:
        while inode.busy is not None:
            await inode.busy.wait()

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._workers)
