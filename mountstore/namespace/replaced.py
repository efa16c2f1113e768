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
  4. While a hard sync is under way, a note has two forms: what holds if power fails before it has ended, which is
     in the catalog, and what holds afterwards, which the sync is making safe.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog, DraftRow, PreviousRow, draft_row

LAPSE_S = 40.0
"""An open note ends with the first hard sync that begins so long after it was made."""


class Previous(NamedTuple):
    """A content, and the recorded draft over it that an fsync has promised."""

    content: Content
    allocated: int
    draft: DraftRow | None
    open: bool = False


@dataclass(slots=True)
class _OpenNote:
    """The note of an inode that took another's name while it was open for writing."""

    previous: Previous
    made_s: float
    """On the clock of `time.monotonic`."""
    flushed_later: Previous | None
    """What takes its place as soon as a hard sync that begins from now on has ended: what the replaced file had,
    which that flushes."""
    flushed_now: Previous | None = None
    """The same of the hard sync under way."""


class Replaced:
    """The notes of one store; the thread that owns the namespace."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # Those that the hard sync under way makes needless, and those made since it began.
        self._taken: dict[int, Previous] = {}
        self._since: dict[int, Previous] = {}
        self._unlisted: dict[int, Previous] = {}
        self._open: dict[int, _OpenNote] = {}
        # Inodes that got their first content since the last hard sync, or since the one before the one under
        # way: what they had in between is as likely to be lost as what they have.
        self._fresh: set[int] = set()
        self._fresh_taken: set[int] = set()

    def load(self) -> list[str]:
        """At start: take up the notes that a crash left. Returns the staging files in them."""
        notes = {row[0]: from_row(row) for row in self._catalog.previous()}
        self._since = {inode: note for inode, note in notes.items() if not note.open}
        # Recovery leaves those of files that had been closed, and whose seal the crash interrupted.
        self._open = {
            inode: _OpenNote(note, time.monotonic(), None) for inode, note in notes.items() if note.open
        }
        return [note.draft.staging for note in notes.values() if note.draft is not None]

    @property
    def has_changes(self) -> bool:
        """Whether a note is new, or was closed, since the last commit."""
        return bool(self._unlisted)

    @property
    def has_lapsed(self) -> bool:
        """Whether an open note waits for a hard sync to end it."""
        lapsed = time.monotonic() - LAPSE_S
        return any(note.made_s < lapsed for note in self._open.values())

    def note(self, inode: int, content: Content, allocated: int, draft: DraftRow | None) -> None:
        """An inode is about to get another content; only its first one since the last hard sync counts."""
        if inode in self._since:
            return
        held = self._open.get(inode)
        if held is not None:
            # What it had when it took the name was never the whole of it.
            self._put(inode, (held.flushed_now or held.previous)._replace(open=False))
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
        fresh = inode in self._fresh
        # What it has is part of the sync under way: afterwards it needs nothing to go back to.
        flushed = inode in self._fresh_taken and not fresh
        known = not fresh and not flushed and (inode in self._since or inode in self._taken)
        if known and not still_open:
            return
        now, later = self._notes_of(replaced, content, allocated, draft)
        if now is None or later is None:
            return
        if still_open:
            below = Previous(content, allocated, draft)
            if replaced in self._open:
                below = self._open[replaced].flushed_later or later
            self._open[inode] = _OpenNote(later._replace(open=True), time.monotonic(), below)
            self._unlisted[inode] = now._replace(open=True)
        if known:
            return
        if flushed or now is not later:
            self._taken[inode] = now._replace(open=False)
        if not flushed:
            self._since[inode] = later._replace(open=False)
        self._unlisted[inode] = now._replace(open=still_open)

    def _notes_of(
        self, inode: int, content: Content, allocated: int, draft: DraftRow | None
    ) -> tuple[Previous | None, Previous | None]:
        """What an inode with this content goes back to: now, and when the sync under way has ended."""
        held = self._open.get(inode)
        if held is not None:
            return held.previous, held.previous
        later = self._since.get(inode)
        if later is None and (content.digest is not None or draft is not None):
            later = Previous(content, allocated, draft)
        now = self._taken.get(inode)
        if now is None:
            return later, later
        # It was there before the sync, so also what is empty is something to go back to.
        return now, later or Previous(EMPTY, 0, None)

    def closed(self, inode: int) -> None:
        """The content of a file that was open when it took another's name is whole, in this transaction."""
        note = self._open.pop(inode, None)
        if note is None:
            return
        previous = note.previous
        if note.flushed_now is not None:
            self._taken.setdefault(inode, previous._replace(open=False))
            # Of a draft in it the staging file does not outlast this sync.
            previous = note.flushed_now._replace(draft=None)
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
        kept = [*self._taken.values(), *self._since.values()]
        for note in self._open.values():
            kept += filter(None, (note.previous, note.flushed_later, note.flushed_now))
        return {previous.content for previous in kept}

    def flush(self) -> None:
        """Write new notes into the catalog's open transaction."""
        if self._unlisted:
            self._catalog.put_previous(to_rows(self._unlisted))
            self._unlisted = {}

    def take(self) -> None:
        """A hard sync begins: what was replaced so far will be needless when it has ended."""
        lapsed = time.monotonic() - LAPSE_S
        for inode in [inode for inode, note in self._open.items() if note.made_s < lapsed]:
            self.closed(inode)
        self.flush()
        self._taken = {**self._since, **self._taken}
        self._since = {}
        self._fresh_taken |= self._fresh
        self._fresh = set()
        for note in self._open.values():
            note.flushed_now, note.flushed_later = note.flushed_later or note.flushed_now, None

    def put_back(self) -> None:
        """It failed."""
        self._since = {**self._since, **self._taken}
        self._taken = {}
        self._fresh |= self._fresh_taken
        self._fresh_taken = set()
        for note in self._open.values():
            note.flushed_later, note.flushed_now = note.flushed_later or note.flushed_now, None

    def settle(self) -> None:
        """The blobs are flushed: only later notes stay."""
        self._catalog.clear_previous()
        self._taken = {}
        self._fresh_taken = set()
        for note in self._open.values():
            # A draft in it has no staging file for longer than this: what is below it must do.
            note.previous = (note.flushed_now or note.previous)._replace(draft=None, open=True)
            note.flushed_now = None
        self._unlisted = {**self._since, **{inode: note.previous for inode, note in self._open.items()}}
        self.flush()


def from_row(row: PreviousRow) -> Previous:
    inode, kind, sha256, blob_size, size, allocated, staging, draft_size, base_limit, dirty, open_ = row
    content = EMPTY
    if sha256 is not None and blob_size is not None:
        content = Content(ContentKind(kind), Digest(sha256, blob_size), size)
    draft = None
    if staging is not None:
        assert draft_size is not None and base_limit is not None and dirty is not None
        draft = draft_row(inode, staging, draft_size, base_limit, dirty)
    return Previous(content, allocated, draft, bool(open_))


def to_rows(notes: dict[int, Previous]) -> list[PreviousRow]:
    rows: list[PreviousRow] = []
    for inode, (content, allocated, draft, open_) in notes.items():
        sha256, blob_size = content.digest or (None, None)
        recorded = (None, None, None, None) if draft is None else draft[1:]
        row = (inode, int(content.kind), sha256, blob_size, content.size_bytes, allocated)
        rows.append((*row, *recorded, int(open_)))
    return rows
