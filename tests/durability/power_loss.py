"""Power loss, many times: a store under load on a recorded disk, and what each cut would have left.

    python -m durability.power_loss --images 1000 --filesystem xfs

The load runs once for some seconds; images are made from the record afterwards, as many as wanted: at an instant
chosen at random, the disk has everything up to the last flush, and of what was written since either all,
nothing, or each 4 KiB with a chance. The image is mounted, which replays the file system's journal; the store
is opened, which recovers it; then every promise is checked against what the clients were told, and the
checker looks for anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import trio
from mount.live import LiveMount

from durability.load import Client
from durability.recorder import Record, read_log, recorded_disk, run
from durability.verdict import broken_promises, opened
from mountstore.blobs.digest import Digest
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind

COMMIT_S = 1
"""Of the mount under load."""

UNSYNCED_NS = (COMMIT_S + 3) * 10**9
"""What had returned so long before the cut has to be there: `commit` seconds, and the time a sync may take
while this machine does everything else as well."""

_UNIT = 4096

_SIZES_MIB = {"ext4": 1024, "btrfs": 1024, "xfs": 1024}
_MKFS = {
    "ext4": ("-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "btrfs": ("-q", "-m", "single"),
    "xfs": ("-q", "-f"),
}
# A file system whose twin is mounted, or whose log another image has replayed, is told not to mind.
_MOUNT = {"ext4": "noatime", "btrfs": "noatime", "xfs": "noatime,nouuid"}


class Run(NamedTuple):
    """What one run of the load left: the disk before it, the records since, and the clients."""

    filesystem: str
    size_bytes: int
    records: list[Record]
    start: int
    """Index of the record before which there is nothing to be checked."""
    clients: list[Client]


def record_load(base: Path, filesystem: str, *, seconds: float, seed: int) -> Run:
    """Let clients work in a mounted store on a recorded disk."""
    size_bytes = _SIZES_MIB[filesystem] << 20
    with recorded_disk(base, size_bytes) as (device, log):
        run(f"mkfs.{filesystem}", *_MKFS[filesystem], device)
        (base / "disk").mkdir()
        run("mount", "-o", _MOUNT[filesystem], device, base / "disk")
        try:
            started_ns, clients = _load(base / "disk", seconds, seed)
        finally:
            run("umount", base / "disk")
    records = list(read_log(log))
    start = bisect_right([record.time_ns for record in records], started_ns)
    return Run(filesystem, size_bytes, records, start, clients)


def _load(disk: Path, seconds: float, seed: int) -> tuple[int, list[Client]]:
    mount = LiveMount(disk, f"commit={COMMIT_S}", checked=False)
    try:
        clients = []
        for number in range(3):
            (mount.path / f"c{number}").mkdir()
            clients.append(Client(mount.path / f"c{number}", seed * 10 + number))
        run("sync")
        fd = os.open(mount.path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        started_ns = time.monotonic_ns()
        for client in clients:
            client.start()
        time.sleep(seconds)
        for client in clients:
            client.stop()
    finally:
        mount.finish()
    return started_ns, clients


class Disk:
    """The recorded disk at one instant after the other."""

    def __init__(self, recorded: Run) -> None:
        self._records = recorded.records
        self._content = bytearray(recorded.size_bytes)
        self._touched: set[int] = set()
        self._applied = 0
        self._at = 0

    def forward(self, index: int) -> list[Record]:
        """Go on to the instant before record `index`. Returns the writes since the last flush, which the disk
        may have or not; everything before is applied."""
        self._at = index
        flushed = self._applied
        for position in range(index - 1, self._applied - 1, -1):
            if self._records[position].data is None:
                flushed = position
                break
        for record in self._records[self._applied : flushed]:
            self._apply(record.offset, record.data)
        self._applied = flushed
        return [record for record in self._records[flushed:index] if record.data is not None]

    def _apply(self, offset: int, data: bytes | None) -> None:
        if data is not None:
            self._content[offset : offset + len(data)] = data
            self._touched.update(range(offset >> 16, (offset + len(data) - 1 >> 16) + 1))

    def write_image(self, path: Path, parts: Sequence[tuple[int, bytes]]) -> None:
        """The disk with some of the writes since the last flush."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.truncate(fd, len(self._content))
            view = memoryview(self._content)
            for chunk in self._touched:
                os.pwrite(fd, view[chunk << 16 : chunk + 1 << 16], chunk << 16)
            for offset, data in parts:
                os.pwrite(fd, data, offset)
            view.release()
        finally:
            os.close(fd)


def choose_parts(pending: list[Record], choice: random.Random) -> list[tuple[int, bytes]]:
    """What a disk with a volatile cache may have written of what it was given since the last flush."""
    chance = choice.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    parts = []
    for record in pending:
        assert record.data is not None
        for start in range(0, len(record.data), _UNIT):
            if choice.random() < chance:
                parts.append((record.offset + start, record.data[start : start + _UNIT]))
    return parts


class Verdict(NamedTuple):
    """`problems` of one image; files in `lost` were new, never flushed, and cannot be read."""

    problems: list[str]
    lost: list[str]
    recovery_s: float


def judge_image(image: Path, filesystem: str, base: Path, clients: list[Client], cut_ns: int) -> Verdict:
    """Mount an image, recover the store on it, and check it."""
    device = run("losetup", "--find", "--show", image).strip()
    try:
        disk = base / "image-disk"
        disk.mkdir(exist_ok=True)
        run("mount", "-o", _MOUNT[filesystem], device, disk)
        try:
            store = str(disk / "store")
            started = time.monotonic()
            problems, lost, recovery_s = trio.run(_judge, store, clients, cut_ns, started)
            problems += findings_after_power_loss(store)
            return Verdict(problems, lost, recovery_s)
        finally:
            run("umount", disk)
    finally:
        run("losetup", "--detach", device)


def findings_after_power_loss(store: str) -> list[str]:
    """What the checker finds, but for what a power cut may leave and nobody was promised."""
    # A version that was superseded within the same interval in which it was sealed; a file that was new, which
    # `broken_promises` has judged unless it is one of the clients' temporary files.
    expected = {Kind.VERSION_LOST, Kind.CONTENT_LOST}
    problems = []
    recorded = None
    for finding in check_store(store, full=True).findings:
        if not finding.is_error or finding.kind in expected:
            continue
        if finding.kind is Kind.BLOB_DAMAGED:
            # Placed, but the cut came before the catalog heard of it: garbage, replaced when it is wanted.
            recorded = recorded if recorded is not None else _recorded_blobs(store)
            if not any(name in finding.what for name in recorded):
                continue
        problems.append(str(finding))
    return problems


def _recorded_blobs(store: str) -> set[str]:
    database = sqlite3.connect(f"{store}/catalog.db")
    try:
        return {Digest(*row).name for row in database.execute("SELECT sha256, size FROM blob")}
    finally:
        database.close()


async def _judge(
    store_path: str, clients: list[Client], cut_ns: int, started: float
) -> tuple[list[str], list[str], float]:
    async with opened(store_path) as store:
        recovery_s = time.monotonic() - started
        problems, lost = await broken_promises(store, clients, cut_ns, unsynced_ns=UNSYNCED_NS)
        # A second time, by itself: recovery leaves what it can live with.
        if problems:
            return problems, lost, recovery_s
    async with opened(store_path) as store:
        again, _ = await broken_promises(store, clients, cut_ns, unsynced_ns=UNSYNCED_NS)
        return [f"after another mount: {problem}" for problem in again], lost, recovery_s


def verdicts(recorded: Run, base: Path, *, images: int, seed: int) -> Iterator[tuple[str, Verdict]]:
    """Judge so many cuts at random instants, in the order of time."""
    choice = random.Random(seed)
    last = len(recorded.records) - 1
    instants = sorted(choice.randrange(recorded.start, last) for _ in range(images))
    disk = Disk(recorded)
    image = base / "image"
    for instant in instants:
        pending = disk.forward(instant)
        parts = choose_parts(pending, choice)
        disk.write_image(image, parts)
        # Whatever was answered before the next record was written was answered before the cut.
        cut_ns = recorded.records[instant].time_ns
        what = f"{recorded.filesystem}, cut before record {instant}, {len(parts)} parts of {len(pending)} writes"
        yield what, judge_image(image, recorded.filesystem, base, recorded.clients, cut_ns)


def main(argv: Sequence[str] | None = None) -> int:
    """The program: exit code 1 if a promise was broken, with the image kept."""
    parser = argparse.ArgumentParser(
        prog="scripts/powerloss", description="Cut the power of a store under load, and check its promises."
    )
    parser.add_argument("--images", type=int, default=200, metavar="N", help="of each run (default: 200)")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="0: until interrupted (default: 1)")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="length of the load (default: 5)")
    parser.add_argument("--filesystem", choices=sorted(_SIZES_MIB), default="ext4", help="below the store")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    runs = range(options.runs) if options.runs else itertools.count()
    for number in runs:
        seed = options.seed + number
        base = Path(tempfile.mkdtemp(prefix="powerloss-", dir="/dev/shm"))
        keep = False
        try:
            recorded = record_load(base, options.filesystem, seconds=options.seconds, seed=seed)
            lost = 0
            slowest_s = 0.0
            for what, verdict in verdicts(recorded, base, images=options.images, seed=seed):
                lost += bool(verdict.lost)
                slowest_s = max(slowest_s, verdict.recovery_s)
                if verdict.problems:
                    print(f"seed {seed}: {what}:", *verdict.problems, sep="\n  ")
                    print(f"the image, mounted and recovered since, is kept: {base / 'image'}")
                    keep = True
                    return 1
        finally:
            if not keep:
                shutil.rmtree(base)
        operations = sum(client.operations for client in recorded.clients)
        print(
            f"seed {seed}: {options.images} cuts of {options.filesystem} under {operations} operations: no promise"
            f" broken; {lost} with new files that were never flushed and are lost;"
            f" slowest recovery {slowest_s:.2f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, subprocess.SubprocessError):
        sys.exit(main())
