"""The command line of scripts/bench: choose, set up, run, report, and leave nothing behind."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import FrameType

from benchmark.client import Client
from benchmark.figures import Sample
from benchmark.growth import format_growth, run_growth
from benchmark.large import GIB, format_large, run_large
from benchmark.machine import PROJECT, Quiet, describe, file_system_type, spread
from benchmark.operations import format_tables, run_operations
from benchmark.report import header, load_json, save_json, write_marked
from benchmark.systems import SYSTEMS, NotMountedError, System, missing_peers
from benchmark.workloads import WORKLOADS, Counts, Sources, Workload, stage_repository, stage_tree
from mountstore.fuse.mounts import read_mounts

__all__ = ["main"]

EPILOG = f"""\
systems:    {" ".join(SYSTEMS)}
workloads:  {" ".join(workload.name for workload in WORKLOADS)}

Without --large and --growth, the workloads run on all systems in alternating rounds. The sections that --write
replaces are bench:any-core, bench:one-core (with --pin), bench:large and bench:growth.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a programme brings."""

    section: str
    text: str
    samples: list[Sample]
    extra: dict[str, object]


class Interruptions:
    """Ctrl-C and SIGTERM as KeyboardInterrupt, except while something must not be left half done."""

    def __init__(self) -> None:
        self._held = False
        self._pending = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._arrived)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let them wait until the block is left."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            raise KeyboardInterrupt


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _listed(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure mountstore beside its peers, in one run, in alternating rounds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--large", action="store_true", help="large files instead of the workloads")
    what.add_argument("--growth", action="store_true", help="cost per operation as the mount fills up")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 5; quick 2; large 3")
    parser.add_argument("--systems", type=_listed, metavar="A,B", help="default: all; growth: ours")
    parser.add_argument("--workloads", type=_listed, metavar="A,B", help="default: all")
    parser.add_argument("--pin", action="store_true", help="client and daemons on one core")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that everything works")
    parser.add_argument("--size", type=float, default=4.0, metavar="GIB", help="--large: of a stream (4)")
    parser.add_argument(
        "--change-size", type=float, metavar="GIB", help="--large: of the file that is changed (as --size)"
    )
    parser.add_argument("--million", action="store_true", help="--growth: go on to a million files")
    parser.add_argument("--tree", metavar="DIR", help="what cp, tar and rm work on (Python's library)")
    parser.add_argument("--settle", type=float, metavar="S", help="rest before a run (0.3; large 2)")
    parser.add_argument("--work", metavar="DIR", default="/var/tmp", help="where, on which disk (/var/tmp)")
    parser.add_argument("--fresh", type=float, metavar="GIB", help="on a new ext4 of that size, in a file there")
    parser.add_argument("--json", metavar="FILE", help="store what was measured")
    parser.add_argument("--compare", metavar="FILE", help="a file of --json: show ours / ours then")
    parser.add_argument("--write", metavar="FILE", help="replace the section of a Markdown document")
    parser.add_argument("--install-peers", action="store_true", help="install bindfs and gocryptfs (apt)")
    choices = parser.parse_args(argv)

    default = ["ours"] if choices.growth else list(SYSTEMS)
    choices.systems = [name for name in SYSTEMS if name in (choices.systems or default)]
    unknown = set(_words(argv, "--systems")) - set(SYSTEMS)
    known = {workload.name for workload in WORKLOADS}
    unknown |= set(choices.workloads or ()) - known
    if unknown:
        parser.error(f"unknown: {' '.join(sorted(unknown))}")
    if choices.large:
        choices.systems = [name for name in choices.systems if name != "null"]
    if choices.rounds is None:
        choices.rounds = 2 if choices.quick else 3 if choices.large else 5
    if choices.rounds < 1:
        parser.error("--rounds: at least 1")
    if choices.quick:
        choices.size = min(choices.size, 0.0625)
    if choices.settle is None:
        choices.settle = 0.0 if choices.quick else 2.0 if choices.large else 0.3
    if missing := missing_peers(choices.systems):
        parser.error(f"not installed: {' '.join(missing)}; --install-peers installs, --systems leaves out")
    if os.geteuid() != 0:
        parser.error("dropping the kernel's caches needs root")
    return choices


def _words(argv: Sequence[str], option: str) -> list[str]:
    for position, word in enumerate(argv):
        if word == option:
            return _listed(argv[position + 1])
        if word.startswith(f"{option}="):
            return _listed(word.partition("=")[2])
    return []


@contextlib.contextmanager
def mounted(names: Sequence[str], work: str, interruptions: Interruptions) -> Iterator[list[System]]:
    """The systems, started; stopped whatever happens."""
    systems: list[System] = []
    try:
        for name in names:
            system = SYSTEMS[name](os.path.join(work, name))
            systems.append(system)
            with interruptions.held():
                system.start()
        yield systems
    finally:
        with interruptions.held():
            for system in reversed(systems):
                try:
                    system.stop()
                except (NotMountedError, OSError) as exc:
                    progress(f"{system.title}: {exc}")


def stage(choices: argparse.Namespace, work: str) -> Sources:
    """Put what cp and git work on beside the systems: fixed for the run, and on the same disk."""
    tree = os.path.join(work, "source")
    stage_tree(choices.tree or sysconfig.get_path("stdlib"), tree)
    if choices.quick and not choices.tree:
        for name in os.listdir(tree):
            if os.path.isdir(path := os.path.join(tree, name)) and name not in ("asyncio", "email", "json"):
                shutil.rmtree(path)
    repository = os.path.join(work, "repository.git")
    try:
        stage_repository(str(PROJECT), repository)
    except subprocess.CalledProcessError as exc:
        progress(f"without git workloads: {os.fsdecode(exc.stderr).strip()}")
        return Sources(tree, None)
    return Sources(tree, repository)


def chosen_workloads(names: Sequence[str] | None, *, with_repository: bool) -> list[Workload]:
    """The workloads by name (all of them without names), in their own order, that can run."""
    return [
        workload
        for workload in WORKLOADS
        if (not names or workload.name in names) and (with_repository or not workload.needs_repository)
    ]


def run_programme(choices: argparse.Namespace, work: str, interruptions: Interruptions) -> Outcome:
    """Mount, measure, unmount."""
    client = Client(work)
    quiet = Quiet(choices.settle)
    titles = {name: SYSTEMS[name].title for name in choices.systems}
    if "disk" in titles:
        titles["disk"] = file_system_type(work)
    if choices.large:
        size = int(choices.size * GIB)
        change = size if choices.change_size is None else int(choices.change_size * GIB)
        with mounted(choices.systems, work, interruptions) as systems:
            large = run_large(systems, choices.rounds, size, change, min(size, GIB), client, quiet, progress)
        facts = [list(fact) for fact in large.facts]
        return Outcome("large", format_large(titles, large, size), large.samples, {"measured": facts})
    if choices.growth:
        sizes = [1000, 10_000] if choices.quick else [10_000, 100_000]
        sizes += [1_000_000] if choices.million else []
        with mounted(choices.systems, work, interruptions) as systems:
            rows = run_growth(systems, sizes, sizes[0] // 10, client, quiet, progress)
        return Outcome("growth", format_growth(titles, rows), [], {"growth": [asdict(row) for row in rows]})
    sources = stage(choices, work)
    counts = Counts.quick() if choices.quick else Counts()
    workloads = chosen_workloads(choices.workloads, with_repository=sources.repository is not None)
    with mounted(choices.systems, work, interruptions) as systems:
        samples = run_operations(systems, workloads, choices.rounds, counts, sources, client, quiet, progress)
    before = load_json(choices.compare) if choices.compare else []
    text = format_tables(workloads, titles, samples, counts, pinned=choices.pin, before=before)
    return Outcome("one-core" if choices.pin else "any-core", text, samples, {})


def main() -> int:
    argv = sys.argv[1:]
    choices = parse(argv)
    if choices.pin:
        # Everything started from here on inherits it.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    interruptions = Interruptions()
    base = tempfile.mkdtemp(prefix="mountstore-bench-", dir=choices.work)
    try:
        with fresh_disk(base, choices.fresh, interruptions) as work:
            spread(work)
            if file_system_type(work) in ("tmpfs", "ramfs"):
                progress(f"{choices.work} is in memory: dropped caches drop nothing there; see --work")
            facts = describe(work, choices.systems)
            outcome = run_programme(choices, work, interruptions)
    except KeyboardInterrupt:
        progress("interrupted")
        return 130
    except (NotMountedError, subprocess.CalledProcessError) as exc:
        progress(f"scripts/bench: {exc}")
        if isinstance(exc, subprocess.CalledProcessError) and exc.stderr:
            progress(os.fsdecode(exc.stderr).strip())
        return 1
    finally:
        with interruptions.held():
            _remove(base)
    command = shlex.join(["scripts/bench", *argv])
    report = f"{header(facts, command)}\n\n{outcome.text}"
    print(report)
    if choices.json:
        save_json(choices.json, facts, command, outcome.samples, outcome.extra)
    if choices.write:
        write_marked(choices.write, outcome.section, report)
    return 0


@contextlib.contextmanager
def fresh_disk(base: str, size_gib: float | None, interruptions: Interruptions) -> Iterator[str]:
    """The directory to work in: `base`, or the root of a new ext4 in a file in it.

    On that nothing was deleted yet, and its blocks are allocated as they are on a new disk. The loop device does
    without the page cache of the file below, or everything would be cached twice.
    """
    if size_gib is None:
        yield base
        return
    image, mountpoint = os.path.join(base, "disk"), os.path.join(base, "fresh")
    os.mkdir(mountpoint)
    with open(image, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(size_gib * GIB))
    _run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", image)
    with interruptions.held():
        device = _run("losetup", "--find", "--show", "--direct-io=on", image)
    try:
        with interruptions.held():
            _run("mount", device, mountpoint)
        try:
            yield mountpoint
        finally:
            with interruptions.held():
                _run("umount", mountpoint)
    finally:
        _run("losetup", "--detach", device)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _remove(base: str) -> None:
    """Delete the work directory, unless something is still mounted in it: never reach into a mount."""
    if any(mount.mountpoint.startswith(f"{base}/") for mount in read_mounts()):
        progress(f"something is still mounted below {base}: unmount and delete it")
        return
    shutil.rmtree(base, ignore_errors=True)
