"""What the catalog is told of staged drafts, so that they survive a crash: when they are flushed, changed a little
and not flushed, closed, truncated, and gone.

The forms of a record stand in `draft_record.py`, those of a change in `draft_changes.py`.
"""

from __future__ import annotations

import os

from mountstore.namespace.catalog import Catalog, DraftRow
from mountstore.namespace.contents import Contents
from mountstore.namespace.draft_changes import (
    CHANGE_BYTES_MAX,
    CHANGE_RANGES_MAX,
    CHANGES_BYTES_MAX,
    encode_change,
    replayed,
)
from mountstore.namespace.draft_record import closed, encode, flushed, promised, resized
from mountstore.namespace.inodes import Inode
from mountstore.namespace.staged_draft import Recorded, StagedDraft


class DraftRecords:
    """The records of one catalog; `StagedDraft.recorded` is kept here."""

    def __init__(self, catalog: Catalog, contents: Contents) -> None:
        self._catalog = catalog
        self._contents = contents

    def keep_flushed(self, inode: Inode, draft: StagedDraft, row: DraftRow) -> None:
        """Have the catalog remember a staged draft as it was when `row` was taken; it has been flushed since."""
        if draft.recorded is Recorded.CLOSED and row != draft.to_row(inode.id):
            # It was changed and closed meanwhile: the record of that stays.
            now = self._record_of(inode, draft)
            assert now is not None
            row = flushed(now, row)
        else:
            draft.recorded = Recorded.FLUSHED
        self._catalog.put_draft(row)
        self._forget_changes(draft)

    def keep_changes(self, inode: Inode, draft: StagedDraft) -> bool:
        """Have the catalog remember what is fresh in a staged draft, without a flush; False if it is too much, and
        the staging file is to be flushed.

        Raises: OSError, CorruptError: The staging file cannot be read.
        """
        length = draft.fresh.total()
        if (
            draft.is_fixed
            or len(draft.fresh) > CHANGE_RANGES_MAX
            or length > CHANGE_BYTES_MAX
            or draft.changes_bytes + length > CHANGES_BYTES_MAX
        ):
            return False
        if draft.recorded is Recorded.FLUSHED and not length:
            return True
        change = encode_change(draft.staged_bytes(draft.fresh))
        if draft.recorded is Recorded.NOTHING:
            self._catalog.put_draft(draft.to_row(inode.id)._replace(dirty=encode([])))
            draft.recorded = Recorded.FLUSHED
        # Also if it is empty: only what has changes may lack its staging file.
        self._catalog.add_draft_change(os.path.basename(draft.path), change)
        draft.changes_bytes += len(change)
        draft.take_fresh()
        return True

    async def keep_closed(self, inode: Inode, draft: StagedDraft) -> None:
        """Have the catalog remember a staged draft, which nobody changes meanwhile, until it is sealed: in case
        the process dies first. Nothing is flushed.

        Raises: OSError, CorruptError: The staging file cannot be read.
        """
        if draft.recorded is Recorded.CLOSED:
            return
        sums = await self._contents.in_thread(draft.sums)
        before = self._record_of(inode, draft)
        self._catalog.put_draft(closed(draft.to_row(inode.id), sums, before))
        draft.recorded = Recorded.CLOSED

    def outgrown(self, inode: Inode, draft: StagedDraft, size: int) -> bool:
        """Whether a recorded draft has something below `size` that its record has not: zeros, if that were as
        long."""
        if not draft.fresh.overlaps(0, size):
            return False
        row = self._catalog.get_draft(inode.id)
        assert row is not None
        if draft.changes_bytes:
            row = replayed(row, self._catalog.draft_changes_of(row.staging))
        return draft.fresh.overlaps(row.size, size)

    def keep_size(self, inode: Inode, draft: StagedDraft, size: int) -> None:
        """A recorded draft was truncated: what is recorded is, too; nothing that was not flushed joins it."""
        row = self._catalog.get_draft(inode.id)
        assert row is not None
        if draft.changes_bytes:
            change = encode_change(size)
            self._catalog.add_draft_change(os.path.basename(draft.path), change)
            draft.changes_bytes += len(change)
        else:
            self._catalog.put_draft(resized(row, size))

    def promised(self, inode: Inode) -> DraftRow | None:
        """What survives power loss of an inode's draft."""
        draft = inode.draft
        row = self._record_of(inode, draft) if type(draft) is StagedDraft else None
        return promised(row) if row is not None else None

    def forget(self, inode: Inode, draft: StagedDraft) -> bool:
        """The draft is sealed or no longer wanted; False if nothing was recorded. What is may come back until the
        next hard sync, and the staging file with it."""
        if draft.recorded is Recorded.NOTHING:
            return False
        self._catalog.delete_draft(inode.id)
        return True

    def _record_of(self, inode: Inode, draft: StagedDraft) -> DraftRow | None:
        return self._catalog.get_draft(inode.id) if draft.recorded is not Recorded.NOTHING else None

    def _forget_changes(self, draft: StagedDraft) -> None:
        if draft.changes_bytes:
            self._catalog.delete_draft_changes([os.path.basename(draft.path)])
            draft.changes_bytes = 0
