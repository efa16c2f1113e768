"""What a system call returns for an exception, and what the log says."""

from __future__ import annotations

import errno
import logging
import sqlite3
from pathlib import Path

import pytest

from mountstore.fuse.errnos import errno_of


def failure_of_a_database(path: Path, data: bytes) -> sqlite3.Error:
    """What SQLite says when a page that is needed is no page."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
        db.executemany("INSERT INTO t VALUES (?)", [(bytes(1000),)] * 100)
        db.commit()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(data * 8192)
        db.execute("PRAGMA cache_size = 0")
        with pytest.raises(sqlite3.Error) as raised:
            db.execute("SELECT * FROM t").fetchall()
    return raised.value


def test_a_damaged_catalog_takes_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert errno_of(failure_of_a_database(tmp_path / "db", b"\xff"), "lookup") == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is None
    assert record.getMessage().startswith("lookup: the catalog cannot be read: ")
    assert "fsck.cas" in record.getMessage()


def test_what_nobody_foresaw_is_told_with_where_it_happened(caplog: pytest.LogCaptureFixture) -> None:
    for bug in (ValueError("?"), sqlite3.OperationalError("no such table: x")):
        caplog.clear()
        assert errno_of(bug, "lookup") == errno.EIO
        assert caplog.records[0].exc_info is not None
