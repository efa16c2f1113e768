"""Which automatic snapshots are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mountstore.namespace.snapshot_policy import SnapshotPolicy, superfluous

HOUR = 3600 * 1_000_000_000
DAY = 24 * HOUR
FIRST = 20_000 * DAY

times = st.lists(st.integers(0, 800 * DAY // HOUR * 7).map(lambda n: FIRST + n * HOUR // 7), max_size=60)
policies = st.builds(
    SnapshotPolicy,
    keep_hourly=st.integers(0, 30),
    keep_daily=st.integers(0, 40),
    keep_monthly=st.integers(0, 15),
)


def kept(found: list[int], policy: SnapshotPolicy) -> list[int]:
    return sorted(set(found) - superfluous(found, policy))


@given(times, policies)
def test_the_newest_stays_and_no_more_than_the_policy_says(found: list[int], policy: SnapshotPolicy) -> None:
    left = kept(found, policy)
    assert set(left) <= set(found)
    assert left[-1:] == sorted(found)[-1:]
    assert len(left) <= max(1, policy.keep_hourly + policy.keep_daily + policy.keep_monthly)


@given(times, policies)
def test_what_is_kept_is_kept_when_asked_again(found: list[int], policy: SnapshotPolicy) -> None:
    left = kept(found, policy)
    assert superfluous(left, policy) == set()


@given(times, policies)
def test_every_recent_period_that_had_one_has_its_last_one(found: list[int], policy: SnapshotPolicy) -> None:
    left = set(kept(found, policy))
    for count, length in ((policy.keep_hourly, HOUR), (policy.keep_daily, DAY)):
        last: dict[int, int] = {}
        for time in sorted(found):
            last[time // length] = time
        newest = sorted(last)[-count:] if count else []
        assert {last[period] for period in newest} <= left


@given(times, policies)
def test_pruning_after_each_one_leaves_what_pruning_at_the_end_leaves(
    found: list[int], policy: SnapshotPolicy
) -> None:
    left: list[int] = []
    for time in sorted(set(found)):
        left = kept([*left, time], policy)
    assert left == kept(found, policy)


def test_an_hourly_snapshot_for_two_years() -> None:
    found = [FIRST + hour * HOUR for hour in range(2 * 365 * 24)]
    left = kept(found, SnapshotPolicy())
    assert len(left) == 24 + 30 + 12 - 3
    assert left[-24:] == found[-24:]
