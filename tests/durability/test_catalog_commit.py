"""A commit that fails forgets nothing, although SQLite rolls the transaction back."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mountstore.errors import CorruptError, ExistsError
from mountstore.namespace.catalog import Catalog


@contextmanager
def file_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond `size_bytes` (EFBIG; Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(str(tmp_path / "catalog.db"))
    yield catalog
    catalog.close()


def committed(catalog: Catalog) -> list[tuple[bytes, int]]:
    """Names and inodes that another connection sees."""
    other = sqlite3.connect(catalog.path)
    try:
        return other.execute("SELECT name, inode FROM entry ORDER BY name").fetchall()
    finally:
        other.close()


def test_a_commit_that_fails_keeps_the_transaction_and_can_be_repeated(catalog: Catalog) -> None:
    catalog.add_entry(1, b"a", 10, 1)
    catalog.commit()
    catalog.add_entry(1, b"b", 11, 2)
    catalog.put_xattr(10, b"user.x", b"y" * 20_000)
    catalog.add_blobs([(b"d" * 32, 1, b"c" * 16)])
    with pytest.raises(ExistsError):
        catalog.add_entry(1, b"a", 12, 3)
    with catalog.savepoint():
        catalog.delete_entry(1, b"a")
        catalog.point_entry(1, b"b", 10)
    with pytest.raises(ZeroDivisionError), catalog.savepoint():
        catalog.delete_entry(1, b"b")
        raise ZeroDivisionError
    with file_limit(os.stat(catalog.path + "-wal").st_size + 1000):
        for _ in range(3):
            with pytest.raises(CorruptError):
                catalog.commit()
        assert catalog.get_entry(1, b"b") == 10
        catalog.add_entry(1, b"c", 13, 4)
        assert catalog.uncommitted()
    assert committed(catalog) == [(b"a", 10)]
    catalog.commit()
    assert committed(catalog) == [(b"b", 10), (b"c", 13)]
    assert catalog.get_xattr(10, b"user.x") == b"y" * 20_000
    assert not catalog.uncommitted()


def test_a_transaction_that_sqlite_rolled_back_by_itself_is_brought_about_again(catalog: Catalog) -> None:
    catalog.add_entry(1, b"a", 10, 1)
    catalog._db.execute("ROLLBACK")  # as SQLite does when reading a page fails
    catalog.add_entry(1, b"b", 11, 2)
    assert committed(catalog) == []
    catalog._db.execute("ROLLBACK")
    catalog.commit()
    assert committed(catalog) == [(b"a", 10), (b"b", 11)]


def test_what_was_not_committed_is_undone_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.db")
    catalog = Catalog(path)
    catalog.add_entry(1, b"a", 10, 1)
    catalog.commit()
    catalog.add_entry(1, b"b", 11, 2)
    catalog.close()
    again = Catalog(path)
    assert [again.get_entry(1, name) for name in (b"a", b"b")] == [10, None]
    again.close()
