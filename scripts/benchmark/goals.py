"""The goals the project has set itself for speed, and the rows that fall short of them.

As run by default, no row slower than bindfs or gocryptfs. On one core, no row slower than gocryptfs and none below
0.6 of the null file system. Both ways, at least twice S3QL, whose figures were not taken in the same run.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmark.figures import Spread, Unit, readable, speed_ratio
from benchmark.workloads import Workload

__all__ = ["S3QL_ONE_CORE", "S3QL_SPREAD", "least_ratios", "s3ql", "shortfalls"]

S3QL_ONE_CORE: dict[str, float] = {
    "create": 1200.0,
    "stat": 25_000.0,
    "read-warm": 15_000.0,
    "rename": 4700.0,
    "unlink": 1400.0,
    "mkdir": 3800.0,
}
"""S3QL 6.3, local backend, operations a second, client and daemon on one core. Measured once, on another day, on a
2-core virtual machine with files of 100 bytes; constants here."""

S3QL_SPREAD: dict[str, float] = {
    "create": 1e6 / 930,
    "stat": 1e6 / 108,
    "read-warm": 1e6 / 166,
    "rename": 1e6 / 395,
    "unlink": 1e6 / 406,
}
"""The same on any core."""


def s3ql(workload: str, *, pinned: bool) -> float | None:
    """S3QL's figure for a row, where there is one."""
    return (S3QL_ONE_CORE if pinned else S3QL_SPREAD).get(workload)


def least_ratios(*, pinned: bool) -> dict[str, float]:
    """How many times as fast as each peer we want to be at least; only peers of the same run."""
    return {"gocryptfs": 1.0, "null": 0.6} if pinned else {"bindfs": 1.0, "gocryptfs": 1.0}


def shortfalls(workload: Workload, row: Mapping[str, Spread], *, pinned: bool) -> list[str]:
    """What a row misses, in words; empty if it reaches every goal, or lacks our figure."""
    if "ours" not in row:
        return []
    ours = row["ours"].median
    missed = []
    for peer, least in least_ratios(pinned=pinned).items():
        if peer in row and (got := speed_ratio(workload.unit, ours, row[peer].median)) < least:
            missed.append(f"{workload.title}: {readable(got)} of {peer}, wanted {least:g}")
    published = s3ql(workload.name, pinned=pinned)
    if published is not None and workload.unit is Unit.PER_SECOND and ours < 2 * published:
        missed.append(f"{workload.title}: {readable(ours / published)} of S3QL, wanted 2")
    return missed
