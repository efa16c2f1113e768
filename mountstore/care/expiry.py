"""Which rows of which histories retention drops, for the whole store.

A row may be shared by several names (a rename forks a history). Each name is judged by the policy of its
directory, and a row goes only if every name that has it lets it go.

Beside what `mountstore.care.retention` says of contents:
  1. A version stays while versions before it are kept that are prefixes of it, since it has their bytes; also if
     it is another name that keeps them, for this one goes on showing them.
  2. A removed directory stays while anything below it does.
  3. A history that no name has any more goes, as nobody can look at it.
  4. Below a directory whose policy cannot be understood everything is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from mountstore.care.retention import Policy, Superseded, Verdict, judge
from mountstore.errors import MisuseError
from mountstore.namespace.history import RowKind
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.inventory import HistoryRow, Inventory, Line, Need, RowVerdict
from mountstore.namespace.policy import ATTRIBUTE, KEEP_ALL, parse_words

log = logging.getLogger(__name__)

_REMEMBERED: Final = 100_000
"""Directories whose policy is remembered."""

_FLAWS_TOLD: Final = 10
_REASON_LENGTH: Final = 200

_BASE: Final = "has the bytes of earlier versions"
_DIRECTORY: Final = "directory"


class _Splice(NamedTuple):
    """A row that shows rows of another history; `above` is the one that shows it."""

    history: int
    number: int
    above: _Splice | None


_Frame = tuple[Iterator[HistoryRow], int, int, _Splice | None]
"""What is left of a history's rows, its number, the last row that counts, and what shows it."""

_ANY: Final = 1 << 62


class _Place(NamedTuple):
    """A version among those of a name: the row it is stored in, and how that comes to be shown."""

    history: int
    row: HistoryRow
    splice: _Splice | None


class _Removed(NamedTuple):
    """A version that is a removed directory, found among those of a name in `parent`."""

    directory: int
    parent: int
    place: _Place
    bare: tuple[int, bytes, int] | None
    """The name, if there is nothing else that would keep it."""


class Only(NamedTuple):
    """A part of the tree, and the policy to judge it by; without `name`, all in and below the directory."""

    directory: int
    name: bytes | None
    policy: Policy


class Policies:
    """The policy of each directory: the store's, as changed by the attributes on the way down to it.

    Args:
      only: Judge nothing but the names in and below a directory, or one name in it, whatever the attributes say.
    """

    def __init__(self, inventory: Inventory, store: Policy, only: Only | None = None) -> None:
        self._inventory = inventory
        self._store = store if only is None else KEEP_ALL
        self._only = only
        self._words = inventory.attributes(ATTRIBUTE) if only is None else {}
        self.removed: Final = inventory.removed_directories()
        self._known: dict[int, Policy] = {}
        self.flaws: list[str] = []
        """What could not be understood."""
        self._misunderstood: set[int] = set()

    def of(self, directory: int, name: bytes) -> Policy:
        """The policy for a name in a directory, which may have been removed."""
        only = self._only
        if only is not None and only.name is not None:
            return only.policy if (directory, name) == (only.directory, only.name) else KEEP_ALL
        if only is None and not self._words:
            return self._store
        way = []
        number: int | None = directory
        while number is not None and number not in self._known and number not in way:
            way.append(number)
            number = None if number == ROOT else self._above(number)
        policy = self._store if number is None else self._known.get(number, self._store)
        if len(self._known) > _REMEMBERED:
            self._known = {}
        for number in reversed(way):
            policy = self._known[number] = self._changed(policy, number)
        return policy

    def _above(self, directory: int) -> int | None:
        # Where it was, also while it is still being deleted (`mountstore.namespace.limbo`).
        above = self.removed.get(directory)
        return self._inventory.parent_of(directory) if above is None else above

    def _changed(self, policy: Policy, directory: int) -> Policy:
        if self._only is not None:
            return self._only.policy if directory == self._only.directory else policy
        words = self._words.get(directory)
        if words is None:
            return policy
        try:
            return parse_words(words.decode("ascii"), policy, self._store)
        except (MisuseError, UnicodeDecodeError) as exc:
            self._tell(directory, exc)
            return KEEP_ALL

    def _tell(self, directory: int, why: Exception) -> None:
        # Any user may write any number of these, of any length.
        if directory in self._misunderstood or len(self._misunderstood) > _FLAWS_TOLD:
            return
        self._misunderstood.add(directory)
        if len(self._misunderstood) > _FLAWS_TOLD:
            flaw = f"there are more directories whose {ATTRIBUTE.decode()} is not understood"
        else:
            flaw = (
                f"the directory with inode number {directory} (find -inum): {ATTRIBUTE.decode()} is not"
                f" understood, so everything below it is kept: {str(why)[:_REASON_LENGTH]}"
            )
        log.error("%s", flaw)
        self.flaws.append(flaw)


class Expiry:
    """Judges the names of an inventory one after another; the verdicts are in the inventory when it is done."""

    def __init__(self, inventory: Inventory, store: Policy, now_ns: int, only: Only | None = None) -> None:
        self.policies = Policies(inventory, store, only)
        self._inventory = inventory
        self._now_ns = now_ns
        self._inhabited: set[int] = set()
        self._removed: list[_Removed] = []

    def run(self) -> Iterator[None]:
        """Do it, with a pause after every name."""
        for line in self._inventory.lines():
            self._judge(line)
            yield
        self._inventory.settle_needs()
        self._judge_directories()

    def _judge(self, line: Line) -> None:
        reached = {history for history in (line.own, line.in_place) if history}
        places = [*self._places(line.own, reached), *self._places(line.in_place, reached)]
        self._inventory.reach(reached)
        contents = [place for place in places if place.row.kind != RowKind.DIRECTORY]
        verdicts = judge(
            [Superseded(place.row.until_ns, place.row.size, place.row.fleeting) for place in contents],
            self._now_ns,
            self.policies.of(line.parent, line.name),
        )
        said = list(_with_bases(contents, verdicts))
        self._inventory.judge(said)
        self._inventory.need(_needs(contents, verdicts))
        kept = any(verdict.keep for verdict in said)
        if kept and line.parent in self.policies.removed:
            self._inhabited.add(line.parent)
        directories = [place for place in places if place.row.kind == RowKind.DIRECTORY]
        bare = None if line.exists or kept else (line.parent, line.name, line.own)
        for place in directories:
            self._removed.append(_Removed(place.row.size, line.parent, place, bare))
        if bare is not None and not directories:
            self._inventory.bare([bare])

    def _places(self, history: int, reached: set[int]) -> Iterator[_Place]:
        """The versions of a history, oldest first; adds to `reached` whatever they are stored in."""
        if not history:
            return
        # As in `Histories._flat`: a stack, since a log that is rotated for years is spliced as often.
        stack: list[_Frame] = [(iter(self._inventory.history(history)), history, _ANY, None)]
        while stack:
            rows, number, last, splice = stack.pop()
            for row in rows:
                if row.number > last:
                    break
                if row.kind == RowKind.SPLICE:
                    stack.append((rows, number, last, splice))
                    reached.add(row.size)
                    below = iter(self._inventory.history(row.size))
                    shown = min(row.span, last - row.number + 1)
                    stack.append((below, row.size, shown, _Splice(number, row.number, splice)))
                    break
                if row.kind != RowKind.DROPPED:
                    yield _Place(number, row, splice)

    def _judge_directories(self) -> None:
        """Rule 2, from the innermost outwards."""
        waiting, kept = self._removed, set()
        # One that is there still is being deleted, and what is in it will leave versions.
        being_deleted = [removed.directory for removed in waiting if self._inventory.parent_of(removed.directory)]
        self._inhabited.update(being_deleted)
        while inhabited := [removed for removed in waiting if removed.directory in self._inhabited]:
            waiting = [removed for removed in waiting if removed.directory not in self._inhabited]
            for removed in inhabited:
                self._inventory.judge(_kept(removed.place, _DIRECTORY))
                kept.add(removed.bare)
                if removed.parent in self.policies.removed:
                    self._inhabited.add(removed.parent)
        bare = {removed.bare for removed in waiting} - kept
        self._inventory.bare(name for name in bare if name is not None)


def _with_bases(places: list[_Place], verdicts: list[Verdict]) -> Iterator[RowVerdict]:
    """The verdicts as rows, with rule 1 applied: whole versions that prefixes before them need are kept."""
    whole = -1
    needed = set()
    for i in range(len(places) - 1, -1, -1):
        if places[i].row.kind != RowKind.PREFIX:
            whole = i
        elif verdicts[i].keep and whole >= 0:
            needed.add(whole)
    for i, (place, verdict) in enumerate(zip(places, verdicts, strict=True)):
        if verdict.keep:
            yield from _kept(place, verdict.reason)
        elif i in needed:
            yield from _kept(place, _BASE)
        else:
            yield RowVerdict(place.history, place.row.number, False, verdict.reason)


def _needs(places: list[_Place], verdicts: list[Verdict]) -> Iterator[Need]:
    """What else rule 1 asks for, should another name keep a prefix that this one lets go."""
    base: _Place | None = None
    for place, verdict in zip(reversed(places), reversed(verdicts), strict=True):
        if place.row.kind != RowKind.PREFIX:
            base = place
        elif not verdict.keep and base is not None:
            for kept in _kept(base, _BASE):
                yield Need(place.history, place.row.number, kept)


def _kept(place: _Place, reason: str) -> Iterable[RowVerdict]:
    """A row is kept, with the splices that show it."""
    yield RowVerdict(place.history, place.row.number, True, reason)
    splice = place.splice
    while splice is not None:
        yield RowVerdict(splice.history, splice.number, True, "splice")
        splice = splice.above
