"""What is in memory of names is what the catalog has, whatever happens to them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mountstore.errors import ExistsError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.history import Histories
from mountstore.namespace.known_names import KnownNames

DIRECTORIES = (1, 2, 3)
NAMES = (b"a", b"b", b"c", b"d")
places = st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(NAMES))


class BesideADict(RuleBasedStateMachine):
    """A catalog and what it should say; memory is short."""

    limit = 6
    known: KnownNames

    def __init__(self) -> None:
        super().__init__()
        self.path = f"/dev/shm/known-names-{os.getpid()}-{id(self)}"
        self.catalog = Catalog(self.path)
        self.model: dict[tuple[int, bytes], int] = {}
        self.number = 10

    def next(self) -> int:
        self.number += 1
        return self.number

    @rule()
    def commit(self) -> None:
        self.catalog.commit()

    @invariant()
    def what_is_known_is_so(self) -> None:
        for place in ((parent, name) for parent in DIRECTORIES for name in NAMES):
            known = self.known.get(*place)
            assert known is None or known == self.model.get(place, 0)

    def teardown(self) -> None:
        self.catalog.close()
        for end in ("", "-wal", "-shm"):
            Path(self.path + end).unlink(missing_ok=True)


class Names(BesideADict):
    """What names stand for; some of the directories are known as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog._names = self.known = KnownNames(self.limit)
        self.catalog.begin_directory(1)
        self.catalog.begin_directory(2)

    @rule(place=places)
    def add(self, place: tuple[int, bytes]) -> None:
        number = self.next()
        if place in self.model:
            with pytest.raises(ExistsError):
                self.catalog.add_entry(*place, number, number)
        else:
            self.catalog.add_entry(*place, number, number)
            self.model[place] = number

    @rule(new=st.sets(places, max_size=4))
    def add_many(self, new: set[tuple[int, bytes]]) -> None:
        rows = {place: self.next() for place in new if place not in self.model}
        self.catalog.add_entries([(*place, number, number) for place, number in rows.items()])
        self.model |= rows

    @rule(place=places)
    def remove(self, place: tuple[int, bytes]) -> None:
        self.catalog.delete_entry(*place)
        self.model.pop(place, None)

    @rule(place=places)
    def point(self, place: tuple[int, bytes]) -> None:
        if place in self.model:
            self.model[place] = self.next()
            self.catalog.point_entry(*place, self.model[place])

    @rule(place=places, new=places)
    def move(self, place: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        if place in self.model and new not in self.model:
            self.catalog.move_entry(*place, *new, None)
            self.model[new] = self.model.pop(place)

    @rule(place=places, new=places)
    def undo(self, place: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        before = dict(self.model)
        with pytest.raises(ZeroDivisionError), self.catalog.savepoint():
            self.add(place)
            self.move(place, new)
            self.remove(new)
            self.catalog.begin_directory(3)
            raise ZeroDivisionError
        self.model = before

    @rule(what=st.sampled_from(["move", "remove", "point", "add"]), place=places, new=places)
    def fail(self, what: str, place: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        """A statement fails, as on a full disk: nothing has changed."""
        number = self.next()
        calls: dict[str, Callable[[], None]] = {
            "move": lambda: self.catalog.move_entry(*place, *new, None),
            "remove": lambda: self.catalog.delete_entry(*place),
            "point": lambda: self.catalog.point_entry(*place, number),
            "add": lambda: self.catalog.add_entry(*place, number, number),
        }

        def say(*_: object) -> sqlite3.Cursor:
            raise OSError(28, "full")

        self.catalog.say = say  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(OSError):
                calls[what]()
        finally:
            del self.catalog.say

    @rule(place=places)
    def look(self, place: tuple[int, bytes]) -> None:
        found = self.catalog.get_entry_and_inode(*place)
        assert (found and found[0]) == self.model.get(place)
        assert self.catalog.get_entry(*place) == self.model.get(place)


Names.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNames = Names.TestCase


class NamesUnbounded(Names):
    limit = 1000


NamesUnbounded.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNamesUnbounded = NamesUnbounded.TestCase


class HistoriesOfNames(BesideADict):
    """The histories of names, of which one directory had some before."""

    def __init__(self) -> None:
        super().__init__()
        self.histories = Histories(self.catalog, self.next)
        self.give((3, b"a"))
        self.histories = Histories(self.catalog, self.next)
        self.known = self.histories._known
        self.known._limit = self.limit

    @rule(place=places)
    def give(self, place: tuple[int, bytes]) -> None:
        self.model[place] = self.next()
        self.histories.give_name(*place, self.model[place])

    @rule(place=places)
    def take(self, place: tuple[int, bytes]) -> None:
        self.model.pop(place, None)
        self.histories.give_name(*place, 0)

    @rule(place=places, new=places)
    def undo(self, place: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        before = dict(self.model)
        with pytest.raises(ZeroDivisionError), self.catalog.savepoint():
            self.give(place)
            self.take(new)
            raise ZeroDivisionError
        self.model = before

    @rule(place=places)
    def ask(self, place: tuple[int, bytes]) -> None:
        assert self.histories.of_name(*place) == self.model.get(place, 0)


HistoriesOfNames.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistoriesOfNames = HistoriesOfNames.TestCase


class HistoriesOfNamesUnbounded(HistoriesOfNames):
    limit = 1000


HistoriesOfNamesUnbounded.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistoriesOfNamesUnbounded = HistoriesOfNamesUnbounded.TestCase


def test_a_directory_without_histories_is_asked_about_once(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    histories = Histories(catalog, lambda: 7)
    statements: list[str] = []
    catalog._db.set_trace_callback(statements.append)
    for name in NAMES:
        assert histories.of_name(5, name) == 0
        histories.give_name(5, name, 7)
        assert histories.of_name(5, name) == 7
    assert [statement.split()[0] for statement in statements] == ["SELECT", *["INSERT"] * len(NAMES)]
    catalog.close()


def test_a_new_directory_is_asked_about_in_memory_only(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    catalog.begin_directory(5)
    statements: list[str] = []
    catalog._db.set_trace_callback(statements.append)
    assert catalog.get_entry_and_inode(5, b"x") is None
    catalog.add_entry(5, b"x", 7, 1)
    assert catalog.get_entry_and_inode(5, b"x") == (7, None)
    assert catalog.get_entry_and_inode(5, b"y") is None
    assert [statement.split()[0] for statement in statements] == ["INSERT"]
    catalog.close()


def test_who_only_reads_knows_nothing_since_others_change_the_names(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.db")
    Catalog(path).close()
    names = Catalog(path, read_only=True)._names
    names.begin(5)
    names.keep(5, b"x", 7)
    assert names.get(5, b"x") is names.get(5, b"y") is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mountstore.namespace.known_names._WHOLE_MAX", 10)
    names = KnownNames(20)
    for number in range(1000):
        names.begin(number)
        names.keep(number, b"x", number)
        assert len(names._numbers) <= 20
        assert len(names._whole) <= 10
