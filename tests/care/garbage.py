"""A store at work in this process, with a program that uses it, for tests of garbage collection."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from mountstore.blobs.content import Content
from mountstore.blobs.describe import references
from mountstore.blobs.digest import Digest
from mountstore.care.checking import check_store
from mountstore.care.gc import Step, collect
from mountstore.care.gc_report import Options, Report
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.policy import KEEP_ALL, Policy
from mountstore.store import Store
from mountstore.store.create import create_store

CALLER = Caller(0, 0)
PIECE_MAX = 64 << 10
NO_GRACE = Options(grace_s=0.0)
KEEP_NONE = Policy(keep_last=0, keep_days=0.0, thin="", short_lived_days=0.0)


def bytes_like(seed: int, size: int) -> bytes:
    """Bytes that do not compress into holes and differ from those of other seeds."""
    return b"".join(Digest.of(b"%d.%d" % (seed, i)).sha256 for i in range(size // 32 + 1))[:size]


class Work:
    """What programs do in one store, and what can be seen of it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # --- doing ---

    def directory(self, name: bytes, parent: int = ROOT) -> Inode:
        return self.store.namespace.create(parent, name, stat.S_IFDIR | 0o755, CALLER)

    async def save(self, name: bytes, data: bytes, parent: int = ROOT) -> Inode:
        """Truncate (or create), write, close."""
        inode = self.store.namespace.find(parent, name)
        if inode is None:
            inode = self.store.namespace.create(parent, name, stat.S_IFREG | 0o644, CALLER)
        files = self.store.files
        handle = files.open(inode, writable=True, privileged=True)
        await files.truncate(inode, 0, privileged=True)
        for offset in range(0, len(data), 1 << 20):
            await files.write(handle, offset, data[offset : offset + (1 << 20)])
        await files.release(handle)
        return inode

    async def append(self, name: bytes, data: bytes, parent: int = ROOT) -> None:
        await self.overwrite(name, self.find(name, parent).size, data, parent)

    async def overwrite(self, name: bytes, offset: int, data: bytes, parent: int = ROOT) -> None:
        inode = self.find(name, parent)
        handle = self.store.files.open(inode, writable=True, privileged=True)
        await self.store.files.write(handle, offset, data)
        await self.store.files.release(handle)

    async def unlink(self, name: bytes, parent: int = ROOT) -> None:
        inode = self.store.namespace.unlink(parent, name)
        for unused in self.store.namespace.forget([inode.id]):
            await self.store.files.drop(unused)

    async def rename(self, name: bytes, new_name: bytes, parent: int = ROOT, new_parent: int = ROOT) -> None:
        replaced = self.store.namespace.find(new_parent, new_name)
        self.store.namespace.rename(parent, name, new_parent, new_name)
        if replaced is not None:
            for unused in self.store.namespace.forget([replaced.id]):
                await self.store.files.drop(unused)

    async def forget(self, data: bytes, name: bytes = b"passing") -> None:
        """Write a content and remove it so that nothing has it any more."""
        self.store.versions.enabled = False
        try:
            await self.save(name, data)
            await self.unlink(name)
        finally:
            self.store.versions.enabled = True

    # --- collecting ---

    def keep(self, policy: Policy) -> None:
        """Set the policy of the store."""
        self.store.config = msgspec.structs.replace(self.store.config, versions=policy)

    async def collect(self, options: Options = NO_GRACE, *, step: Step | None = None) -> Report:
        if step is None:
            return await collect(self.store, options)
        return await collect(self.store, options, step=step)

    # --- looking ---

    def find(self, name: bytes, parent: int = ROOT) -> Inode:
        inode = self.store.namespace.find(parent, name)
        assert inode is not None
        return inode

    async def read(self, name: bytes, parent: int = ROOT) -> bytes:
        inode = self.find(name, parent)
        handle = self.store.files.open(inode, writable=False, privileged=False)
        data = await self.store.files.read(inode, 0, inode.size)
        await self.store.files.release(handle)
        assert len(data) == inode.size
        return data

    def versions(self, name: bytes, parent: int = ROOT) -> dict[int, bytes]:
        """Number and bytes of every superseded version of a name."""
        timeline = self.store.timeline
        found = {}
        for number, version in timeline.past(timeline.line(parent, name)):
            if version.directory:
                continue
            reader = timeline.open(version)
            found[number] = reader.pread(0, version.size_bytes)
            assert len(found[number]) == version.size_bytes
            reader.close()
        return found

    def blobs(self) -> set[Digest]:
        return {digest for digest, _ in self.store.tree.walk()}

    def has(self, data: bytes) -> bool:
        return self.store.tree.find(Digest.of(data)) is not None

    def blobs_of(self, content: Content) -> set[Digest]:
        return set(references(self.store.tree, content))


@asynccontextmanager
async def work(path: Path, policy: Policy = KEEP_ALL) -> AsyncIterator[Work]:
    """Work in the store at `path`, which is made if it is not there; it is checked afterwards."""
    if not (path / "store.toml").exists():
        create_store(str(path), piece_max=PIECE_MAX)
    async with Store.open(str(path)).running() as store:
        found = Work(store)
        found.keep(policy)
        yield found
    check(path)


def check(path: Path) -> None:
    """Nothing is wrong with a store that is not in use."""
    report = check_store(str(path), full=True)
    assert not report.error_count, report.findings


def picture(path: Path) -> dict[str, bytes]:
    """Every file of a store but the lock and the catalog, whose rows are compared otherwise."""
    return {
        os.path.relpath(os.path.join(directory, name), path): (Path(directory) / name).read_bytes()
        for directory, _, names in os.walk(path)
        for name in names
        if not name.startswith(("catalog.db", "lock"))
    }
