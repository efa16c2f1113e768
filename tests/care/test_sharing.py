"""What files share, against answers known beforehand and against a count by hand."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from mountstore.blobs.content import ContentKind
from mountstore.blobs.describe import describe
from mountstore.care.sharing import Sharing, report_sharing
from mountstore.errors import AbsentError
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

USER = Caller(0, 0)
PIECE_MAX = 64 << 10


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Filling:
    """Puts files into an open store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.inodes: dict[bytes, Inode] = {}

    def mkdir(self, name: bytes, parent: int = ROOT) -> int:
        return self.store.namespace.create(parent, name, 0o040755, USER).id

    async def write(self, name: bytes, data: bytes, parent: int = ROOT) -> Inode:
        inode = self.store.namespace.create(parent, name, 0o100644, USER)
        handle = self.store.files.open(inode, writable=True, privileged=True)
        for start in range(0, len(data), 1 << 20):
            await self.store.files.write(handle, start, data[start : start + (1 << 20)])
        await self.store.files.release(handle)
        self.inodes[name] = inode
        return inode


LARGE = noise(1, 500_000)
CHANGED = LARGE[:250_000] + b"!" + LARGE[250_000:]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[bytes, Inode]]:
    """A store with files that share whole contents, pieces, or nothing."""
    path = str(tmp_path_factory.mktemp("sharing") / "store")
    create_store(path, piece_max=PIECE_MAX)

    async def fill() -> dict[bytes, Inode]:
        async with Store.open(path).running() as store:
            filling = Filling(store)
            directory, other = filling.mkdir(b"d"), filling.mkdir(b"other")
            inner = filling.mkdir(b"inner", directory)
            await filling.write(b"alone", noise(2, 1000), directory)
            await filling.write(b"copied", noise(3, 2000), directory)
            await filling.write(b"copy", noise(3, 2000), other)
            await filling.write(b"twice1", noise(4, 3000), directory)
            await filling.write(b"twice2", noise(4, 3000), inner)
            await filling.write(b"empty", b"", inner)
            linked = await filling.write(b"linked", noise(5, 4000), inner)
            store.namespace.link(linked.id, inner, b"link")
            store.namespace.link(linked.id, other, b"outside")
            store.namespace.create(inner, b"symlink", 0o120777, USER, target=b"x")
            await filling.write(b"large", LARGE)
            await filling.write(b"changed", CHANGED)
            await filling.write(b"sparse", noise(6, 100_000) + bytes(10 << 20) + noise(7, 100_000))
            # A small file that is one piece of a large one.
            pieces = describe(store.tree, filling.inodes[b"large"].content).entries()
            first = next(pieces)
            await filling.write(b"piece", LARGE[: first.length])
            for name in (b"same1", b"same2"):
                await filling.write(name, noise(8, 200_000))
            return filling.inodes

    return path, trio.run(fill)


def by_hand(path: str, inodes: dict[bytes, Inode], *inside: bytes) -> tuple[int, int, int, int]:
    """Stored and shared bytes, pieces and shared pieces."""
    used: dict[tuple[bytes, int], bool] = {}
    others: set[tuple[bytes, int]] = set()
    store = Store.open(path, read_only=True)
    for name, inode in inodes.items():
        if inode.content.digest is None:
            continue
        description = describe(store.tree, inode.content)
        blobs: dict[tuple[bytes, int], bool] = {}
        if inode.content.kind is ContentKind.MANIFEST:
            blobs[tuple(inode.content.digest)] = False  # type: ignore[index]
        for entry in description.entries():
            if entry.digest is not None:
                blobs[tuple(entry.digest)] = True  # type: ignore[index]
        if name in inside:
            used |= blobs
        else:
            others |= blobs.keys()
    stored = sum(size for _, size in used)
    shared = [key for key in used if key in others]
    return stored, sum(size for _, size in shared), sum(used.values()), sum(used[key] for key in shared)


def test_small_files_of_a_tree(filled: tuple[str, dict[bytes, Inode]]) -> None:
    path, _ = filled
    # Two with one content, one of whose copies is elsewhere, and one with three names.
    assert report_sharing(path, b"/d") == Sharing(
        files=6,
        logical_bytes=1000 + 2000 + 2 * 3000 + 4000,
        stored_bytes=1000 + 2000 + 3000 + 4000,
        unique_bytes=1000 + 3000 + 4000,
        shared_bytes=2000,
        pieces=4,
        shared_pieces=1,
        unreadable_files=0,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"d/alone", (1, 1000, 1000, 1000, 0, 1, 0)),
        (b"/d/copied", (1, 2000, 2000, 0, 2000, 1, 1)),
        (b"d//twice1/", (1, 3000, 3000, 0, 3000, 1, 1)),
        (b"d/inner/link", (1, 4000, 4000, 4000, 0, 1, 0)),
        (b"d/inner/empty", (1, 0, 0, 0, 0, 0, 0)),
        (b"d/inner/symlink", (0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_one_small_file(
    filled: tuple[str, dict[bytes, Inode]], name: bytes, expected: tuple[int, int, int, int, int, int, int]
) -> None:
    assert report_sharing(filled[0], name) == Sharing(*expected, unreadable_files=0)


@pytest.mark.parametrize("name", [b"large", b"changed", b"sparse", b"piece", b"same1"])
def test_large_files_share_pieces(filled: tuple[str, dict[bytes, Inode]], name: bytes) -> None:
    path, inodes = filled
    found = report_sharing(path, name)
    stored, shared, pieces, shared_pieces = by_hand(path, inodes, name)
    assert found == Sharing(
        1, inodes[name].size, stored, stored - shared, shared, pieces, shared_pieces, unreadable_files=0
    )
    if name == b"sparse":
        assert 200_000 < stored < 210_000 and shared == 0
    if name == b"changed":
        # All but what is around the inserted byte, and the manifest.
        assert 0 < found.unique_bytes < 3 * PIECE_MAX and found.shared_bytes > 300_000
    if name == b"same1":
        # The manifest, too.
        assert found.unique_bytes == 0


def test_the_whole_store_shares_nothing(filled: tuple[str, dict[bytes, Inode]]) -> None:
    path, inodes = filled
    found = report_sharing(path, b"")
    stored, _, pieces, _ = by_hand(path, inodes, *inodes)
    assert (found.stored_bytes, found.unique_bytes, found.shared_bytes) == (stored, stored, 0)
    assert (found.pieces, found.shared_pieces) == (pieces, 0)
    assert found.logical_bytes == sum(inode.size for inode in inodes.values())
    blobs = [name for _, _, names in os.walk(path + "/blobs") for name in names if len(name) > 64]
    assert stored == sum(int(name[65:], 16) for name in blobs)


def test_what_is_not_there(filled: tuple[str, dict[bytes, Inode]]) -> None:
    for name in (b"nowhere", b"d/nowhere/x", b"d/alone/x"):
        with pytest.raises(AbsentError):
            report_sharing(filled[0], name)


def test_an_open_store_and_damage(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    create_store(path, piece_max=PIECE_MAX)

    async def work() -> None:
        async with Store.open(path).running() as store:
            filling = Filling(store)
            await filling.write(b"large", LARGE)
            await filling.write(b"other", noise(9, 300_000))
            await store.commits.hard_sync()
            found = await trio.to_thread.run_sync(report_sharing, store, b"large")
            assert found.logical_bytes == len(LARGE) and found.shared_bytes == 0
            digest = filling.inodes[b"other"].content.digest
            assert digest is not None
            blob = store.tree.find(digest)
            assert blob is not None
            os.chmod(blob, 0o644)
            with open(blob, "r+b") as file:
                file.write(b"damage")
            found = await trio.to_thread.run_sync(report_sharing, store, b"large")
            assert found.unreadable_files == 1 and found.unique_bytes == found.stored_bytes
            found = await trio.to_thread.run_sync(report_sharing, store, b"other")
            assert (found.files, found.unreadable_files, found.logical_bytes) == (1, 1, 300_000)
            whole = await trio.to_thread.run_sync(report_sharing, store, b"")
            assert (whole.files, whole.unreadable_files) == (2, 1)
            assert whole.logical_bytes == len(LARGE) + 300_000 and whole.pieces > 0

    trio.run(work)
