"""What makes a version: the rules by which superseded contents enter the histories.

History belongs to the name (directory and name), because editors save by writing a new file and renaming it over
the old one. Two lists make up the history of a name that exists: that of the name (contents of inodes it no longer
stands for), then that of its inode (contents superseded in place). When the name gets another inode or is
removed, the second is appended to the first.

Rules
  1. In place: the first seal after a file was opened for writing that changes the content supersedes the one
     it had then. Later seals of the same session (fsync) supersede nothing.
  2. Replaced by a rename, or unlinked: the content is superseded, for this name.
  3. Renamed to a free name: the new name goes on with a fork of the history. The name left behind keeps it,
     with the content that moved away, if anything had been superseded there; else it leaves nothing, or
     every temporary name would. A free name that had a history before keeps that, and goes on after it.
  4. A name that is taken again soon after its content moved away has that content as its latest version (an
     editor moved `f` to `f~` and writes a new `f`). Soon is within `RETAKEN_S`, and sooner than the content had
     been there, which was `SETTLED_S` at least: a temporary name that is used again and again (git's
     `index.lock`) is there for moments, and mostly shorter than it is not.
  5. A file that was renamed, and is unlinked without having changed since, leaves nothing under its new name
     if the name it left has all of it (an editor's backup).
  6. An empty content is no version; unchanged content makes none. Removing one of several hard links leaves
     nothing unless the name had a history; a rename over one supersedes its content for that name.
  7. A directory that is removed is recorded under its name if names in it have histories.

Everything happens in the catalog's open transaction, so with the operation that caused it, or not at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mountstore.blobs.clock import end_ns, now_ns
from mountstore.blobs.content import EMPTY, Content
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.history import Histories, Version
from mountstore.namespace.inodes import Inode, InodeTable, kept_mode

RETAKEN_S = 60.0
"""An editor that has moved a file away writes the new one within this time."""

SETTLED_S = 1.0
"""What was at a name for less was being written there, not kept there."""

FLEETING_S = 60.0
"""A name that lived for less holds nothing that is kept for long (journals, lock files)."""

_MOVED_MAX = 1024
"""Names whose content moved away lately that are remembered."""


class _Moved(NamedTuple):
    """A content that moved away from a name."""

    inode: int
    content: Content
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    born_ns: int
    at_ns: int


class Versions:
    """Records versions as things happen; storing them is `mountstore.namespace.history`.

    Args:
      enabled: False records nothing new. What was recorded stays and is found where it would be: of a name that
        is removed, what its file had in place goes to the name, and what a prefix has its bytes in is recorded.
    """

    def __init__(self, catalog: Catalog, inodes: InodeTable, *, enabled: bool = True) -> None:
        # Numbers from the counter of the cookies, which never gives one twice.
        self.histories = Histories(catalog, inodes.next_cookie)
        self.enabled = enabled
        self._catalog = catalog
        self._inodes = inodes
        catalog.on_undone.append(self._forget_in_place)
        self._moved: OrderedDict[tuple[int, bytes], _Moved] = OrderedDict()
        # What the name that an inode left has of it (rules 3 and 4): the content, and how much of its history.
        self._kept: OrderedDict[int, tuple[Content, int]] = OrderedDict()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The context, without an await, in which nothing that is removed leaves a version."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled

    def kept_mode(self, inode: Inode) -> int:
        """The mode a version of the inode has, as it is now."""
        return kept_mode(self._catalog, inode)

    # --- what inodes had in place ---

    def _in_place(self, inode: Inode) -> int:
        """The history of an inode, kept with it."""
        if inode.history < 0:
            inode.history = self.histories.of_inode(inode.id)
        return inode.history

    def _give_in_place(self, inode: Inode, history: int) -> None:
        self.histories.give_inode(inode.id, history)
        inode.history = history

    def _forget_in_place(self) -> None:
        for inode in self._inodes.in_use():
            inode.history = -1

    # --- reading ---

    def superseded(self, parent: int, name: bytes, inode: Inode | None) -> Iterator[Version]:
        """Every superseded content of a name, oldest first; `inode` is what it stands for, if anything.

        A version without content is a prefix of the inode's.
        """
        yield from self.histories.versions(self.histories.of_name(parent, name))
        if inode is not None:
            yield from self.histories.versions(self.histories.of_inode(inode.id))

    # --- in place ---

    def sealed(self, inode: Inode, content: Content) -> None:
        """A seal is about to give the inode this content."""
        change = inode.change
        if change is None or change.recorded or content == change.origin:
            return
        if not self.enabled and not self.histories.ends_open(self._in_place(inode)):
            return
        if inode.nlink == 0:
            # Removed while it was being sealed: no name has its history any more.
            return
        origin = change.origin
        if origin == EMPTY:
            change.recorded = True
            return
        known = self._in_place(inode)
        history = self.histories.append(
            known,
            origin,
            mode=change.mode,
            uid=change.uid,
            gid=change.gid,
            mtime_ns=change.mtime_ns,
            until_ns=end_ns(change.mtime_ns, now_ns()),
            # Only what has ended is sure to begin with the same bytes: its writer might still change them.
            prefix=change.ended and change.lowest >= origin.size_bytes,
        )
        change.recorded = True
        if history != known:
            self._give_in_place(inode, history)

    # --- names ---

    def removed(self, parent: int, name: bytes, inode: Inode, now: int, *, replaced: bool = False) -> None:
        """A name is about to be removed, or, if `replaced`, to stand for another inode than this one."""
        if inode.is_directory:
            self._directory_removed(parent, name, inode, now)
            return
        if not inode.is_regular:
            return
        histories = self.histories
        own = histories.of_name(parent, name)
        if inode.nlink > 1 and not own and not replaced:
            return
        in_place = self._in_place(inode) if inode.nlink == 1 or replaced else 0
        if not self.enabled and not in_place:
            return
        # Of a file without a name nothing is asked any more.
        kept = self._kept.pop(inode.id, None) if inode.nlink == 1 else self._kept.get(inode.id)
        if not replaced and kept == (inode.content, histories.count(in_place)) and histories.is_fork(own):
            if own:
                histories.give_name(parent, name, 0)
            if in_place:
                self._give_in_place(inode, 0)
            return
        history = own
        if in_place:
            history = histories.append_all(history, in_place)
            if inode.nlink == 1:
                self._give_in_place(inode, 0)
        if inode.content != EMPTY and (self.enabled or histories.ends_open(in_place)):
            fleeting = not replaced and not in_place and self._is_fleeting(own, inode, now)
            history = self._append(history, inode, now, fleeting=fleeting)
        if history != own:
            histories.give_name(parent, name, history)

    def _is_fleeting(self, own: int, inode: Inode, now: int) -> bool:
        """Whether a name that is about to be removed was there for less than `FLEETING_S`."""
        if inode.nlink > 1 or now - inode.btime_ns >= FLEETING_S * 1e9:
            return False
        if not own:
            return True
        ends = self.histories.ends(own)
        # A fleeting one was removed, so this is another life. Else what was superseded since the inode was born,
        # or shortly before, makes one life with it.
        return ends is not None and (ends[1] or ends[0] + FLEETING_S * 1e9 < inode.btime_ns)

    def _append(self, history: int, inode: Inode, now: int, *, fleeting: bool = False) -> int:
        return self.histories.append(
            history,
            inode.content,
            mode=self.kept_mode(inode),
            uid=inode.uid,
            gid=inode.gid,
            mtime_ns=inode.mtime_ns,
            until_ns=end_ns(inode.mtime_ns, now),
            fleeting=fleeting,
        )

    def directory_leaves(self, parent: int, name: bytes, inode: Inode, now: int) -> None:
        """A directory is about to be removed with all that is in it, which will leave histories."""
        if self._catalog.has_entries(inode.id) or self._has_histories(inode):
            self._record_directory(parent, name, inode, now)

    def _has_histories(self, directory: Inode) -> bool:
        return next(self.histories.names(directory.id), None) is not None

    def _directory_removed(self, parent: int, name: bytes, inode: Inode, now: int) -> None:
        if self._has_histories(inode):
            self._record_directory(parent, name, inode, now)

    def _record_directory(self, parent: int, name: bytes, inode: Inode, now: int) -> None:
        own = self.histories.of_name(parent, name)
        history = self.histories.append_directory(
            own, inode.id, mode=self.kept_mode(inode), uid=inode.uid, gid=inode.gid, now=now
        )
        if history != own:
            self.histories.give_name(parent, name, history)

    def concerned(self, parent: int, name: bytes, new_parent: int, new_name: bytes, inode: Inode) -> bool:
        """Whether a rename to a free name has anything to record; else `moved_away` is all that is to be said."""
        if not self.enabled or not inode.is_regular:
            return False
        return (
            (new_parent, new_name) in self._moved
            or self.histories.of_name(parent, name) != 0
            or self._in_place(inode) != 0
        )

    def moved_away(self, parent: int, name: bytes, inode: Inode, now: int) -> None:
        """A file without a history left a name."""
        if self.enabled and inode.is_regular and inode.content != EMPTY:
            self._remember(parent, name, inode, now)

    def renamed(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        inode: Inode,
        now: int,
        *,
        replaced: bool,
    ) -> None:
        """An inode is about to move from one name to another; if that one is taken, `removed` was called."""
        if not self.enabled or not inode.is_regular:
            return
        histories = self.histories
        own = histories.of_name(parent, name)
        in_place = self._in_place(inode)
        if not own and not in_place:
            self.moved_away(parent, name, inode, now)
        else:
            # The name left behind keeps what it had, with the content that moves away as the latest.
            if not replaced:
                self._continue(new_parent, new_name, own, inode)
            left = histories.append_all(own, in_place)
            if inode.content != EMPTY:
                left = self._append(left, inode, now)
            if left != own:
                histories.give_name(parent, name, left)
            self._keep(inode.id, inode.content, histories.count(in_place))
            if replaced and in_place and inode.nlink == 1:
                # The new name goes on with its own history.
                self._give_in_place(inode, 0)
        if not replaced:
            self.taken(new_parent, new_name, now)

    def _continue(self, parent: int, name: bytes, own: int, inode: Inode) -> None:
        """A name that was free goes on with a history; what it held in a former life comes first (rule 3)."""
        histories = self.histories
        before = histories.of_name(parent, name)
        if not before:
            histories.give_name(parent, name, histories.fork(own))
            return
        in_place = self._in_place(inode)
        count = histories.count(in_place)
        if (
            self._kept.get(inode.id) == (inode.content, count)
            and histories.count(before) == histories.count(own) + count + 1
            and histories.holds(before, own)
            and histories.holds(before, in_place)
        ):
            # It moved away and comes back unchanged: nothing has happened.
            histories.give_name(parent, name, histories.fork(own))
            return
        histories.append_missing(before, own)
        if in_place and inode.nlink == 1 and not histories.ends_open(in_place):
            # Part of it may be there, from when the file moved away.
            histories.append_missing(before, in_place)
            self._give_in_place(inode, 0)

    def _remember(self, parent: int, name: bytes, inode: Inode, now: int) -> None:
        self._moved[parent, name] = _Moved(
            inode.id,
            inode.content,
            self.kept_mode(inode),
            inode.uid,
            inode.gid,
            inode.mtime_ns,
            inode.btime_ns,
            now,
        )
        if len(self._moved) > _MOVED_MAX:
            self._moved.popitem(last=False)

    def taken(self, parent: int, name: bytes, now: int) -> None:
        """A name that was free is about to stand for something (rule 4)."""
        if not self._moved:
            return
        moved = self._moved.pop((parent, name), None)
        if moved is None or not self.enabled:
            return
        lived_ns = moved.at_ns - moved.born_ns
        if lived_ns < SETTLED_S * 1e9 or now - moved.at_ns > min(lived_ns, RETAKEN_S * 1e9):
            return
        own = self.histories.of_name(parent, name)
        history = self.histories.append(
            own,
            moved.content,
            mode=moved.mode,
            uid=moved.uid,
            gid=moved.gid,
            mtime_ns=moved.mtime_ns,
            until_ns=moved.at_ns,
        )
        if history != own:
            self.histories.give_name(parent, name, history)
        self._keep(moved.inode, moved.content, 0)

    def moved(self) -> set[Content]:
        """Contents that may become versions although nothing else has them any more (rule 4)."""
        return {moved.content for moved in self._moved.values()}

    def dropped(self) -> None:
        """Versions were dropped: what a name was known to have, it may no longer have (rule 5)."""
        self._kept.clear()

    def _keep(self, inode: int, content: Content, count: int) -> None:
        self._kept[inode] = content, count
        if len(self._kept) > _MOVED_MAX:
            self._kept.popitem(last=False)
