"""What was set aside instead of being deleted: to be looked at, copied, and removed by the owner.

    staging/kept/   unsealed contents of files that exist, which a crash left and no fsync had promised
    bad/            damaged blobs, and foreign files that lay at the place of one

Nothing else in a store refers to these, so they may be removed at any time, also while it is mounted.
"""

from __future__ import annotations

import os
import re
import stat
import time
from enum import StrEnum
from typing import NamedTuple

from mountstore.blobs.staging import drop_file
from mountstore.namespace.drafts import inode_of_draft
from mountstore.store.layout import BAD_NAME, KEPT_NAME, STAGING_NAME

__all__ = ["Kept", "KeptKind", "list_kept", "purge_kept"]

_BLOB = re.compile(r"[0-9a-f]{64}_[0-9a-f]+\Z")


class KeptKind(StrEnum):
    """What was set aside."""

    DRAFT = "draft"
    BLOB = "blob"
    FOREIGN = "foreign file"


class Kept(NamedTuple):
    """One file that was set aside."""

    kind: KeptKind
    path: str
    size_bytes: int
    """Its length; of a draft, parts that were not changed are holes, whatever the file has there."""
    mtime_ns: int
    inode: int | None
    """For a draft, the number of the inode whose content it was to become."""


def list_kept(store: str) -> list[Kept]:
    """Everything set aside in the store at this path, by directory and name. Any thread, mounted or not.

    Raises: OSError if a directory cannot be read; those that are absent are empty.
    """
    found = []
    for directory in (os.path.join(store, STAGING_NAME, KEPT_NAME), os.path.join(store, BAD_NAME)):
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                inode = inode_of_draft(entry.name)
                kind = KeptKind.DRAFT if inode is not None else KeptKind.FOREIGN
                if _BLOB.match(entry.name):
                    kind = KeptKind.BLOB
                found.append(Kept(kind, entry.path, status.st_size, status.st_mtime_ns, inode))
    return found


def purge_kept(store: str, *, older_than_s: float = 0.0, dry_run: bool = False) -> list[Kept]:
    """Delete what was set aside and last changed at least so long ago; returns it.

    Raises: OSError; what was not deleted by then stays.
    """
    before_ns = time.time_ns() - int(older_than_s * 1e9)
    purged = []
    for kept in list_kept(store):
        if kept.mtime_ns <= before_ns:
            if not dry_run:
                drop_file(kept.path)
            purged.append(kept)
    return purged


