"""What the snapshots beside a tree lack, found from the blobs alone.

Blocks; any thread. Errors of what is looked at are flaws, not exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.manifest import load_manifest
from mountstore.blobs.refs import BadRef, Ref
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import read_blob
from mountstore.care.presence import Presence
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import StaleError
from mountstore.namespace import listing, page_map
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.pages import UNREADABLE, Reference
from mountstore.namespace.stale import PAGE_SHIFT

FLAWS_KEPT: Final = 1000
"""Of each snapshot; all are counted."""

ONCE_BYTES: Final = 2 << 20
"""Objects kept of a snapshot that is read once, from one end to the other."""

Progress = Callable[[str, int], None]
"""Told what is being done, and of how many it is done."""


class Flaw(NamedTuple):
    """Something that a snapshot lacks."""

    what: str
    """What it is, and for what it is needed."""
    blob: str
    """Name of the blob that is missing or damaged; empty if that is not known."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot that was looked at."""

    ref: Ref
    flaw_count: int
    flaws: tuple[Flaw, ...]
    """The first ones."""

    @property
    def complete(self) -> bool:
        return not self.flaw_count


@dataclass(frozen=True, slots=True)
class Survey:
    """What the blobs of a store would bring back."""

    blobs: int
    size_bytes: int
    damaged: tuple[str, ...]
    """Blobs of which the size (or the bytes) are wrong."""
    bad_refs: tuple[BadRef, ...]
    candidates: tuple[Candidate, ...]
    """Newest first, up to the first complete one."""

    @property
    def best(self) -> Candidate | None:
        """The newest one that is complete."""
        return next((candidate for candidate in self.candidates if candidate.complete), None)



class Inspection:
    """Tells what snapshots lack. What two of them share is looked at once."""

    def __init__(self, tree: BalancedTree, presence: Presence, progress: Progress) -> None:
        self._tree = tree
        self._presence = presence
        self._progress = progress
        # What a page and all that stands in it lack.
        self._pages: dict[Digest, tuple[Flaw, ...]] = {}
        self._manifests: dict[Digest, Flaw | None] = {}
        self._looked = 0

    def look(self, ref: Ref) -> Candidate:
        flaws: list[Flaw] = []
        count = 0
        for flaw in self._flaws(ref):
            count += 1
            if len(flaws) < FLAWS_KEPT:
                flaws.append(flaw)
        return Candidate(ref, count, tuple(flaws))

    def _flaws(self, ref: Ref) -> Iterator[Flaw]:
        try:
            tree = SnapshotTree(self._tree, ref.root, cache_bytes=ONCE_BYTES)
        except UNREADABLE as exc:
            yield Flaw(f"its root: {exc}", ref.root.name)
            return
        root = tree.root
        if root.uuid != ref.uuid:
            yield Flaw(f"its root is of the store {root.uuid}, not {ref.uuid}", "")
        try:
            if not tree.inode(ROOT).is_directory:
                yield Flaw("a root directory: inode 1 is something else", "")
        except (*UNREADABLE, StaleError) as exc:
            yield Flaw(f"a root directory: {exc}", "")
        yield from self._map_flaws(tree, root.inodes, "inodes", self._inode_page_flaws)
        yield from self._map_flaws(tree, root.histories, "versions", self._history_page_flaws)

    def _map_flaws(
        self,
        tree: SnapshotTree,
        root: Reference | None,
        what: str,
        look: Callable[[SnapshotTree, int, Digest], Iterator[Flaw]],
    ) -> Iterator[Flaw]:
        bad: list[Exception] = []
        for page, digest in page_map.walk(tree, root, on_bad=bad.append):
            if page is None:
                continue
            known = self._pages.get(digest)
            if known is None:
                known = self._pages[digest] = tuple(look(tree, page, digest))
                self._looked += 1
                if self._looked % 64 == 0:
                    self._progress("pages of snapshots verified", self._looked)
            yield from known
        for exc in bad:
            yield Flaw(f"part of the map of {what}: {exc}", "")

    def _inode_page_flaws(self, tree: SnapshotTree, page: int, digest: Digest) -> Iterator[Flaw]:
        try:
            records = tree.inode_page(page, digest)
        except UNREADABLE as exc:
            yield Flaw(f"inodes {_range(page)}: {exc}", digest.name)
            return
        bad: list[Exception] = []
        for record in records:
            if record.kind:
                yield from self._content_flaws(record.content, f"the content of inode {record.number}")
            if record.listing is not None:
                for _ in listing.entries(tree, record.listing, on_bad=bad.append):
                    pass
                yield from (Flaw(f"names in directory {record.number}: {exc}", "") for exc in bad)
                bad.clear()

    def _history_page_flaws(self, tree: SnapshotTree, page: int, digest: Digest) -> Iterator[Flaw]:
        try:
            records = tree.history_page(page, digest)
        except UNREADABLE as exc:
            yield Flaw(f"histories {_range(page)}: {exc}", digest.name)
            return
        for record in records:
            try:
                rows = tree.history(record.number) if record.segments else record.rows
            except UNREADABLE as exc:
                yield Flaw(f"versions of history {record.number}: {exc}", "")
                continue
            for row in rows:
                if row.sha256 is not None:
                    yield from self._content_flaws(row.content, f"version {row.number} in history {record.number}")

    def _content_flaws(self, content: Content, what: str) -> Iterator[Flaw]:
        assert content.digest is not None
        if content.digest not in self._presence:
            yield Flaw(f"{what}: blob {content.digest.name} is missing or damaged", content.digest.name)
        elif content.kind is ContentKind.MANIFEST:
            if content.digest not in self._manifests:
                self._manifests[content.digest] = self._manifest_flaw(content)
            flaw = self._manifests[content.digest]
            if flaw is not None:
                yield Flaw(f"{what}: {flaw.what}", flaw.blob)

    def _manifest_flaw(self, content: Content) -> Flaw | None:
        try:
            for digest, _ in pieces_of(self._tree, content):
                if digest not in self._presence:
                    return Flaw(f"piece {digest.name} is missing or damaged", digest.name)
        except UNREADABLE as exc:
            assert content.digest is not None
            return Flaw(str(exc), content.digest.name)
        return None


def pieces_of(tree: BalancedTree, content: Content) -> Iterable[tuple[Digest, bytes]]:
    """Digest and checksum of every blob that a manifest needs, itself and its own pieces included."""
    assert content.digest is not None
    read: list[tuple[Digest, bytes]] = []

    def read_noting(digest: Digest, known_checksum: bytes | None) -> bytes:
        data = read_blob(tree, digest, known_checksum)
        read.append((digest, checksum(data)))
        return data

    manifest = load_manifest(read_noting, content.digest, None, content.size_bytes).manifest
    for entry in manifest:
        if entry.digest is not None:
            assert entry.checksum is not None
            read.append((entry.digest, entry.checksum))
    return read


def _range(page: int) -> str:
    return f"{page << PAGE_SHIFT} to {((page + 1) << PAGE_SHIFT) - 1}"
