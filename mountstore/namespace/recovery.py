"""What a crash left: which of the newest blobs are whole, and what becomes of the files whose content is not.

A soft commit is not flushed, and neither are the blobs it speaks of; after power loss the one can be on the
disk without the other. Those blobs are listed as unsynced, so they are read and compared here, before
anything else happens. That is at most what was written in one commit interval.

A small blob that an fsync promised is in the catalog's journal, and is placed anew from there (see
`mountstore.namespace.commits`). A file with a damaged content goes back to what it, or the name it took, stood
for before (see `mountstore.namespace.replaced`). If there is nothing to go back to, it was made within the
last interval and never flushed: it stays as it is and its reads fail, until the same content is written again.
The damaged blobs are moved aside, so that this puts whole ones in their place.

A draft that had been closed and was still being sealed is taken up as it was if its staging file is whole (see
`mountstore.namespace.draft_record`), else as fsyncs had promised it (`mountstore.namespace.draft_changes`).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import load_manifest
from mountstore.blobs.opening import open_to_read, private
from mountstore.blobs.tree import BalancedTree
from mountstore.blobs.verification import check_open_blob, read_blob
from mountstore.errors import BlobMissingError, CorruptError
from mountstore.namespace.catalog import Catalog, DraftRow
from mountstore.namespace.draft_changes import flush, replay, replayed
from mountstore.namespace.draft_record import Closed, decode, dirty_ranges, encode, is_whole, promised
from mountstore.namespace.replaced import Previous, from_row, to_rows

log = logging.getLogger(__name__)

_THREADS = 4
"""Two would do for hashing; the others wait for the disk."""

Candidates = Callable[[int], Iterable[Previous]]
"""What an inode may go back to, the best first."""


class Recovered(NamedTuple):
    """What `recover_contents` found. Inode numbers in `restored` and `lost`, digests in `damaged`."""

    checked: int
    damaged: frozenset[Digest]
    restored: list[int]
    lost: list[int]


def recover_contents(
    catalog: Catalog,
    tree: BalancedTree,
    *,
    staging: str,
    aside: str,
    cold: bool,
    candidates: Candidates | None = None,
) -> Recovered:
    """Check the blobs listed as unsynced and the drafts that were being sealed, and mend the inodes whose content
    has a damaged one.

    Everything is in the catalog's open transaction, except that damaged blobs are moved to the directory
    `aside`; doing it again after another crash comes to the same. Before inodes are in memory.

    Args:
      staging: The directory of staging files.
      cold: What lies in the page cache is not to be believed: a flush of it failed.
      candidates: What an inode may go back to; default: what `catalog.previous` has of it.

    Raises:
      OSError: A blob can neither be read nor moved.
    """
    unsynced = catalog.unsynced()
    damaged = _find_damaged(catalog, tree, unsynced, cold=cold)
    damaged -= _restore_journaled(catalog, tree, damaged)
    closed = _settle_drafts(catalog, staging, cold=cold)
    notes = {row[0]: from_row(row) for row in catalog.previous()}
    affected = {inode for inode, note in notes.items() if note.open} - closed
    if not damaged and not affected:
        return Recovered(len(unsynced), frozenset(), [], [])
    if candidates is None:

        def candidates(inode: int) -> Iterable[Previous]:
            return [notes[inode]] if inode in notes else []

    judge = _Judge(catalog, tree, damaged, frozenset(unsynced))
    restored, lost = [], []
    drafts: list[DraftRow] = []
    broken = set()
    if damaged:
        for row in catalog.contents():
            content = Content(ContentKind(row.kind), Digest(row.sha256, row.blob_size), row.size)
            if judge.is_damaged(content):
                broken.add(row.inode)
    for inode in sorted(affected | broken):
        previous = next((found for found in candidates(inode) if not judge.is_damaged(found.content)), None)
        if previous is None:
            lost += [inode] if inode in broken else []
            continue
        content = previous.content
        catalog.set_content(
            inode, int(content.kind), content.digest, content.size_bytes, previous.allocated
        )
        catalog.delete_draft(inode)
        if previous.draft is not None:
            drafts.append(previous.draft._replace(inode=inode))
        catalog.delete_previous(inode)
        restored.append(inode)
    used = {row.staging for row in catalog.drafts()}
    for draft in drafts:
        if draft.staging in used:
            # Of a file that another name still stands for, or that had another name which was taken, too.
            draft = _copied(draft, staging)
        used.add(draft.staging)
        catalog.put_draft(draft)
    for digest in damaged:
        _move_aside(tree, digest, aside)
        catalog.delete_blob(digest)
    return Recovered(len(unsynced), damaged, restored, lost)


def _settle_drafts(catalog: Catalog, staging: str, *, cold: bool) -> set[int]:
    """Have the records of drafts say what is in their staging files: bring in the changes that are in the catalog,
    and of drafts that were closed decide whether they are whole; returns the inodes of those."""
    changes = catalog.draft_changes()
    whole: dict[str, int] = {}

    def settled(row: DraftRow) -> DraftRow:
        """What an fsync had promised, brought into the staging file unless that has something newer."""
        later = changes.get(row.staging)
        if later is None:
            return row
        try:
            now = replayed(row, later)
            if row.staging not in whole:
                replay(row, later, staging)
            return now
        except CorruptError as exc:
            # The draft is as it was when its file was flushed.
            log.error("%s: %s", row.staging, exc)
            return row

    for row in catalog.drafts():
        try:
            record = decode(row.dirty)
            kept = promised(row)
        except CorruptError:
            # Reported when the drafts are brought back.
            continue
        if isinstance(record, Closed) and _is_whole(row, record, staging, cold=cold):
            whole[row.staging] = row.inode
            if row.staging in changes:
                # Nothing else has what they promised once they are gone.
                flush(row, staging)
                catalog.put_draft(row._replace(dirty=encode(record.dirty)))
        elif kept is None:
            catalog.delete_draft(row.inode)
        elif (now := settled(kept)) != row:
            catalog.put_draft(now)
    notes = {row[0]: from_row(row) for row in catalog.previous()}
    catalog.put_previous(
        to_rows(
            {
                inode: note._replace(draft=settled(note.draft))
                for inode, note in notes.items()
                if note.draft is not None and note.draft.staging in changes
            }
        )
    )
    catalog.delete_draft_changes(changes)
    return set(whole.values())


def _copied(row: DraftRow, staging: str) -> DraftRow:
    """The record of a draft with a staging file of its own, a copy of the recorded one, flushed."""
    copy = row._replace(staging=f"draft-{row.inode}-{time.time_ns():x}")
    try:
        with (
            open(open_to_read(os.path.join(staging, row.staging)), "rb") as source,
            open(os.path.join(staging, copy.staging), "xb", opener=private) as target,
        ):
            for start, end in dirty_ranges(decode(row.dirty)):
                while start < end:
                    length = os.copy_file_range(source.fileno(), target.fileno(), end - start, start, start)
                    if not length:
                        break
                    start += length
        flush(copy, staging)
    except CorruptError:
        # Reported when the drafts are brought back, and so is what is not there or leads elsewhere.
        return row
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return row
    return copy


def _is_whole(row: DraftRow, record: Closed, staging: str, *, cold: bool) -> bool:
    try:
        return is_whole(row, record, staging, cold=cold)
    except OSError as exc:
        log.error("%s: a draft cannot be read: %s", row.staging, exc)
        return False


def _find_damaged(
    catalog: Catalog, tree: BalancedTree, digests: Collection[Digest], *, cold: bool
) -> frozenset[Digest]:
    checks = [(digest, catalog.get_checksum(digest)) for digest in digests]

    def is_damaged(check: tuple[Digest, bytes | None]) -> bool:
        digest, checksum = check
        try:
            fd = tree.open(digest)
        except (BlobMissingError, CorruptError):
            return True
        try:
            if cold:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            check_open_blob(fd, digest, checksum)
        except CorruptError:
            return True
        except OSError as exc:
            log.error("blob %s cannot be read: %s", digest.name, exc)
            return True
        finally:
            os.close(fd)
        return False

    with ThreadPoolExecutor(_THREADS) as pool:
        verdicts = pool.map(is_damaged, checks, chunksize=16)
        return frozenset(digest for (digest, _), bad in zip(checks, verdicts, strict=True) if bad)


def _restore_journaled(catalog: Catalog, tree: BalancedTree, damaged: Collection[Digest]) -> set[Digest]:
    """Place the damaged blobs anew whose bytes are in the journal; returns which.

    They are flushed by the first hard sync after the mount, which flushes everything.
    """
    restored = set()
    if damaged:
        for digest, data in catalog.journal().items():
            if digest in damaged and Digest.of(data) == digest:
                tree.distrust(digest)
                tree.add_bytes(data, digest)
                restored.add(digest)
    return restored


class _Judge:
    """Tells whether contents have a damaged blob.

    Only what was sealed since the last hard sync can: pieces are placed before the manifest that lists
    them, so a manifest of which a piece is listed as unsynced is listed itself.
    """

    def __init__(
        self, catalog: Catalog, tree: BalancedTree, damaged: frozenset[Digest], unsynced: frozenset[Digest]
    ) -> None:
        self._catalog = catalog
        self._tree = tree
        self._damaged = damaged
        self._unsynced = unsynced
        self._manifests: dict[Digest, bool] = {}

    def is_damaged(self, content: Content) -> bool:
        digest = content.digest
        if digest is None or digest not in self._unsynced:
            return False
        if digest in self._damaged or content.kind is ContentKind.BLOB:
            return digest in self._damaged
        if digest not in self._manifests:
            self._manifests[digest] = self._has_damaged_piece(content, digest)
        return self._manifests[digest]

    def _has_damaged_piece(self, content: Content, digest: Digest) -> bool:
        try:
            loaded = load_manifest(
                lambda blob, checksum: read_blob(self._tree, blob, checksum),
                digest,
                self._catalog.get_checksum(digest),
                content.size_bytes,
            )
        except (BlobMissingError, CorruptError):
            return True
        manifest = loaded.manifest
        return any(manifest.entry(i).digest in self._damaged for i in range(len(manifest)))


def _move_aside(tree: BalancedTree, digest: Digest, aside: str) -> None:
    os.makedirs(aside, 0o700, exist_ok=True)
    try:
        tree.move_out(digest, os.path.join(aside, digest.name))
    except BlobMissingError:
        pass
