"""RangeSet against the set of its bytes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from mountstore.namespace.ranges import RangeSet

END = 60
POINTS = st.integers(0, END)
RANGES = st.tuples(POINTS, POINTS)
STEPS = st.lists(
    st.one_of(st.tuples(st.just("add"), RANGES), st.tuples(st.just("truncate"), st.tuples(POINTS, POINTS))),
    max_size=20,
)


def built(steps: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    """A range set and its model after the same steps."""
    ranges, model = RangeSet(), set[int]()
    for what, (start, end) in steps:
        if what == "add":
            ranges.add(start, end)
            model.update(range(start, end))
        else:
            ranges.truncate(end)
            model = {byte for byte in model if byte < end}
    return ranges, model


@settings(deadline=None, max_examples=300)
@given(STEPS)
def test_it_holds_what_was_added_and_not_cut_off(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, model = built(steps)
    assert {byte for start, end in ranges for byte in range(start, end)} == model
    assert ranges.total() == len(model)
    assert len(ranges) == len(list(ranges))


@settings(deadline=None, max_examples=300)
@given(STEPS)
def test_ranges_are_sorted_and_never_touch(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, _ = built(steps)
    flat = [point for stretch in ranges for point in stretch]
    assert flat == sorted(set(flat))


@settings(deadline=None, max_examples=300)
@given(STEPS, RANGES)
def test_split_covers_a_stretch_once_and_tells_what_is_in(
    steps: list[tuple[str, tuple[int, int]]], stretch: tuple[int, int]
) -> None:
    ranges, model = built(steps)
    parts = list(ranges.split(*stretch))
    covered = [(byte, inside) for start, end, inside in parts for byte in range(start, end)]
    assert covered == [(byte, byte in model) for byte in range(*stretch)]
    assert all(start < end for start, end, _ in parts)
    assert all(one[2] != two[2] for one, two in itertools.pairwise(parts))


@settings(deadline=None)
@given(STEPS)
def test_a_copy_is_equal_and_independent(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, _ = built(steps)
    before = list(ranges)
    copy = RangeSet(ranges)
    assert list(copy) == before
    copy.add(0, END + 5)
    assert list(ranges) == before
