"""What changed since the last snapshot, so that the next one reads only that.

The catalog notes here the changes it is told of, by number: pages of inodes, pages of histories, directories
(with the names, while they are few). With every commit the numbers go into its table `stale`, in the same
transaction, so neither a crash nor a power loss forgets any; the names are only in memory, and a directory of
which they are not known is read whole. Noting costs the creation of a file about 0.2 us.

Rules
  1. What is noted may not have changed; what has changed is noted, or `everything` is true.
  2. `begin` hands over what was noted until a commit that was just made. What changes later is noted anew;
     `settle`, when the snapshot is safe, leaves exactly that, and `put_back` leaves all of it. Until then
     everything remains in the table.
  3. Without a snapshot to build on (`base` is None) everything is stale and nothing is noted.

Thread: the owner's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from mountstore.blobs.digest import Digest

BASE_KEY: Final = "snapshot_base"
"""Of the table meta: name of the blob that is the root of the last snapshot."""
UUID_KEY: Final = "uuid"
"""Of the store that the catalog belongs to."""
SNAPSHOT_KEY: Final = "snapshot_ns"
"""No snapshot of this catalog is of a later instant, in nanoseconds since 1970."""
PASSED_OVER_KEY: Final = "snapshots_passed_over"
"""Names, with spaces between them, of snapshots that show what this catalog, made from another one, may not."""

PAGE_SHIFT: Final = 6
"""A page of a snapshot (docs/format.md, "Snapshots") has the inodes, or histories, of the numbers n with equal
`n >> PAGE_SHIFT`. On disk: never to change. It stands here because `pages` is built on the catalog, which is built
on this."""

NAMES_MAX: Final = 2048
"""Of a directory in which more names changed, only that it changed is known."""

_ENTRIES_MAX: Final = 1 << 17
"""After so many entries that changed, no names are known any more: some ten MiB."""


class StaleKind(IntEnum):
    """What a number in the table `stale` stands for; on disk, never renumbered."""

    INODES = 1
    """A page of inodes."""
    HISTORIES = 2
    """A page of histories."""
    DIRECTORY = 3
    """The inode number of a directory, which may be gone."""


StaleRow = tuple[int, int]
"""Kind and number."""


class Changes(NamedTuple):
    """What may have changed between two moments."""

    everything: bool
    inodes: frozenset[int]
    """Pages of inodes."""
    histories: frozenset[int]
    """Pages of histories."""
    directories: dict[int, frozenset[bytes] | None]
    """Inode number, and the names; None if these are not known."""


class Stale:
    """The notes of one catalog."""

    def __init__(self) -> None:
        self.base: Digest | None = None
        """Root of the last snapshot that is safe."""
        # Since the last commit.
        self._inodes: set[int] = set()
        self._histories: set[int] = set()
        self._entries: list[tuple[int, bytes]] = []
        self.entry = self._entries.append
        """Note that the name (directory, name), what it stands for, or its history, changed."""
        # Committed, and not in the last snapshot; and of that, what is in the one being taken.
        self._notes = _Notes()
        self._taken: _Notes | None = None
        self._listed = _Numbers(set(), set(), set())

    # --- noting ---

    def inode(self, inode_id: int) -> None:
        """Note that an inode, an attribute of it, or which history it has, changed."""
        self._inodes.add(inode_id >> PAGE_SHIFT)

    def inodes(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """As `inode`, for rows that begin with its number."""
        self._inodes.update([row[0] >> PAGE_SHIFT for row in rows])

    def history(self, history: int) -> None:
        """Note that a history changed."""
        self._histories.add(history >> PAGE_SHIFT)

    # --- on the way into the catalog ---

    def load(self, base: Digest | None, rows: Iterable[StaleRow]) -> None:
        """At start: what the catalog has."""
        self.base = base
        if base is not None:
            for kind, number in rows:
                self._listed[kind - 1].add(number)
            self._notes.add(self._listed)

    def take_unlisted(self) -> list[StaleRow]:
        """What the table `stale` lacks; called before every commit, and only then."""
        inodes, self._inodes = self._inodes, set()
        histories, self._histories = self._histories, set()
        if self.base is None and self._taken is None:
            self._entries.clear()
            return []
        self._notes.add(_Numbers(inodes, histories, set()))
        fresh = _Numbers(inodes, histories, self._notes.add_entries(self._entries))
        self._entries.clear()
        rows: list[StaleRow] = []
        for kind, numbers, listed in zip(StaleKind, fresh, self._listed, strict=True):
            numbers -= listed
            listed |= numbers
            rows += [(int(kind), number) for number in numbers]
        return rows

    # --- snapshots ---

    @property
    def changed(self) -> bool:
        """Whether anything that was committed may differ from the last snapshot."""
        return self.base is None or bool(self._notes)

    def begin(self) -> Changes:
        """Hand over what was noted; to be called directly after a commit."""
        assert self._taken is None and not self._entries
        taken, self._notes = self._notes, _Notes()
        self._taken = taken
        return Changes(
            everything=self.base is None,
            inodes=frozenset(taken.inodes),
            histories=frozenset(taken.histories),
            directories={
                directory: None if names is None else frozenset(names)
                for directory, names in taken.directories.items()
            },
        )

    def put_back(self) -> None:
        """There is no snapshot: all that was handed over is stale still."""
        taken, self._taken = self._taken, None
        if taken is not None:
            taken.merge(self._notes)
            self._notes = taken

    def settle(self, base: Digest) -> list[StaleRow]:
        """The snapshot is safe. Returns: All that the table `stale` is to have from now on, but for what was
        not committed yet."""
        self._taken = None
        self.base = base
        notes = self._notes
        self._listed = _Numbers(set(notes.inodes), set(notes.histories), set(notes.directories))
        return [
            (int(kind), number)
            for kind, numbers in zip(StaleKind, self._listed, strict=True)
            for number in sorted(numbers)
        ]


class _Numbers(NamedTuple):
    """In the order of `StaleKind`."""

    inodes: set[int]
    histories: set[int]
    directories: set[int]


class _Notes:
    """What changed since some moment."""

    __slots__ = ("_entries", "directories", "histories", "inodes")

    def __init__(self) -> None:
        self.inodes: set[int] = set()
        self.histories: set[int] = set()
        self.directories: dict[int, set[bytes] | None] = {}
        self._entries = 0

    def __bool__(self) -> bool:
        return bool(self.inodes or self.histories or self.directories)

    def add(self, numbers: _Numbers) -> None:
        """Directories without names."""
        self.inodes |= numbers.inodes
        self.histories |= numbers.histories
        self.directories.update(dict.fromkeys(numbers.directories))

    def add_entries(self, entries: Collection[tuple[int, bytes]]) -> set[int]:
        """Returns: The directories of these."""
        directories = self.directories
        found: set[int] = set()
        last = -1
        names: set[bytes] | None = None
        for parent, name in entries:
            if parent != last:
                last = parent
                found.add(parent)
                if parent not in directories:
                    directories[parent] = set()
                names = directories[parent]
            if names is not None:
                names.add(name)
        for parent in found:
            names = directories[parent]
            if names is not None and len(names) > NAMES_MAX:
                directories[parent] = None
        self._entries += len(entries)
        if self._entries > _ENTRIES_MAX:
            self._entries = 0
            self.directories = dict.fromkeys(directories)
        return found

    def merge(self, other: _Notes) -> None:
        self.inodes |= other.inodes
        self.histories |= other.histories
        for directory, names in other.directories.items():
            known = self.directories.setdefault(directory, names)
            if known is not names:
                self.directories[directory] = None if known is None or names is None else known | names
