"""A small store with one of everything, and ways to damage a copy of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import decode_manifest
from mountstore.namespace.inodes import Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

ROOT_USER = Caller(0, 0)
LARGE = b"".join(Digest.of(b"%d" % i).sha256 for i in range(9000)) + bytes(200_000)
"""Several pieces, and a hole."""


@dataclass(frozen=True)
class Specimen:
    """A store, closed in order, and the inode numbers of what it holds."""

    path: Path
    numbers: dict[str, int]

    @property
    def catalog(self) -> Path:
        return self.path / "catalog.db"

    def copy(self, path: Path) -> Specimen:
        shutil.copytree(self.path, path, symlinks=True)
        return Specimen(path, self.numbers)

    @contextmanager
    def sql(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.catalog)
        try:
            with db:
                yield db
        finally:
            db.close()

    def run(self, statement: str, *parameters: object) -> None:
        """Execute one statement; `:name` in it is the inode number of that specimen."""
        for name, number in self.numbers.items():
            statement = statement.replace(f":{name}", str(number))
        with self.sql() as db:
            db.execute(statement, parameters)

    def ask(self, query: str, *parameters: object) -> list[tuple[object, ...]]:
        for name, number in self.numbers.items():
            query = query.replace(f":{name}", str(number))
        with self.sql() as db:
            return db.execute(query, parameters).fetchall()

    def blob(self, content: bytes) -> Path:
        """The path of a small blob."""
        return self.blob_of(Digest.of(content))

    def blob_of(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.name[0] / digest.name

    def manifest(self) -> Path:
        """Of the large file, or, when it was emptied, of its old version."""
        rows = self.ask("SELECT sha256, blob_size FROM inode WHERE id = :large AND kind = 2")
        rows = rows or self.ask("SELECT sha256, blob_size FROM version WHERE kind = 2")
        sha256, size = rows[0]
        assert isinstance(sha256, bytes)
        assert isinstance(size, int)
        return self.blob_of(Digest(sha256, size))

    def piece(self) -> Path:
        first = decode_manifest(self.manifest().read_bytes()).entry(0).digest
        assert first is not None
        return self.blob_of(first)


def make_specimen(path: Path) -> Specimen:
    create_store(str(path), piece_max=65536)
    numbers: dict[str, int] = {}

    async def fill() -> None:
        async with Store.open(str(path)).running() as store:
            make = store.namespace.create

            def note(name: str, inode: Inode) -> Inode:
                numbers[name] = inode.id
                return inode

            outer = note("outer", make(1, b"outer", 0o40755, ROOT_USER))
            inner = note("inner", make(outer.id, b"inner", 0o40755, ROOT_USER))
            deep = note("deep", make(inner.id, b"deep", 0o40755, ROOT_USER))
            note("empty", make(inner.id, b"empty", 0o100644, ROOT_USER))
            small = note("small", make(inner.id, b"small", 0o100644, ROOT_USER))
            await write(store, small, b"a small file")
            other = note("other", make(deep.id, b"other \xff name", 0o100644, ROOT_USER))
            await write(store, other, b"another small file")
            same = note("same", make(1, b"same", 0o100600, ROOT_USER))
            await write(store, same, b"a small file")
            large = note("large", make(1, b"large", 0o100644, ROOT_USER))
            await write(store, large, LARGE)
            linked = note("linked", make(1, b"linked", 0o100644, ROOT_USER))
            store.namespace.link(linked.id, deep.id, b"second name")
            note("symlink", make(1, b"symlink", 0o120777, ROOT_USER, target=b"outer/inner"))
            note("fifo", make(1, b"fifo", 0o10644, ROOT_USER))
            store.attributes.set(small, b"user.one", b"1")
            store.attributes.set(small, b"user.two", b"2")

    trio.run(fill)
    return Specimen(path, numbers)


def make_interrupted(path: Path, where: Path) -> Specimen:
    """A store as `kill -9` leaves it: a WAL, a recorded draft, a half-written blob, a removed open file."""
    specimen = make_specimen(path)

    async def work() -> None:
        async with Store.open(str(path)).running() as store:
            inode = store.namespace.create(1, b"drafted", 0o100644, ROOT_USER)
            handle = store.files.open(inode, writable=True, privileged=True)
            # Backwards, or it would be sealed as it comes.
            for offset in range(8 << 20, -1, -1 << 20):
                await store.files.write(handle, offset, bytes(1 << 20))
            await store.files.fsync(inode)
            removed = store.namespace.create(1, b"removed", 0o100644, ROOT_USER)
            reader = store.files.open(removed, writable=False, privileged=True)
            store.namespace.unlink(1, b"removed")
            (path / "staging" / "1-half").write_bytes(b"half")
            store.commits.commit()
            shutil.copytree(path, where, symlinks=True)
            await store.files.release(reader)
            await store.files.release(handle)

    trio.run(work)
    return Specimen(where, specimen.numbers)


async def write(store: Store, inode: Inode, data: bytes) -> None:
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, data)
    await store.files.release(handle)


def write_again(specimen: Specimen, name: bytes, data: bytes) -> None:
    """Write a content through the store, under a new name in the root."""

    async def body() -> None:
        async with Store.open(str(specimen.path)).running() as store:
            await write(store, store.namespace.create(1, name, 0o100644, ROOT_USER), data)

    trio.run(body)


def read_all(specimen: Specimen) -> dict[bytes, bytes]:
    """Every regular file by path, read through the store; what cannot be read is left out."""
    found: dict[bytes, bytes] = {}

    async def walk(store: Store, directory: Inode, path: bytes) -> None:
        for _, name, inode in list(store.namespace.listing(directory, 2)):
            if inode.is_directory:
                await walk(store, inode, path + name + b"/")
            elif inode.is_regular:
                handle = store.files.open(inode, writable=False, privileged=False)
                try:
                    found[path + name] = await store.files.read(inode, 0, inode.size)
                except Exception:
                    pass
                await store.files.release(handle)

    async def body() -> None:
        async with Store.open(str(specimen.path)).running() as store:
            await walk(store, store.namespace.get(1), b"/")

    trio.run(body)
    return found


Hurt = Callable[[Specimen], None]


def sql(*statements: str) -> Hurt:
    def hurt(specimen: Specimen) -> None:
        for statement in statements:
            specimen.run(statement)

    return hurt


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change bytes of a read-only file, without changing its size."""
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    os.chmod(path, 0o444)
