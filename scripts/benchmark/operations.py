"""The main programme: every workload on every system, in alternating rounds; and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmark.client import Client
from benchmark.figures import MIB, Sample, Spread, by_system, quantity, readable, speed_ratio
from benchmark.goals import s3ql, shortfalls
from benchmark.machine import Quiet
from benchmark.report import markdown_table
from benchmark.systems import System
from benchmark.workloads import Counts, Site, Sources, Workload

__all__ = ["format_tables", "run_operations", "turn"]


def turn(systems: Sequence[System], number: int) -> list[System]:
    """The systems in the order of one round: nobody is always first, or always behind the same one."""
    start = number % len(systems)
    order = [*systems[start:], *systems[:start]]
    return order[::-1] if number // len(systems) % 2 else order


def run_operations(
    systems: Sequence[System],
    workloads: Sequence[Workload],
    rounds: int,
    counts: Counts,
    sources: Sources,
    client: Client,
    quiet: Quiet,
    progress: Callable[[str], None],
) -> list[Sample]:
    """Run all rounds of one workload, then all of the next; the systems alternate within each.

    Args:
      systems: Started already.
    """
    shared: dict[str, dict[str, str]] = {system.name: {} for system in systems}
    sites = {
        (system.name, number): Site(
            system, number, counts, sources, client, quiet, kept_for_all=shared[system.name]
        )
        for system in systems
        for number in range(rounds)
    }
    samples = []
    for workload in workloads:
        for number in range(rounds):
            for system in turn(systems, number):
                if workload.needs_keeping and not system.keeps:
                    continue
                timing = workload.run(sites[system.name, number])
                sample = Sample(workload.name, system.name, number, timing.amount, timing.elapsed_s)
                samples.append(sample)
                figure = readable(quantity(workload.unit, timing.amount, timing.elapsed_s))
                progress(
                    f"{workload.name:15} round {number + 1}/{rounds}  {system.title:10} "
                    f"{figure:>8} {workload.unit}"
                )
    return samples


def format_tables(
    workloads: Sequence[Workload],
    systems: Mapping[str, str],
    samples: Iterable[Sample],
    counts: Counts,
    *,
    pinned: bool,
    before: Iterable[Sample] = (),
) -> str:
    """Markdown: medians and ratios, what misses a goal, quartiles.

    Args:
      systems: Title by name, in the order of columns.
      before: Samples of an earlier run, for one more column of ratios.
    """
    rows = _rows(workloads, samples)
    earlier = _rows(workloads, before)
    parts = [_describe_counts(counts), _medians(workloads, systems, rows, earlier, pinned=pinned)]
    if "ours" in systems:
        parts.append(_misses(workloads, rows, pinned=pinned))
    parts += ["Quartiles:", _quartiles(workloads, systems, rows)]
    return "\n\n".join(parts)


def _rows(workloads: Sequence[Workload], samples: Iterable[Sample]) -> dict[str, dict[str, Spread]]:
    listed = list(samples)
    rows = {w.name: by_system(w.unit, [s for s in listed if s.workload == w.name]) for w in workloads}
    return {name: row for name, row in rows.items() if row}


def _describe_counts(counts: Counts) -> str:
    return (
        f"{counts.files:,} files of {counts.file_bytes:,} bytes ({counts.synced:,} where each is synced), "
        f"{counts.listed:,} in the large directory, {counts.stream_bytes // MIB} MiB in sequence, "
        f"{counts.random_writes:,} writes in {counts.random_bytes // MIB} MiB. Medians; rates are better high, "
        "seconds low; a ratio over 1 means that mountstore is faster."
    )


def _medians(
    workloads: Sequence[Workload],
    systems: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Spread]],
    earlier: Mapping[str, Mapping[str, Spread]],
    *,
    pinned: bool,
) -> str:
    peers = [name for name in systems if name != "ours"] if "ours" in systems else []
    head = ["operation", "unit", *systems.values(), "S3QL (1)", *(f"/ {systems[peer]}" for peer in peers)]
    if peers or earlier:
        head += ["/ S3QL"]
    if earlier:
        head += ["/ before"]
    lines = []
    for workload in workloads:
        row = rows.get(workload.name)
        if row is None:
            continue
        ours = row.get("ours")
        published = s3ql(workload.name, pinned=pinned)

        def against(other: float | None, workload: Workload = workload, ours: Spread | None = ours) -> str:
            if ours is None or other is None:
                return ""
            return readable(speed_ratio(workload.unit, ours.median, other))

        line = [workload.title, str(workload.unit)]
        line += [readable(row[name].median) if name in row else "" for name in systems]
        line += ["" if published is None else readable(published)]
        line += [against(row[peer].median if peer in row else None) for peer in peers]
        if peers or earlier:
            line += [against(published)]
        if earlier:
            old = earlier.get(workload.name, {}).get("ours")
            line += [against(None if old is None else old.median)]
        lines.append(line)
    note = "(1) not of this run: measured once on another 2-core virtual machine, files of 100 bytes."
    return f"{markdown_table(head, lines)}\n\n{note}"


def _misses(workloads: Sequence[Workload], rows: Mapping[str, Mapping[str, Spread]], *, pinned: bool) -> str:
    missed = [
        miss for w in workloads if w.name in rows for miss in shortfalls(w, rows[w.name], pinned=pinned)
    ]
    if not missed:
        return "Every row here reaches its goals."
    return "Short of the goal:\n\n" + "\n".join(f"- {miss}" for miss in missed)


def _quartiles(
    workloads: Sequence[Workload], systems: Mapping[str, str], rows: Mapping[str, Mapping[str, Spread]]
) -> str:
    lines = []
    for workload in workloads:
        row = rows.get(workload.name)
        if row is not None:
            figures = [
                f"{readable(row[name].low)} – {readable(row[name].high)}" if name in row else ""
                for name in systems
            ]
            lines.append([workload.title, str(workload.unit), *figures])
    return markdown_table(["operation", "unit", *systems.values()], lines)
