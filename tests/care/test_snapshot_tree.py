"""A snapshot read as one goes: what it shows, what it reads for that, and what it needs."""

from __future__ import annotations

import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from care.damage import overwrite
from care.recovery import TABLES, Dump, Lost, make_lost
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import BlobMissingError, CorruptError, StaleError
from mountstore.namespace.inodes import ROOT


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return make_lost(tmp_path_factory.mktemp("source") / "store")


@pytest.fixture
def tree(source: Lost) -> SnapshotTree:
    return open_tree(source, "second")


def open_tree(source: Lost, name: str, **choices: int) -> SnapshotTree:
    return SnapshotTree(BalancedTree(str(source.blobs)), source.root(name), **choices)  # type: ignore[arg-type]


def as_rows(tree: SnapshotTree) -> Dump:
    """The rows of the catalog that a snapshot stands for."""
    rows: Dump = {table: [] for table in TABLES}
    for record in tree.inodes():
        if not record.is_ghost:
            fields = [getattr(record, name) for name in record.__struct_fields__]
            rows["inode"].append((*fields[:16], record.target, len(record.xattrs)))
        rows["xattr"] += [(record.number, name, value) for name, value in record.xattrs]
        if record.history:
            rows["inode_history"].append((record.number, record.history))
        for entry in tree.names_of(record):
            if entry.inode:
                rows["entry"].append((record.number, entry.name, entry.inode, entry.cookie))
            if entry.history:
                rows["name_history"].append((record.number, entry.name, entry.history))
    for number, history in tree.histories():
        for row in history:
            fields = [getattr(row, name) for name in row.__struct_fields__]
            rows["version"].append((number, *fields[:-1]))
    return rows


@pytest.mark.parametrize("name", ["first", "second"])
def test_it_shows_what_the_catalog_had(source: Lost, name: str) -> None:
    assert as_rows(open_tree(source, name)) == source.dumps[name]


def test_one_thing_at_a_time(source: Lost, tree: SnapshotTree) -> None:
    root = tree.inode(ROOT)
    assert root.is_directory
    names = [entry.name for entry in tree.listing(ROOT)]
    assert names == sorted(names)
    assert [entry.name for entry in tree.listing(ROOT, b"log")] == names[names.index(b"log") + 1 :]
    often = tree.lookup(ROOT, b"often")
    assert often is not None
    record = tree.inode(often.inode)
    assert stat.S_ISREG(record.mode)
    assert record.content.digest == Digest.of(b"the last one")
    assert [row.number for row in tree.history(record.history)] == list(range(1, 301))
    gone = tree.lookup(ROOT, b"gone")
    assert gone is not None
    assert gone.inode == 0
    assert len(tree.history(gone.history)) == 1
    assert tree.lookup(ROOT, b"absent") is None
    assert tree.history(1 << 40) == []
    for number in (0, 5_000, 1 << 60):
        with pytest.raises(StaleError):
            tree.inode(number)
    assert [e.name for e in open_tree(source, "first").listing(ROOT) if e.inode] != names


def test_only_what_is_asked_for_is_read(source: Lost) -> None:
    read: list[Digest] = []
    tree = SnapshotTree(
        BalancedTree(str(source.blobs)), source.root("second"), on_read=lambda digest, data: read.append(digest)
    )
    many = tree.lookup(ROOT, b"many")
    assert many is not None
    assert len(read) == 3, "root, node, page"
    for _ in range(3):
        assert tree.lookup(many.inode, b"name 5") is not None
    assert len(read) <= 6
    assert len(read) == len(set(read))


def test_the_cache_is_bounded(source: Lost) -> None:
    tree = open_tree(source, "second", cache_bytes=20_000)
    for record in tree.inodes():
        list(tree.names_of(record))
        assert tree._cached_bytes <= 20_000
        assert sum(digest.size_bytes for digest, _ in tree._cache) == tree._cached_bytes


def test_several_threads(source: Lost) -> None:
    tree = open_tree(source, "second", cache_bytes=10_000)
    expected = as_rows(open_tree(source, "second"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(rows == expected for rows in pool.map(lambda _: as_rows(tree), range(8)))
    finally:
        sys.setswitchinterval(interval)


def test_what_it_needs(source: Lost) -> None:
    """Together with the pieces of its manifests: all that was placed until then."""
    seen: set[bytes] = set()
    first = list(open_tree(source, "first").references(seen))
    second = list(open_tree(source, "second").references(seen))
    objects = {Content(ContentKind.BLOB, d, d.size_bytes) for d in open_tree(source, "second").pages()}
    assert objects <= set(first) | set(second)
    assert set(open_tree(source, "second").references()) <= set(first) | set(second)
    assert len(second) < len(first)
    contents = {Digest.of(b"version %d" % number) for number in range(300)}
    assert contents <= {content.digest for content in first}
    assert any(content.kind is ContentKind.MANIFEST for content in first)
    assert not list(open_tree(source, "second").references(seen)), "all of it was seen"


def test_damage_is_told(source: Lost, tmp_path: Path) -> None:
    copy = source.to(tmp_path / "copy")
    reference = open_tree(copy, "second").root.inodes
    assert reference is not None
    overwrite(copy.blob(reference.digest), 12, b"?")
    tree = open_tree(copy, "second")
    with pytest.raises(CorruptError):
        tree.inode(ROOT)
    copy.blob(reference.digest).unlink()
    with pytest.raises(BlobMissingError):
        list(tree.inodes())
    bad: list[Exception] = []
    forgiving = SnapshotTree(BalancedTree(str(copy.blobs)), copy.root("second"), on_bad=bad.append)
    assert list(forgiving.inodes()) == []
    assert len(bad) == 1
    with pytest.raises(BlobMissingError):
        SnapshotTree(BalancedTree(str(copy.blobs)), Digest.of(b"nothing"))
