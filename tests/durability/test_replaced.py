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


OLD, PART, NEW = content(b"old"), content(b"part"), content(b"new")


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
