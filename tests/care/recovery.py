"""A store with one of everything and two snapshots, of which only the blobs are left."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from dataclasses import dataclass
from pathlib import Path

import trio

from care.damage import read_all
from care.garbage import CALLER, Work, bytes_like
from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import read_ref
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.snapshots import Snapshots
from mountstore.namespace.inodes import ROOT
from mountstore.store import Store
from mountstore.store.create import create_store

PIECE_MAX = 4096
"""So small that a file of 200 KB has a manifest of two levels."""

TABLES = ("inode", "entry", "xattr", "version", "name_history", "inode_history")

Dump = dict[str, list[tuple[object, ...]]]

OLD, NEW = b"an old line\n" * 20, b"quite another text\n" * 9


def dump(catalog: Path) -> Dump:
    """What a catalog says that a snapshot has to bring back."""
    db = sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)
    try:
        found = {table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in TABLES}
    finally:
        db.close()
    # What was removed and is still open has no name, and so no place in a snapshot.
    found["inode"] = [row for row in found["inode"] if row[4]]
    return found


@dataclass(frozen=True)
class Lost:
    """A store that is to be brought back, and what its snapshots `first` and `second` showed."""

    path: Path
    dumps: dict[str, Dump]

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def catalog(self) -> Path:
        return self.path / "catalog.db"

    def blob(self, digest: Digest) -> Path:
        return next(self.blobs.rglob(digest.name))

    def content(self, data: bytes) -> Path:
        """The blob of a small file."""
        return self.blob(Digest.of(data))

    def root(self, name: str) -> Digest:
        return read_ref(str(self.blobs), name).root

    def to(self, path: Path) -> Lost:
        """A copy of the blobs alone."""
        path.mkdir()
        shutil.copytree(self.blobs, path / "blobs", symlinks=True)
        return Lost(path, self.dumps)

    def files(self) -> int:
        """How many names of regular files there are."""
        inodes = {row[0] for row in dump(self.catalog)["inode"] if stat.S_ISREG(int(str(row[1])))}
        return sum(row[2] in inodes for row in dump(self.catalog)["entry"])

    def shows(self, name: str, besides: Kind | None = None) -> None:
        """The catalog says what the snapshot did, and nothing is wrong with the store but other snapshots."""
        now = dump(self.catalog)
        for table in TABLES:
            assert now[table] == self.dumps[name][table], table
        report = check_store(str(self.path), full=True)
        wrong = [finding for finding in report.errors if finding.kind not in (Kind.SNAPSHOT_LOST, besides)]
        assert not wrong


def make_lost(path: Path) -> Lost:
    create_store(str(path), piece_max=PIECE_MAX, dir_limit=64)
    dumps: dict[str, Dump] = {}

    async def body() -> None:
        async with Store.open(str(path)).running() as store:
            work = Work(store)
            await fill(work)
            for name in ("first", "second"):
                await Snapshots(store).take(name)
                dumps[name] = dump(path / "catalog.db")
                if name == "first":
                    await change(work)

    trio.run(body)
    return Lost(path, dumps)


async def fill(work: Work) -> None:
    names = work.store.namespace
    outer = work.directory(b"outer")
    inner = work.directory(b"inner \xff\n", outer.id)
    work.directory(b"empty", inner.id)
    many = work.directory(b"many")
    for number in range(600):
        names.create(many.id, b"name %d" % number, stat.S_IFREG | 0o640, CALLER)
    await work.save(b"document", OLD, inner.id)
    await work.save(b"document", NEW, inner.id)
    await work.save(b"log", bytes_like(1, 900))
    await work.append(b"log", bytes_like(2, 700))
    await work.save(b"large", bytes_like(3, 200_000) + bytes(50_000) + bytes_like(4, 3000))
    await work.save(b"gone", bytes_like(5, 100))
    await work.unlink(b"gone")
    removed = work.directory(b"removed")
    await work.save(b"in it", bytes_like(6, 100), removed.id)
    await work.unlink(b"in it", removed.id)
    names.rmdir(ROOT, b"removed")
    await work.save(b"linked", bytes_like(7, 100))
    names.link(work.find(b"linked").id, outer.id, b"second name")
    names.create(ROOT, b"pointer", stat.S_IFLNK | 0o777, CALLER, target=b"outer/nowhere")
    names.create(ROOT, b"pipe", stat.S_IFIFO | 0o600, CALLER)
    names.create(ROOT, b"device", stat.S_IFCHR | 0o600, CALLER, rdev=os.makedev(1, 3))
    document = work.find(b"document", inner.id)
    work.store.attributes.set(document, b"user.tag", b"\0\xff" * 40)
    work.store.attributes.set(outer, b"trusted.note", b"")
    for number in range(300):
        await work.save(b"often", b"version %d" % number)


async def change(work: Work) -> None:
    """Between the snapshots."""
    await work.save(b"often", b"the last one")
    await work.rename(b"log", b"log.1")
    await work.save(b"log", bytes_like(8, 50))
    await work.overwrite(b"large", 100_000, b"a change")
    many = work.find(b"many")
    for number in range(0, 600, 7):
        await work.unlink(b"name %d" % number, many.id)
    await work.save(b"new", bytes_like(9, 5000), many.id)
    await work.unlink(b"pipe")


def contents(path: Path) -> dict[bytes, bytes]:
    """Every file by path, read through the store; what cannot be read is left out."""
    from care.damage import Specimen

    return read_all(Specimen(path, {}))
