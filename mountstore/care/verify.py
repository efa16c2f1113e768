"""Is a directory of blobs, or a copy of one, what its names say? Needs nothing but the files, and no mount.

Every blob is read and its SHA-256 compared with its name, as `sha256sum` would; then everything that each snapshot
needs is looked for. So what passes brings back all that its snapshots show.

Blocks; any thread. Nothing is changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from mountstore.blobs.refs import BadRef, read_refs
from mountstore.blobs.tree import BalancedTree
from mountstore.care.inspection import Candidate, Inspection, Progress
from mountstore.care.presence import Presence
from mountstore.errors import StoreError
from mountstore.store.layout import BLOBS_NAME


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found in a directory of blobs."""

    path: str
    """Of the directory that has the tree."""
    blobs: int
    """That are whole."""
    size_bytes: int
    damaged: tuple[str, ...]
    """Path and flaw of every other."""
    bad_refs: tuple[BadRef, ...]
    snapshots: tuple[Candidate, ...]
    """Newest first, with what they lack."""
    full: bool
    """The bytes were read; else only sizes were compared."""

    @property
    def ok(self) -> bool:
        """Nothing is wrong with it."""
        return not self.damaged and not self.bad_refs and all(snapshot.complete for snapshot in self.snapshots)


def verify_blobs(path: str, *, full: bool = True, progress: Progress | None = None) -> Verification:
    """Check the directory of blobs at `path`, or that of the store at `path`.

    Args:
      full: Read every blob; otherwise only its size is compared, and what snapshots consist of is read.
      progress: Told how far it is, from the calling thread, every few hundred blobs.

    Raises:
      StoreError: There is no such directory.
      OSError: It cannot be listed.
    """
    report = progress or (lambda words, number: None)
    try:
        blobs = os.path.join(path, BLOBS_NAME) if BLOBS_NAME in os.listdir(path) else path
        empty = not os.listdir(blobs)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: is not a directory of blobs") from None
    tree = BalancedTree(blobs)
    # The refs first: what they lead to was there before them, also when somebody is writing.
    refs, bad_refs = read_refs(blobs)
    presence = Presence(tree, full=full, count=lambda number, _: report("blobs", number))
    if not (empty or presence.blobs or presence.damaged or refs or bad_refs):
        raise StoreError(f"{path}: is not a directory of blobs: it has none")
    inspection = Inspection(tree, presence, report)
    return Verification(
        tree.root,
        presence.blobs,
        presence.size_bytes,
        tuple(presence.damaged),
        tuple(bad_refs),
        tuple(inspection.look(ref) for ref in refs),
        full,
    )
