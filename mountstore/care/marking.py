"""Marking: which blobs the catalog, memory, snapshots and lists need, and which only dropped versions have.

When it is sound to mark stands in `mountstore.care.gc`. Nobody knows what a content needs whose manifest cannot be
read; how many there are is told, and who wants to collect all the same decides that knowingly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import trio

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import read_refs
from mountstore.care.marks import Marks
from mountstore.care.roots import Listed, hashes_below, hashes_of
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.stretches import Progress, in_stretches
from mountstore.care.sweep import Fate
from mountstore.errors import CorruptError
from mountstore.namespace.inventory import Inventory
from mountstore.namespace.pages import UNREADABLE
from mountstore.store import Store

__all__ = ["Marking", "Roots"]

_MARKED: Final = (Fate.LIVE, Fate.VERSIONS, Fate.SNAPSHOTS, Fate.LISTED, Fate.DROPPED)

Roots = Callable[[], Iterable[Digest]]
"""Yields blobs that something needs of which the catalog does not know; called in a worker after T."""


class Marking:
    """What was marked in one run.

    Args:
      progress: Told how many contents were seen.
      dry_run: The next snapshot is built on the last one even if that cannot be read.

    Attributes:
      marks: What was marked, by reason.
      flaws: What could not be read.
      unreadable: How many contents or snapshots could not be, so that it is not known which blobs they need.
    """

    def __init__(self, store: Store, progress: Progress, *, dry_run: bool) -> None:
        self.marks: Final = {fate: Marks() for fate in _MARKED}
        self.flaws: Final[list[str]] = []
        self.unreadable = 0
        self._store = store
        self._progress = progress
        self._dry_run = dry_run
        self._seen = 0

    async def mark_dropped(self, inventory: Inventory) -> None:
        """Mark what versions have that were judged to go: it is only told apart for the report."""
        await self._mark_contents(inventory.superseded(kept=False), Fate.DROPPED)

    async def mark_needed(
        self,
        inventory: Inventory,
        contents: set[Content],
        streams: set[Digest],
        listed: Sequence[Listed],
        roots: Sequence[Roots],
    ) -> None:
        """Mark whatever is needed.

        Args:
          inventory: The catalog as of T.
          contents: Those in memory at T.
          streams: Blobs of files that are being written.
          listed, roots: Blobs to keep, and those of other parts of the store.

        Raises: OSError, CorruptError: The refs or the catalog cannot be read at all.
        """
        self.marks[Fate.LIVE].update(digest.sha256 for digest in streams)
        await self._mark_contents(iter(contents), Fate.LIVE, "a content in memory")
        await self._mark_contents(inventory.current(), Fate.LIVE, "a file")
        await self._mark_contents(inventory.superseded(), Fate.VERSIONS, "an old version")
        await self._mark_snapshots(inventory)
        await self._mark_roots(roots)
        await self._mark_listed(inventory, listed)

    def require_readable(self) -> None:
        """Raises: CorruptError: Contents could not be read."""
        if self.unreadable:
            raise CorruptError(
                f"{self.unreadable} contents cannot be read, so it is not known which blobs they need, and"
                " nothing is collected (fsck.cas tells which; --despite-damage collects all the same):"
                f" {self.flaws[-1]}"
            )

    async def _mark_roots(self, roots: Sequence[Roots]) -> None:
        marks = self.marks[Fate.LISTED]
        for needed in roots:
            await in_stretches(iter(needed()), lambda digest: marks.add(digest.sha256))

    async def _mark_listed(self, inventory: Inventory, listed: Sequence[Listed]) -> None:
        marks = self.marks[Fate.LISTED]
        tree = self._store.tree

        def mark(line: Listed) -> None:
            marks.add(line.sha256)
            sizes = inventory.sizes_of(line.sha256) if line.size_bytes is None else [line.size_bytes]
            for size_bytes in sizes:
                marks.update(hashes_below(tree, Digest(line.sha256, size_bytes)))

        await in_stretches(iter(listed), mark)

    async def _mark_snapshots(self, inventory: Inventory) -> None:
        """Each page is walked once, in however many snapshots it is."""
        tree = self._store.tree
        base = inventory.snapshot_base()
        if base is not None and not await self._mark_base(base) and not self._dry_run:
            # It could lose pages that nothing else has, and so be nothing to build on.
            self._store.catalog.forget_snapshot()
        refs, bad = await trio.to_thread.run_sync(read_refs, tree.root)
        for name, error in bad:
            self.unreadable += 1
            self.flaws.append(f"snapshot {name} cannot be read: {error}")
        walked: set[bytes] = set()
        manifests: set[bytes] = set()

        def contents(root: Digest) -> Iterator[Content]:
            for content in SnapshotTree(tree, root).references(walked):
                if content.kind is not ContentKind.MANIFEST:
                    yield content
                elif content.digest is not None and content.digest.sha256 not in manifests:
                    manifests.add(content.digest.sha256)
                    yield content

        for ref in refs:
            what = f"snapshot {ref.name}"
            try:
                await self._mark_contents(contents(ref.root), Fate.SNAPSHOTS, f"a file in {what}")
            except UNREADABLE as exc:
                self.unreadable += 1
                self.flaws.append(f"{what} cannot be read; if it is not needed, delete it: {exc}")
                # What lies below what could not be read was not walked.
                walked = set()

    async def _mark_base(self, base: Digest) -> bool:
        """Mark the pages on which the next snapshot is built; what they refer to is in the catalog, as far as
        they are still right."""
        marks = self.marks[Fate.SNAPSHOTS]
        tree = self._store.tree

        def pages() -> Iterator[Digest]:
            yield from SnapshotTree(tree, base).pages()

        try:
            await in_stretches(pages(), lambda page: marks.add(page.sha256))
        except UNREADABLE as exc:
            self.flaws.append(f"the last snapshot cannot be read, so the next one is written whole: {exc}")
            return False
        return True

    async def _mark_contents(self, contents: Iterator[Content], fate: Fate, what: str = "") -> None:
        marks = self.marks[fate]
        tree = self._store.tree

        def mark(content: Content) -> None:
            self._seen += 1
            if content.digest is None:
                return
            marks.add(content.digest.sha256)
            if content.kind is not ContentKind.MANIFEST:
                return
            try:
                marks.update(hashes_of(tree, content))
            except UNREADABLE as exc:
                # What belongs to dropped versions is only told apart for the report.
                if fate is not Fate.DROPPED:
                    self.unreadable += 1
                    self.flaws.append(f"{what} cannot be read: {exc}")

        await in_stretches(contents, mark, lambda: self._progress(self._seen, None, "contents"))
