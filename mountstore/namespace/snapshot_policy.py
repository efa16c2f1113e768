"""Which automatic snapshots are worth keeping. Pure; users read docs/snapshots.md.

Of every hour, day and month (UTC) the latest one is kept, for as many hours, days and months that have one as
the policy says, counted from the newest. The newest of all is always kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

_NS: Final = 1_000_000_000


class SnapshotPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[snapshots]` of `store.toml`."""

    keep_hourly: _Count = 24
    keep_daily: _Count = 30
    keep_monthly: _Count = 12


def superfluous(times_ns: Iterable[int], policy: SnapshotPolicy) -> set[int]:
    """Times of the snapshots that are not kept; asked again of those that are, it names none."""
    newest_first = sorted(set(times_ns), reverse=True)
    kept = set(newest_first[:1])
    periods: tuple[tuple[int, Callable[[int], object]], ...] = (
        (policy.keep_hourly, _hour),
        (policy.keep_daily, _day),
        (policy.keep_monthly, _month),
    )
    for count, period_of in periods:
        latest: dict[object, int] = {}
        for time_ns in newest_first:
            if len(latest) >= count and period_of(time_ns) not in latest:
                break
            latest.setdefault(period_of(time_ns), time_ns)
        kept.update(latest.values())
    return set(newest_first) - kept


def _hour(time_ns: int) -> int:
    return time_ns // (3600 * _NS)


def _day(time_ns: int) -> int:
    return time_ns // (86400 * _NS)


def _month(time_ns: int) -> tuple[int, int]:
    time = datetime.fromtimestamp(time_ns // _NS, UTC)
    return time.year, time.month
