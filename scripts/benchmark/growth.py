"""The programme for growth: what an operation costs when the mount holds ever more files, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark import machine
from benchmark.client import Client
from benchmark.figures import MIB, readable
from benchmark.report import markdown_table
from benchmark.systems import Ours, System
from benchmark.workloads import run_timed

__all__ = ["GrowthRow", "format_growth", "run_growth"]

PER_DIRECTORY = 1000
FILE_BYTES = 100


@dataclass(frozen=True, slots=True)
class GrowthRow:
    """One system at one size; costs in microseconds an operation."""

    system: str
    files: int
    costs_us: dict[str, float]
    memory_bytes: int | None
    """Of the daemon, with as many names in the kernel's cache as it cares to keep; None without a daemon."""
    catalog_bytes: int | None
    """Of the catalog with its log; None for others than ours."""


def run_growth(
    systems: Sequence[System],
    sizes: Sequence[int],
    probe: int,
    client: Client,
    quiet: machine.Quiet,
    progress: Callable[[str], None],
) -> list[GrowthRow]:
    """Fill each system to one size after the other, and measure `probe` operations of each kind there.

    Args:
      systems: Started already.
      sizes: Numbers of files, increasing, in thousands.
      probe: Operations a figure is made of; at most a tenth of the smallest size.
    """
    rows = []
    filled = 0
    for size in sizes:
        for system in systems:
            directory = os.path.join(system.root, "growth")
            os.makedirs(directory, exist_ok=True)
            client(
                "create",
                directory,
                start=filled,
                count=size - filled,
                per_dir=PER_DIRECTORY,
                size=FILE_BYTES,
                seed=5000,
            )
            row = _measure(system, directory, size, probe, client, quiet)
            rows.append(row)
            costs = ", ".join(f"{what} {readable(cost)}" for what, cost in row.costs_us.items())
            progress(f"{system.title:10} {size:>9,} files: {costs} us")
        filled = size
    return rows


def _measure(
    system: System, directory: str, size: int, probe: int, client: Client, quiet: machine.Quiet
) -> GrowthRow:
    spaced = {"count": probe, "step": size // probe, "per_dir": PER_DIRECTORY}
    quiet.settle()
    pid = system.pid
    memory = None if pid is None else machine.memory_bytes(pid)

    def cost(operation: str, where: str, **values: int | str) -> float:
        timing = client(operation, where, **values)
        return timing.elapsed_s / timing.amount * 1e6

    beside = os.path.join(system.root, f"probe{size}")
    os.makedirs(beside)
    costs = {"create": cost("create", beside, count=probe, size=FILE_BYTES, seed=size + 7)}
    quiet.settle()
    quiet.drop_names()
    costs["stat"] = cost("stat", directory, **spaced)
    costs["open+read+close"] = cost("read", directory, **spaced)
    quiet.settle()
    quiet.drop_names()
    # One directory of PER_DIRECTORY files, an entry.
    costs["ls -l"] = (
        run_timed(["ls", "-l"], os.path.join(directory, "d000000")).elapsed_s / PER_DIRECTORY * 1e6
    )
    costs["rename"] = cost("rename", beside, count=probe)
    costs["unlink"] = cost("unlink", beside, count=probe, prefix="r")
    catalog = None
    if isinstance(system, Ours):
        names = [name for name in os.listdir(system.store) if name.startswith("catalog.db")]
        catalog = sum(os.stat(os.path.join(system.store, name)).st_size for name in names)
    return GrowthRow(system.name, size, costs, memory, catalog)


def format_growth(systems: dict[str, str], rows: Sequence[GrowthRow]) -> str:
    """Markdown: one line for each system and size."""
    operations = list(rows[0].costs_us)
    lines = []
    for name, title in systems.items():
        for row in rows:
            if row.system == name:
                memory = "" if row.memory_bytes is None else f"{row.memory_bytes // MIB} MiB"
                catalog = "" if row.catalog_bytes is None else f"{row.catalog_bytes // MIB} MiB"
                costs = [readable(row.costs_us[operation]) for operation in operations]
                lines.append([title, f"{row.files:,}", *costs, memory, catalog])
    return markdown_table(["us an operation", "files", *operations, "memory", "catalog"], lines)
