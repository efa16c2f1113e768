"""What is told of one path, and of the whole store's space."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from care.garbage import Work
from mountstore.care.gc import collect
from mountstore.care.gc_report import Options
from mountstore.care.path_info import describe_path
from mountstore.care.space_report import report_space
from mountstore.errors import AbsentError, WantsDirectoryError
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

USER = Caller(7, 8)
PIECE_MAX = 64 << 10


async def write(store: Store, name: bytes, data: bytes, *, at: int = 0) -> Inode:
    inode = store.namespace.find(ROOT, name) or store.namespace.create(ROOT, name, 0o100640, USER)
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.truncate(inode, 0, privileged=True)
    await store.files.write(handle, at, data)
    await store.files.release(handle)
    return inode


def in_store(path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    create_store(str(path), piece_max=PIECE_MAX)

    async def run() -> None:
        async with Store.open(str(path)).running() as store:
            await work(store)

    trio.run(run)


def test_a_small_file_is_its_blob(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        inode = await write(store, b"f", b"hello")
        info = await describe_path(store, b"/f")
        assert (info.path, info.kind, info.inode, info.size_bytes) == ("/f", "file", inode.id, 5)
        assert (info.mode, info.uid, info.gid, info.links) == ("0640", 7, 8, 1)
        assert (info.version, info.older_versions, info.changing, info.sharing) == (1, 0, False, None)
        content = info.content
        assert content is not None and content.kind == "blob"
        assert content.sha256 == hashlib.sha256(b"hello").hexdigest()
        assert content.digest == f"{content.sha256}_5"
        assert content.blob_path == f"{store.path}/{content.blob}"
        assert Path(content.blob_path).read_bytes() == b"hello"
        assert content.blob is not None and content.blob.startswith("blobs/")
        assert (content.pieces, content.stored_bytes, content.entries) == (1, 5, None)

    in_store(tmp_path / "store", work)


def test_a_large_file_is_its_pieces(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300_000) + bytes(1 << 20) + b"end"

    async def work(store: Store) -> None:
        await write(store, b"f", data)
        info = await describe_path(store, b"f", pieces=True)
        content = info.content
        assert content is not None and content.kind == "manifest" and content.sha256 is None
        assert content.entries is not None
        read = bytearray()
        for piece in content.entries:
            assert piece.offset == len(read)
            if piece.digest is None:
                read += bytes(piece.size_bytes)
            else:
                assert piece.blob is not None
                read += Path(store.path, piece.blob).read_bytes()
        assert read == data
        assert content.pieces == sum(piece.digest is not None for piece in content.entries)
        assert content.hole_bytes + 300_003 == pytest.approx(len(data), abs=2 * PIECE_MAX)
        assert 300_000 < content.stored_bytes < 300_000 + 3 * PIECE_MAX

    in_store(tmp_path / "store", work)


def test_versions_and_what_else_there_is(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for text in (b"one", b"second", b"the third"):
            await write(store, b"f", text)
        await write(store, b"empty", b"")
        d = store.namespace.create(ROOT, b"d", 0o040755, USER)
        store.namespace.create(d.id, b"l", 0o120777, USER, target=b"\xfftarget")
        info = await describe_path(store, b"f")
        assert (info.version, info.older_versions) == (3, 2)
        old = await describe_path(store, b"f@2")
        assert (old.kind, old.version, old.size_bytes, old.inode) == ("version", 2, 6, None)
        assert old.content is not None and old.content.blob_path is not None
        assert Path(old.content.blob_path).read_bytes() == b"second"
        empty = (await describe_path(store, b"empty")).content
        assert empty is not None and (empty.kind, empty.digest, empty.blob_path) == ("empty", None, None)
        assert (await describe_path(store, b"/")).kind == "directory"
        link = await describe_path(store, b"//d/./l")
        assert (link.kind, link.target) == ("symbolic link", "\udcfftarget")
        store.namespace.unlink(ROOT, b"f")
        assert (await describe_path(store, b"f@3")).size_bytes == 9
        for absent in (b"f", b"nowhere", b"f@9", b"d/x@1"):
            with pytest.raises(AbsentError):
                await describe_path(store, absent)
        with pytest.raises(WantsDirectoryError):
            await describe_path(store, b"empty/x")

    in_store(tmp_path / "store", work)


def test_sharing_when_asked(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await write(store, b"a", b"same")
        await write(store, b"b", b"same")
        await write(store, b"c", b"alone")
        shared = (await describe_path(store, b"a", sharing=True)).sharing
        assert shared is not None and (shared.shared_bytes, shared.unique_bytes) == (4, 0)
        alone = (await describe_path(store, b"c", sharing=True)).sharing
        assert alone is not None and (alone.shared_bytes, alone.unique_bytes) == (0, 5)

    in_store(tmp_path / "store", work)


def test_a_missing_blob_is_told(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await write(store, b"f", b"hello")
        content = (await describe_path(store, b"f")).content
        assert content is not None and content.blob_path is not None
        os.unlink(content.blob_path)
        content = (await describe_path(store, b"f")).content
        assert content is not None and content.blob is None and content.blob_path is None
        await write(store, b"f", b"hello")

    in_store(tmp_path / "store", work)


def test_space_of_a_store(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        assert (await report_space(store)).ratio is None
        await write(store, b"a", b"x" * 1000)
        await write(store, b"b", b"x" * 1000)
        await write(store, b"b", b"y" * 500)
        store.namespace.link((await write(store, b"c", b"z" * 200)).id, ROOT, b"link")
        store.namespace.create(ROOT, b"d", 0o040755, USER)
        store.namespace.create(ROOT, b"l", 0o120777, USER, target=b"x")
        space = await report_space(store)
        assert (space.files, space.directories, space.others) == (3, 2, 1)
        assert space.logical_bytes == space.data_bytes == 1700
        assert (space.versions, space.version_bytes) == (1, 1000)
        assert (space.stored.blobs, space.stored.bytes) == (3, 1700)
        assert space.ratio == pytest.approx(2700 / 1700)
        assert 0 < space.available_bytes <= space.disk_bytes
        await write(store, b"c", b"gone soon")
        inode = await write(store, b"sparse", b"end", at=100 << 20)
        assert inode.size == (100 << 20) + 3
        space = await report_space(store)
        assert space.logical_bytes > 100 << 20 and space.data_bytes < 1 << 20
        for name in (b"c", b"link", b"sparse"):
            await Work(store).unlink(name)
        policy = store.config.versions
        store.config = msgspec.structs.replace(
            store.config, versions=msgspec.structs.replace(policy, enabled=False)
        )
        await store.sealer.seal_all()
        await collect(store, Options(grace_s=0))
        after = await report_space(store)
        assert after.logical_bytes == 1500 and after.versions == 0
        assert (after.stored.blobs, after.stored.bytes) == (2, 1500)
        assert after.trash.blobs >= 3 and after.trash.bytes >= 209

    in_store(tmp_path / "store", work)


def test_info_is_quick(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for number in range(20):
            await write(store, b"f%d" % number, b"hello %d" % number)
        took = []
        for number in range(200):
            began = time.perf_counter()
            await describe_path(store, b"f%d" % (number % 20))
            took.append(time.perf_counter() - began)
        # Usually a tenth of a millisecond; the machine may be busy.
        assert statistics.median(took) < 0.005

    in_store(tmp_path / "store", work)
