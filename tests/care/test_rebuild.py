"""A store comes back from its blobs alone: complete, from an older snapshot, or what is there of it."""

from __future__ import annotations

import builtins
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio
from mount.live import SCALE

from care.damage import overwrite
from care.garbage import CALLER, Work, bytes_like
from care.recovery import NEW, OLD, Lost, contents, dump, make_lost
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import load_manifest
from mountstore.blobs.refs import Ref, read_ref, read_refs, write_ref
from mountstore.blobs.tree import BalancedTree
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.rebuild import NUMBERS_SKIPPED, can_rebuild, rebuild_store, survey_snapshots
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.snapshots import Snapshots
from mountstore.cli.fsck import main as fsck
from mountstore.cli.mkfs import main as mkfs
from mountstore.cli.stores import prepare_store
from mountstore.errors import BusyError, CorruptError, StoreError
from mountstore.namespace import listing, page_map
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.pages import Reference, encode_inodes, encode_root
from mountstore.namespace.stale import PAGE_SHIFT
from mountstore.store import Store
from mountstore.store.config import read_config
from mountstore.store.create import create_store
from mountstore.store.lock import StoreLock

Capture = pytest.CaptureFixture[str]

NOON_NS = 20_000 * 86_400 * 10**9 + 12 * 3600 * 10**9


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return make_lost(tmp_path_factory.mktemp("source") / "store")


@pytest.fixture(scope="module")
def source_contents(source: Lost, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, bytes]:
    path = tmp_path_factory.mktemp("contents") / "store"
    shutil.copytree(source.path, path, symlinks=True)
    return contents(path)


@pytest.fixture
def lost(source: Lost, tmp_path: Path) -> Lost:
    return source.to(tmp_path / "copy")


def snapshot(lost: Lost, name: str) -> SnapshotTree:
    return SnapshotTree(BalancedTree(str(lost.blobs)), lost.root(name))


def only_of(lost: Lost, name: str, other: str) -> set[Digest]:
    """Blobs that one snapshot consists of and the other does not."""
    return set(snapshot(lost, name).pages()) - set(snapshot(lost, other).pages())


# --- complete ---


@pytest.mark.parametrize("how", ["rsync -a {0}/ {1}", "cp -a {0} {1}", "tar -C {0} -cf - . | tar -C {1} -xf -"])
def test_everything_comes_back_from_a_copy(
    source: Lost, source_contents: dict[bytes, bytes], tmp_path: Path, how: str
) -> None:
    copy = Lost(tmp_path / "copy", source.dumps)
    copy.path.mkdir()
    if how.startswith("tar"):
        copy.blobs.mkdir()
    subprocess.run(how.format(source.blobs, copy.blobs), shell=True, check=True)
    assert can_rebuild(str(copy.path))
    rebuilt = rebuild_store(str(copy.path))
    assert rebuilt.taken.ref.name == "second"
    assert rebuilt.made_settings
    copy.shows("second")
    assert read_config(str(copy.path)) == read_config(str(source.path))
    assert contents(copy.path) == source_contents


def test_versions_come_back(lost: Lost) -> None:
    rebuild_store(str(lost.path))
    # It tells the names of all files, and holds small contents.
    assert (lost.path / "catalog.db").stat().st_mode & 0o777 == 0o600

    async def body() -> None:
        async with Store.open(str(lost.path)).running() as store:
            assert len(await store.recall.list_versions(b"/often")) == 301
            assert len(await store.recall.list_versions(b"/log.1")) == 2
            document = b"/outer/inner \xff\n/document"
            assert len(await store.recall.list_versions(document)) == 2
            restored = await store.recall.restore(document, 1)
            assert await store.files.read(restored, 0, 1000) == OLD
            gone = await store.recall.undelete(b"/gone")
            assert await store.files.read(gone, 0, 1000) == bytes_like(5, 100)

    trio.run(body)


def test_numbers_are_never_used_again(lost: Lost) -> None:
    rebuild_store(str(lost.path))
    used = max(row[0] for row in dump(lost.catalog)["inode"])  # type: ignore[type-var]
    store = Store.open(str(lost.path))
    assert store.inodes.next_id() > used + NUMBERS_SKIPPED  # type: ignore[operator]
    store._close()


def test_the_next_snapshot_builds_on_the_restored_one(lost: Lost) -> None:
    rebuild_store(str(lost.path))

    async def body() -> None:
        async with Store.open(str(lost.path)).running() as store:
            taken = await Snapshots(store).take("third")
            assert taken.new_blobs == 1

    trio.run(body)


def test_what_changes_afterwards_is_in_the_next_snapshot(lost: Lost) -> None:
    """It is built on the restored one, so it has to know all that changed since."""
    rebuild_store(str(lost.path))

    async def body() -> None:
        async with Store.open(str(lost.path)).running() as store:
            work = Work(store)
            await work.save(b"often", b"after the recovery")
            await work.save(b"quite new", b"1")
            many = work.find(b"many")
            for number in range(1, 600, 49):
                await work.rename(b"name %d" % number, b"renamed %d" % number, many.id, many.id)
            await work.unlink(b"large")
            await Snapshots(store).take("third")
            lost.dumps["third"] = dump(lost.catalog)

    dumps = dict(lost.dumps)
    trio.run(body)
    lost.catalog.unlink()
    assert rebuild_store(str(lost.path)).taken.ref.name == "third"
    lost.shows("third")
    lost.dumps.clear()
    lost.dumps.update(dumps)


def test_a_huge_directory(tmp_path: Path) -> None:
    """Of so many names that the index of its listing has an index; some are chosen for that."""
    create_store(str(tmp_path / "store"))
    names = [b"a name of some length %d" % number for number in range(4000)]
    names += [name for name in (b"%d" % number for number in range(200_000)) if listing.begins(name, 1)]

    async def body() -> None:
        async with Store.open(str(tmp_path / "store")).running() as store:
            directory = store.namespace.create(ROOT, b"huge", 0o040755, CALLER)
            for name in names:
                store.namespace.create(directory.id, name, 0o100644, CALLER)
            await Snapshots(store).take("one")

    trio.run(body)
    lost = Lost(tmp_path / "store", {"one": dump(tmp_path / "store" / "catalog.db")})
    (place,) = [record.listing for record in snapshot(lost, "one").inodes() if record.is_directory][1:]
    assert isinstance(place, Reference)
    assert place.level == 2
    lost.catalog.unlink()
    rebuild_store(str(lost.path))
    lost.shows("one")


# --- of several snapshots, the newest complete one ---


def test_a_ref_newer_than_its_blobs(lost: Lost) -> None:
    for digest in only_of(lost, "second", "first"):
        lost.blob(digest).unlink()
    survey = survey_snapshots(str(lost.path))
    assert [(c.ref.name, c.complete) for c in survey.candidates] == [("second", False), ("first", True)]
    assert not os.path.exists(lost.path / "store.toml"), "looking changes nothing"
    assert rebuild_store(str(lost.path)).taken.ref.name == "first"
    lost.shows("first")


@pytest.mark.parametrize("partial", [False, True])
def test_what_was_passed_over_can_be_had_when_its_blobs_are_back(
    lost: Lost, tmp_path: Path, partial: bool
) -> None:
    """Automatic snapshots are pruned by their times: what a recovery does not know is no reason to prune it."""
    refs = str(lost.blobs)
    for number, name in enumerate(("first", "second")):
        ref = read_ref(refs, name)
        os.unlink(lost.blobs / "refs" / name)
        write_ref(refs, ref._replace(name=f"auto-{name}", time_ns=NOON_NS + number))
    aside = tmp_path / "aside"
    aside.mkdir()
    gone = only_of(lost, "auto-second", "auto-first") - {lost.root("auto-second")}
    if partial:
        gone = {Digest.of(NEW), Digest.of(OLD)}
    for digest in gone:
        lost.blob(digest).rename(aside / digest.name)
    taken = rebuild_store(str(lost.path), partial=partial).taken
    assert taken.ref.name == ("auto-second" if partial else "auto-first")

    async def goes_on() -> None:
        async with Store.open(str(lost.path)).running() as store:
            await Work(store).save(b"fresh", b"since the recovery")
            assert await Snapshots(store).take_last()

    # A clock in the same hour, so that only the last of them would be kept.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mountstore.care.snapshots.time.time_ns", lambda: NOON_NS + 10**9)
        trio.run(goes_on)
    assert "auto-second" in [ref.name for ref in read_refs(refs)[0]]
    tree = BalancedTree(str(lost.blobs))
    for digest in gone:
        tree.add_file(str(aside / digest.name))
    assert rebuild_store(str(lost.path), snapshot="auto-second").taken.complete
    lost.shows("second", Kind.SNAPSHOT_LOST)


def test_an_interrupted_rsync(source: Lost, tmp_path: Path) -> None:
    """Of what the second run had to bring, any part, and the refs of both."""
    newer = only_of(source, "second", "first")
    for attempt in range(3):
        copy = source.to(tmp_path / f"{attempt}")
        for digest in random.Random(attempt).sample(sorted(newer), len(newer) // 2 + 1):
            copy.blob(digest).unlink()
        assert rebuild_store(str(copy.path)).taken.ref.name == "first"
        copy.shows("first")


def test_a_missing_content_makes_a_snapshot_incomplete(lost: Lost) -> None:
    lost.content(b"the last one").unlink()
    rebuilt = rebuild_store(str(lost.path))
    assert rebuilt.taken.ref.name == "first"
    (second, _) = rebuilt.survey.candidates
    assert second.flaw_count == 1
    assert "content of inode" in second.flaws[0].what
    assert second.flaws[0].blob == Digest.of(b"the last one").name


@pytest.mark.parametrize("of_manifest", [True, False])
def test_a_missing_piece_makes_a_snapshot_incomplete(lost: Lost, of_manifest: bool) -> None:
    entry = snapshot(lost, "first").lookup(ROOT, b"large")
    assert entry is not None
    content = snapshot(lost, "first").inode(entry.inode).content
    assert content.digest is not None
    loaded = load_manifest(
        lambda digest, _: lost.blob(digest).read_bytes(), content.digest, None, content.size_bytes
    )
    assert len(loaded.blobs) > 2
    piece = loaded.blobs[1] if of_manifest else loaded.manifest.entry(0).digest
    assert piece is not None
    lost.blob(piece).unlink()
    with pytest.raises(StoreError, match=r"no snapshot is complete; the newest, second, lacks .* --partial"):
        rebuild_store(str(lost.path))
    with pytest.raises(StoreError, match=r"snapshot first is not complete; it lacks .* another one may be"):
        rebuild_store(str(lost.path), snapshot="first")
    assert sorted(os.listdir(lost.path)) == ["blobs", "lock"]


def test_the_one_asked_for(lost: Lost) -> None:
    assert rebuild_store(str(lost.path), snapshot="first").taken.ref.name == "first"
    lost.shows("first")
    with pytest.raises(StoreError, match="there is no snapshot third"):
        rebuild_store(str(lost.path), snapshot="third")


def test_changed_bytes_are_found_by_reading_all(lost: Lost) -> None:
    overwrite(lost.content(b"the last one"), 0, b"T")
    assert rebuild_store(str(lost.path)).taken.ref.name == "second"
    lost.catalog.unlink()
    rebuilt = rebuild_store(str(lost.path), full=True)
    assert rebuilt.taken.ref.name == "first"
    assert "not those of its name" in rebuilt.survey.damaged[0]


def test_changed_bytes_of_a_content_are_never_served(lost: Lost) -> None:
    overwrite(lost.content(b"the last one"), 0, b"T")
    rebuild_store(str(lost.path))
    assert b"/often" not in contents(lost.path)


@pytest.mark.parametrize("seed", range(5 * SCALE))
def test_a_bit_flips_in_a_page(source: Lost, tmp_path: Path, seed: int) -> None:
    """Whatever object of a snapshot it is in, the snapshot counts as incomplete."""
    copy = source.to(tmp_path / "copy")
    rng = random.Random(seed)
    digest = rng.choice(sorted(only_of(copy, "second", "first")))
    path = copy.blob(digest)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    overwrite(path, 0, bytes(data))
    assert rebuild_store(str(copy.path)).taken.ref.name == "first"
    copy.shows("first", besides=Kind.BLOB_DAMAGED)


# --- refs ---


def test_refs_that_are_damaged(lost: Lost) -> None:
    ref = lost.blobs / "refs" / "second"
    whole = ref.read_bytes()
    rng = random.Random(1)
    for _ in range(200):
        data = bytearray(whole)
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                data += rng.randbytes(rng.randrange(1, 5))
            case 3:
                data[:] = rng.randbytes(rng.randrange(400))
        ref.write_bytes(data)
        refs, bad = read_refs(str(lost.blobs))
        assert [r.name for r in refs] == ["first"]
        assert [b.name for b in bad] == ["second"]
    rebuilt = rebuild_store(str(lost.path))
    assert rebuilt.taken.ref.name == "first"
    assert rebuilt.survey.bad_refs[0].name == "second"


def test_a_ref_to_something_else(lost: Lost) -> None:
    uuid = read_ref(str(lost.blobs), "first").uuid
    write_ref(str(lost.blobs), Ref("third", Digest.of(NEW), uuid, 1 << 61))
    rebuilt = rebuild_store(str(lost.path))
    assert rebuilt.taken.ref.name == "second"
    assert "its root" in rebuilt.survey.candidates[0].flaws[0].what


def test_a_snapshot_that_contradicts_itself(lost: Lost) -> None:
    """Complete, and yet a name in it stands for nothing: what hangs is mended."""
    tree = snapshot(lost, "second")
    entry = tree.lookup(ROOT, b"often")
    assert entry is not None
    blobs = BalancedTree(str(lost.blobs))
    page = entry.inode >> PAGE_SHIFT
    records = [record for record in tree.inodes() if record.number >> PAGE_SHIFT == page]
    changed = encode_inodes([record for record in records if record.number != entry.inode])

    def put(data: bytes) -> Digest:
        return blobs.add_bytes(data).digest

    inodes = page_map.update_map(tree, put, tree.root.inodes, {page: put(changed)})
    root = put(encode_root(msgspec.structs.replace(tree.root, inodes=inodes)))
    write_ref(str(lost.blobs), Ref("third", root, tree.root.uuid, tree.root.time_ns + 1))
    rebuilt = rebuild_store(str(lost.path))
    assert rebuilt.taken.ref.name == "third"
    assert len(rebuilt.mended) >= 1
    assert not flaws(lost)
    assert b"/often" not in contents(lost.path)


def test_snapshots_of_two_stores(lost: Lost, tmp_path: Path) -> None:
    elder = read_ref(str(lost.blobs), "first")._replace(name="elder")
    other = make_lost(tmp_path / "other")
    subprocess.run(["cp", "-a", f"{other.blobs}/.", f"{lost.blobs}/"], check=True)
    write_ref(str(lost.blobs), elder)
    with pytest.raises(StoreError, match="snapshots of 2 stores"):
        rebuild_store(str(lost.path))
    assert rebuild_store(str(lost.path), snapshot="elder").root.uuid == elder.uuid
    lost.shows("first")
    # Now that it is known which store this is:
    lost.catalog.unlink()
    assert rebuild_store(str(lost.path)).taken.ref.name == "elder"


def test_no_refs(lost: Lost) -> None:
    shutil.rmtree(lost.blobs / "refs")
    assert not can_rebuild(str(lost.path))
    with pytest.raises(StoreError, match="no snapshot that can be read"):
        rebuild_store(str(lost.path))
    with pytest.raises(StoreError, match="no blobs"):
        rebuild_store(str(lost.path / "blobs"))


# --- partial ---


def flaws(lost: Lost) -> set[Kind]:
    """What the checker finds, but for snapshots."""
    return {finding.kind for finding in check_store(str(lost.path)).errors} - {Kind.SNAPSHOT_LOST}


def spoil_all_but_one(lost: Lost) -> None:
    (lost.blobs / "refs" / "first").unlink()


def test_partial_keeps_files_whose_content_is_missing(lost: Lost) -> None:
    spoil_all_but_one(lost)
    blob = lost.content(b"the last one")
    kept = blob.read_bytes()
    blob.unlink()
    lost.content(OLD).unlink()
    with pytest.raises(StoreError, match="--partial"):
        rebuild_store(str(lost.path))
    rebuilt = rebuild_store(str(lost.path), partial=True)
    assert rebuilt.taken.flaw_count == 2
    assert rebuilt.mended == ()
    assert dump(lost.catalog) == lost.dumps["second"]
    assert flaws(lost) == {Kind.CONTENT_LOST, Kind.VERSION_LOST}
    assert b"/often" not in contents(lost.path)
    blob.write_bytes(kept)
    os.chmod(blob, 0o444)
    assert contents(lost.path)[b"/often"] == b"the last one"


def test_partial_without_some_inodes(lost: Lost) -> None:
    """Files whose records are gone have no names any more, and what lay in a lost directory is in lost+found."""
    spoil_all_but_one(lost)
    tree = snapshot(lost, "second")
    root = tree.root.inodes
    assert root is not None
    pages = [digest for digest in tree.pages() if lost.blob(digest).read_bytes()[:8] == b"CASINODE"]
    lost.blob(pages[2]).unlink()
    rebuilt = rebuild_store(str(lost.path), partial=True)
    assert rebuilt.mended
    assert len(dump(lost.catalog)["inode"]) < len(lost.dumps["second"]["inode"])
    assert not flaws(lost)
    assert contents(lost.path)[b"/often"] == b"the last one"


def test_partial_without_the_root_directory(lost: Lost) -> None:
    spoil_all_but_one(lost)
    pages = [d for d in snapshot(lost, "second").pages() if lost.blob(d).read_bytes().startswith(b"CASINODE")]
    lost.blob(pages[0]).unlink()
    rebuild_store(str(lost.path), partial=True)
    assert not flaws(lost)
    assert contents(lost.path)


def test_partial_without_names(lost: Lost) -> None:
    """The files of a directory whose listing is damaged are in lost+found."""
    spoil_all_but_one(lost)
    tree = snapshot(lost, "second")
    entry = tree.lookup(ROOT, b"many")
    assert entry is not None
    place = tree.inode(entry.inode).listing
    leaves = list(listing.objects(tree, place))
    overwrite(lost.blob(leaves[-1]), 20, b"?")
    rebuild_store(str(lost.path), partial=True)
    assert not flaws(lost)
    assert any(path.startswith(b"/lost+found/#") for path in contents(lost.path))
    assert len(dump(lost.catalog)["inode"]) == len(lost.dumps["second"]["inode"]) + 1


@pytest.mark.parametrize("seed", range(3 * SCALE))
def test_partial_with_files_missing_at_random(source: Lost, tmp_path: Path, seed: int) -> None:
    """Whatever is missing, what is there comes back, and is right."""
    copy = source.to(tmp_path / "copy")
    rng = random.Random(seed)
    root = copy.root("second")
    for path in sorted(copy.blobs.rglob("*_*")):
        if path.name != root.name and rng.random() < 0.15:
            path.unlink()
    (copy.blobs / "refs" / "first").unlink()
    rebuild_store(str(copy.path), partial=True)
    assert flaws(copy) <= {Kind.CONTENT_LOST, Kind.VERSION_LOST}
    contents(copy.path)


@pytest.mark.parametrize("seed", range(6 * SCALE))
def test_any_files_spoilt(source: Lost, source_contents: dict[bytes, bytes], tmp_path: Path, seed: int) -> None:
    """Whatever happens to the files of a copy: it comes back or is refused, and no wrong byte is ever read."""
    copy = source.to(tmp_path / "copy")
    rng = random.Random(seed)
    files = sorted(path for path in copy.blobs.rglob("*") if path.is_file())
    for path in rng.sample(files, rng.choice([1, 5, 60])):
        data = bytearray(path.read_bytes())
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                data = bytearray(rng.randbytes(len(data)))
            case 2:
                del data[rng.randrange(len(data)) :]
            case 3:
                data += b"more"
        path.chmod(0o644)
        path.write_bytes(data)
    try:
        rebuilt = rebuild_store(str(copy.path), partial=True)
    except StoreError:
        return
    assert flaws(copy) <= {Kind.CONTENT_LOST, Kind.VERSION_LOST, Kind.BLOB_DAMAGED}
    assert check_store(str(copy.path), full=True)
    if rebuilt.taken.ref.name == "second":
        for name, got in contents(copy.path).items():
            assert source_contents.get(name, got) == got


def test_nothing_unknown_is_collected_after_a_partial_recovery(lost: Lost) -> None:
    spoil_all_but_one(lost)
    lost.content(OLD).unlink()
    rebuild_store(str(lost.path), partial=True)
    store = Store.open(str(lost.path))
    assert store.catalog.get_meta("adopted") == 1
    store._close()


# --- where there is a catalog ---


def test_a_damaged_catalog_is_kept_aside(source: Lost, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "store"
    shutil.copytree(source.path, path, symlinks=True)
    damaged = b"not a database" * 100
    (path / "catalog.db").write_bytes(damaged)
    with pytest.raises(CorruptError, match=r"fsck\.cas --rebuild makes a new one"):
        Store.open(str(path))
    prepare_store(str(path), dir_limit=None, read_only=False)
    assert (path / "catalog.db").read_bytes() == damaged, "a mount replaces nothing"
    assert fsck(["--rebuild", str(path)]) == 8
    assert "no terminal to ask at" in capsys.readouterr().err
    assert fsck(["--rebuild", "-n", str(path)]) == 0
    assert fsck(["--rebuild", "-y", str(path)]) == 1
    assert "snapshot second" in capsys.readouterr().out
    (aside,) = (path / "bad").iterdir()
    assert (aside / "catalog.db").read_bytes() == damaged
    Lost(path, source.dumps).shows("second")


def test_a_store_in_use_is_not_rebuilt(lost: Lost) -> None:
    lock = StoreLock(str(lost.path))
    with pytest.raises(BusyError):
        rebuild_store(str(lost.path))
    lock.release()


def test_it_may_be_interrupted_anywhere(source: Lost, tmp_path: Path) -> None:
    """After any step, doing it again brings everything back."""
    class Stop(Exception):
        pass

    path = tmp_path / "store"
    steps = 0
    while True:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source.path, path, symlinks=True)
        (path / "catalog.db").write_bytes(b"damaged")
        (path / "catalog.db-wal").write_bytes(b"and its WAL")
        (path / "store.toml").unlink()
        left = steps

        def step(words: str) -> None:
            nonlocal left
            if not left:
                raise Stop(words)
            left -= 1

        try:
            rebuild_store(str(path), on_step=step)
            break
        except Stop:
            steps += 1
        assert not (path / "catalog.db.new").exists()
        assert (path / "catalog.db").read_bytes() == b"damaged"
        assert (path / "catalog.db-wal").read_bytes() == b"and its WAL"
        rebuild_store(str(path))
        Lost(path, source.dumps).shows("second")
        aside = [p.name for d in (path / "bad").iterdir() for p in d.iterdir()]
        assert sorted(aside) == ["catalog.db", "catalog.db-wal"]
    assert steps >= 6


def test_a_configuration_that_cannot_be_read(lost: Lost) -> None:
    (lost.path / "store.toml").write_text("format = 1\nuuid =")
    with pytest.raises(StoreError, match="move it away"):
        rebuild_store(str(lost.path))
    assert not lost.catalog.exists()
    (lost.path / "store.toml").rename(lost.path.parent / "store.toml")
    assert rebuild_store(str(lost.path)).made_settings
    lost.shows("second")


def test_what_root_makes_belongs_to_the_owner(source: Lost, tmp_path: Path) -> None:
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    path = tmp_path / "store"
    shutil.copytree(source.path, path, symlinks=True)
    for name in ("lock", "store.toml"):
        (path / name).unlink()
    (path / "catalog.db").write_bytes(b"damaged")
    subprocess.run(["chown", "-R", str(owner), str(path)], check=True)
    rebuild_store(str(path))
    assert {found.stat().st_uid for found in path.rglob("*")} == {owner}


def test_leftovers_of_one_that_was_killed(lost: Lost) -> None:
    for name in ("catalog.db.new", "catalog.db.new-wal", "store.toml.new", "catalog.db-wal"):
        (lost.path / name).write_bytes(b"half written")
    (lost.path / "staging").mkdir()
    assert can_rebuild(str(lost.path))
    rebuild_store(str(lost.path))
    lost.shows("second")
    assert not (lost.path / "catalog.db.new").exists()
    assert not (lost.path / "catalog.db.new-wal").exists()


def test_no_room_for_the_catalog(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    from mountstore.namespace import rebuilding

    def full(path: str) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(rebuilding, "fsync_path", full)
    with pytest.raises(OSError, match="No space"):
        rebuild_store(str(lost.path))
    assert sorted(os.listdir(lost.path)) == ["blobs", "lock"]
    monkeypatch.undo()
    rebuild_store(str(lost.path))
    lost.shows("second")


# --- the programs ---


def test_mkfs_makes_a_store_again(lost: Lost, capsys: Capture) -> None:
    assert mkfs(["--dir-limit", "1000", str(lost.path)]) == 1
    assert mkfs(["-n", str(lost.path)]) == 0
    assert os.listdir(lost.path) == ["blobs"]
    assert mkfs([str(lost.path)]) == 0
    assert "made from snapshot second" in capsys.readouterr().out
    lost.shows("second")


def test_no_empty_store_is_made_over_snapshots(lost: Lost) -> None:
    with pytest.raises(StoreError, match="has snapshots"):
        create_store(str(lost.path))


def test_a_read_only_mount_makes_nothing(lost: Lost) -> None:
    with pytest.raises(Exception, match="mount it without ro"):
        prepare_store(str(lost.path), dir_limit=None, read_only=True)
    assert os.listdir(lost.path) == ["blobs"]


@pytest.mark.parametrize(("answer", "code"), [("y", 1), ("n", 8), ("", 8)])
def test_it_asks_before_a_catalog_is_replaced(
    source: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    path = tmp_path / "store"
    shutil.copytree(source.path, path, symlinks=True)
    before = (path / "catalog.db").stat().st_ino
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", lambda prompt: answer)
    assert fsck(["--rebuild", str(path)]) == code
    assert ((path / "catalog.db").stat().st_ino == before) == (code == 8)


def test_control_c_leaves_the_store_as_it_was(
    source: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "store"
    shutil.copytree(source.path, path, symlinks=True)
    before = sorted(os.listdir(path))

    def interrupt(words: str, number: int) -> None:
        if words == "inodes loaded":
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("mountstore.cli.rebuilding.progress_lines", lambda line: interrupt)
    assert fsck(["--rebuild", "-y", str(path)]) == 32
    assert sorted(os.listdir(path)) == before
    assert dump(path / "catalog.db") == source.dumps["second"]


def test_progress_on_a_terminal(lost: Lost, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("mountstore.cli.fsck_dialogue._PROGRESS_EVERY_S", 0.0)
    assert fsck(["--rebuild", str(lost.path)]) == 1
    assert "fsck.cas: inodes loaded: " in capsys.readouterr().err


def test_fsck_without_a_catalog(lost: Lost, capsys: Capture) -> None:
    assert fsck(["--rebuild", str(lost.path)]) == 1
    lost.shows("second")
    lost.catalog.unlink()
    lost.content(b"the last one").unlink()
    spoil_all_but_one(lost)
    assert fsck(["--rebuild", "-n", str(lost.path)]) == 4
    assert fsck(["--rebuild", str(lost.path)]) == 8
    assert "--partial" in capsys.readouterr().err
    assert fsck(["--rebuild", "--partial", "-v", str(lost.path)]) == 5
    assert "content of inode" in capsys.readouterr().out
    assert fsck(["--rebuild", str(lost.path)]) == 8
    assert "no snapshot is complete" in capsys.readouterr().err
    assert fsck(["--rebuild", "-p", str(lost.path)]) == 16
    assert fsck(["--partial", str(lost.path)]) == 16


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_a_process_that_dies(source: Lost, tmp_path: Path, steps: int) -> None:
    """After any step; nothing is put back by a handler."""
    path = tmp_path / "store"
    shutil.copytree(source.path, path, symlinks=True)
    (path / "catalog.db").write_bytes(b"damaged")
    (path / "catalog.db-wal").write_bytes(b"and its WAL")
    (path / "store.toml").unlink()
    program = f"""
import os, sys
from mountstore.care.rebuild import rebuild_store
steps = iter(range({steps}))
rebuild_store(sys.argv[1], on_step=lambda words: next(steps, None) is None and os._exit(9))
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == 9
    assert (path / "catalog.db").exists() == (steps == 1)
    if steps == 1:
        rebuild_store(str(path))
    else:
        prepare_store(str(path), dir_limit=None, read_only=False)
    Lost(path, source.dumps).shows("second")
    found = {p.name: p.read_bytes() for d in (path / "bad").iterdir() for p in d.iterdir()}
    assert found == {"catalog.db": b"damaged", "catalog.db-wal": b"and its WAL"}
