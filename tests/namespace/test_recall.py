"""Versions by path, without a mount."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from mountstore.blobs import clock
from mountstore.errors import AbsentError, ExistsError, FoundDirectoryError
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.notation import Instant
from mountstore.namespace.timeline import VersionReader
from namespace.test_versions import CALLER, Program, program

pytestmark = pytest.mark.trio


async def read(reader: VersionReader) -> bytes:
    try:
        return await reader.read(0, reader.size_bytes + 100)
    finally:
        reader.close()


async def versions(p: Program, path: bytes) -> list[bytes]:
    listed = await p.store.recall.list_versions(path)
    assert [entry.number for entry in listed] == list(range(1, len(listed) + 1))
    return [await read(await p.store.recall.open_version(path, entry.number)) for entry in listed]


def now_ns() -> int:
    """The time now, by the clock of the store: later than all before, earlier than all that follows."""
    ticks = [clock.now_ns()]
    while len(ticks) < 3:
        if (now := clock.now_ns()) > ticks[-1]:
            ticks.append(now)
    return ticks[1]


async def test_versions_are_listed_and_opened(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        recall = p.store.recall
        assert await versions(p, b"/f") == [b"one", b"two"]
        assert [entry.current for entry in await recall.list_versions(b"f")] == [False, True]
        assert await read(await recall.open_version(b"/f")) == b"two"
        assert await read(await recall.open_version(b"/f@1")) == b"one"
        for absent in (b"/g", b"/f@3", b"/g@1", b"/d/f"):
            with pytest.raises(AbsentError):
                await recall.open_version(absent)
        with pytest.raises(FoundDirectoryError):
            await recall.list_versions(b"/")
        await p.save(b"f@1", b"a name")
        assert await read(await recall.open_version(b"/f@1")) == b"a name"


async def test_a_version_is_restored_in_a_new_inode(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        inode = await p.save(b"f", b"one")
        p.store.namespace.set_attributes(inode, CALLER, mode=0o640, uid=12, gid=34, mtime_ns=1_000)
        await p.save(b"f", b"two")
        p.store.namespace.set_attributes(inode, CALLER, mode=0o600, uid=0, gid=0)
        p.store.namespace.link(inode.id, ROOT, b"link")
        restored = await p.store.recall.restore(b"/f", 1)
        assert restored is p.find(b"f")
        assert restored.id != inode.id and p.find(b"link") is inode
        assert (restored.mode, restored.uid, restored.gid) == (stat.S_IFREG | 0o640, 12, 34)
        assert restored.mtime_ns == 1_000
        assert await versions(p, b"/link") == [b"one", b"two"]
        assert (await versions(p, b"/f"))[-1] == b"one"
    async with program(tmp_path) as p:
        assert await p.store.files.read(p.find(b"f"), 0, 100) == b"one"


async def test_what_was_replaced_by_a_restore_is_a_version(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        await p.store.recall.restore(b"f@1")
        assert await versions(p, b"f") == [b"one", b"two", b"one"]
        assert p.names() == [b"f"]


async def test_restore_by_time(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        before = now_ns()
        await p.save(b"f", b"one")
        first = now_ns()
        await p.save(b"f", b"two")
        await p.store.recall.restore(b"f", Instant(first))
        assert await p.store.files.read(p.find(b"f"), 0, 10) == b"one"
        with pytest.raises(AbsentError):
            await p.store.recall.restore(b"f", Instant(before))


@pytest.mark.parametrize("size", [1000, 9_000_000])
async def test_a_prefix_is_restored_with_its_own_length(tmp_path: Path, size: int) -> None:
    async with program(tmp_path) as p:
        data = random.Random(size).randbytes(size)
        await p.save(b"log", data)
        await p.append(b"log", b"more")
        await p.append(b"log", b"and more")
        restored = await p.store.recall.restore(b"log", 1)
        assert restored.size == restored.content.size_bytes == size
        assert await p.store.files.read(restored, 0, size + 100) == data
        assert [len(data) for data in await versions(p, b"log")] == [size, size + 4, size + 12, size]


async def test_undelete(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        await p.save(b"f", b"one")
        await p.save(b"f", b"two")
        with pytest.raises(ExistsError):
            await p.store.recall.undelete(b"f")
        p.unlink(b"f")
        await p.store.recall.undelete(b"f")
        assert await p.store.files.read(p.find(b"f"), 0, 10) == b"two"
        made = p.store.namespace.create(ROOT, b"d", stat.S_IFDIR | 0o755, CALLER)
        await p.save(b"g", b"inside", parent=made.id)
        p.unlink(b"g", made.id)
        p.store.namespace.rmdir(ROOT, b"d")
        assert await versions(p, b"d/g") == [b"inside"]
        with pytest.raises(FoundDirectoryError):
            await p.store.recall.undelete(b"d")
        with pytest.raises(AbsentError, match=r"its directory was removed: .*--to"):
            await p.store.recall.undelete(b"d/g")
        assert (await p.store.recall.restore(b"d/g@1", to=b"g")).size == 6


async def test_diff_says_where_versions_part(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        same = random.Random(1).randbytes(3_000_000)
        for data in (same, same[:2_500_000] + b"\0" + same[2_500_000:], same, same + b"x", b""):
            await p.save(b"f", data)
        diff = p.store.recall.diff
        assert (await diff(b"f", 1, 2)).first == 2_500_000
        assert (await diff(b"f", 1, 3)).first is None
        found = await diff(b"f", 3, 4)
        assert (found.first, found.old.size_bytes, found.new.size_bytes) == (3_000_000, 3_000_000, 3_000_001)
        assert (await diff(b"f", 1, 5)).first == 0
