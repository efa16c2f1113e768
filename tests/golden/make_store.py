"""Makes the golden store of the present format: `python tests/golden/make_store.py tests/golden/store-N`.

Once for each format, and again only as long as that format was never released: from then on every later
release has to read it as it is. Beside the store it writes `store-N.json`, what a reader must find.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys

import trio

from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

ROOT_USER = Caller(0, 0)
_SECOND = 1_000_000_000
_TIME_NS = 1_600_000_000 * _SECOND

PIECE_MAX = 4096
DIR_LIMIT = 3
"""So that blobs lie on several levels of the tree."""


def noise(seed: int, size: int) -> bytes:
    """The same bytes for ever."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, number)).digest() for number in range(-(-size // 32)))[:size]


async def _write(store: Store, inode: Inode, *parts: tuple[int, bytes]) -> None:
    handle = store.files.open(inode, writable=True, privileged=True)
    for offset, data in parts:
        await store.files.write(handle, offset, data)
    await store.files.release(handle)


async def fill(store: Store) -> None:
    """One of everything."""
    names = store.namespace

    def create(parent: int, name: bytes, mode: int, target: bytes | None = None, rdev: int = 0) -> Inode:
        return names.create(parent, name, mode, ROOT_USER, target=target, rdev=rdev)

    directory = create(ROOT, b"directory", 0o042755).id
    deep = create(directory, "tief-\N{LATIN SMALL LETTER U WITH DIAERESIS}".encode(), 0o040700).id
    create(ROOT, b"empty", 0o100600)
    await _write(store, create(ROOT, b"small", 0o100644), (0, b"some bytes\n"))
    large = create(ROOT, b"large", 0o100640)
    # Enough pieces for a manifest of two levels.
    await _write(store, large, (0, noise(1, 130_000)))
    names.link(large.id, directory, b"linked")
    inserted = noise(1, 60_000) + b"!" + noise(1, 130_000)[60_000:]
    await _write(store, create(deep, b"changed", 0o100755), (0, inserted))
    sparse = create(deep, b"sparse", 0o100644)
    await _write(store, sparse, (0, noise(2, 5000)), ((1 << 40) - 5000, noise(3, 5000)))
    await _write(store, create(deep, b"not \xff UTF-8\n", 0o104711), (0, noise(4, 2000)))
    edited = create(directory, b"edited", 0o100644)
    for number in range(3):
        await _write(store, edited, (0, b"version %d" % number))
    await _write(store, create(directory, b"removed", 0o100644), (0, b"removed"))
    names.unlink(directory, b"removed")
    create(deep, b"symlink", 0o120777, target=b"../../small")
    create(deep, b"fifo", stat.S_IFIFO | 0o600)
    create(deep, b"device", stat.S_IFCHR | 0o660, rdev=os.makedev(1, 3))
    store.attributes.set(large, b"user.note", b"kept \x00 whole")
    store.attributes.set(names.get(directory), b"user.long", noise(5, 3000))
    names.set_attributes(large, ROOT_USER, uid=1000, gid=1001)
    for number in sorted({inode.id for _, inode in walk(store)} | {ROOT}):
        time_ns = _TIME_NS + number * _SECOND + number
        names.set_attributes(names.get(number), ROOT_USER, atime_ns=time_ns + 1, mtime_ns=time_ns)


def walk(store: Store, directory: int = ROOT, path: bytes = b"") -> list[tuple[bytes, Inode]]:
    """All paths with what they name."""
    found = []
    for _, name, inode in list(store.namespace.listing(store.namespace.get(directory), 0)):
        if name in (b".", b".."):
            continue
        found.append((path + b"/" + name, inode))
        if inode.is_directory:
            found += walk(store, inode.id, path + b"/" + name)
    return found


async def describe(store: Store) -> dict[str, dict[str, object]]:
    """Everything that a reader of the store finds, fit for JSON."""
    description: dict[str, dict[str, object]] = {}
    for path, inode in walk(store):
        entry: dict[str, object] = {
            "inode": inode.id,
            "mode": f"{inode.mode:o}",
            "nlink": inode.nlink,
            "owner": [inode.uid, inode.gid],
            "times_ns": [inode.atime_ns, inode.mtime_ns],
        }
        if inode.is_regular:
            entry["size"] = inode.size
            entry["sha256"] = await _digest(store, inode)
        if inode.target is not None:
            entry["target"] = inode.target.decode()
        if inode.rdev:
            entry["rdev"] = inode.rdev
        attributes = store.attributes.names(inode, trusted=True)
        if attributes:
            entry["xattr"] = {name.decode(): store.attributes.get(inode, name).hex() for name in attributes}
        description[path.decode(errors="backslashreplace")] = entry
    return description


async def _digest(store: Store, inode: Inode) -> str:
    """Of the bytes; of a huge file only those around its ends and in its middle."""
    size, part = inode.size, 100_003
    offsets = range(0, size, part) if size < 1 << 30 else (0, size // 2, size - part)
    hasher = hashlib.sha256()
    for offset in offsets:
        data = await store.files.read(inode, offset, part)
        assert len(data) == min(part, size - offset)
        hasher.update(data)
    return hasher.hexdigest()


async def _make(path: str) -> None:
    create_store(path, piece_max=PIECE_MAX, dir_limit=DIR_LIMIT, uid=0, gid=0)
    async with Store.open(path).running() as store:
        await fill(store)
    async with Store.open(path).running() as store:
        with open(f"{path}.json", "w", encoding="utf-8") as file:
            json.dump(await describe(store), file, indent=1, sort_keys=True)
            file.write("\n")
    os.unlink(os.path.join(path, "lock"))


if __name__ == "__main__":
    trio.run(_make, sys.argv[1])
