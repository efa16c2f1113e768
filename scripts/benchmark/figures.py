"""Samples and what is made of them: medians, quartiles, ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "MIB",
    "Sample",
    "Spread",
    "Timing",
    "Unit",
    "by_system",
    "quantity",
    "readable",
    "speed_ratio",
    "spread",
]

MIB = 1 << 20


class Unit(StrEnum):
    """How a workload's figure is given."""

    PER_SECOND = "/s"
    MIB_PER_SECOND = "MiB/s"
    SECONDS = "s"

    @property
    def more_is_better(self) -> bool:
        return self is not Unit.SECONDS


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed run."""

    amount: float
    """Operations done or bytes moved; 1 where only the time counts."""
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A timed run, and what it was a run of."""

    workload: str
    system: str
    round: int
    amount: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float


def quantity(unit: Unit, amount: float, elapsed_s: float) -> float:
    """The figure of one run in `unit`."""
    match unit:
        case Unit.PER_SECOND:
            return amount / elapsed_s
        case Unit.MIB_PER_SECOND:
            return amount / MIB / elapsed_s
        case Unit.SECONDS:
            return elapsed_s


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (those of the values themselves, not of what they may be a sample of).

    Raises:
      ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def speed_ratio(unit: Unit, ours: float, peer: float) -> float:
    """How many times as fast as the peer we are, whichever way the unit points."""
    return ours / peer if unit.more_is_better else peer / ours


def by_system(unit: Unit, samples: Iterable[Sample]) -> dict[str, Spread]:
    """The spread of every system's figures; the samples are all of one workload."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        values.setdefault(sample.system, []).append(quantity(unit, sample.amount, sample.elapsed_s))
    return {system: spread(figures) for system, figures in values.items()}


def readable(value: float) -> str:
    """Three significant digits, thousands separated: 12,300 and 0.0457."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    digits = 2
    bound = 1.0
    while abs(rounded) < bound:
        digits += 1
        bound /= 10
    return f"{rounded:.{digits if abs(rounded) < 10 else 1}f}"
