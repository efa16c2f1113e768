"""The checker and snapshots: what is missing is found, what is there is no garbage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from care.garbage import PIECE_MAX, Work, bytes_like, work
from care.pictures import newest, of_store
from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind, Report
from mountstore.care.repair import repair_store
from mountstore.care.snapshots import Snapshots

pytestmark = pytest.mark.trio

LARGE = bytes_like(7, 3 * PIECE_MAX)


async def fill(w: Work) -> None:
    """Two snapshots; what only the first has are `only` and `large`, in a store that keeps no versions."""
    w.store.versions.enabled = False
    for i in range(300):
        await w.save(b"%d" % i, b"%d" % i)
    await w.save(b"only", b"only in the first")
    await w.save(b"large", LARGE)
    await Snapshots(w.store).take("first")
    await w.unlink(b"only")
    await w.unlink(b"large")
    await Snapshots(w.store).take("second")


def findings(path: Path) -> list[str]:
    return [finding.what for finding in check(path).findings if finding.kind is Kind.SNAPSHOT_LOST]


def check(path: Path) -> Report:
    report = check_store(str(path))
    # The record of a page that cannot be reached is nobody's.
    assert set(report.counts) <= {Kind.SNAPSHOT_LOST, Kind.BLOB_ROW_STALE}
    return report


def remove(path: Path, digest: Digest) -> None:
    BalancedTree(str(path / "blobs"), staging=str(path / "staging")).delete(digest)


async def test_what_snapshots_need_is_no_garbage(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await fill(w)
    assert check(tmp_path).statistics.garbage_blobs == 0
    async with work(tmp_path) as w:
        await Snapshots(w.store).delete("first")
        needed = {Digest.of(b"only in the first")}
    assert check(tmp_path).statistics.garbage_blobs > len(needed)


async def test_a_missing_content_is_told_with_the_snapshots_that_need_it(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await fill(w)
    remove(tmp_path, Digest.of(b"only in the first"))
    assert [what.split(":")[0] for what in findings(tmp_path)] == ["snapshot first"]


async def test_a_missing_piece_of_a_large_file_is_told(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await fill(w)
        tree = await Snapshots(w.store).open("first")
        entry = tree.lookup(1, b"large")
        assert entry is not None
        content = tree.inode(entry.inode).content
        (piece, *_) = w.blobs_of(content) - {content.digest}
    remove(tmp_path, piece)
    assert [what.split(":")[0] for what in findings(tmp_path)] == ["snapshot first"]


async def test_a_missing_page_is_told_of_every_snapshot_that_has_it(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await fill(w)
        first, second = [set((await Snapshots(w.store).open(name)).pages()) for name in ("first", "second")]
    (shared, *_) = first & second
    remove(tmp_path, shared)
    assert sorted(what.split()[1].strip(":") for what in findings(tmp_path)) == ["first", "second"]


async def test_changes_by_a_repair_are_in_the_next_snapshot(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await fill(w)
    catalog = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    catalog.execute("UPDATE inode SET nlink = 5 WHERE id = 7")
    catalog.close()
    repair = repair_store(str(tmp_path), approve=lambda report: True)
    assert [finding.kind for finding in repair.made] == [Kind.LINK_COUNT]
    async with work(tmp_path) as w:
        await Snapshots(w.store).take("third")
        assert newest(w.store) == of_store(w.store)
