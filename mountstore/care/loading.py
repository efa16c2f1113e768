"""One snapshot loaded into a new catalog.

Pages come in the order of the tables' keys, so rows are only appended; see `mountstore.namespace.rebuilding`.
Blocks; any thread.
"""

from __future__ import annotations

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import checksum
from mountstore.blobs.tree import BalancedTree
from mountstore.care.inspection import ONCE_BYTES, Candidate, Progress, pieces_of
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.namespace.pages import UNREADABLE
from mountstore.namespace.rebuilding import CatalogBuilder
from mountstore.namespace.stale import BASE_KEY


class Loader:
    """Loads one snapshot into a new catalog.

    Args:
      taken: The snapshot; if it is not complete, what can be read of it is loaded.
      built: Path of the new catalog; what lies there is replaced.

    Attributes:
      inodes, names, versions: How many were loaded.
    """

    def __init__(self, tree: BalancedTree, taken: Candidate, built: str, progress: Progress) -> None:
        self._tree = tree
        self._taken = taken
        self._built = built
        self._progress = progress
        self.inodes = self.names = self.versions = 0

    def load(self, notes: dict[str, int | str]) -> None:
        """Do it; `notes` are what else the catalog is to know of itself.

        Raises:
          BlobMissingError, CorruptError: A complete snapshot has just been damaged, or it contradicts itself.
          NoSpaceError, OSError: It cannot be read, or written. In all cases nothing is left.
        """
        complete = self._taken.complete
        with CatalogBuilder(self._built) as builder:
            tree = SnapshotTree(
                self._tree,
                self._taken.ref.root,
                cache_bytes=ONCE_BYTES,
                on_read=lambda digest, data: builder.need(digest, checksum(data)),
                on_bad=None if complete else lambda exc: None,
            )
            manifests: set[Content] = set()
            for record in tree.inodes():
                builder.add_inodes((record,))
                if record.listing is not None:
                    builder.add_entries(record.number, tree.names_of(record))
                if record.kind == ContentKind.MANIFEST:
                    manifests.add(record.content)
                self._count(record.is_ghost)
            for number, rows in tree.histories():
                builder.add_history(number, rows)
                self.versions += len(rows)
                manifests.update(row.content for row in rows if row.kind == ContentKind.MANIFEST)
            for content in manifests:
                try:
                    pieces = pieces_of(self._tree, content)
                except UNREADABLE:
                    if complete:
                        raise
                    continue
                for digest, known_checksum in pieces:
                    builder.need(digest, known_checksum)
            self.names = builder.names
            # Blobs that no snapshot taken names may be needed by what could not be read: gc leaves them alone.
            adopted = tree.root.adopted or not complete
            meta: dict[str, int | str] = {**notes, "clean": 1}
            if adopted:
                meta["adopted"] = 1
            if complete:
                meta[BASE_KEY] = tree.digest.name
            self._progress("inodes loaded", self.inodes)
            builder.finish(meta)

    def _count(self, ghost: bool) -> None:
        if not ghost:
            self.inodes += 1
            if self.inodes % 4096 == 0:
                self._progress("inodes loaded", self.inodes)
