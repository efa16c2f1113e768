"""What differs between two snapshots, against a plain comparison of everything."""

from __future__ import annotations

import stat
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from care.garbage import CALLER, work
from care.pictures import of_snapshot
from care.test_snapshots import Changer
from mountstore.care.snapshot_diff import ChangedPath, Difference, _facts, diff
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.snapshots import Snapshots
from mountstore.namespace.inodes import ROOT

pytestmark = pytest.mark.trio


def places(tree: SnapshotTree) -> tuple[dict[tuple[int, bytes], int], dict[int, bytes]]:
    """What every name in every directory stands for, and the paths of the directories."""
    inodes, listings, _, _ = of_snapshot(tree)
    names = {
        (directory, entry.name): entry.inode
        for directory, entries in listings.items()
        for entry in entries
        if directory in inodes and entry.inode
    }
    paths = {ROOT: b""}
    waiting = [ROOT]
    while waiting:
        directory = waiting.pop()
        for entry in listings.get(directory, []):
            if entry.inode and inodes[entry.inode].is_directory:
                paths[entry.inode] = b"/".join(filter(None, (paths[directory], entry.name)))
                waiting.append(entry.inode)
    return names, paths


def plain_diff(old: SnapshotTree, new: SnapshotTree) -> set[ChangedPath]:
    (before, old_paths), (after, new_paths) = places(old), places(new)
    found = set()
    for directory, name in before.keys() | after.keys():
        was, now = before.get((directory, name)), after.get((directory, name))
        path = b"/".join(filter(None, ((old_paths if now is None else new_paths)[directory], name)))
        if was is None:
            found.add(ChangedPath(path, Difference.ADDED))
        elif now is None:
            found.add(ChangedPath(path, Difference.REMOVED))
        elif was != now:
            found.add(ChangedPath(path, Difference.REPLACED))
        elif _facts(old.inode(now)) != _facts(new.inode(now)):
            found.add(ChangedPath(path, Difference.CHANGED))
    if _facts(old.inode(ROOT)) != _facts(new.inode(ROOT)):
        found.add(ChangedPath(b"", Difference.CHANGED))
    return found


@pytest.mark.parametrize("seed", range(2))
async def test_a_diff_is_what_a_plain_comparison_finds(tmp_path: Path, seed: int) -> None:
    async with work(tmp_path) as w:
        changer = Changer(w, seed)
        taker = Snapshots(w.store)
        trees = []
        for number, acts in enumerate((200, 3, 40, 0, 200)):
            for _ in range(acts):
                await changer.act()
            await taker.take(f"s{number}")
            trees.append(await taker.open(f"s{number}"))
        for old in trees:
            for new in trees:
                found = list(diff(old, new))
                assert found == sorted(found, key=lambda row: row.path.split(b"/"))
                assert set(found) == plain_diff(old, new)
                assert len(diff(old, new)) == len(found)


async def test_a_renamed_directory_is_told_and_what_is_below_is_not(tmp_path: Path) -> None:
    async with work(tmp_path) as w:
        directory = w.directory(b"old")
        await w.save(b"same", b"same", directory.id)
        await w.save(b"other", b"other", directory.id)
        taker = Snapshots(w.store)
        await taker.take("a")
        w.store.namespace.rename(ROOT, b"old", ROOT, b"new")
        await w.save(b"other", b"changed", directory.id)
        w.store.namespace.create(ROOT, b"file", stat.S_IFREG | 0o644, CALLER)
        await taker.take("b")
        found = list(diff(await taker.open("a"), await taker.open("b")))
        assert found == [
            ChangedPath(b"file", Difference.ADDED),
            ChangedPath(b"new", Difference.ADDED),
            ChangedPath(b"new/other", Difference.CHANGED),
            ChangedPath(b"old", Difference.REMOVED),
        ]


async def test_directories_far_below_each_other_take_no_more_than_their_names(tmp_path: Path) -> None:
    depth, name = 1000, b"n" * 255
    async with work(tmp_path) as w:
        await w.save(b"file", b"")
        taker = Snapshots(w.store)
        await taker.take("a")
        parent = ROOT
        for _ in range(depth):
            parent = w.directory(name, parent).id
        await w.save(b"file", b"more")
        await taker.take("b")
        old, new = await taker.open("a"), await taker.open("b")
        tracemalloc.start()
        try:
            found = diff(old, new)
            # The first of the long paths, too, are told without the others.
            first = list(islice(found, 10))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(found) == depth + 1
        assert first[0] == ChangedPath(b"file", Difference.CHANGED)
        assert first[9] == ChangedPath(b"/".join([name] * 9), Difference.ADDED)
        assert peak < 16 << 20, "their paths alone are 128 MB"


async def test_a_comparison_ends_when_it_is_told_to(tmp_path: Path) -> None:
    def check() -> None:
        raise TimeoutError

    async with work(tmp_path) as w:
        taker = Snapshots(w.store)
        await taker.take("a")
        await w.save(b"file", b"more")
        await taker.take("b")
        with pytest.raises(TimeoutError):
            diff(await taker.open("a"), await taker.open("b"), check)
