"""Renditions: what resizing made of an image, remembered so that it is not made again.

A cache in the catalog, under a key that says what was made of what. It keeps nothing alive: a rendition whose
blobs nothing else has is collected like any other garbage, and forgotten with them; so whoever takes one up asks
the tree for its blobs (`BalancedTree.want`) in the same breath in which something comes to refer to them. A
catalog that is rebuilt begins without. At most `RENDITIONS_MAX` are remembered, the latest.

The table is made when the first rendition is recorded. Everything here runs on the owner's thread.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog

RENDITIONS_MAX: Final = 1_000_000
"""Some 150 bytes each."""

_TABLE = """
CREATE TABLE IF NOT EXISTS rendition (
    number    INTEGER PRIMARY KEY,   -- increasing: the oldest go first
    key       BLOB NOT NULL UNIQUE,
    kind      INTEGER NOT NULL,      -- ContentKind
    sha256    BLOB NOT NULL,
    blob_size INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    allocated INTEGER NOT NULL,
    width     INTEGER NOT NULL,
    height    INTEGER NOT NULL,
    frames    INTEGER NOT NULL
) STRICT
"""
_INDEX = "CREATE INDEX IF NOT EXISTS rendered ON rendition (sha256, blob_size)"
_COLUMNS = "kind, sha256, blob_size, size, allocated, width, height, frames"


class Rendition(NamedTuple):
    """A content that is an image; `allocated` bytes of it are not in holes."""

    content: Content
    allocated: int
    width: int
    height: int
    frames: int


class Renditions:
    """The renditions of one store."""

    def __init__(self, catalog: Catalog, *, most: int = RENDITIONS_MAX) -> None:
        self._catalog = catalog
        self._most = most
        query = "SELECT 1 FROM sqlite_master WHERE name = 'rendition'"
        self._exists = catalog.ask(query).fetchone() is not None

    def find(self, key: bytes) -> Rendition | None:
        """What was recorded under a key. Its blobs may be gone."""
        if not self._exists:
            return None
        row = self._catalog.ask(f"SELECT {_COLUMNS} FROM rendition WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        kind, sha256, blob_size, size, *rest = row
        return Rendition(Content(ContentKind(kind), Digest(sha256, blob_size), size), *rest)

    def record(self, key: bytes, rendition: Rendition) -> None:
        """Remember a rendition, which is not empty, instead of what was known under its key."""
        if not self._exists:
            self._catalog.say(_TABLE)
            self._catalog.say(_INDEX)
            self._exists = True
        kind, digest, size_bytes = rendition.content
        assert digest is not None
        self._catalog.say(
            f"INSERT OR REPLACE INTO rendition (key, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, int(kind), digest.sha256, digest.size_bytes, size_bytes, *rendition[1:]),
        )
        self._catalog.say(
            "DELETE FROM rendition WHERE number <= (SELECT max(number) FROM rendition) - ?", (self._most,)
        )

    def forget(self, digest: Digest) -> None:
        """A blob was collected: what it was, or was the manifest of, is not remembered any more."""
        if self._exists:
            self._catalog.say(
                "DELETE FROM rendition WHERE sha256 = ? AND blob_size = ?", (digest.sha256, digest.size_bytes)
            )
