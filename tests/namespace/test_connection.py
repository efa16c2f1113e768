"""What SQLite's refusals mean to whoever mounts a store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mountstore.errors import CorruptError, StoreError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.connection import reading_catalog, sum_of, uri_path


def test_a_catalog_that_may_not_be_written_is_not_called_damaged(tmp_path: Path) -> None:
    """`chattr +i` and such: a rebuild, as for damage, would cost what came after the last snapshot."""
    path = str(tmp_path / "catalog.db")
    Catalog(path).close()
    db = sqlite3.connect(f"file:{uri_path(path)}?mode=ro", uri=True)
    try:
        with pytest.raises(StoreError, match="attempt to write a readonly") as caught, reading_catalog(path):
            db.execute("DELETE FROM meta")
    finally:
        db.close()
    assert "--rebuild" not in str(caught.value)


def test_a_damaged_catalog_is(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"nothing that SQLite knows" * 1000)
    db = sqlite3.connect(path)
    try:
        with pytest.raises(CorruptError, match="--rebuild"), reading_catalog(str(path)):
            db.execute("SELECT * FROM meta")
    finally:
        db.close()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], 0),
        ([1, 2, 3], 6),
        ([(1 << 53) - 3, 2], (1 << 53) - 1),
        ([(1 << 63) - 1, 5], (1 << 63) - 1),
        ([(1 << 63) - 1] * 3, (1 << 63) - 1),
    ],
)
def test_sums_never_overflow(sizes: list[int], expected: int) -> None:
    db = sqlite3.connect(":memory:")
    try:
        db.execute("CREATE TABLE file (size INTEGER)")
        db.executemany("INSERT INTO file VALUES (?)", [(size,) for size in sizes])
        assert db.execute(f"SELECT {sum_of('size')} FROM file").fetchone() == (expected,)
    finally:
        db.close()
