"""Whole trees without a mount: garbage collection beside them, cancellation, and who else works meanwhile."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from care.garbage import KEEP_NONE, NO_GRACE, PIECE_MAX, Work, bytes_like, work
from mountstore.care.gc import collect
from mountstore.care.rebuild import rebuild_store
from mountstore.care.snapshots import Snapshots
from mountstore.care.trees import Trees
from mountstore.errors import BlobMissingError
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.limbo import LIMBO
from mountstore.namespace.namespace import Caller
from mountstore.namespace.policy import ATTRIBUTE, Policy
from mountstore.store import Store

pytestmark = pytest.mark.trio

KEEP_FOR_A_DAY = Policy(keep_last=0, keep_days=1.0, thin="", short_lived_days=1.0)
LARGE = bytes_like(1, 5 * PIECE_MAX)


@asynccontextmanager
async def deleting(trees: Trees) -> AsyncIterator[None]:
    """The context in which what lies in limbo is deleted."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trees.run)
        yield
        nursery.cancel_scope.cancel()


def limbo(w: Work) -> bool:
    return w.store.namespace.find(ROOT, LIMBO) is not None


async def make_tree(w: Work, count: int = 200) -> None:
    d = w.directory(b"d")
    sub = w.directory(b"sub", d.id)
    await w.save(b"large", LARGE, d.id)
    for i in range(count):
        await w.save(b"%d" % i, b"%d" % i, sub.id)


async def test_collection_amid_a_removal_keeps_what_is_to_become_a_version(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_FOR_A_DAY) as w:
        trees = Trees(w.store)
        d = w.directory(b"d")
        sub = w.directory(b"sub", d.id)
        await w.save(b"f", b"first", sub.id)
        await w.save(b"f", b"second", sub.id)
        _, name = trees.remove(b"/d")
        assert w.store.namespace.find(ROOT, b"d") is None
        await w.collect()
        async with deleting(trees):
            await trees.wait_removed(name)
        assert not limbo(w)
        await w.collect()
        line = w.store.timeline.line(ROOT, b"d")
        assert w.store.timeline.get(line, 1).directory == d.id
        assert list(w.versions(b"f", sub.id).values()) == [b"first", b"second"]
        assert w.has(b"first") and w.has(b"second")
        number, version = await w.store.recall.find_version(b"/d/sub/f")
        assert (number, version.size_bytes) == (2, 6)


async def test_the_policy_of_a_removed_tree_stays_while_it_is_deleted(tmp_path: Path) -> None:
    async with work(tmp_path, KEEP_NONE) as w:
        trees = Trees(w.store)
        top = w.directory(b"top")
        w.store.attributes.set(top, ATTRIBUTE, b"keep_days=1")
        d = w.directory(b"d", top.id)
        await w.save(b"f", b"first", d.id)
        await w.save(b"f", b"second", d.id)
        _, name = trees.remove(b"/top/d")
        await w.collect()
        assert w.has(b"first")
        async with deleting(trees):
            await trees.wait_removed(name)
        await w.collect()
        assert w.has(b"first") and w.has(b"second")


async def test_restore_beside_a_collection_that_lost_the_snapshot(tmp_path: Path) -> None:
    """The collection is past its instant when the tree comes back, and then the snapshot goes."""
    async with work(tmp_path) as w:
        await make_tree(w, 20)
        snapshots, trees = Snapshots(w.store), Trees(w.store)
        await snapshots.take("one")
        _, name = trees.remove(b"/d")
        async with deleting(trees):
            await trees.wait_removed(name)
        w.keep(KEEP_NONE)
        reached, go_on = trio.Event(), trio.Event()

        async def step(done: str) -> None:
            if done == "synced":
                reached.set()
                await go_on.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: collect(w.store, NO_GRACE, step=step))
            await reached.wait()
            await trees.restore(await snapshots.open("one"), b"/d", to=b"/back")
            await snapshots.delete("one")
            go_on.set()
        back = w.find(b"back")
        assert await w.read(b"large", back.id) == LARGE
        sub = w.find(b"sub", back.id)
        for i in range(20):
            assert await w.read(b"%d" % i, sub.id) == b"%d" % i


async def test_a_clone_amid_a_collection_keeps_what_it_copies(tmp_path: Path) -> None:
    """The original may be gone, without versions, before the collection comes to its instant."""
    async with work(tmp_path) as w:
        await make_tree(w, 20)
        trees = Trees(w.store)
        w.store.tree.watch()
        try:
            await trees.clone(b"/d", b"/copy")
            assert all(w.store.tree.is_wanted(digest) for digest in w.blobs())
        finally:
            w.store.tree.unwatch()


async def test_cancelled_or_failed_leaves_nothing(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await make_tree(w)
        trees, snapshots = Trees(w.store), Snapshots(w.store)
        await snapshots.take("one")
        (path,) = [w.store.tree.find(digest) for digest in w.blobs() if digest.size_bytes == 3][:1]
        with trio.CancelScope() as scope:

            def cancel(done: int, total: int | None, unit: str) -> None:
                if done > 100:
                    scope.cancel()

            await trees.clone(b"/d", b"/copy", cancel)
        assert scope.cancelled_caught
        assert path is not None
        data = Path(path).read_bytes()
        Path(path).unlink()
        with pytest.raises(BlobMissingError):
            await trees.restore(await snapshots.open("one"), b"/d", to=b"/copy")
        assert limbo(w)
        Path(path).write_bytes(data)
        async with deleting(trees):
            _, name = trees.remove(b"/d")
            await trees.wait_removed(name)
        assert not limbo(w)
        assert w.store.namespace.find(ROOT, b"copy") is None


async def test_several_at_once(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        await make_tree(w)
        trees = Trees(w.store)
        async with deleting(trees):
            async with trio.open_nursery() as nursery:
                for i in range(4):
                    nursery.start_soon(trees.clone, b"/d", b"/copy%d" % i)
            removed = [trees.remove(b"/copy%d" % i)[1] for i in range(3)]
            await trees.clone(b"/copy3", b"/copy0")
            for name in removed:
                await trees.wait_removed(name)
            await trees.clone(b"/d/sub/1", b"/one")
        assert await w.read(b"one") == b"1"
        assert await w.read(b"large", w.find(b"copy0").id) == LARGE
        assert not limbo(w)


async def test_a_rebuilt_store_goes_on_with_what_was_begun(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with work(tmp_path) as w:
        path = Path(w.store.path)
        await make_tree(w, 20)
        trees = Trees(w.store)
        trees.remove(b"/d")
        assert limbo(w)
        await Snapshots(w.store).take("amid")
    os.unlink(path / "catalog.db")
    await trio.to_thread.run_sync(rebuild_store, str(path))
    async with Store.open(str(path)).running() as store:
        limbo_then = store.namespace.find(ROOT, LIMBO)
        assert limbo_then is not None
        trees = Trees(store)
        store.namespace.create(ROOT, b"last", 0o40755, Caller(0, 0))
        async with deleting(trees):
            await trees.wait_removed(trees.remove(b"/last")[1])
        assert store.namespace.find(ROOT, LIMBO) is None
        _, version = await store.recall.find_version(b"/d/large")
        assert version.size_bytes == len(LARGE)
