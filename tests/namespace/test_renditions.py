"""What resizing made, remembered in the catalog."""

from __future__ import annotations

from pathlib import Path

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.renditions import Rendition, Renditions


def rendition(number: int, kind: ContentKind = ContentKind.BLOB) -> Rendition:
    digest = Digest.of(b"%d" % number)
    size = digest.size_bytes if kind is ContentKind.BLOB else 1 << 40
    return Rendition(Content(kind, digest, size), size - 1, 300 + number, 200, 1)


def test_what_is_recorded_is_found_also_after_the_next_start(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.db")
    catalog = Catalog(path)
    renditions = Renditions(catalog)
    assert renditions.find(b"key") is None
    renditions.forget(Digest.of(b""))
    renditions.record(b"key", rendition(1))
    renditions.record(b"large", rendition(2, ContentKind.MANIFEST))
    renditions.record(b"key", rendition(3))
    assert renditions.find(b"key") == rendition(3)
    catalog.commit()
    catalog.close()
    catalog = Catalog(path, read_only=True)
    renditions = Renditions(catalog)
    assert renditions.find(b"key") == rendition(3)
    assert renditions.find(b"large") == rendition(2, ContentKind.MANIFEST)
    assert renditions.find(b"other") is None
    catalog.close()


def test_a_store_that_never_resizes_has_no_table(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    renditions = Renditions(catalog)
    renditions.find(b"key")
    renditions.forget(Digest.of(b""))
    assert not catalog.ask("SELECT name FROM sqlite_master WHERE name LIKE 'rend%'").fetchall()
    catalog.close()


def test_what_is_collected_is_forgotten_under_all_its_keys(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    renditions = Renditions(catalog)
    for key in (b"a", b"b"):
        renditions.record(key, rendition(1))
    renditions.record(b"c", rendition(2))
    digest = rendition(1).content.digest
    assert digest is not None
    renditions.forget(digest)
    assert [renditions.find(key) is None for key in (b"a", b"b", b"c")] == [True, True, False]
    catalog.close()


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    renditions = Renditions(catalog, most=3)
    for number in range(5):
        renditions.record(b"%d" % number, rendition(number))
    renditions.record(b"2", rendition(7))
    found = [renditions.find(b"%d" % number) for number in range(5)]
    assert [one is not None for one in found] == [False, False, True, True, True]
    assert found[2] == rendition(7)
    catalog.close()
