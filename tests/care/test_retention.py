"""Retention: known answers, and the invariants of `mountstore.care.retention`."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountstore.care.retention import Policy, Reason, Superseded, judge
from mountstore.errors import MisuseError
from mountstore.namespace.policy import KEEP_ALL, Step, parse_steps, parse_words

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
NOW = 20_000 * DAY + 12 * HOUR
NOTHING = Policy(keep_last=0, keep_days=0.0, thin="")


def at(*ages: int, size_bytes: int = 10) -> list[Superseded]:
    """Versions superseded so long ago."""
    return [Superseded(NOW - age, size_bytes) for age in ages]


def kept(versions: list[Superseded], policy: Policy, now_ns: int = NOW) -> list[Superseded]:
    verdicts = judge(versions, now_ns, policy)
    return [version for version, verdict in zip(versions, verdicts, strict=True) if verdict.keep]


def replace(policy: Policy, **fields: object) -> Policy:
    return msgspec.structs.replace(policy, **fields)


# --- known answers ---


def test_the_newest_are_kept_however_old() -> None:
    versions = at(*(1000 * DAY - place for place in range(30)))
    assert kept(versions, replace(NOTHING, keep_last=10)) == versions[-10:]
    assert kept(versions, replace(NOTHING, keep_last=100)) == versions
    assert kept(versions, NOTHING) == []


def test_all_of_the_last_days_are_kept() -> None:
    versions = at(3 * DAY, 2 * DAY, DAY, DAY - 1, HOUR, 1)
    assert kept(versions, replace(NOTHING, keep_days=1.0)) == versions[3:]
    assert kept(versions, replace(NOTHING, keep_days=float("inf"))) == versions


def test_thinning_keeps_what_was_there_when_an_hour_began() -> None:
    versions = at(5 * HOUR - 1, 5 * HOUR - 2, 4 * HOUR, 4 * HOUR - 1, HOUR)
    policy = replace(NOTHING, thin="1h:7d")
    assert kept(versions, policy) == [versions[0], versions[2], versions[4]]
    assert kept(versions, policy, NOW + 7 * DAY - 1) == [versions[4]]
    assert kept(versions, policy, NOW + 7 * DAY) == []


def test_the_defaults_thin_out_an_hourly_history() -> None:
    policy = Policy()
    versions = at(*(hours * HOUR - 1 for hours in range(400 * 24, 0, -1)))
    found = kept(versions, policy)
    ages = [(NOW - version.until_ns) / DAY for version in found]
    assert sum(age < 1 for age in ages) == 24
    assert sum(1 <= age < 7 for age in ages) == 6 * 24
    assert 357 <= sum(age >= 7 for age in ages) <= 360
    assert max(ages) < 366


def test_versions_that_are_too_large_are_not_kept() -> None:
    versions = [*at(3, size_bytes=11), *at(2, size_bytes=10), *at(1, size_bytes=11)]
    assert kept(versions, replace(KEEP_ALL, max_version_size=10)) == versions[1:2]


def test_what_short_lived_names_held_goes_after_a_day() -> None:
    versions = [version._replace(fleeting=True) for version in at(2 * DAY, HOUR)]
    assert kept(versions, Policy()) == versions[1:]
    assert [verdict.reason for verdict in judge(versions, NOW, Policy())] == [
        Reason.SHORT_LIVED,
        Reason.LATEST,
    ]


def test_nothing_is_kept_where_versions_are_off() -> None:
    assert kept(at(1), replace(KEEP_ALL, enabled=False)) == []


# --- invariants ---

_SPAN_NS = 40 * DAY
versions_of_a_name = st.lists(
    st.builds(
        Superseded,
        until_ns=st.integers(NOW - _SPAN_NS, NOW) | st.integers(NOW - 3 * HOUR, NOW + HOUR),
        size_bytes=st.integers(1, 20),
        fleeting=st.booleans(),
    ),
    max_size=40,
)
in_order = versions_of_a_name.map(lambda found: sorted(found, key=lambda version: version.until_ns))
steps = st.lists(
    st.tuples(
        st.sampled_from(["7m", "1h", "5h", "1d", "9d"]), st.sampled_from(["3h", "2d", "7d", "30d"])
    ),
    max_size=3,
)
policies = st.builds(
    Policy,
    enabled=st.just(True),
    keep_last=st.integers(0, 6),
    keep_days=st.sampled_from([0.0, 0.1, 1.0, 7.5, float("inf")]),
    thin=steps.map(lambda found: ",".join(f"{every}:{for_}" for every, for_ in found)),
    max_version_size=st.integers(0, 20),
    short_lived_days=st.sampled_from([0.0, 1.0, float("inf")]),
)
lapses = st.integers(0, 10 * DAY)


@given(versions_of_a_name, policies)
def test_the_newest_are_always_kept(versions: list[Superseded], policy: Policy) -> None:
    limits = replace(policy, max_version_size=0, short_lived_days=float("inf"))
    verdicts = judge(versions, NOW, limits)
    assert all(verdict.keep for verdict in verdicts[max(len(versions) - policy.keep_last, 0) :])


@given(versions_of_a_name, policies)
def test_what_was_kept_is_kept_again(versions: list[Superseded], policy: Policy) -> None:
    once = kept(versions, policy)
    assert kept(once, policy) == once


@given(versions_of_a_name, versions_of_a_name, policies, lapses)
def test_what_was_dropped_is_never_missed(
    versions: list[Superseded], more: list[Superseded], policy: Policy, lapse: int
) -> None:
    later = NOW + lapse
    verdicts = judge(versions, NOW, policy)
    later_verdicts = judge([*versions, *more], later, policy)
    for before, after in zip(verdicts, later_verdicts, strict=False):
        assert before.keep or not after.keep


@given(in_order, policies, st.lists(lapses, max_size=4))
def test_evaluating_often_comes_to_the_same_as_evaluating_once(
    versions: list[Superseded], policy: Policy, pauses: list[int]
) -> None:
    policy = replace(policy, max_version_size=0, short_lived_days=float("inf"))
    now, found = NOW, versions
    for pause in pauses:
        found = kept(found, policy, now)
        now += pause
    assert kept(found, policy, now) == kept(versions, policy, now)


@given(versions_of_a_name, policies, policies)
def test_a_policy_with_more_in_it_keeps_more(
    versions: list[Superseded], policy: Policy, other: Policy
) -> None:
    sizes = (policy.max_version_size, other.max_version_size)
    more = Policy(
        keep_last=max(policy.keep_last, other.keep_last),
        keep_days=max(policy.keep_days, other.keep_days),
        thin=",".join(part for part in (policy.thin, other.thin) if part),
        max_version_size=max(sizes) if all(sizes) else 0,
        short_lived_days=max(policy.short_lived_days, other.short_lived_days),
    )
    for verdict, with_more in zip(
        judge(versions, NOW, policy), judge(versions, NOW, more), strict=True
    ):
        assert with_more.keep or not verdict.keep


# --- how policies are written ---


def test_steps_are_parsed() -> None:
    assert parse_steps("1h:7d, 1d:1y") == (Step(3600, 7 * 86400), Step(86400, 365 * 86400))
    assert parse_steps("") == ()


@pytest.mark.parametrize("text", ["1h", "1h:", ":1d", "h:d", "0s:1d", "1h:7d,", "-1h:7d", "1h:99999y"])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(MisuseError):
        parse_steps(text)


def test_an_attribute_changes_what_it_names() -> None:
    store = Policy(keep_last=3)
    above = parse_words("keep_days=30 max_version_size=2M", store, store)
    assert above == Policy(keep_last=3, keep_days=30.0, max_version_size=2 << 20)
    assert not parse_words("off", above, store).enabled
    assert parse_words("off on keep_last=5", above, store) == replace(above, keep_last=5)
    assert parse_words("default", above, store) == store
    assert parse_words("thin=none keep_days=inf", store, store).steps == ()


@pytest.mark.parametrize(
    "text", ["of", "keep_last", "keep_last=-1", "keep_days=nan", "keep_days=-1", "thin=1h", "max_version_size=1P"]
)
def test_an_attribute_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(MisuseError):
        parse_words(text, Policy(), Policy())


@pytest.mark.parametrize("fields", [{"keep_days": float("nan")}, {"thin": "often"}])
def test_a_policy_is_validated(fields: dict[str, object]) -> None:
    with pytest.raises(MisuseError):
        Policy(**fields)  # type: ignore[arg-type]
