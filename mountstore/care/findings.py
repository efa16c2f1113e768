"""What a check finds: typed findings, each with what would be done about it, and the report of them all.

A finding is a note (nothing is lost and the store is safe to use as it is: garbage, leftovers that the next
mount takes care of) or an error. A `Change` that is `automatic` loses nothing that is still there, so it
needs no question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from mountstore.namespace.audit import Audit

if TYPE_CHECKING:
    from mountstore.care.premises import Premises

KEPT_PER_KIND = 50_000
"""Findings of one kind beyond this are counted but not kept, so that memory stays bounded."""


class Kind(StrEnum):
    """Values are written to the findings file: never change their meaning."""

    CATALOG_DAMAGED = "catalog damaged"
    CATALOG_OUTDATED = "catalog outdated or of another store"
    INDEX_DAMAGED = "index damaged"
    CONFIGURATION_DAMAGED = "configuration damaged"
    TREE_MISSING = "tree missing"
    COUNTER_WRONG = "counter wrong"
    ROOT_WRONG = "root wrong"
    ENTRY_DANGLING = "entry to nothing"
    ENTRY_ASTRAY = "entry in no directory"
    NAME_INVALID = "invalid name"
    COOKIE_INVALID = "invalid listing position"
    DIRECTORY_NAMES = "directory with several names"
    DIRECTORY_PARENT = "wrong parent"
    DIRECTORY_CYCLE = "directories in a cycle"
    UNREACHABLE = "unreachable"
    LINK_COUNT = "wrong link count"
    INODE_INVALID = "invalid inode"
    CONTENT_INVALID = "invalid content"
    SIZE_WRONG = "wrong size"
    ATTRIBUTE_STRAY = "stray attribute"
    ATTRIBUTE_COUNT = "wrong attribute count"
    CONTENT_LOST = "content lost"
    VERSION_LOST = "old version lost"
    SNAPSHOT_LOST = "snapshot damaged"
    HISTORY_INVALID = "invalid history"
    BLOB_DAMAGED = "blob damaged"
    BLOB_MISPLACED = "blob misplaced"
    BLOB_ROW_INVALID = "invalid blob record"
    CHECKSUM_WRONG = "wrong checksum recorded"
    DRAFT_LOST = "draft lost"
    UNREADABLE = "unreadable"

    ORPHAN = "removed while open"
    HISTORY_STRAY = "history of nothing"
    BLOB_ROW_STALE = "record of an absent blob"
    BLOB_UNRECORDED = "blob not recorded"
    BLOB_MODE = "blob mode"
    STAGING_LEFTOVER = "leftover in staging"
    FOREIGN = "foreign file"
    SNAPSHOT_NONE = "no snapshot"


NOTES = frozenset(
    {
        Kind.ORPHAN,
        Kind.HISTORY_STRAY,
        Kind.BLOB_ROW_STALE,
        Kind.BLOB_UNRECORDED,
        Kind.BLOB_MODE,
        Kind.STAGING_LEFTOVER,
        Kind.FOREIGN,
        Kind.SNAPSHOT_NONE,
    }
)
"""The kinds that are no errors."""


@dataclass(frozen=True, slots=True)
class Change:
    """What would be done: first in the catalog's one transaction, then, when that is on disk, to files."""

    words: str
    automatic: bool = True
    catalog: Callable[[Audit], object] | None = None
    files: Callable[[Premises], object] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    kind: Kind
    what: str
    """The thing and what is wrong with it, in words."""
    change: Change | None = None
    """None if nothing can be done by this program; `what` says what is to be expected."""

    @property
    def is_error(self) -> bool:
        return self.kind not in NOTES

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(frozen=True, slots=True)
class Statistics:
    """One pass over a store; zeros for what could not be counted."""

    inodes: int = 0
    entries: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    garbage_blobs: int = 0
    """In the tree, and not needed by any content in the namespace."""
    garbage_bytes: int = 0
    drafts: int = 0
    rehashed_blobs: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check."""

    path: str
    findings: tuple[Finding, ...]
    counts: Mapping[Kind, int]
    """Of every kind found, also of findings that were not kept."""
    statistics: Statistics
    clean: bool
    """The store was closed in order."""
    full: bool

    @property
    def error_count(self) -> int:
        """Of all errors found."""
        return sum(number for kind, number in self.counts.items() if kind not in NOTES)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_error)

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.is_error)

    def changes(self, *, automatic_only: bool) -> tuple[Finding, ...]:
        """The plan: the findings about which something would be done."""
        return tuple(
            finding
            for finding in self.findings
            if finding.change is not None and (finding.change.automatic or not automatic_only)
        )


class Findings:
    """Collects findings."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[Kind] = Counter()

    def add(self, kind: Kind, what: str, change: Change | None = None) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= KEPT_PER_KIND:
            self._kept.append(Finding(kind, what, change))

    def add_more(self, kind: Kind, number: int) -> None:
        """Count so many others of a kind of which there are too many to keep."""
        if number:
            self._counts[kind] += number

    def kept(self) -> tuple[Finding, ...]:
        return tuple(self._kept)

    def counts(self) -> Mapping[Kind, int]:
        return MappingProxyType(dict(self._counts))
