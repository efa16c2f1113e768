"""The names of what lies in the directory of a store.

    store.toml   format number, uuid, limits, retention of versions; a directory without it is written to only if
                 it is empty
    blobs/       the balanced tree, whose inside only `mountstore.blobs` knows
    catalog.db   SQLite, WAL
    staging/     drafts too large for memory, half-written blobs; in kept/ drafts that are nobody's
    bad/         damaged blobs, moved aside
    trash/       blobs that were collected, by day
    pins/        lists of digests that something outside needs
    fsck.json    what the last check found (`mountstore.care.notes`)
    lock         held with flock(2) by whoever may write
"""

from __future__ import annotations

from typing import Final

CONFIG_NAME: Final = "store.toml"
BLOBS_NAME: Final = "blobs"
CATALOG_NAME: Final = "catalog.db"
STAGING_NAME: Final = "staging"
KEPT_NAME: Final = "kept"
"""In staging."""
LOCK_NAME: Final = "lock"
BAD_NAME: Final = "bad"
TRASH_NAME: Final = "trash"
PINS_NAME: Final = "pins"
NOTES_NAME: Final = "fsck.json"

NEW_SUFFIX: Final = ".new"
"""Of a file that is being written, and gets its name when it is whole; what an interruption leaves of it, the next
attempt replaces."""

NEW_CATALOG_NAME: Final = CATALOG_NAME + NEW_SUFFIX

CATALOG_FILES: Final = (CATALOG_NAME, CATALOG_NAME + "-wal", CATALOG_NAME + "-shm")
"""The catalog, and what SQLite may have beside it."""

LOST_FOUND_NAME: Final = "lost+found"
"""An empty file system may become a store, and has this."""

PARTS: Final = frozenset(
    {
        CONFIG_NAME,
        CONFIG_NAME + NEW_SUFFIX,
        BLOBS_NAME,
        *CATALOG_FILES,
        NEW_CATALOG_NAME,
        NEW_CATALOG_NAME + "-wal",
        NEW_CATALOG_NAME + "-shm",
        STAGING_NAME,
        LOCK_NAME,
        PINS_NAME,
        TRASH_NAME,
        BAD_NAME,
        NOTES_NAME,
        NOTES_NAME + NEW_SUFFIX,
        LOST_FOUND_NAME,
    }
)
"""What may lie in the directory of a store."""
