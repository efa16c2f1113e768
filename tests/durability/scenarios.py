"""Small scenarios for `durability.seam`: a store used without a mount, saying what was promised when.

    python -m durability.scenarios NAME STORE MARKS [FAULT]

Marks are JSON lines: `["may", name, content]` before a name can come to have a content (null: to be gone),
`["must", [name...]]` when the latest state of these names (of all, if empty) was promised to survive.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from functools import cache

import trio

from mountstore.namespace import drafts
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.commits import Committer
from mountstore.namespace.draft_changes import CHANGE_RANGES_MAX
from mountstore.namespace.drafts import Drafts
from mountstore.namespace.files import Handle
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller
from mountstore.namespace.replaced import Replaced
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.store import Store

PIECE_MAX = 64 << 10
"""Of the stores: small, so that some 100 KB are a manifest with pieces."""


class Actor:
    """Does to a store what the handlers of a mount do, and says so.

    Contents are said as (seed, length), since marks are recorded with everything else.
    """

    def __init__(self, store: Store, marks: int) -> None:
        self.store = store
        self._marks = marks

    def _say(self, *words: object) -> None:
        os.write(self._marks, json.dumps(words).encode())

    def may(self, name: str, content: tuple[int, int] | None) -> None:
        self._say("may", name, content)

    def must(self, *names: str) -> None:
        self._say("must", names)

    def open(self, name: str, *, create: bool = True) -> Handle:
        namespace = self.store.namespace
        inode = namespace.find(ROOT, name.encode())
        if inode is None:
            assert create
            self.may(name, (0, 0))
            inode = namespace.create(ROOT, name.encode(), stat.S_IFREG | 0o644, Caller(0, 0))
        return self.store.files.open(inode, writable=True, privileged=True)

    async def put(self, handle: Handle, data: bytes, *, offset: int = 0, step: int = 1 << 20) -> None:
        for start in range(0, len(data), step):
            await self.store.files.write(handle, offset + start, data[start : start + step])

    async def write(self, name: str, seed: int, length: int, *, sync: bool) -> None:
        """Make or rewrite a file (O_TRUNC)."""
        handle = self.open(name)
        self.may(name, (seed, length))
        await self.store.files.truncate(handle.inode, 0, privileged=True)
        await self.put(handle, content_of(seed, length))
        if sync:
            await self.sync(handle)
            self.must(name)
        await self.close(handle)

    async def sync(self, handle: Handle) -> None:
        await self.store.files.fsync(handle.inode)

    async def close(self, handle: Handle) -> None:
        await self.store.files.release(handle)

    async def rename(self, name: str, new_name: str, states: tuple[int, int]) -> None:
        inode = self.store.namespace.find(ROOT, name.encode())
        assert inode is not None
        if inode.draft is not None:
            await self.store.files.seal(inode)
        self.may(new_name, states)
        self.may(name, None)
        self.store.namespace.rename(ROOT, name.encode(), ROOT, new_name.encode())

    def unlink(self, name: str) -> None:
        self.may(name, None)
        self.store.namespace.unlink(ROOT, name.encode())

    async def sync_directory(self) -> None:
        await self.store.sealer.settle()
        await self.store.commits.hard_sync()
        self.must()

    async def sync_timed(self) -> None:
        """What happens every few seconds."""
        await self.store.sealer.settle()
        await self.store.commits.sync_now()
        self.must()

    async def forget(self, name: str) -> None:
        """The kernel has forgotten what had the name and is removed."""
        for inode in self.store.namespace.forget_all():
            await self.store.files.drop(inode)


@cache
def content_of(seed: int, length: int) -> bytes:
    """The bytes that a mark speaks of."""
    block = bytes((seed * 31 + i * 7 + (i >> 8) * 13 + (i >> 16) * 5) & 0xFF for i in range(min(length, 70_000)))
    return (block * (length // max(len(block), 1) + 1))[:length]


# --- the scenarios ---


async def create_and_fsync(actor: Actor) -> None:
    for number in range(2):
        await actor.write(f"f{number}", number + 1, 3000 * number + 10, sync=True)
    await actor.write("unsynced", 9, 5000, sync=False)
    await actor.write("last", 10, 100, sync=True)


async def overwrite(actor: Actor) -> None:
    await actor.write("f", 1, 9000, sync=True)
    await actor.write("f", 2, 4000, sync=False)
    actor.store.commits.commit()
    await actor.write("f", 3, 12_000, sync=True)
    await actor.write("f", 1, 9000, sync=False)
    await actor.sync_directory()


async def rename_over(actor: Actor) -> None:
    await actor.write("f", 1, 5000, sync=True)
    await actor.write("f.new", 2, 6000, sync=True)
    await actor.rename("f.new", "f", (2, 6000))
    actor.store.commits.commit()
    await actor.write("f.new", 3, 7000, sync=False)
    await actor.rename("f.new", "f", (3, 7000))
    actor.store.commits.commit()
    await actor.sync_directory()


async def append(actor: Actor) -> None:
    length = 0
    for number in range(4):
        handle = actor.open("log")
        actor.may("log", (7, length + 700))
        await actor.put(handle, content_of(7, length + 700)[length:], offset=length)
        length += 700
        if number % 2:
            await actor.sync(handle)
            actor.must("log")
        await actor.close(handle)
        actor.store.commits.commit()


async def unlink(actor: Actor) -> None:
    for number in range(3):
        await actor.write(f"f{number}", number, 2000, sync=False)
    await actor.sync_directory()
    actor.unlink("f0")
    await actor.forget("f0")
    actor.store.commits.commit()
    await actor.write("f0", 5, 2500, sync=True)
    actor.unlink("f1")
    await actor.sync_directory()


async def stay_open(actor: Actor) -> None:
    """The second fsync of an open file goes to a staging file; and a close follows."""
    handle = actor.open("open")
    for number in range(3):
        actor.may("open", (4, 3000 * (number + 1)))
        await actor.put(handle, content_of(4, 3000 * (number + 1))[3000 * number :], offset=3000 * number)
        await actor.sync(handle)
        actor.must("open")
    # In so many places that the staging file is flushed; the others lie in the catalog.
    for start in range(0, 9000, 9000 // (2 * CHANGE_RANGES_MAX)):
        await actor.put(handle, content_of(4, 9000)[start : start + 10], offset=start)
    for length in (11_000, 12_000):
        actor.may("open", (4, length))
        await actor.put(handle, content_of(4, length)[length - 2000 :], offset=length - 2000)
        await actor.sync(handle)
        actor.must("open")
    # What replaces it may be lost.
    actor.may("open", (4, 13_000))
    await actor.put(handle, content_of(4, 13_000)[12_000:], offset=12_000)
    actor.store.commits.commit()
    await actor.close(handle)
    actor.store.commits.commit()
    await actor.sync_timed()


async def stream(actor: Actor) -> None:
    """A large file, cut and placed while it arrives."""
    handle = actor.open("large")
    actor.may("large", (6, 300_000))
    await actor.put(handle, content_of(6, 300_000), step=32 << 10)
    await actor.close(handle)
    actor.store.commits.commit()
    await actor.sync_directory()
    handle = actor.open("large")
    actor.may("large", (6, 420_000))
    await actor.put(handle, content_of(6, 420_000)[300_000:], offset=300_000)
    await actor.sync(handle)
    actor.must("large")
    await actor.close(handle)


async def close_large(actor: Actor) -> None:
    """Files in staging that were closed and committed, but are not sealed yet."""
    await actor.write("over", 1, 5000, sync=True)
    handle = actor.open("new")
    # Open, and so without a seal: the name has the old content until the new is whole.
    actor.may("over", (7, 150_000))
    actor.may("new", None)
    actor.store.namespace.rename(ROOT, b"new", ROOT, b"over")
    await _put_backwards(actor, handle, 150_000)
    await _close_slowly(actor, handle)

    await actor.write("grown", 7, 100_000, sync=True)
    handle = actor.open("grown")
    for first, length in ((100_000, 150_000), (150_000, 200_000)):
        actor.may("grown", (7, length))
        await _put_backwards(actor, handle, length, first)
        await actor.sync(handle)
        actor.must("grown")
    actor.may("grown", (7, 260_000))
    await _put_backwards(actor, handle, 260_000, 200_000)
    await _close_slowly(actor, handle)

    handle = actor.open("fresh")
    actor.may("fresh", (7, 150_000))
    await _put_backwards(actor, handle, 150_000)
    await _close_slowly(actor, handle)
    await actor.sync_directory()


async def _put_backwards(actor: Actor, handle: Handle, length: int, first: int = 0) -> None:
    middle = (first + length) // 2
    for start, end in ((middle, length), (first, middle)):
        await actor.put(handle, content_of(7, end)[start:], offset=start)


async def _close_slowly(actor: Actor, handle: Handle) -> None:
    """What a mount commits before it has sealed a large file."""
    draft = handle.inode.draft
    assert isinstance(draft, StagedDraft)
    await actor.store.drafts.records.keep_closed(handle.inode, draft)
    # This flushes the catalog, and nothing of what is in staging.
    await actor.write("other", handle.inode.id, 50, sync=True)
    await actor.close(handle)
    actor.store.commits.commit()


SCENARIOS: dict[str, Callable[[Actor], Awaitable[None]]] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (create_and_fsync, overwrite, rename_over, append, unlink, stay_open, stream, close_large)
}


def _forget_the_log() -> None:
    Catalog.flush_wal = lambda self: None  # type: ignore[method-assign]


def _forget_the_blobs() -> None:
    Committer._flush_blobs = lambda self, paths, everything: None  # type: ignore[method-assign]


def _forget_what_was_there() -> None:
    Replaced.note = Replaced.inherit = lambda *arguments, **more: None  # type: ignore[method-assign,assignment]


def _delete_too_early() -> None:
    Drafts.take_retired = _taken_and_deleted  # type: ignore[method-assign]


def _taken_and_deleted(self: Drafts) -> list[str]:
    for path in self._retired:
        os.unlink(path)
    self._retired = []
    return []


def _forget_the_changes() -> None:
    Catalog.add_draft_change = lambda self, staging, change: None  # type: ignore[method-assign]


def _forget_the_sums() -> None:
    StagedDraft.sums = lambda self: []  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__[1:].replace("_", "-"): fault
    for fault in (
        _forget_the_log,
        _forget_the_blobs,
        _forget_what_was_there,
        _forget_the_changes,
        _forget_the_sums,
        _delete_too_early,
    )
}
"""What the store could do wrong; the harness has to see it."""


async def _run(name: str, path: str, marks: int) -> None:
    async with Store.open(path).running() as store:
        await SCENARIOS[name](Actor(store, marks))
        # The daemon dies: nothing is put in order.
        os._exit(0)


def main() -> None:
    # So that a file need not be large to be streamed or staged.
    drafts.MEMORY_MAX = 100 << 10  # type: ignore[attr-defined]
    name, path, marks, *faults = sys.argv[1:]
    for fault in faults:
        FAULTS[fault]()
    trio.run(_run, name, path, os.open(marks, os.O_WRONLY | os.O_CREAT, 0o600))


if __name__ == "__main__":
    main()
