"""What each inode stood for at the last hard sync, as long as its newer content may not survive power loss.

A soft commit can reach the disk before the blobs it speaks of. If power fails then, recovery finds them
damaged and lets the inode go back to what is noted here, so that an overwritten file has its old content,
and so has a name that a new file was renamed over.

A file that takes the name of another while it is open for writing is not whole yet: part of it may be in the
kernel only. (Having the kernel write it back during the rename would need a thread of ours to wait for
requests that only we can answer; a daemon killed then could not die.) Its note is *open*: until the file
is closed or fsynced, any crash lets the name go back, also that of this process alone; but not for longer than
`LAPSE_S`, after which the kernel has written back what it had by then (dirty_expire_centisecs).

Invariants
  1. A note is in the same transaction as the content that replaces it.
  2. What a note speaks of survived power loss when it was made, or is itself listed as unsynced.
  3. The staging file of a draft in a note exists until the hard sync that makes the note needless.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog, DraftRow, PreviousRow

LAPSE_S = 40.0
"""An open note ends with the first hard sync that begins so long after it was made."""


class Previous(NamedTuple):
    """A content, and the recorded draft over it that an fsync has promised."""

    content: Content
    allocated: int
    draft: DraftRow | None
    open: bool = False


class Replaced:
    """The notes of one store; the thread that owns the namespace."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # Those that the hard sync under way makes needless, and those made since it began.
        self._taken: dict[int, Previous] = {}
        self._since: dict[int, Previous] = {}
        self._unlisted: dict[int, Previous] = {}
        self._open: dict[int, Previous] = {}
        self._opened_s: dict[int, float] = {}
        # Inodes that got their first content since the last hard sync, or since the one before the one under
        # way: what they had in between is as likely to be lost as what they have.
        self._fresh: set[int] = set()
        self._fresh_taken: set[int] = set()

    def load(self) -> list[str]:
        """At start: take up the notes that a crash left. Returns the staging files in them."""
        self._since = {row[0]: from_row(row) for row in self._catalog.previous()}
        return [note.draft.staging for note in self._since.values() if note.draft is not None]

    @property
    def has_changes(self) -> bool:
        return bool(self._unlisted)

    def note(self, inode: int, content: Content, allocated: int, draft: DraftRow | None) -> None:
        """An inode is about to get another content; only its first one since the last hard sync counts."""
        if inode in self._since:
            return
        held = self._open.get(inode)
        if held is not None:
            # What it had when it took the name was never the whole of it.
            self._put(inode, held._replace(open=False))
        elif inode in self._fresh:
            return
        elif content.digest is None and draft is None:
            self._fresh.add(inode)
        else:
            self._put(inode, Previous(content, allocated, draft))

    def inherit(
        self,
        inode: int,
        replaced: int,
        content: Content,
        allocated: int,
        draft: DraftRow | None,
        *,
        still_open: bool,
    ) -> None:
        """A file took the name of `replaced`, which has this content: should its own be lost, it goes back
        to that, unless it has something of its own to go back to."""
        fresh = inode in self._fresh or inode in self._fresh_taken
        known = not fresh and (inode in self._since or inode in self._taken)
        if known and not still_open:
            return
        previous = self._open.get(replaced) or self._since.get(replaced) or self._taken.get(replaced)
        if previous is None and (content.digest is not None or draft is not None):
            previous = Previous(content, allocated, draft)
        if previous is None:
            return
        if still_open:
            self._open[inode] = self._unlisted[inode] = previous._replace(open=True)
            self._opened_s[inode] = time.monotonic()
        if not known:
            self._since[inode] = previous._replace(open=False)
            self._unlisted[inode] = previous._replace(open=still_open)

    def closed(self, inode: int) -> None:
        """The content of a file that was open when it took another's name is whole, in this transaction."""
        previous = self._open.pop(inode, None)
        self._opened_s.pop(inode, None)
        if previous is not None:
            # Also if a sync is under way: what has just been sealed is not part of it.
            own = self._since.setdefault(inode, previous._replace(open=False))
            self._unlisted[inode] = self._taken.get(inode, own)

    def _put(self, inode: int, previous: Previous) -> None:
        self._since[inode] = previous
        # The note of a sync under way is the one that holds until it has ended, an open one until the file
        # is closed.
        if inode not in self._taken and inode not in self._open and inode not in self._fresh_taken:
            self._unlisted[inode] = previous

    def contents(self) -> set[Content]:
        """What the notes in memory speak of; some reach the catalog only when the sync under way has ended."""
        kept = (self._taken, self._since, self._open)
        return {note.content for notes in kept for note in notes.values()}

    def flush(self) -> None:
        """Write new notes into the catalog's open transaction."""
        if self._unlisted:
            self._catalog.put_previous(_to_rows(self._unlisted))
            self._unlisted = {}

    def take(self) -> None:
        """A hard sync begins: what was replaced so far will be needless when it has ended."""
        lapsed = time.monotonic() - LAPSE_S
        for inode in [inode for inode, made_s in self._opened_s.items() if made_s < lapsed]:
            self.closed(inode)
        self.flush()
        self._taken = {**self._since, **self._taken}
        self._since = {}
        self._fresh_taken |= self._fresh
        self._fresh = set()

    def put_back(self) -> None:
        """It failed."""
        self._since = {**self._since, **self._taken}
        self._taken = {}
        self._fresh |= self._fresh_taken
        self._fresh_taken = set()

    def settle(self) -> None:
        """The blobs are flushed: only later notes stay."""
        self._catalog.clear_previous()
        self._taken = {}
        self._fresh_taken = set()
        # A draft in an open note has no staging file for longer than this: what is below it must do.
        self._open = {inode: previous._replace(draft=None) for inode, previous in self._open.items()}
        self._unlisted = {**self._since, **self._open}
        self.flush()


def from_row(row: PreviousRow) -> Previous:
    inode, kind, sha256, blob_size, size, allocated, staging, draft_size, base_limit, dirty, open_ = row
    content = EMPTY
    if sha256 is not None and blob_size is not None:
        content = Content(ContentKind(kind), Digest(sha256, blob_size), size)
    draft = None
    if staging is not None:
        assert draft_size is not None and base_limit is not None and dirty is not None
        draft = DraftRow(inode, staging, draft_size, base_limit, dirty)
    return Previous(content, allocated, draft, bool(open_))


def _to_rows(notes: dict[int, Previous]) -> list[PreviousRow]:
    rows: list[PreviousRow] = []
    for inode, (content, allocated, draft, open_) in notes.items():
        sha256, blob_size = content.digest or (None, None)
        recorded = (None, None, None, None) if draft is None else draft[1:]
        row = (inode, int(content.kind), sha256, blob_size, content.size_bytes, allocated)
        rows.append((*row, *recorded, int(open_)))
    return rows
