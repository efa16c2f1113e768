"""Copies that rsync makes while the store is at work: each brings back a state that a snapshot showed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import trio
from mount.live import SCALE

from care.garbage import Work, bytes_like
from care.recovery import Lost, contents
from mountstore.blobs.refs import read_refs
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.rebuild import rebuild_store
from mountstore.care.snapshots import Snapshots
from mountstore.store import Store
from mountstore.store.create import create_store

COPIES = 3 * SCALE


def content(name: bytes, round_: int, rng: random.Random) -> bytes:
    """Says whose it is, and of which round."""
    head = b"%b %d\n" % (name, round_)
    return head + bytes_like(round_, rng.choice([10, 3000, 40_000]))


def round_of(name: bytes, data: bytes) -> int:
    head, _, rest = data.partition(b"\n")
    whose, number = head.split()
    assert whose == name
    assert rest == bytes_like(int(number), len(rest))
    return int(number)


def test_rsync_at_random_moments(tmp_path: Path) -> None:
    """`first` is written before `last` in every round, so no instant shows a newer `last`."""
    rng = random.Random(7)
    path = tmp_path / "store"
    create_store(str(path), piece_max=4096, dir_limit=20)
    acknowledged: dict[str, int] = {}

    async def load(work: Work) -> None:
        round_ = 0
        while True:
            round_ += 1
            for name in (b"first", b"%d" % rng.randrange(40), b"last"):
                await work.save(name, content(name, round_, rng))
            if round_ % 5 == 0:
                await work.rename(b"%d" % rng.choice([n for n in range(40) if has(work, n)]), b"moved")
                await work.unlink(b"moved")
            if round_ % 40 == 0:
                taken = await Snapshots(work.store).take(f"at-{round_}")
                acknowledged[taken.info.name] = round_
            await trio.lowlevel.checkpoint()

    def has(work: Work, number: int) -> bool:
        return work.store.namespace.find(1, b"%d" % number) is not None

    async def body() -> None:
        async with Store.open(str(path)).running() as store, trio.open_nursery() as nursery:
            nursery.start_soon(load, Work(store))
            while not acknowledged:
                await trio.sleep(0.01)
            for number in range(COPIES):
                await trio.sleep(rng.random() * 0.2)
                copy = tmp_path / f"copy {number}"
                copy.mkdir()
                before = set(acknowledged)
                # 24: a file vanished, which here are those being written.
                done = await trio.run_process(["rsync", "-a", f"{path}/blobs", f"{copy}/"], check=False)
                assert done.returncode in (0, 24)
                refs, bad = read_refs(str(copy / "blobs"))
                assert not bad
                assert before <= {ref.name for ref in refs}
            nursery.cancel_scope.cancel()

    trio.run(body)
    for number in range(COPIES):
        copy = tmp_path / f"copy {number}"
        name = rebuild_store(str(copy)).taken.ref.name
        wrong = {finding.kind for finding in check_store(str(copy), full=True).errors}
        assert wrong <= {Kind.SNAPSHOT_LOST}, wrong
        files = {os.path.basename(path): data for path, data in contents(copy).items()}
        rounds = {name: round_of(name, data) for name, data in files.items()}
        assert len(files) == Lost(copy, {}).files()
        shown = int(name.removeprefix("at-"))
        assert rounds[b"first"] == rounds[b"last"] == shown
        assert max(rounds.values()) == shown
