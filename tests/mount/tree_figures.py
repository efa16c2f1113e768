"""What looking into a snapshot, clone, restore and rmtree cost in a mount: the figures of docs/snapshots.md.

    python -m mount.tree_figures [--files N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mount.live import LiveMount
from mount.snapshots import ask

_DIRECTORY = 1000
"""Files in each directory of the tree."""


class Neighbour:
    """Somebody who makes, writes and closes a small file again and again beside what is measured."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.waits_s: list[float] = []

    def _work(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            started = time.perf_counter()
            fd = os.open(self._directory / f"{number % 100}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(fd, b"%d" % number)
            os.close(fd)
            self.waits_s.append(time.perf_counter() - started)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def __str__(self) -> str:
        waits = sorted(self.waits_s)
        return (
            f"a file beside it: {statistics.median(waits) * 1e3:.2f} ms, at most {waits[-1] * 1e3:.0f} ms"
            f" ({len(waits)} of them)"
        )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _list(directory: Path) -> None:
    subprocess.run(["ls", "-l", directory], stdout=subprocess.DEVNULL, check=True)


def measure_view(mount: LiveMount) -> None:
    top = mount.path / "long"
    top.mkdir()
    for number in range(10_000):
        (top / f"file {number}").write_bytes(b"%d" % number)
    ask(mount, "snapshot view")
    places = {"live": top, "in the snapshot": mount.path / ".cas/snapshots/view/long"}
    times: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(9):
        for name, place in places.items():
            Path("/proc/sys/vm/drop_caches").write_text("2")
            times[name].append(_timed(lambda place=place: _list(place)))  # type: ignore[misc]  # mypy: lambdas
    for name, found in times.items():
        print(f"  ls -l of 10,000 files, {name}: {statistics.median(found) * 1e3:.0f} ms", flush=True)


def measure_trees(mount: LiveMount, files: int) -> None:
    top = mount.path / "tree"
    for number in range(files):
        if number % _DIRECTORY == 0:
            directory = top / f"{number // _DIRECTORY}"
            directory.mkdir(parents=True)
        (directory / f"{number}").write_bytes(b"%d" % (number % 5000))
    ask(mount, "snapshot trees")
    beside = mount.path / "beside"
    beside.mkdir()
    print(f"  a tree of {files:,} files:")
    with Neighbour(beside) as alone:
        threading.Event().wait(2)
    print(f"    nothing: {alone}")
    memory = mount.memory_bytes()
    for what, line in [
        ("clone", "clone /tree /copy"),
        ("restore", "restore /tree --snapshot trees --to /back"),
        ("rmtree", "rmtree /copy"),
        ("rmtree --wait", "rmtree --wait /back"),
    ]:
        with Neighbour(beside) as neighbour:
            took_s = _timed(lambda line=line: ask(mount, line))  # type: ignore[misc]  # mypy: lambdas
        grown = mount.memory_bytes() - memory
        print(f"    {what}: {took_s:.2f} s; {neighbour}; memory +{grown / 1e6:.0f} MB", flush=True)
    took_s = _timed(lambda: ask(mount, "clone /tree /copy"))
    print(f"    clone, nobody beside it: {took_s:.2f} s", flush=True)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args(argv)
    base = Path(tempfile.mkdtemp(prefix="tree-figures-", dir="/dev/shm"))
    try:
        mount = LiveMount(base, checked=False)
        try:
            measure_view(mount)
            measure_trees(mount, arguments.files)
        finally:
            mount.finish()
    finally:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
