"""What a snapshot of a store with very many files costs, and how long writers wait meanwhile.

    python -m care.snapshot_figures --files 1000000
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trio
from durability.million import make_store

from mountstore.care.snapshots import Snapshots, Taken
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller
from mountstore.store import Store

_ROOT_USER = Caller(0, 0)
_PERIOD_S = 0.001


class Writer:
    """Makes a file every millisecond, and knows how late it ever was."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made = 0
        self._directory = store.namespace.create(ROOT, b"writer-%d" % time.monotonic_ns(), 0o040755, _ROOT_USER)
        self.longest_s = 0.0

    async def run(self) -> None:
        while True:
            before = trio.current_time()
            await trio.sleep(_PERIOD_S)
            self._store.namespace.create(self._directory.id, b"%d" % self._made, 0o100644, _ROOT_USER)
            self._made += 1
            self.longest_s = max(self.longest_s, trio.current_time() - before - _PERIOD_S)


async def change(store: Store, changes: int, directories: int) -> None:
    """Make and rename files, and change their attributes, in so many directories."""
    choice = random.Random(directories)
    chosen = range(directories)
    for i in range(changes):
        number = chosen[i % len(chosen)]
        parent = store.namespace.find(ROOT, b"d%d" % number)
        assert parent is not None
        name = b"file-%d.jpg" % (1000 * number + choice.randrange(1000))
        inode = store.namespace.find(parent.id, name)
        if i % 4 == 0:
            store.namespace.create(parent.id, b"new-%d-%d" % (directories, i), 0o100644, _ROOT_USER)
        elif inode is None:
            continue
        elif i % 4 == 1:
            store.namespace.rename(parent.id, name, parent.id, b"moved-%d-%d" % (directories, i))
        else:
            store.namespace.set_attributes(inode, _ROOT_USER, mode=0o600 + i % 64)
        if i % 100 == 0:
            await trio.sleep(0)


def show(what: str, taken: Taken, longest_s: float, cpu_s: float) -> None:
    print(
        f"{what}: {taken.elapsed_s:.2f} s, {cpu_s:.2f} s of processor time, {taken.new_blobs} new blobs of"
        f" {taken.new_bytes / 1024:.0f} KiB; the instant took {taken.instant_s * 1000:.1f} ms,"
        f" writers waited {longest_s * 1000:.1f} ms at most",
        flush=True,
    )


async def wait_idly(store: Store) -> float:
    """What a writer waits when no snapshot is taken, which is the machine's doing."""
    writer = Writer(store)
    with trio.move_on_after(5):
        await writer.run()
    return writer.longest_s


async def measure(path: str, files: int) -> None:
    """Take several snapshots, beside a writer, and say what they cost."""
    async with Store.open(path).running() as store:
        taker = Snapshots(store)
        directories = -(-files // 1000)
        print(f"without a snapshot a writer waited {await wait_idly(store) * 1000:.1f} ms at most in 5 s")
        plans: list[tuple[str, int, int]] = [("the first snapshot", 0, 0), ("nothing changed", 0, 0)]
        plans += [(f"1000 changes in {n} directories", 1000, n) for n in (1000, 10, 1) if n <= directories]
        for what, changes, chosen in plans:
            if changes:
                await change(store, changes, chosen)
                await store.commits.hard_sync()
            writer = Writer(store)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run)
                await trio.sleep(0.3)
                writer.longest_s = 0.0
                began = time.process_time()
                taken = await taker.take()
                cpu_s = time.process_time() - began
                nursery.cancel_scope.cancel()
            show(what, taken, writer.longest_s, cpu_s)


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="scripts/million --snapshots")
    parser.add_argument("--files", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    base = Path(tempfile.mkdtemp(prefix="million-"))
    try:
        started = time.monotonic()
        make_store(str(base / "store"), options.files)
        print(f"made {options.files} files in {time.monotonic() - started:.0f} s", flush=True)
        trio.run(measure, str(base / "store"), options.files)
    finally:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
