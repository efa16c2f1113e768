"""The programme for large files: streams with sync, the same again, small changes, memory. The goals stand in
docs/performance.md.

What a daemon wrote comes from /proc/PID/io, what was stored from the sizes of the blobs, its memory from the
peak that the kernel keeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark import machine
from benchmark.client import Client
from benchmark.figures import MIB, Sample, Timing, Unit, by_system, readable, speed_ratio
from benchmark.operations import turn
from benchmark.report import markdown_table
from benchmark.systems import Ours, System

__all__ = ["LargeResult", "format_large", "run_large"]

GIB = 1 << 30

STREAMS: tuple[tuple[str, str], ...] = (
    ("large-write", "write new data, close, fsync"),
    ("large-again", "the same data under another name, close, fsync"),
    ("large-cold", "sequential read, caches dropped"),
    ("large-warm", "sequential read, warm"),
)


@dataclass(frozen=True, slots=True)
class LargeResult:
    samples: list[Sample]
    facts: list[tuple[str, str, str]]
    """What only mountstore is asked: what, figure, goal."""


def stored_bytes(store: str) -> int:
    """The size of all blobs of a store."""
    total = 0
    for directory, _, names in os.walk(os.path.join(store, "blobs")):
        total += sum(os.lstat(os.path.join(directory, name)).st_size for name in names)
    return total


def run_large(
    systems: Sequence[System],
    rounds: int,
    size_bytes: int,
    change_bytes: int,
    insert_bytes: int,
    client: Client,
    quiet: machine.Quiet,
    progress: Callable[[str], None],
) -> LargeResult:
    """Run it.

    Args:
      systems: Started already; null is of no use here, since it keeps everything in memory.
      size_bytes: Of a stream, and of what eight writers write together.
      change_bytes: Of the file in which 4 KiB are changed.
      insert_bytes: Of the file that gets one byte more at its front.
    """
    samples = []
    facts: list[tuple[str, str, str]] = []
    ours = next((system for system in systems if isinstance(system, Ours)), None)
    if ours is not None:
        machine.reset_peak_memory(_pid(ours))
    written: list[int] = []

    def stream(workload: str, system: System, number: int) -> Timing:
        directory = os.path.join(system.root, f"large{number}")
        values: dict[str, int | str] = {"size": size_bytes, "call": MIB}
        if workload in ("large-write", "large-again"):
            os.makedirs(directory, exist_ok=True)
            values |= {"seed": 1000 + number, "fsync_each": 1}
            quiet.settle()
            before = machine.bytes_written(_pid(system)) if system is ours else 0
            timing = client("seqwrite", directory, file=workload, **values)
            if workload == "large-again":
                if system is ours:
                    written.append(machine.bytes_written(_pid(system)) - before)
                # Room for the next; what freeing it costs is left to `settle`.
                os.unlink(os.path.join(directory, workload))
            return timing
        if workload == "large-warm":
            # The cold reads of the others dropped everybody's pages.
            client("seqread", directory, file="large-write", **values)
        quiet.settle()
        if workload == "large-cold":
            quiet.drop_everything()
        return client("seqread", directory, file="large-write", **values)

    for workload, _ in STREAMS:
        for number in range(rounds):
            for system in turn(systems, number):
                timing = stream(workload, system, number)
                samples.append(Sample(workload, system.name, number, size_bytes, timing.elapsed_s))
                rate = readable(size_bytes / MIB / timing.elapsed_s)
                progress(f"{workload:12} round {number + 1}/{rounds}  {system.title:10} {rate:>8} MiB/s")

    if ours is not None:
        size = f"{size_bytes / GIB:g} GiB"
        facts.append(
            (f"written to the disk for {size} stored already", f"{readable(max(written) / MIB)} MiB", "0 MiB")
        )
        facts.append(
            (
                "memory, peak over the streams",
                f"{machine.peak_memory_bytes(_pid(ours)) // MIB} MiB",
                "300 MiB",
            )
        )
        for measure, bytes_used in (
            (_change, change_bytes),
            (_insert, insert_bytes),
            (_eight_writers, size_bytes),
        ):
            for what, figure, goal in measure(ours, bytes_used, client, quiet):
                progress(f"{what}: {figure}")
                facts.append((what, figure, goal))
    return LargeResult(samples, facts)


def _pid(system: System) -> int:
    pid = system.pid
    assert pid is not None
    return pid


def _change(ours: Ours, size_bytes: int, client: Client, quiet: machine.Quiet) -> list[tuple[str, str, str]]:
    """4 KiB in the middle of a large file, twice: what the first time costs, and with everything warm."""
    directory = os.path.join(ours.root, "change")
    os.makedirs(directory)
    client("seqwrite", directory, size=size_bytes, seed=2000, fsync_each=1)
    pid = _pid(ours)
    facts = []
    for number, state in ((1, "caches dropped"), (2, "warm")):
        quiet.settle()
        if number == 1:
            quiet.drop_everything()
        written, cpu_s = machine.bytes_written(pid), machine.cpu_seconds(pid)
        took_s = client("change", directory, size=size_bytes, seed=2000 + number).elapsed_s
        written, cpu_s = machine.bytes_written(pid) - written, machine.cpu_seconds(pid) - cpu_s
        what = f"4 KiB changed in {size_bytes / GIB:g} GiB, close, fsync ({state})"
        facts.append((f"{what}: time", f"{took_s * 1000:.0f} ms", "100 ms" if number == 2 else ""))
        facts.append((f"{what}: processor time", f"{cpu_s * 1000:.0f} ms", "100 ms"))
        facts.append((f"{what}: written", f"{readable(written / MIB)} MiB", "8 MiB"))
    return facts


def _insert(ours: Ours, size_bytes: int, client: Client, quiet: machine.Quiet) -> list[tuple[str, str, str]]:
    """A file, and the same behind one byte more: how much of it is stored a second time."""
    directory = os.path.join(ours.root, "insert")
    os.makedirs(directory)
    client("seqwrite", directory, file="plain", size=size_bytes, seed=3000, fsync_each=1)
    before = stored_bytes(ours.store)
    client("seqwrite", directory, file="longer", size=size_bytes, seed=3000, shift=1, fsync_each=1)
    share = (stored_bytes(ours.store) - before) / size_bytes
    return [(f"one byte in front of {size_bytes / GIB:g} GiB: stored anew", f"{share:.2%}", "1 %")]


def _eight_writers(
    ours: Ours, size_bytes: int, client: Client, quiet: machine.Quiet
) -> list[tuple[str, str, str]]:
    directory = os.path.join(ours.root, "eight")
    os.makedirs(directory)
    pid = _pid(ours)
    quiet.settle()
    machine.reset_peak_memory(pid)
    each = size_bytes // 8
    took_s = client("seqwrite", directory, size=each, seed=4000, workers=8, fsync_each=1).elapsed_s
    return [
        ("8 writers at once: together", f"{readable(each * 8 / MIB / took_s)} MiB/s", ""),
        ("8 writers at once: memory, peak", f"{machine.peak_memory_bytes(pid) // MIB} MiB", "300 MiB"),
    ]


def format_large(systems: dict[str, str], result: LargeResult, size_bytes: int) -> str:
    """Markdown: streams with ratios, then what only mountstore is asked."""
    peers = [name for name in systems if name != "ours"] if "ours" in systems else []
    lines = []
    quartiles = []
    unit = Unit.MIB_PER_SECOND
    for workload, title in STREAMS:
        row = by_system(unit, [sample for sample in result.samples if sample.workload == workload])
        line = [title, *(readable(row[name].median) for name in systems)]
        line += [readable(speed_ratio(unit, row["ours"].median, row[peer].median)) for peer in peers]
        lines.append(line)
        quartiles.append(
            [title, *(f"{readable(row[name].low)} – {readable(row[name].high)}" for name in systems)]
        )
    head = [f"{size_bytes / GIB:g} GiB, MiB/s", *systems.values(), *(f"/ {systems[peer]}" for peer in peers)]
    parts = [markdown_table(head, lines)]
    if result.facts:
        parts.append(markdown_table(["mountstore", "measured", "goal: at most"], result.facts))
    parts += ["Quartiles:", markdown_table(["MiB/s", *systems.values()], quartiles)]
    return "\n\n".join(parts)
