"""Inodes in memory: one object for each inode in use, and the list of those that changed.

Invariants
  1. At most one `Inode` object exists for an inode number.
  2. A changed inode stays in memory until `flush` has put its row into the catalog; between commits the
     object, not the row, is the truth. So a file that is created, written and closed within one commit
     interval costs a single row written.
  3. An inode that is pinned (open, drafted, orphaned, changed) is never dropped from memory.
  4. Inode numbers are never used twice, also not after a crash.
  5. Of an inode that was dropped from memory its view may stay for a while: it holds until the inode is in memory
     again, since nothing changes but there.

An orphan is an inode without a name that somebody still uses. The kernel's word that nobody does is its
FORGET, which it sends once, with everything it ever looked up, when it drops the inode (fuse_evict_inode in
the kernel's fs/fuse/inode.c). So no look-up counts are kept: FORGET matters for orphans only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from mountstore.blobs.clock import now_ns
from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.errors import StaleError
from mountstore.namespace import acl as acls
from mountstore.namespace.catalog import Catalog, InodeRow

if TYPE_CHECKING:
    import trio

    from mountstore.blobs.reader import ContentReader
    from mountstore.namespace.draft import Draft

ROOT = 1
"""Inode number of the root directory (FUSE_ROOT_ID)."""

FIRST_COOKIE = 3
"""Positions 1 and 2 of every listing are `.` and `..`."""

TYPE_BITS = 0o170000
"""Of a mode: S_IFMT of <sys/stat.h>. As stat.S_IFMT without a call, and for numbers that are no mode."""

_CRASH_GAP = 1 << 20
"""Numbers skipped at each start: a crash may have lost the record of that many handed out."""

_NS_MIN, _NS_MAX = -(1 << 63), (1 << 63) - 1


def kept_mode(catalog: Catalog, inode: Inode) -> int:
    """The mode a version of the inode has.

    Access control lists are not kept with versions. Without its list, the mode's bits for group and others
    could let in whom the list kept out, so of such a file the owner's rights are kept only.
    """
    if inode.xattrs and catalog.get_xattr(inode.id, acls.ACCESS) is not None:
        return inode.mode & ~0o077
    return inode.mode


class Change:
    """A change of a content, from the first write until the last writer has closed and it is sealed.

    `mode`, `uid` and `gid` are whose the origin was: a writer may change them before it closes.
    `lowest` is the first byte that was written or cut off: at the end of the origin or beyond, the origin is a
    prefix of what it becomes.
    """

    __slots__ = ("ended", "gid", "lowest", "mode", "mtime_ns", "origin", "recorded", "uid")

    def __init__(self, origin: Content, mtime_ns: int, *, mode: int, uid: int, gid: int) -> None:
        self.origin = origin
        self.mtime_ns = mtime_ns
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.lowest = origin.size_bytes
        self.ended = False
        """The last writer has closed; what a later one does is another change."""
        self.recorded = False
        """The origin is in the inode's history."""

    def touch(self, offset: int) -> None:
        """Bytes from `offset` on were written or cut off."""
        if offset < self.lowest:
            self.lowest = offset


class Inode:
    """What a name stands for. Attributes are as of stat(2); times are nanoseconds since the epoch.

    Whoever changes a field calls `InodeTable.changed` in the same breath.
    """

    __slots__ = (
        "allocated",
        "atime_ns",
        "btime_ns",
        "busy",
        "change",
        "changed",
        "content",
        "ctime_ns",
        "draft",
        "forgotten",
        "gid",
        "handles",
        "history",
        "id",
        "mode",
        "mtime_ns",
        "nlink",
        "parent",
        "rdev",
        "reader",
        "size",
        "stored",
        "syncs",
        "target",
        "uid",
        "view",
        "writers",
        "xattrs",
    )

    id: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    """Logical size in bytes, of the draft if there is one."""
    allocated: int
    """Bytes of it that are not holes."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    parent: int
    """A directory's own directory; 0 for everything else."""
    content: Content
    """The sealed content."""
    target: bytes | None
    """Of a symbolic link."""
    xattrs: int
    """How many extended attributes there are."""

    change: Change | None
    """What the change of its content in progress started from."""
    changed: bool
    """On the list of what the next flush writes."""
    stored: bool
    """The catalog has a row of it."""
    forgotten: bool
    """Orphans only: the kernel no longer knows it."""
    handles: int
    """Open handles, of them `writers` may write."""
    writers: int
    draft: Draft | None
    reader: ContentReader | None
    busy: trio.Event | None
    """Set when the seal, or the opening of a draft, that is in progress has ended."""
    history: int
    """Of the contents it had in place (`mountstore.namespace.versions`); -1: not looked up yet."""
    syncs: int
    """How often it was fsynced since its first writer opened it."""
    view: Any
    """Kept for whoever presents inodes to the outside; None after every change."""

    def __init__(self) -> None:
        self.change = None
        self.changed = False
        self.stored = False
        self.forgotten = False
        self.handles = 0
        self.writers = 0
        self.draft = None
        self.reader = None
        self.busy = None
        self.history = -1
        self.syncs = 0
        self.view = None

    @property
    def is_directory(self) -> bool:
        return (self.mode & TYPE_BITS) == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        return (self.mode & TYPE_BITS) == stat.S_IFREG

    @property
    def pinned(self) -> bool:
        return (
            self.changed
            or self.handles > 0
            or self.draft is not None
            or self.busy is not None
            or self.nlink == 0
        )

    def take_over(self, other: Inode) -> None:
        """Have the attributes and content of another object for the same inode."""
        for field in _STORED:
            setattr(self, field, getattr(other, field))
        self.view = None

    def __repr__(self) -> str:
        return f"Inode({self.id}, mode={self.mode:o}, nlink={self.nlink}, size={self.size})"


_STORED = (
    *("mode", "uid", "gid", "nlink", "rdev", "size", "allocated", "atime_ns", "mtime_ns", "ctime_ns", "btime_ns"),
    *("parent", "content", "target", "xattrs"),
)
"""What the catalog has of an inode, but for its number."""


class InodeTable:
    """All inodes, those in use in memory.

    Args:
      catalog: Where the rows are.
      capacity: How many unpinned inodes stay in memory at least; twice as many at most. Each takes 1.1 KB.
      views: How many views of others stay; each takes 0.3 KB. None, if somebody else may change inodes.
    """

    def __init__(self, catalog: Catalog, *, capacity: int = 8192, views: int = 65_000) -> None:
        self._catalog = catalog
        self._views: dict[int, Any] = {}
        self._views_max = views
        # Makes the view of an inode; set by whoever presents inodes.
        self.present: Callable[[Inode], Any] = lambda inode: None
        # Two generations instead of a linked list: a hit in the young one is a single look-up, and
        # what was not used for a whole generation goes with the old one.
        self._young: dict[int, Inode] = {}
        self._old: dict[int, Inode] = {}
        self._generation = capacity
        self._threshold = capacity
        self._changed: list[Inode] = []
        # Removed since the last commit: the catalog has their rows until the next one.
        self._removed: set[int] = set()
        self._next_inode: int = catalog.get_meta("next_inode", ROOT + 1)
        self._next_cookie: int = catalog.get_meta("next_cookie", FIRST_COOKIE)
        if not catalog.get_meta("clean", 1):
            self._next_inode += _CRASH_GAP
        self._counters_changed = False

    # --- finding ---

    def get(self, inode_id: int, row: InodeRow | None = None) -> Inode:
        """The inode of that number.

        Args:
          row: What the catalog has of it, if that is at hand.

        Raises:
          StaleError: There is none (any more).
        """
        inode = self._young.get(inode_id)
        if inode is not None:
            return inode
        inode = self._old.pop(inode_id, None)
        if inode is None:
            row = row or self._catalog.get_inode(inode_id)
            if row is None or inode_id in self._removed:
                raise StaleError(f"inode {inode_id} does not exist")
            inode = from_row(row)
            inode.view = self._views.pop(inode_id, None)
        self._keep(inode)
        return inode

    def view_of(self, inode_id: int) -> Any:
        """The view of an inode; None if it has none, or it is not in memory."""
        inode = self._young.get(inode_id) or self._old.get(inode_id)
        return self._views.get(inode_id) if inode is None else inode.view

    def peek(self, inode_id: int, row: InodeRow | None) -> Inode:
        """Like `get` with the row at hand, and without making it stay in memory (for long listings)."""
        inode = self._young.get(inode_id) or self._old.get(inode_id)
        if inode is not None:
            return inode
        return self.get(inode_id) if row is None else from_row(row)

    def _keep(self, inode: Inode) -> None:
        self._young[inode.id] = inode
        if len(self._young) > self._threshold:
            dropped, self._old = self._old, self._young
            self._young = {key: value for key, value in dropped.items() if value.pinned}
            self._threshold = self._generation + 2 * len(self._young)
            if self._views_max:
                self._keep_views(dropped)

    def _keep_views(self, dropped: dict[int, Inode]) -> None:
        views, present = self._views, self.present
        for key, inode in dropped.items():
            if not inode.pinned and (view := inode.view or present(inode)) is not None:
                views[key] = view
        for oldest in list(islice(views, max(0, len(views) - self._views_max))):
            del views[oldest]

    def forget_view(self, inode_id: int) -> None:
        """The row of an inode was changed that is not in memory."""
        self._views.pop(inode_id, None)

    def in_use(self) -> list[Inode]:
        """Every inode in memory."""
        return [*self._young.values(), *self._old.values()]

    def in_memory(self) -> int:
        return len(self._young) + len(self._old)

    # --- changing ---

    def next_id(self) -> int:
        """A number for a new inode; one that is not used in the end is never used."""
        number = self._next_inode
        self._next_inode = number + 1
        self._counters_changed = True
        return number

    def create(
        self,
        inode_id: int,
        mode: int,
        uid: int,
        gid: int,
        *,
        parent: int = 0,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """A new inode with all times now; a directory (`mode` has the type) has link count 2, all else 1.

        Args:
          inode_id: From `next_id`.
          parent: For a directory, the one it lies in.
        """
        inode = Inode()
        inode.id = inode_id
        inode.mode = mode
        inode.uid = uid
        inode.gid = gid
        inode.nlink = 2 if parent else 1
        inode.rdev = rdev
        inode.size = len(target) if target is not None else 4096 if parent else 0
        inode.allocated = 0
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.btime_ns = now_ns()
        inode.parent = parent
        inode.content = EMPTY
        inode.target = target
        inode.xattrs = 0
        inode.history = 0
        inode.changed = True
        self._changed.append(inode)
        self._keep(inode)
        return inode

    def create_root(self, uid: int, gid: int, mode: int = 0o755) -> None:
        """The root directory of an empty store."""
        self.create(ROOT, stat.S_IFDIR | mode, uid, gid, parent=ROOT)

    def next_cookie(self) -> int:
        cookie = self._next_cookie
        self._next_cookie = cookie + 1
        self._counters_changed = True
        return cookie

    def changed(self, inode: Inode) -> None:
        """Note that a field of `inode` was changed."""
        inode.view = None
        if not inode.changed:
            inode.changed = True
            self._changed.append(inode)
            if inode.id not in self._young:
                self._old.pop(inode.id, None)
                self._views.pop(inode.id, None)
                self._keep(inode)

    @property
    def has_changes(self) -> bool:
        return bool(self._changed or self._removed) or self._counters_changed

    def flush(self) -> None:
        """Write the rows of all changed inodes into the catalog's open transaction, and delete those removed.

        Raises: What the catalog raises; then everything is still on the list.
        """
        if self._counters_changed:
            self._catalog.set_meta("next_inode", self._next_inode)
            self._catalog.set_meta("next_cookie", self._next_cookie)
            self._counters_changed = False
        if self._removed:
            self._catalog.delete_inodes(self._removed)
            self._removed.clear()
        if not self._changed:
            return
        self._catalog.put_inodes([_to_row(inode) for inode in self._changed if inode.changed])
        for inode in self._changed:
            if inode.changed:
                inode.changed = False
                inode.stored = True
        self._changed = []

    # --- orphans ---

    def remove(self, inode: Inode) -> None:
        """Drop an inode that has no name and no user: its row, attributes and draft record."""
        inode.changed = False
        self._views.pop(inode.id, None)
        self._young.pop(inode.id, None)
        self._old.pop(inode.id, None)
        if inode.stored:
            self._removed.add(inode.id)
        if inode.xattrs:
            self._catalog.delete_xattrs(inode.id)

    def remove_orphans(self) -> int:
        """At start: inodes that lost their last name while open. Returns how many."""
        orphans = self._catalog.orphans()
        for inode_id in orphans:
            self._catalog.delete_xattrs(inode_id)
            self._catalog.delete_draft(inode_id)
        self._catalog.delete_inodes(orphans)
        return len(orphans)


def from_row(row: InodeRow) -> Inode:
    """The inode that the catalog has in a row."""
    inode = Inode()
    (
        inode.id,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.nlink,
        inode.rdev,
        inode.size,
        inode.allocated,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.btime_ns,
        inode.parent,
        kind,
        sha256,
        blob_size,
        inode.target,
        inode.xattrs,
    ) = row
    inode.content = (
        Content(ContentKind(kind), Digest(sha256, blob_size), inode.size) if kind else EMPTY
    )
    inode.stored = True
    return inode


def _to_row(inode: Inode) -> InodeRow:
    content = inode.content
    digest = content.digest
    regular = inode.is_regular
    return (
        inode.id,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.nlink,
        inode.rdev,
        # A draft does not survive a crash: the row speaks of the sealed content.
        content.size_bytes if regular else inode.size,
        inode.allocated,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.btime_ns,
        inode.parent,
        int(content.kind),
        digest.sha256 if digest is not None else None,
        digest.size_bytes if digest is not None else None,
        inode.target,
        inode.xattrs,
    )


def clamp_ns(time_ns: int) -> int:
    """The nearest time that 64 bits of nanoseconds can hold (years 1677 to 2262)."""
    return time_ns if _NS_MIN <= time_ns <= _NS_MAX else min(max(time_ns, _NS_MIN), _NS_MAX)
