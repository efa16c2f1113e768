"""Histories: lists of superseded contents, kept in the catalog so that forking one costs O(1).

A history is a list of versions numbered from 1, oldest first. It is stored as rows; a row is either one version,
or a *splice*: the first `count` versions of another history, which never change. So a history is forked by
making a new one with a single splice, and appended to without touching what it shares.

A version that is a prefix of the content that followed it (a growing log) is stored as its length; its bytes are
those of the next version that is stored whole, or of the current content.

Rules for rows: they are only ever appended, and only garbage collection removes any (`drop`); a row's `number` is
that of its first version; `kind` values are on disk and never renumbered. A number stands for the same version for
ever: those that were dropped are left out, and of a dropped row that was the last one a tombstone stays, since
the next number follows from it and others may have been spliced up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.known_names import KnownNames


class RowKind(IntEnum):
    """What a row of a history stands for."""

    BLOB = 1
    MANIFEST = 2
    PREFIX = 3
    """The first bytes of the content that followed."""
    SPLICE = 4
    """The first versions of another history."""
    DIRECTORY = 5
    """A directory that was removed: its inode's number, under which its own names' histories are found."""
    DROPPED = 6
    """`blob_size` versions that garbage collection dropped, at the end of a history."""


FLEETING = 1 << 16
"""Beside the mode in a row: the name that held this content lived less than a minute."""


class Version(NamedTuple):
    """A content that a name used to have.

    `content` is None for a prefix whose successor is the current content; `size_bytes` is always its own.
    """

    content: Content | None
    size_bytes: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    until_ns: int
    """When it was superseded."""
    directory: int = 0
    """For a removed directory, its inode number."""
    fleeting: bool = False
    """The name that held it lived less than a minute."""


class _Row(NamedTuple):
    number: int
    kind: int
    sha256: bytes | None
    blob_size: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    until_ns: int

    @property
    def span(self) -> int:
        """How many versions it stands for."""
        return self.blob_size if self.kind in (RowKind.SPLICE, RowKind.DROPPED) else 1


Shown = tuple[int, bool, tuple[int, int, int, int, int]]
"""A version's number, whether it is a directory, and its size, mode, uid, gid and `mtime_ns`."""

_ANY = 1 << 62
"""Beyond every number of a version."""

_INHABITED_MAX = 10_000
_KNOWN_MAX = 16_384

_COLUMNS = "number, kind, sha256, blob_size, size, mode, uid, gid, mtime_ns, until_ns"

# Statements that are said for every file are put together once.
_GET_LAST = f"SELECT {_COLUMNS} FROM version WHERE history = ? ORDER BY number DESC LIMIT 1"
_ADD_ROW = f"INSERT INTO version VALUES ({', '.join('?' * 11)})"


class Histories:
    """The histories of one catalog. Number 0 stands for the history that is empty.

    Args:
      new_number: Yields numbers for new histories that were never used before.
    """

    def __init__(self, catalog: Catalog, new_number: Callable[[], int]) -> None:
        self._catalog = catalog
        self._new_number = new_number
        self._known = KnownNames(0 if catalog.read_only else _KNOWN_MAX)
        catalog.on_undone.append(self._known.clear)
        # Directories with a name that had a history: of what is not known in them, the catalog is asked.
        self._inhabited: set[int] = set()

    # --- which history belongs to what ---

    def of_name(self, parent: int, name: bytes) -> int:
        """The history of a name, in the directory or gone from it."""
        known = self._known.get(parent, name)
        if known is not None:
            return known
        if parent not in self._inhabited and not self._catalog.read_only:
            if next(self.names(parent), None) is None:
                self._known.begin(parent)
                return 0
            if len(self._inhabited) >= _INHABITED_MAX:
                self._inhabited.clear()
            self._inhabited.add(parent)
        row = self._catalog.ask(
            "SELECT history FROM name_history WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        history: int = 0 if row is None else row[0]
        self._known.keep(parent, name, history)
        return history

    def of_inode(self, inode: int) -> int:
        """The history of contents that an inode had under the names it has now."""
        row = self._catalog.ask("SELECT history FROM inode_history WHERE inode = ?", (inode,)).fetchone()
        return 0 if row is None else row[0]

    def names(self, parent: int, after: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Names of a directory that have a history, beyond `after` in byte order, with the history."""
        return iter(
            self._catalog.ask(
                "SELECT name, history FROM name_history WHERE parent = ? AND name > ? ORDER BY name",
                (parent, after),
            )
        )

    def names_in_place(self, parent: int, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """Names of a directory that have no history, but stand for inodes that have one, by position in it."""
        return iter(
            self._catalog.ask(
                "SELECT e.cookie, e.name FROM entry AS e INDEXED BY listing"
                " JOIN inode_history AS i ON i.inode = e.inode"
                " LEFT JOIN name_history AS n ON n.parent = e.parent AND n.name = e.name"
                " WHERE e.parent = ? AND e.cookie > ? AND n.history IS NULL ORDER BY e.cookie",
                (parent, after),
            )
        )

    def give_name(self, parent: int, name: bytes, history: int) -> None:
        """Let a name have a history (0: none)."""
        self._catalog.stale.entry((parent, name))
        if history:
            self._catalog.say("INSERT OR REPLACE INTO name_history VALUES (?, ?, ?)", (parent, name, history))
            self._known.keep(parent, name, history)
        else:
            self._catalog.say("DELETE FROM name_history WHERE parent = ? AND name = ?", (parent, name))
            self._known.remove(parent, name)

    def give_inode(self, inode: int, history: int) -> None:
        self._catalog.stale.inode(inode)
        if history:
            self._catalog.say("INSERT OR REPLACE INTO inode_history VALUES (?, ?)", (inode, history))
        else:
            self._catalog.say("DELETE FROM inode_history WHERE inode = ?", (inode,))

    # --- reading ---

    def count(self, history: int) -> int:
        """How many versions it has."""
        last = self._last(history)
        return 0 if last is None else last.number + last.span - 1

    def get(self, history: int, number: int) -> Version:
        """Version `number`, from 1 to `count`; its content is None if it is a prefix of what is current.

        Raises: LookupError if there is none, or no longer.
        """
        row, stored, last = self._find(history, number)
        version = _version(row)
        if row.kind != RowKind.PREFIX:
            return version
        whole = self._whole_after(stored, row.number, last)
        if whole is not None and whole.kind != RowKind.SPLICE:
            return version._replace(content=_version(whole).content)
        if whole is not None or stored != history:
            # What followed is stored elsewhere, which is rare: read it through.
            for found, resolved in self.numbered(history):
                if found == number:
                    return resolved
        return version

    def versions(self, history: int) -> Iterator[Version]:
        """All of them, oldest first; prefixes as in `get`."""
        for _, version in self.numbered(history):
            yield version

    def numbered(self, history: int) -> Iterator[tuple[int, Version]]:
        """All of them with their numbers, oldest first; prefixes as in `get`."""
        waiting: list[tuple[int, Version]] = []
        for number, row in self._flat(history, self.count(history)):
            version = _version(row)
            if row.kind == RowKind.PREFIX:
                waiting.append((number, version))
                continue
            for earlier, prefix in waiting:
                yield earlier, prefix._replace(content=version.content)
            waiting = []
            yield number, version
        yield from waiting

    def shown(self, history: int) -> Iterator[Shown]:
        """What a listing shows of each version, oldest first: a third of the cost of `numbered`."""
        rows = self._catalog.ask(
            "SELECT number, kind, size, mode, uid, gid, mtime_ns FROM version WHERE history = ? ORDER BY number",
            (history,),
        ).fetchall()
        splice, directory, dropped = int(RowKind.SPLICE), int(RowKind.DIRECTORY), int(RowKind.DROPPED)
        for number, kind, size, mode, uid, gid, mtime_ns in rows:
            if kind == splice:
                for within, row in self._flat(size, self._span(history, number)):
                    shown = row.size, row.mode & ~FLEETING, row.uid, row.gid, row.mtime_ns
                    yield number - 1 + within, row.kind == directory, shown
            elif kind != dropped:
                yield number, kind == directory, (size, mode & ~FLEETING, uid, gid, mtime_ns)

    def _span(self, history: int, number: int) -> int:
        """How many versions a splice stands for; 0 if garbage collection took it meanwhile."""
        found = self._catalog.ask(
            "SELECT blob_size FROM version WHERE history = ? AND number = ?", (history, number)
        ).fetchone()
        return 0 if found is None else found[0]

    def times(self, history: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, `mtime_ns`, `until_ns` and `directory` of each version, oldest first."""
        for number, row in self._flat(history, self.count(history)):
            directory = row.size if row.kind == RowKind.DIRECTORY else 0
            yield number, row.mtime_ns, row.until_ns, directory

    def _flat(self, history: int, count: int) -> Iterator[tuple[int, _Row]]:
        """Rows that are versions, each with its number in `history`, up to number `count`."""
        # An explicit stack: a log that is rotated for years is spliced as often.
        stack = [(history, self._rows(history), 0, count)]
        # How many versions of each history are to come from it, at the least: a splice of those it stands among
        # itself has no end.
        counts = {history: [count]}
        while stack:
            spliced, rows, shift, last = stack[-1]
            for row in rows:
                number = shift + row.number
                if number > last:
                    continue
                if row.kind == RowKind.SPLICE:
                    shown = min(row.span, last - number + 1)
                    around = counts.setdefault(row.size, [])
                    if around and around[-1] <= shown:
                        raise CorruptError(f"history {row.size} has itself as a part; fsck.cas mends that")
                    around.append(shown)
                    stack.append((row.size, self._rows(row.size), number - 1, number - 1 + shown))
                    break
                if row.kind != RowKind.DROPPED:
                    yield number, row
            else:
                counts[spliced].pop()
                stack.pop()

    def _find(self, history: int, number: int) -> tuple[_Row, int, int]:
        """The row of a version, the history it is stored in, and the last number of that which counts."""
        last = _ANY
        asked: set[tuple[int, int]] = set()
        while True:
            if (history, number) in asked:
                raise CorruptError(f"history {history} has itself as a part; fsck.cas mends that")
            asked.add((history, number))
            found = self._catalog.ask(
                f"SELECT {_COLUMNS} FROM version WHERE history = ? AND number <= ? ORDER BY number DESC LIMIT 1",
                (history, number),
            ).fetchone()
            row = None if found is None else _Row(*found)
            if row is None or row.number + row.span <= number or row.kind == RowKind.DROPPED:
                raise LookupError(f"history {history} has no version {number}")
            if row.kind != RowKind.SPLICE:
                return row, history, last
            last = min(row.span, last - row.number + 1)
            history, number = row.size, number - row.number + 1

    def _whole_after(self, history: int, number: int, last: int) -> _Row | None:
        """The first row beyond `number`, up to `last`, that is no prefix."""
        found = self._catalog.ask(
            f"SELECT {_COLUMNS} FROM version WHERE history = ? AND number > ? AND number <= ?"
            f" AND kind NOT IN ({RowKind.PREFIX:d}, {RowKind.DROPPED:d}) ORDER BY number LIMIT 1",
            (history, number, last),
        ).fetchone()
        return None if found is None else _Row(*found)

    def _rows(self, history: int) -> Iterator[_Row]:
        found = self._catalog.ask(
            f"SELECT {_COLUMNS} FROM version WHERE history = ? ORDER BY number", (history,)
        ).fetchall()
        return iter([_Row(*row) for row in found])

    def _last(self, history: int) -> _Row | None:
        if not history:
            return None
        found = self._catalog.ask(_GET_LAST, (history,)).fetchone()
        return None if found is None else _Row(*found)

    # --- growing ---

    def append(
        self,
        history: int,
        content: Content,
        *,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        until_ns: int,
        prefix: bool = False,
        fleeting: bool = False,
    ) -> int:
        """Add a superseded content; returns the history, which is a new one for 0.

        Args:
          prefix: What followed begins with the same bytes, so that only the length is kept.
          fleeting: The name that held it lived less than a minute.
        """
        digest = content.digest
        assert digest is not None, "an empty content is no version"
        kind = RowKind.PREFIX if prefix else RowKind(content.kind)
        stored = (None, 0) if prefix else digest
        attributes = (mode | FLEETING if fleeting else mode, uid, gid, mtime_ns, until_ns)
        return self._add(history, (kind, *stored, content.size_bytes, *attributes))

    def append_directory(self, history: int, inode: int, *, mode: int, uid: int, gid: int, now: int) -> int:
        """Add a removed directory; returns the history, which is a new one for 0."""
        return self._add(history, (RowKind.DIRECTORY, None, 0, inode, mode, uid, gid, now, now))

    def append_all(self, history: int, other: int) -> int:
        """Add everything that another history holds now; returns the history, a new one for 0."""
        last = self._last(other)
        if last is None:
            return history
        if last.number == 1 and last.kind == RowKind.SPLICE:
            # A fork of a fork is a fork of the first.
            return self._add(history, last[1:])
        count = last.number + last.span - 1
        return self._add(history, (RowKind.SPLICE, None, count, other, 0, 0, 0, 0, 0))

    def is_fork(self, history: int) -> bool:
        """Whether it has nothing but what another one has too."""
        last = self._last(history)
        return last is None or (last.number == 1 and last.kind == RowKind.SPLICE)

    def fork(self, history: int) -> int:
        """A history that begins with all that this one holds now; 0 for an empty one."""
        return self.append_all(0, history)

    def append_missing(self, history: int, other: int) -> int:
        """Add what another history holds now and this one does not; returns the history.

        Reads both. Two rows with equal values stand for the same event: that a content was superseded.
        """
        missing = self._missing(history, other)
        if len(missing) == self.count(other):
            return self.append_all(history, other)
        for row in missing:
            history = self._add(history, row[1:])
        return history

    def holds(self, history: int, other: int) -> bool:
        """Whether nothing is missing in it of what the other one holds, in the sense of `append_missing`."""
        return not self._missing(history, other)

    def _missing(self, history: int, other: int) -> list[_Row]:
        known = {row[1:] for _, row in self._flat(history, self.count(history))}
        missing: list[_Row] = []
        for _, row in self._flat(other, self.count(other)):
            # What follows a prefix goes with it, up to the bytes it is found in.
            if row[1:] not in known or (missing and missing[-1].kind == RowKind.PREFIX):
                missing.append(row)
        return missing

    def ends_open(self, history: int) -> bool:
        """Whether its last version is a prefix of a content that is not in it."""
        last = self._last(history)
        while last is not None and last.kind == RowKind.SPLICE:
            last = self._find(last.size, last.span)[0]
        return last is not None and last.kind == RowKind.PREFIX

    def _add(self, history: int, row: tuple[object, ...]) -> int:
        number = self.count(history) + 1
        history = history or self._new_number()
        self._catalog.stale.history(history)
        self._catalog.say(_ADD_ROW, (history, number, *row))
        return history

    # --- shrinking ---

    def drop(self, history: int, number: int) -> None:
        """Remove the row with that number; every name that has it must have agreed."""
        key = (history, number)
        self._catalog.stale.history(history)
        gone = self._catalog.say(
            "DELETE FROM version WHERE history = ?1 AND number = ?2"
            " AND EXISTS (SELECT 1 FROM version WHERE history = ?1 AND number > ?2)",
            key,
        )
        if not gone.rowcount:
            self._catalog.say(
                "UPDATE version SET sha256 = NULL, size = 0,"
                f" blob_size = CASE kind WHEN {RowKind.SPLICE:d} THEN blob_size"
                f" WHEN {RowKind.DROPPED:d} THEN blob_size ELSE 1 END,"
                f" kind = {RowKind.DROPPED:d} WHERE history = ?1 AND number = ?2",
                key,
            )

    def drop_history(self, history: int) -> None:
        """Remove all rows of a history that no name, inode or other history has."""
        self._catalog.stale.history(history)
        self._catalog.say("DELETE FROM version WHERE history = ?", (history,))

    def drop_name(self, parent: int, name: bytes, history: int) -> None:
        """Let go of a name that does not exist, if it has this history and nothing is left in that."""
        if self.of_name(parent, name) != history or self._catalog.get_entry(parent, name) is not None:
            return
        left = self._catalog.ask(
            "SELECT 1 FROM version WHERE history = ? AND kind != ? LIMIT 1", (history, RowKind.DROPPED)
        ).fetchone()
        if left is None:
            self.give_name(parent, name, 0)

    def ends(self, history: int) -> tuple[int, bool] | None:
        """When the latest version was superseded, and whether it is `fleeting`; None if that is not known."""
        last = self._last(history)
        if last is None or not last.until_ns:
            return None
        return last.until_ns, bool(last.mode & FLEETING)


def _version(row: _Row) -> Version:
    content: Content | None = None
    if row.kind in (RowKind.BLOB, RowKind.MANIFEST):
        assert row.sha256 is not None
        content = Content(ContentKind(row.kind), Digest(row.sha256, row.blob_size), row.size)
    directory = row.size if row.kind == RowKind.DIRECTORY else 0
    size_bytes = 4096 if directory else row.size
    return Version(
        content,
        size_bytes,
        row.mode & ~FLEETING,
        row.uid,
        row.gid,
        row.mtime_ns,
        row.until_ns,
        directory,
        bool(row.mode & FLEETING),
    )
