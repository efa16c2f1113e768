"""Snapshots that nobody took: objects whose digests are right and that make no sense, as a defect leaves them, or
whoever may write to the blobs. Nothing hangs, takes memory without bounds, or is in the way of a good one.
"""

from __future__ import annotations

import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from care.garbage import CALLER, Work, work
from care.recovery import contents
from mountstore.blobs.completeness import blobs_of
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.manifest import ManifestBuilder
from mountstore.blobs.refs import Ref, read_refs, write_ref
from mountstore.blobs.tree import BalancedTree
from mountstore.care.checking import check_store
from mountstore.care.rebuild import rebuild_store
from mountstore.care.roots import hashes_below
from mountstore.care.snapshot_browser import records_of_snapshot
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.snapshots import Snapshots
from mountstore.care.verify import verify_blobs
from mountstore.errors import CorruptError
from mountstore.namespace.history import RowKind
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.page_map import update_map
from mountstore.namespace.pages import (
    HistoryRow,
    InodeRecord,
    ListingEntry,
    Reference,
    Root,
    encode_index,
    encode_inodes,
    encode_leaf,
    encode_node,
    encode_root,
    write_histories,
)
from mountstore.namespace.stale import PAGE_SHIFT
from mountstore.store import Store
from mountstore.store.create import create_store

LEVELS = 6
WIDTH = 200


class Forgery:
    """Blobs with a good snapshot `good`, of the files `/a/b/c` and `/top`, to be changed into a newer one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        create_store(str(path))

        async def fill() -> None:
            async with Store.open(str(path)).running() as store:
                w = Work(store)
                below = w.directory(b"b", w.directory(b"a").id)
                await w.save(b"c", b"first", below.id)
                await w.save(b"c", b"second", below.id)
                await w.save(b"top", b"top")
                await Snapshots(store).take("good")

        trio.run(fill)
        self.tree = BalancedTree(str(path / "blobs"))
        (ref,) = read_refs(str(path / "blobs"))[0]
        self.ref: Ref = ref
        self.good = SnapshotTree(self.tree, ref.root)

    def put(self, data: bytes) -> Digest:
        return self.tree.add_bytes(data).digest

    def number(self, path: bytes) -> int:
        number = ROOT
        for name in path.split(b"/"):
            entry = self.good.lookup(number, name)
            assert entry is not None
            number = entry.inode
        return number

    def with_records(self, *changed: InodeRecord) -> Root:
        """The root, with these records instead of those of the same numbers."""
        records = {record.number: record for record in self.good.inodes()}
        records |= {record.number: record for record in changed}
        pages: dict[int, Digest | None] = {}
        for page in {number >> PAGE_SHIFT for number in records}:
            inside = sorted(n for n in records if n >> PAGE_SHIFT == page)
            pages[page] = self.put(encode_inodes([records[n] for n in inside]))
        inodes = update_map(self.good, self.put, self.good.root.inodes, pages)
        return msgspec.structs.replace(self.good.root, inodes=inodes)

    def record(self, path: bytes) -> InodeRecord:
        return self.good.inode(self.number(path) if path else ROOT)

    def publish(self, root: Root, name: str = "forged") -> SnapshotTree:
        """A snapshot with this root, newer than the good one."""
        digest = self.put(encode_root(msgspec.structs.replace(root, name=name)))
        write_ref(str(self.path / "blobs"), Ref(name, digest, self.ref.uuid, self.ref.time_ns + 1))
        return SnapshotTree(self.tree, digest)

    def lose_catalog(self) -> None:
        for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
            (self.path / name).unlink(missing_ok=True)


@pytest.fixture
def forgery(tmp_path: Path) -> Forgery:
    return Forgery(tmp_path / "store")


def is_passed_over(forgery: Forgery) -> None:
    """The forged snapshot counts as incomplete, and the good one is brought back."""
    told = {candidate.ref.name: candidate.complete for candidate in verify_blobs(str(forgery.path)).snapshots}
    assert told == {"forged": False, "good": True}
    forgery.lose_catalog()
    rebuilt = rebuild_store(str(forgery.path))
    assert rebuilt.taken.ref.name == "good"
    assert contents(forgery.path) == {b"/a/b/c": b"second", b"/top": b"top"}


def with_listing(record: InodeRecord, listing: Reference | bytes) -> InodeRecord:
    return msgspec.structs.replace(record, listing=listing)


def entry(name: bytes, inode: int, cookie: int) -> ListingEntry:
    return ListingEntry(name, inode, cookie, 0)


def endless_listing(forgery: Forgery) -> Root:
    digest = forgery.put(encode_leaf([entry(b"name", forgery.number(b"top"), 99)]))
    for level in range(1, LEVELS + 1):
        digest = forgery.put(encode_index(level, [(b"n%03d" % i, digest) for i in range(WIDTH)]))
    return forgery.with_records(with_listing(forgery.record(b""), Reference.to(LEVELS, digest)))


def endless_map(forgery: Forgery) -> Root:
    inodes = forgery.good.root.inodes
    assert inodes is not None
    digest = inodes.digest
    for level in range(1, LEVELS + 1):
        digest = forgery.put(encode_node(level, [(i, digest) for i in range(WIDTH)]))
    return msgspec.structs.replace(forgery.good.root, inodes=Reference.to(LEVELS, digest))


@pytest.mark.parametrize("make", [endless_listing, endless_map])
def test_what_has_no_end_is_told_from_what_is_large(forgery: Forgery, make: Callable[[Forgery], Root]) -> None:
    """Each object 200 times in the one above: 200 ** 6 names, or pages."""
    forged = forgery.publish(make(forgery))
    with pytest.raises(CorruptError):
        for record in forged.inodes():
            for _ in forged.names_of(record):
                pass
    is_passed_over(forgery)


def test_names_that_are_there_twice(forgery: Forgery) -> None:
    top = forgery.number(b"top")
    leaves = [
        [entry(b"a", forgery.number(b"a"), 101), entry(b"top", top, 102)],
        [entry(b"b", top, 103)],
    ]
    index = encode_index(1, [(leaf[0].name, forgery.put(encode_leaf(leaf))) for leaf in leaves])
    place = Reference.to(1, forgery.put(index))
    forgery.publish(forgery.with_records(with_listing(forgery.record(b""), place)))
    is_passed_over(forgery)


def test_records_that_no_catalog_takes(forgery: Forgery) -> None:
    """Nothing is missing, and yet it cannot be loaded: two names with one position."""
    top = forgery.number(b"top")
    leaf = encode_leaf([entry(b"a", forgery.number(b"a"), 101), entry(b"top", top, 101)])
    forgery.publish(forgery.with_records(with_listing(forgery.record(b""), leaf)))
    forgery.lose_catalog()
    rebuilt = rebuild_store(str(forgery.path))
    assert rebuilt.taken.ref.name == "good"
    (forged, _) = rebuilt.survey.candidates
    assert "records that agree" in forged.flaws[0].what
    assert contents(forgery.path) == {b"/a/b/c": b"second", b"/top": b"top"}


@pytest.mark.parametrize("settings", ["format = 2", "format = 1\nuuid = 'x'", "\0", "[versions]\nkeep_days = nan"])
def test_settings_that_cannot_be_used(forgery: Forgery, settings: str) -> None:
    forgery.publish(msgspec.structs.replace(forgery.good.root, settings=settings))
    forgery.lose_catalog()
    (forgery.path / "store.toml").unlink()
    assert rebuild_store(str(forgery.path)).taken.ref.name == "good"


def links_too_few(forgery: Forgery) -> Root:
    names = [entry(b"a", forgery.number(b"a"), 101)]
    names += [entry(b"t%d" % i, forgery.number(b"top"), 102 + i) for i in range(2)]
    return forgery.with_records(with_listing(forgery.record(b""), encode_leaf(names)))


def directories_in_a_circle(forgery: Forgery) -> Root:
    below = forgery.record(b"a/b")
    return forgery.with_records(with_listing(below, encode_leaf([entry(b"a", forgery.number(b"a"), 101)])))


def versions_in_a_circle(forgery: Forgery) -> Root:
    history = forgery.good.root.next_cookie
    row = HistoryRow(1, RowKind.SPLICE, None, 5, history, 0, 0, 0, 0, 0, b"")
    page = write_histories(forgery.put, {history: [row]})
    histories = update_map(
        forgery.good, forgery.put, forgery.good.root.histories, {history >> PAGE_SHIFT: page}
    )
    root = forgery.with_records(msgspec.structs.replace(forgery.record(b"top"), history=history))
    return msgspec.structs.replace(root, histories=histories, next_cookie=history + 1)


@pytest.mark.parametrize("make", [links_too_few, directories_in_a_circle, versions_in_a_circle])
def test_what_contradicts_itself_is_mended_when_it_is_loaded(
    forgery: Forgery, make: Callable[[Forgery], Root]
) -> None:
    forgery.publish(make(forgery))
    forgery.lose_catalog()
    rebuilt = rebuild_store(str(forgery.path))
    assert rebuilt.taken.ref.name == "forged"
    assert rebuilt.mended
    assert not check_store(str(forgery.path)).errors
    assert b"top" in contents(forgery.path).values()


def test_a_tree_in_a_circle_is_not_copied_for_ever(forgery: Forgery) -> None:
    forged = forgery.publish(directories_in_a_circle(forgery))
    records = records_of_snapshot(forged)
    with pytest.raises(CorruptError, match="where it is not"):
        for _ in records.walk(b"a", records.inode(forgery.number(b"a"))):
            pass


@pytest.mark.trio
async def test_versions_in_a_circle_are_an_error(tmp_path: Path) -> None:
    """Of a catalog that nobody mended; before, each took memory until there was none."""
    async with work(tmp_path / "store") as w:
        file = await w.save(b"f", b"1")
        w.store.catalog.say(
            f"INSERT INTO version VALUES (7, 1, {RowKind.SPLICE:d}, NULL, 5, 7, 0, 0, 0, 0, 0)"
        )
        w.store.catalog.say("INSERT INTO inode_history VALUES (?, 7)", (file.id,))
        histories = w.store.versions.histories
        for ask in (
            lambda: list(histories.versions(7)),
            lambda: list(histories.shown(7)),
            lambda: list(histories.times(7)),
            lambda: histories.get(7, 3),
        ):
            with pytest.raises(CorruptError, match="has itself as a part"):
                ask()
        w.store.catalog.say("DELETE FROM version")
        w.store.catalog.say("DELETE FROM inode_history")


def manifest(forgery: Forgery, piece: Digest, pieces: int) -> Digest:
    builder = ManifestBuilder()
    for _ in range(pieces):
        builder.add_piece(piece, b"x" * 16)
    return forgery.put(builder.encode(1))


def test_a_manifest_of_what_is_none_is_not_read_to_its_end(forgery: Forgery) -> None:
    """512 pieces of 16 MiB, all the same one: 8 GiB of nothing."""
    piece = forgery.put(bytes(16 << 20))
    content = Content(ContentKind.MANIFEST, manifest(forgery, piece, 512), 1 << 33)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            list(blobs_of(forgery.tree, content))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    file = forgery.record(b"top")
    assert content.digest is not None
    forgery.publish(
        forgery.with_records(
            msgspec.structs.replace(
                file, kind=2, sha256=content.digest.sha256, blob_size=content.digest.size_bytes,
                size=content.size_bytes, checksum=checksum(b""),
            )
        )
    )  # fmt: skip
    is_passed_over(forgery)


def test_a_manifest_of_one_of_its_own_level_is_none(forgery: Forgery) -> None:
    inner = manifest(forgery, forgery.put(b"piece" * 100), 2)
    outer = manifest(forgery, inner, 1)
    with pytest.raises(CorruptError, match="level 1 below level 1"):
        list(blobs_of(forgery.tree, Content(ContentKind.MANIFEST, outer, 1000)))
    assert set(hashes_below(forgery.tree, outer)) >= {outer.sha256, inner.sha256}


def test_an_object_that_is_none_is_not_read_to_its_end(forgery: Forgery) -> None:
    digest = Digest(b"\xaa" * 32, 6 << 30)
    path = forgery.path / "blobs" / "a" / digest.name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(digest.size_bytes)
    write_ref(str(forgery.path / "blobs"), Ref("forged", digest, forgery.ref.uuid, forgery.ref.time_ns + 1))
    tracemalloc.start()
    try:
        quick = verify_blobs(str(forgery.path), full=False)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert [candidate.complete for candidate in quick.snapshots] == [False, True]


@pytest.mark.trio
async def test_numbers_at_their_end_stop_nothing(tmp_path: Path) -> None:
    """A ref of the last instant there is, and counters that cannot go on: both are damage, and not in the way."""
    path = tmp_path / "store"
    forgery = await trio.to_thread.run_sync(Forgery, path)
    with pytest.raises(CorruptError):
        forgery.publish(msgspec.structs.replace(forgery.good.root, next_inode=1 << 62))
    blobs = str(path / "blobs")
    write_ref(blobs, forgery.ref._replace(name="last", time_ns=(1 << 63) - 1))
    refs, bad = read_refs(blobs)
    assert [ref.name for ref in refs] == ["forged", "good"]
    assert [ref.name for ref in bad] == ["last"]
    os.unlink(path / "blobs" / "refs" / "last")
    forgery.lose_catalog()
    assert rebuild_store(str(path)).taken.ref.name == "good"
    async with Store.open(str(path)).running() as store:
        store.namespace.create(ROOT, b"new", stat.S_IFREG | 0o644, CALLER)
        await Snapshots(store).take("later")

