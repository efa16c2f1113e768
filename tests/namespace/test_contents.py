"""Cold reads: by workers, unless the disk answers more quickly than they."""

from __future__ import annotations

import os
import threading

import pytest

from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.manifest import Part
from mountstore.blobs.reader import INLINE_READ_MAX, ContentReader
from mountstore.errors import CorruptError
from mountstore.namespace import contents
from mountstore.namespace.contents import _HASHED_MAX, ReadPace
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.namespace import Caller
from mountstore.store import Store

pytestmark = pytest.mark.trio


async def _write(store: Store, name: bytes, data: bytes) -> Inode:
    inode = store.namespace.create(ROOT, name, 0o100644, Caller(0, 0))
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, data)
    await store.files.release(handle)
    return inode


async def test_one_slow_read_ends_reading_without_workers() -> None:
    pace = ReadPace()
    quick = []
    for slow in [*[False] * 8, True, *[False] * 8]:
        quick.append(pace.quick)
        pace.note(contents.QUICK_S * (2 if slow else 0.5))
    quick.append(pace.quick)
    assert quick == [*[False] * 8, True, *[False] * 8, True]


@pytest.mark.parametrize(
    ("disk", "inline"), [("quick", True), ("slow", False), ("quick, but the file is large", False)]
)
async def test_which_thread_reads(
    store_path: str, monkeypatch: pytest.MonkeyPatch, disk: str, inline: bool
) -> None:
    size = INLINE_READ_MAX + 1 if "large" in disk else 5000
    threads: list[int] = []
    read = ContentReader.read

    def noted(reader: ContentReader, parts: list[Part]) -> bytes:
        threads.append(threading.get_ident())
        return read(reader, parts)

    monkeypatch.setattr(contents, "QUICK_S", 0.0 if disk == "slow" else 3600.0)
    # Nothing is in the page cache.
    monkeypatch.setattr(ContentReader, "read_nowait", lambda *_: None)
    monkeypatch.setattr(ContentReader, "read", noted)
    async with Store.open(store_path).running() as store:
        inodes: list[tuple[Inode, bytes]] = []
        for number in range(12):
            data = os.urandom(size)
            inodes.append((await _write(store, b"f%d" % number, data), data))
        for inode, data in inodes:
            assert await store.files.read(inode, 0, size) == data
    assert (threads[-1] == threading.get_ident()) == inline
    assert threads[0] != threading.get_ident()


@pytest.mark.parametrize("size", [1, _HASHED_MAX])
async def test_a_small_blob_is_verified_by_its_digest_whatever_is_recorded(store_path: str, size: int) -> None:
    async with Store.open(store_path).running() as store:
        inode = await _write(store, b"f", b"\1" * size)
        digest = inode.content.digest
        assert digest is not None
    wrong = b"\2" * size
    path = store.tree.find(digest)
    assert path is not None
    os.chmod(path, 0o600)
    with open(path, "wb") as file:
        file.write(wrong)
    async with Store.open(store_path).running() as store:
        store.catalog.add_blobs([(*digest, checksum(wrong))])
        with pytest.raises(CorruptError):
            await store.files.read(store.namespace.get(inode.id), 0, size)


async def test_the_catalog_is_asked_for_checksums_of_what_is_large_and_not_verified_yet(
    store_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = Ledger.checksum

    def noted(ledger: Ledger, digest: Digest) -> bytes | None:
        asked.append(digest.size_bytes)
        return real(ledger, digest)

    async with Store.open(store_path).running() as store:
        inodes = [await _write(store, b"%d" % size, bytes(size)) for size in (_HASHED_MAX, _HASHED_MAX + 1)]
    monkeypatch.setattr(Ledger, "checksum", noted)
    async with Store.open(store_path).running() as store:
        for _ in range(2):
            for inode in inodes:
                found = store.namespace.get(inode.id)
                handle = store.files.open(found, writable=False, privileged=True)
                assert len(await store.files.read(found, 0, 1 << 20)) == found.size
                await store.files.release(handle)
    assert asked == [_HASHED_MAX + 1]
