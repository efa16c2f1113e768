"""Small files that are read in the order they were made are fetched ahead, and others are not."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from mountstore.blobs.descriptors import DescriptorCache
from mountstore.blobs.digest import Digest
from mountstore.blobs.reader import ContentReader
from mountstore.namespace.fetch_ahead import _AHEAD, _GAP, _LISTED, _RUN, FetchAhead
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store


class Files:
    """So many small files, whose inode numbers have gaps."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.digests = {number: Digest.of(b"%d" % number) for number in numbers}
        self.numbers = {digest: number for number, digest in self.digests.items()}
        self.asked = 0

    def list_small(self, after: int, limit: int) -> list[tuple[int, Digest]]:
        self.asked += 1
        return [(number, digest) for number, digest in sorted(self.digests.items()) if number > after][:limit]

    def fetched(self, ahead: FetchAhead, number: int, *, waited: bool = True) -> list[int]:
        return [self.numbers[digest] for digest in ahead.note(number, waited=waited)]


def test_files_in_order_are_fetched_once_and_a_little_ahead() -> None:
    files = Files(range(1000, 3000, 3))
    ahead = FetchAhead(files.list_small)
    numbers = list(files.digests)
    fetched: list[int] = []
    for position, number in enumerate(numbers):
        # What was fetched is at hand when it is read.
        fetched += files.fetched(ahead, number, waited=number not in fetched)
        assert len(fetched) <= max(0, position + 1 - _RUN) + _AHEAD
    assert fetched == numbers[_RUN + 1 :]
    assert files.asked <= len(numbers) // _LISTED + _AHEAD + 2


def test_some_may_be_left_out() -> None:
    chance = random.Random(1)
    files = Files(range(1000, 2000))
    ahead = FetchAhead(files.list_small)
    fetched: list[int] = []
    number = 1000
    while number < 2000:
        fetched += files.fetched(ahead, number, waited=number not in fetched)
        number += chance.randrange(1, _AHEAD)
    assert len(fetched) > 900
    assert fetched == sorted(set(fetched))


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(2000, 1000, -1), id="backwards"),
        pytest.param(range(1000, 100_000, _GAP + 1), id="far apart"),
        pytest.param(random.Random(1).sample(range(1000, 100_000), 900), id="anywhere"),
        pytest.param([5] * 100, id="the same"),
    ],
)
def test_files_in_no_order_have_nothing_fetched(numbers: Sequence[int]) -> None:
    files = Files(range(1000, 100_000))
    ahead = FetchAhead(files.list_small)
    assert [number for number in numbers if files.fetched(ahead, number)] == []
    assert files.asked == 0


def test_what_is_in_memory_has_nothing_fetched() -> None:
    files = Files(range(1000, 2000))
    ahead = FetchAhead(files.list_small)
    assert [number for number in files.digests if files.fetched(ahead, number, waited=False)] == []


def test_a_jump_begins_anew() -> None:
    files = Files(range(1000, 9000))
    ahead = FetchAhead(files.list_small)
    for number in range(1000, 1010):
        files.fetched(ahead, number)
    assert [files.fetched(ahead, number) for number in range(5000, 5000 + _RUN)] == [[]] * _RUN
    assert files.fetched(ahead, 5000 + _RUN) == list(range(5001 + _RUN, 5001 + _RUN + _AHEAD))


def test_at_the_end_there_is_nothing_more() -> None:
    files = Files(range(1000, 1000 + _RUN + 2))
    ahead = FetchAhead(files.list_small)
    assert [files.fetched(ahead, number) for number in files.digests][_RUN:] == [[1000 + _RUN + 1], []]


# --- of a store ---


@pytest.mark.trio
async def test_a_store_fetches_what_will_be_read_and_survives_what_is_wrong_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes: list[Inode] = []
    for number in range(3 * _AHEAD):
        inode = store.namespace.create(ROOT, b"%d" % number, 0o100644, Caller(0, 0))
        handle = store.files.open(inode, writable=True, privileged=True)
        await store.files.write(handle, 0, b"content %d" % number)
        await store.files.release(handle)
        inodes.append(inode)
        if number % 5 == 0:
            store.namespace.create(ROOT, b"directory %d" % number, 0o40755, Caller(0, 0))
    store.commits.commit()
    fetched: list[Digest] = []
    real = DescriptorCache.fetch

    def fetch(self: DescriptorCache, tree: object, digest: Digest) -> None:
        fetched.append(digest)
        real(self, store.tree, digest)

    monkeypatch.setattr(DescriptorCache, "fetch", fetch)
    # Nothing is in the page cache.
    monkeypatch.setattr(ContentReader, "read_nowait", lambda *_: None)
    monkeypatch.setattr("mountstore.namespace.contents._AT_HAND_S", 0.0)
    missing = inodes[2 * _AHEAD]
    assert missing.content.digest is not None
    path = store.tree.find(missing.content.digest)
    assert path is not None
    os.rename(path, path + ".away")
    for number, inode in enumerate(inodes):
        if inode is missing:
            assert missing.content.digest in fetched
            os.rename(path + ".away", path)
        assert await store.files.read(inode, 0, 100) == b"content %d" % number
    assert fetched == [inode.content.digest for inode in inodes[_RUN + 1 :]]
