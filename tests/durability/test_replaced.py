"""Notes of what contents replaced: one is there as long as the newer content may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.replaced import Previous, Replaced, from_row


def content(data: bytes) -> Content:
    return Content(ContentKind.BLOB, Digest.of(data), len(data))


OLDEST, OLD, PART, NEW = content(b"oldest"), content(b"old"), content(b"part"), content(b"new")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    yield catalog
    catalog.close()


@pytest.fixture
def replaced(catalog: Catalog) -> Replaced:
    return Replaced(catalog)


def noted(catalog: Catalog, replaced: Replaced) -> dict[int, Previous]:
    """What recovery would find after a commit now."""
    replaced.flush()
    return {row[0]: from_row(row) for row in catalog.previous()}


def contents_noted(catalog: Catalog, replaced: Replaced) -> dict[int, Content]:
    """The same without how much of it is allocated, and whether it is open."""
    return {inode: note.content for inode, note in noted(catalog, replaced).items()}


def test_the_first_content_since_the_last_sync_counts(catalog: Catalog, replaced: Replaced) -> None:
    replaced.note(1, OLD, 3, None)
    replaced.note(1, PART, 4, None)
    assert noted(catalog, replaced) == {1: Previous(OLD, 3, None)}
    replaced.take()
    replaced.settle()
    assert noted(catalog, replaced) == {}


def test_a_note_made_during_a_sync_outlives_it(catalog: Catalog, replaced: Replaced) -> None:
    replaced.note(1, OLD, 3, None)
    replaced.take()
    replaced.note(1, PART, 4, None)
    # Until the sync has ended, what was before it is what is safe.
    assert noted(catalog, replaced) == {1: Previous(OLD, 3, None)}
    replaced.settle()
    assert noted(catalog, replaced) == {1: Previous(PART, 4, None)}


def test_a_name_taken_over_by_one_new_file_after_the_other_goes_back_to_the_first(
    catalog: Catalog, replaced: Replaced
) -> None:
    replaced.inherit(2, 1, OLD, 3, None, still_open=False)
    replaced.inherit(3, 2, NEW, 3, None, still_open=False)
    assert noted(catalog, replaced)[3] == Previous(OLD, 3, None)


def test_a_file_closed_during_a_sync_keeps_the_note_of_the_name_it_took(
    catalog: Catalog, replaced: Replaced
) -> None:
    """Its last content is sealed after the sync began, so that one does not flush it."""
    replaced.inherit(2, 1, OLD, 3, None, still_open=True)
    assert noted(catalog, replaced) == {2: Previous(OLD, 3, None, open=True)}
    replaced.take()
    replaced.note(2, EMPTY, 0, None)
    replaced.closed(2)
    assert noted(catalog, replaced) == {2: Previous(OLD, 3, None)}
    replaced.settle()
    assert noted(catalog, replaced) == {2: Previous(OLD, 3, None)}


@pytest.mark.parametrize("synced", [False, True])
def test_an_open_file_never_goes_back_to_a_part_of_itself(
    catalog: Catalog, replaced: Replaced, synced: bool
) -> None:
    replaced.inherit(2, 1, OLD, 3, None, still_open=True)
    if synced:
        replaced.take()
        replaced.settle()
        assert noted(catalog, replaced) == {2: Previous(OLD, 3, None, open=True)}
    replaced.note(2, PART, 4, None)
    assert noted(catalog, replaced) == {2: Previous(OLD, 3, None, open=True)}
    replaced.closed(2)
    assert noted(catalog, replaced) == {2: Previous(OLD, 3, None)}
    replaced.take()
    replaced.settle()
    assert noted(catalog, replaced) == {}


# --- while a sync is under way ---



@pytest.mark.parametrize("still_open", [False, True])
def test_a_file_replaced_during_a_sync_holds_once_that_has_ended(
    catalog: Catalog, replaced: Replaced, still_open: bool
) -> None:
    replaced.inherit(7, 6, OLDEST, 6, None, still_open=False)
    replaced.take()
    # 7 has OLD, which the sync under way flushes.
    replaced.inherit(8, 7, OLD, 3, None, still_open=still_open)
    assert contents_noted(catalog, replaced)[8] == OLDEST
    if still_open:
        replaced.closed(8)
        assert contents_noted(catalog, replaced)[8] == OLDEST
    replaced.settle()
    assert contents_noted(catalog, replaced) == {8: OLD}
    replaced.take()
    replaced.settle()
    assert contents_noted(catalog, replaced) == {}


def test_a_sync_that_fails_leaves_what_held_before_it(catalog: Catalog, replaced: Replaced) -> None:
    replaced.inherit(7, 6, OLDEST, 6, None, still_open=False)
    replaced.take()
    replaced.inherit(8, 7, OLD, 3, None, still_open=False)
    replaced.put_back()
    assert contents_noted(catalog, replaced) == {7: OLDEST, 8: OLDEST}
    replaced.take()
    assert contents_noted(catalog, replaced) == {7: OLDEST, 8: OLDEST}
    replaced.settle()
    assert contents_noted(catalog, replaced) == {}


def test_an_empty_file_replaced_during_a_sync_is_what_holds_then(catalog: Catalog, replaced: Replaced) -> None:
    replaced.inherit(7, 6, OLDEST, 6, None, still_open=False)
    replaced.take()
    replaced.inherit(8, 7, EMPTY, 0, None, still_open=False)
    assert contents_noted(catalog, replaced)[8] == OLDEST
    replaced.settle()
    assert contents_noted(catalog, replaced) == {8: EMPTY}


def test_a_change_during_a_sync_is_seen_by_who_takes_the_name(catalog: Catalog, replaced: Replaced) -> None:
    replaced.note(7, OLDEST, 6, None)
    replaced.take()
    replaced.note(7, OLD, 3, None)
    replaced.inherit(8, 7, NEW, 3, None, still_open=False)
    assert contents_noted(catalog, replaced) == {7: OLDEST, 8: OLDEST}
    replaced.settle()
    assert contents_noted(catalog, replaced) == {7: OLD, 8: OLD}


def test_a_new_file_that_takes_a_name_while_it_is_flushed_holds_by_itself_afterwards(
    catalog: Catalog, replaced: Replaced
) -> None:
    replaced.note(8, EMPTY, 0, None)
    replaced.take()
    # Until the sync has ended it may be lost.
    replaced.inherit(8, 7, OLD, 3, None, still_open=False)
    assert contents_noted(catalog, replaced) == {8: OLD}
    replaced.note(8, NEW, 3, None)
    assert contents_noted(catalog, replaced) == {8: OLD}
    replaced.settle()
    assert contents_noted(catalog, replaced) == {8: NEW}


def test_what_an_open_file_replaced_holds_as_soon_as_a_sync_has_flushed_it(
    catalog: Catalog, replaced: Replaced
) -> None:
    replaced.note(7, OLDEST, 6, None)
    # 7 has OLD, which is not flushed, when 8, and then 9, take its name while they are written.
    replaced.inherit(8, 7, OLD, 3, None, still_open=True)
    replaced.inherit(9, 8, NEW, 3, None, still_open=True)
    assert contents_noted(catalog, replaced) == {7: OLDEST, 8: OLDEST, 9: OLDEST}
    replaced.take()
    assert contents_noted(catalog, replaced) == {7: OLDEST, 8: OLDEST, 9: OLDEST}
    replaced.put_back()
    replaced.take()
    replaced.closed(9)
    assert contents_noted(catalog, replaced) == {7: OLDEST, 8: OLDEST, 9: OLDEST}
    replaced.settle()
    assert contents_noted(catalog, replaced) == {8: OLD, 9: OLD}
    replaced.take()
    replaced.settle()
    assert contents_noted(catalog, replaced) == {8: OLD}
    replaced.closed(8)
    assert contents_noted(catalog, replaced) == {8: OLD}
    replaced.take()
    replaced.settle()
    assert contents_noted(catalog, replaced) == {}


def test_a_new_file_sealed_twice_goes_back_to_what_its_name_had(catalog: Catalog, replaced: Replaced) -> None:
    replaced.note(7, EMPTY, 0, None)
    # Neither of the two contents it had so far is flushed.
    replaced.note(7, content(b"first"), 5, None)
    replaced.inherit(7, 6, content(b"of the name"), 11, None, still_open=False)
    assert contents_noted(catalog, replaced) == {7: content(b"of the name")}
