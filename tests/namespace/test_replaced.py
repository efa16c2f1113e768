"""What an inode goes back to when its newest content did not reach the disk."""

from __future__ import annotations

from pathlib import Path

from mountstore.blobs.content import EMPTY, Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.replaced import Replaced, from_row


def content(text: bytes) -> Content:
    return Content(ContentKind.BLOB, Digest.of(text), len(text))


def test_a_new_file_sealed_twice_goes_back_to_what_its_name_had(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    replaced = Replaced(catalog)
    replaced.note(7, EMPTY, 0, None)
    # Neither of the two contents it had so far is flushed.
    replaced.note(7, content(b"first"), 5, None)
    replaced.inherit(7, 6, content(b"of the name"), 11, None, still_open=False)
    replaced.flush()
    (row,) = catalog.previous()
    assert from_row(row).content == content(b"of the name")
    catalog.close()
