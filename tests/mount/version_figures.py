"""What versions cost, measured in a mount: the figures of docs/versions.md.

    python -m mount.version_figures [--scale PERCENT] [FIGURE ...]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from mount.live import LiveMount
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest, checksum
from mountstore.care.gc import collect
from mountstore.care.gc_report import Options
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

MIB = 1 << 20


class Measured(list[tuple[str, float, str, float]]):
    """What was found: what, value, unit, and the value that it should stay below."""

    def add(self, what: str, value: float, unit: str, limit: float) -> None:
        self.append((what, value, unit, limit))
        mark = "" if value < limit else "   ABOVE"
        print(f"  {what}: {value:.4g} {unit} (limit {limit:g}){mark}", flush=True)


def measure_overwriting(base: Path, measured: Measured, part: float) -> None:
    """Overwriting small files, beside creating them."""
    mount = LiveMount(base, checked=False)
    try:
        files = max(int(10_000 * part), 100)
        ratios = []
        for turn in range(5):
            directory = mount.path / f"d{turn}"
            directory.mkdir()
            times = []
            for version in range(2):
                started = time.perf_counter()
                for number in range(files):
                    fd = os.open(directory / f"{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                    os.write(fd, b"turn %d, version %d of file %d" % (turn, version, number))
                    os.close(fd)
                _sync(directory)
                times.append(time.perf_counter() - started)
            ratios.append(times[1] / times[0])
        measured.add(f"overwriting {files} files, creating = 1", statistics.median(ratios), "", 1.3)
    finally:
        mount.unmount()


def measure_listing(base: Path, measured: Measured, part: float) -> None:
    """Listing all versions of a file that has many."""
    count = max(int(10_000 * part), 100)
    create_store(str(base / "store"))
    store = Store.open(str(base / "store"))
    inode = store.namespace.create(ROOT, b"f", 0o100644, Caller(0, 0))
    history = 0
    for number in range(count - 1):
        digest = Digest.of(b"%d" % number)
        content = Content(ContentKind.BLOB, digest, digest.size_bytes)
        history = store.versions.histories.append(
            history, content, mode=0o100644, uid=0, gid=0, mtime_ns=number, until_ns=number + 1
        )
    store.versions.histories.give_inode(inode.id, history)
    data = b"the current one"
    inode.content = Content(ContentKind.BLOB, Digest.of(data), len(data))
    inode.size = inode.allocated = len(data)
    store.commits.commit()
    store._close()
    mount = LiveMount(base, checked=False)
    try:
        directory = mount.path / ".versions/f"
        times = []
        for _ in range(15):
            started = time.perf_counter()
            names = os.listdir(directory)
            times.append(time.perf_counter() - started)
            assert len(names) == count + 2
        measured.add(f"listing {count} versions", statistics.median(times) * 1000, "ms", 50)
        measured.add("the same, quickest", min(times) * 1000, "ms", 50)
    finally:
        mount.unmount()


def measure_edits(base: Path, measured: Measured, part: float) -> None:
    """A hundred versions of a large file, a small edit each."""
    size = max(int(200 * MIB * part), 4 * MIB)
    choice = random.Random(1)
    content = bytearray(choice.randbytes(size))
    mount = LiveMount(base, checked=False)
    try:
        for version in range(100):
            offset = choice.randrange(len(content))
            new = choice.randbytes(choice.randrange(1, 200))
            kind = choice.choice(("insert", "delete", "overwrite"))
            if version:
                content[offset : offset + (0 if kind == "insert" else len(new))] = b"" if kind == "delete" else new
            with (mount.path / "large").open("wb") as file:
                file.write(content)
        _sync(mount.path)
        assert len(os.listdir(mount.path / ".versions/large")) == 102
        mount.unmount()
        # What was sealed in between, since a file stayed open for long, is garbage.
        trio.run(_collect, str(mount.store))
        mount.start()
        stored = _stored(mount.store) / len(content)
        measured.add(f"100 versions of {size // MIB} MiB, stored", stored, "times the file", 1.5)
    finally:
        mount.unmount()


def measure_appends(base: Path, measured: Measured, part: float) -> None:
    """A log that is opened, appended to and closed again and again."""
    appends = max(int(10_000 * part), 100)
    content = bytearray(os.urandom(MIB))
    mount = LiveMount(base, checked=False)
    try:
        log = mount.path / "log"
        log.write_bytes(content)
        lengths = [len(content)]
        started = time.perf_counter()
        for _ in range(appends):
            line = os.urandom(100)
            content += line
            lengths.append(len(content))
            fd = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.write(fd, line)
            os.close(fd)
        took_s = time.perf_counter() - started
        _sync(mount.path)
        mount.unmount()
        trio.run(_collect, str(mount.store))
        measured.add(f"{appends} appends, after gc", _stored(mount.store) / len(content), "times the file", 3)
        mount.start()
        started = time.perf_counter()
        for number, length in enumerate(lengths):
            data = (mount.path / f".versions/log/{number + 1}").read_bytes()
            assert data == content[:length], number
        read_s = time.perf_counter() - started
        measured.add("one append", took_s / appends * 1000, "ms", 20)
        measured.add("reading one version", read_s / len(lengths) * 1000, "ms", 20)
    finally:
        mount.unmount()


def measure_names(base: Path, measured: Measured, part: float) -> None:
    """Opening one version in a directory with very many names that have a history."""
    counts = [max(int(1_000_000 * part) // 10, 100), max(int(1_000_000 * part), 1000)]
    create_store(str(base / "store"))
    store = Store.open(str(base / "store"))
    data = b"what they all held"
    store.tree.add_bytes(data)
    digest = Digest.of(data)
    content = Content(ContentKind.BLOB, digest, digest.size_bytes)
    store.catalog.add_blobs([(digest.sha256, digest.size_bytes, checksum(data))])
    for count in counts:
        directory = store.namespace.create(ROOT, b"d%d" % count, 0o040755, Caller(0, 0))
        for number in range(count):
            history = store.versions.histories.append(
                0, content, mode=0o100644, uid=0, gid=0, mtime_ns=1, until_ns=2
            )
            store.versions.histories.give_name(directory.id, b"name %d" % number, history)
            if number % 50_000 == 49_999:
                store.commits.commit()
                store.catalog.checkpoint()
    store.commits.commit()
    store._close()
    mount = LiveMount(base, checked=False)
    try:
        for count in counts:
            choice = random.Random(2)
            times = []
            for _ in range(300):
                number = choice.randrange(count)
                started = time.perf_counter()
                with (mount.path / f"d{count}/.versions/name {number}/1").open("rb") as file:
                    assert file.read() == data
                times.append(time.perf_counter() - started)
            measured.add(
                f"opening and reading one version, {count} names", statistics.median(times) * 1000, "ms", 5
            )
    finally:
        mount.unmount()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _collect(path: str) -> None:
    async with Store.open(path).running() as store:
        await collect(store, Options(grace_s=0, purge=True, older_than_days=0))


def _stored(store: Path) -> int:
    """Bytes on the disk, of everything."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_blocks * 512
        for directory, _, names in os.walk(store)
        for name in names
    )


FIGURES: dict[str, Callable[[Path, Measured, float], None]] = {
    "overwriting": measure_overwriting,
    "listing": measure_listing,
    "edits": measure_edits,
    "appends": measure_appends,
    "names": measure_names,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The program: exit code 1 if a figure is above its limit."""
    parser = argparse.ArgumentParser(
        prog="scripts/versions-figures", description="Measure what versions cost; see docs/versions.md."
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--scale", type=float, default=100, metavar="PERCENT", help="of the sizes (default: 100)")
    options = parser.parse_args(argv)
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no figure is called {sorted(unknown)[0]}")
    measured = Measured()
    for name in options.figures or FIGURES:
        print(f"{name}: {(FIGURES[name].__doc__ or '').strip()}", flush=True)
        base = Path(tempfile.mkdtemp(prefix="versions-"))
        try:
            FIGURES[name](base, measured, options.scale / 100)
        finally:
            shutil.rmtree(base)
    return 1 if any(value >= limit for _, value, _, limit in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
