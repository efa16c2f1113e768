"""Garbage collection under any sequence of operations, and beside any number of writers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from care.garbage import NO_GRACE, PIECE_MAX, Work, bytes_like, work
from mountstore.blobs.digest import Digest
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.care.snapshots import Snapshots
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.policy import ATTRIBUTE, KEEP_ALL, Policy

pytestmark = pytest.mark.trio

# Few contents, so that what is condemned is written again all the time; the last ones are manifests with common
# pieces, a large one is sealed while it is written.
POOL = [b"", *(b"content %d" % i for i in range(4)), bytes_like(0, PIECE_MAX)]
POOL += [bytes_like(1, 3 * PIECE_MAX), bytes_like(1, 3 * PIECE_MAX) + b"more", bytes_like(2, PIECE_MAX + 1)]
HUGE = bytes_like(3, (8 << 20) + 100_000)
NAMES = [b"a", b"b", b"c", b"d"]
POLICIES = [
    KEEP_ALL,
    Policy(keep_last=2, keep_days=0.0, thin="", short_lived_days=0.0),
    Policy(keep_last=0, keep_days=0.0, thin="1s:2s,7s:1m"),
    Policy(keep_last=1, keep_days=0.0, thin="", max_version_size=PIECE_MAX),
    Policy(enabled=False),
]
WORDS = [b"on", b"off", b"on keep_last=100", b"on keep_last=1 thin=1s:2s", b"on keep_last=100 max_version_size=20"]


class Model:
    """Does random things and knows what the files hold."""

    def __init__(self, w: Work, seed: int, directories: list[int], prefix: bytes = b"") -> None:
        self.w = w
        self.random = random.Random(seed)
        self.directories = directories
        self.prefix = prefix
        self.files: dict[tuple[int, bytes], bytes] = {}
        self.snapshots = 0

    def _free(self) -> tuple[int, bytes]:
        return self.random.choice(self.directories), self.prefix + self.random.choice(NAMES)

    async def act(self) -> None:
        w, place = self.w, self._free()
        parent, name = place
        what = self.random.random()
        if place not in self.files or what < 0.3:
            data = HUGE if what < 0.01 else self.random.choice(POOL)
            await w.save(name, data, parent)
            self.files[place] = data
        elif what < 0.45:
            data = self.random.choice([b"x", b"line\n" * 10])
            await w.append(name, data, parent)
            self.files[place] += data
        elif what < 0.55:
            offset = self.random.randrange(len(self.files[place]) + 1)
            await w.overwrite(name, offset, b"over", parent)
            old = self.files[place]
            self.files[place] = old[:offset] + b"over" + old[offset + 4 :]
        elif what < 0.75:
            new = self._free()
            if new != place:
                await w.rename(name, new[1], parent, new[0])
                self.files[new] = self.files.pop(place)
        elif what < 0.9:
            await w.unlink(name, parent)
            del self.files[place]
        elif what < 0.95:
            inode = w.find(name, parent)
            handle = w.store.files.open(inode, writable=True, privileged=True)
            await w.store.files.write(handle, 0, b"synced")
            await w.store.files.fsync(inode)
            await w.store.files.release(handle)
            self.files[place] = b"synced" + self.files[place][6:]
        else:
            w.store.commits.commit()

    async def take_or_delete_snapshot(self) -> None:
        taker = Snapshots(self.w.store)
        names = [info.name for info in await taker.list()]
        if names and self.random.random() < 0.4:
            await taker.delete(self.random.choice(names))
        elif self.random.random() < 0.7:
            self.snapshots += 1
            await taker.take(f"s{self.snapshots}")

    async def compare(self) -> None:
        for (parent, name), data in self.files.items():
            assert await self.w.read(name, parent) == data

    def versions(self) -> dict[tuple[int, bytes], dict[int, bytes]]:
        return {
            (parent, self.prefix + name): self.w.versions(self.prefix + name, parent)
            for parent in self.directories
            for name in NAMES
        }


def needed(w: Work, directories: list[int]) -> set[Digest]:
    """Blobs of all files and versions."""
    found: set[Digest] = set()
    for parent in directories:
        for _, inode in w.store.timeline.entries(parent):
            if inode.is_regular:
                found |= w.blobs_of(inode.content)
        for name in list(w.store.timeline.names(parent)) + NAMES:
            for _, version in w.store.timeline.past(w.store.timeline.line(parent, name)):
                if version.content is not None:
                    found |= w.blobs_of(version.content)
    return found | {digest for content in w.store.versions.moved() for digest in w.blobs_of(content)}


async def needed_by_snapshots(w: Work) -> set[Digest]:
    """Blobs that snapshots consist of and show, and those on which the next one is built."""
    base = w.store.catalog.stale.base
    found = set() if base is None else set(SnapshotTree(w.store.tree, base).pages())
    for info in await Snapshots(w.store).list():
        for content in SnapshotTree(w.store.tree, info.root).references():
            found |= w.blobs_of(content)
    return found


@pytest.mark.parametrize("differing", [False, True])
@pytest.mark.parametrize("seed", range(6))
async def test_nothing_that_is_needed_is_taken_and_nothing_else_is_left(
    tmp_path: Path, seed: int, differing: bool
) -> None:
    for mount in range(2):
        async with work(tmp_path, POLICIES[seed % len(POLICIES)]) as w:
            if not mount:
                directories = [ROOT, w.directory(b"x").id, w.directory(b"y").id]
                model = Model(w, seed, directories)
            model.w = w
            for _ in range(5):
                for _ in range(25):
                    await model.act()
                await model.take_or_delete_snapshot()
                before = model.versions()
                w.keep(model.random.choice(POLICIES))
                for directory in directories if differing else []:
                    # Names in several directories have versions in common, which only some of them let go.
                    words = model.random.choice(WORDS)
                    w.store.attributes.set(w.store.namespace.get(directory), ATTRIBUTE, words)
                report = await w.collect()
                for place, found in model.versions().items():
                    assert found.items() <= before[place].items()
                await model.compare()
                assert w.blobs() == needed(w, directories) | await needed_by_snapshots(w)
                assert report.reclaimable.blobs >= 0
            await model.compare()


@pytest.mark.parametrize("seed", range(3))
async def test_writers_and_collection_together(tmp_path: Path, seed: int) -> None:
    async with work(tmp_path) as w:
        directories = [ROOT, w.directory(b"x").id]
        models = [Model(w, seed * 10 + i, directories, b"%d" % i) for i in range(4)]
        done = trio.Event()
        working = len(models)
        runs = 0

        async def write(model: Model) -> None:
            nonlocal working
            acts = 0
            # How many collections 60 of them last is the machine's affair.
            while acts < 60 or runs < 4:
                acts += 1
                await model.act()
                await trio.sleep(0)
                place = model.random.choice(list(model.files) or [(ROOT, b"")])
                if place in model.files:
                    assert await w.read(place[1], place[0]) == model.files[place]
            working -= 1
            if not working:
                done.set()

        async def collect() -> None:
            nonlocal runs
            choice = random.Random(seed)
            while not done.is_set():
                w.keep(choice.choice(POLICIES))
                await w.collect()
                runs += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            for model in models:
                nursery.start_soon(write, model)
        for model in models:
            await model.compare()
            model.versions()
        w.keep(POLICIES[1])
        await w.collect(NO_GRACE)
        for model in models:
            await model.compare()
            model.versions()
    async with work(tmp_path) as w:
        for model in models:
            model.w = w
            await model.compare()
            model.versions()
