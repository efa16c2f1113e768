"""Inodes in memory, and what is kept of those that are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mountstore.errors import NoSpaceError, StaleError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import InodeTable

CAPACITY, VIEWS = 4, 12


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    yield catalog
    catalog.close()


@pytest.fixture
def inodes(catalog: Catalog) -> InodeTable:
    return InodeTable(catalog, capacity=CAPACITY, views=VIEWS)


def fill(inodes: InodeTable, count: int) -> list[int]:
    """Inodes that were shown and written; each was used after those before it."""
    numbers = []
    for _ in range(count):
        inode = inodes.create(inodes.next_id(), 0o100644, 0, 0)
        inode.view = f"view of {inode.id}"
        numbers.append(inode.id)
        inodes.flush()
    return numbers


def test_a_view_outlasts_its_inode_and_comes_back_with_it(inodes: InodeTable) -> None:
    first, *others = fill(inodes, 10)
    assert first not in {inode.id for inode in inodes.in_use()}
    assert inodes.view_of(first) == f"view of {first}"
    assert inodes.get(first).view == f"view of {first}"
    for number in others:
        inodes.get(number)
    assert inodes.view_of(first) == f"view of {first}"


def test_an_inode_that_was_never_shown_gets_its_view_when_it_goes(inodes: InodeTable) -> None:
    inodes.present = lambda inode: f"made of {inode.id}"
    numbers = []
    for _ in range(10):
        numbers.append(inodes.create(inodes.next_id(), 0o100644, 0, 0).id)
        inodes.flush()
    assert inodes.view_of(numbers[0]) == f"made of {numbers[0]}"
    assert inodes.view_of(numbers[-1]) is None


def test_a_change_ends_the_view(inodes: InodeTable) -> None:
    first, *others = fill(inodes, 10)
    inode = inodes.get(first)
    inode.mode = 0o100600
    inodes.changed(inode)
    assert inodes.view_of(first) is None
    inodes.flush()
    for number in others:
        inodes.get(number)
    assert first not in {inode.id for inode in inodes.in_use()}
    assert inodes.view_of(first) is None
    assert inodes.get(first).mode == 0o100600


def test_a_removed_inode_has_no_view(inodes: InodeTable) -> None:
    first, *_ = fill(inodes, 10)
    inodes.remove(inodes.get(first))
    assert inodes.view_of(first) is None
    with pytest.raises(StaleError):
        inodes.get(first)


def test_a_removed_inode_is_gone_before_its_row_is(
    inodes: InodeTable, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = fill(inodes, 3)
    inodes.remove(inodes.get(first))
    assert catalog.get_inode(first) is not None
    with pytest.raises(StaleError):
        inodes.get(first)

    def full(*_: object) -> None:
        raise NoSpaceError("no room")

    with monkeypatch.context() as patch, pytest.raises(NoSpaceError):
        patch.setattr(catalog, "delete_inodes", full)
        inodes.flush()
    with pytest.raises(StaleError):
        inodes.get(first)
    assert inodes.has_changes
    inodes.flush()
    assert catalog.get_inode(first) is None
    assert catalog.get_inode(second) is not None


def test_an_inode_without_a_row_leaves_nothing_to_delete(inodes: InodeTable) -> None:
    inodes.flush()
    inode = inodes.create(inodes.next_id(), 0o100644, 0, 0)
    inodes.remove(inode)
    inodes.flush()
    assert not inodes.has_changes
    with pytest.raises(StaleError):
        inodes.get(inode.id)


def test_a_row_changed_in_the_catalog_alone_ends_the_view(inodes: InodeTable, catalog: Catalog) -> None:
    first, *_ = fill(inodes, 10)
    catalog.add_links({first: 1})
    inodes.forget_view(first)
    assert inodes.view_of(first) is None
    assert inodes.get(first).nlink == 2


def test_views_do_not_grow_without_bounds(inodes: InodeTable) -> None:
    numbers = fill(inodes, 100)
    kept = [number for number in numbers if inodes.view_of(number) is not None]
    assert VIEWS <= len(kept) <= VIEWS + 2 * CAPACITY + 2
    assert kept == numbers[-len(kept) :]
    assert inodes.in_memory() <= 2 * CAPACITY + 2
