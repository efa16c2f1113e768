"""How versions and times are written."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountstore.namespace.notation import Instant, Reference, parse_number, parse_reference, parse_time

TEN_NS = 1_795_341_600 * 10**9
"""2026-11-22T10:00:00Z"""


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (b"f", Reference(b"f", None)),
        (b"f@2", Reference(b"f", 2)),
        (b"/a/b@12", Reference(b"/a/b", 12)),
        (b"a@2@3", Reference(b"a@2", 3)),
        (b"a@2@", Reference(b"a@2", None)),
        (b"f@2026-11-22T10:00:00Z", Reference(b"f", Instant(TEN_NS))),
        (b"f@2026-11-22T12:00:00+02:00", Reference(b"f", Instant(TEN_NS))),
        # Names that happen to hold an @.
        (b"me@home", Reference(b"me@home", None)),
        (b"f@02", Reference(b"f@02", None)),
        (b"f@0", Reference(b"f@0", None)),
        (b"f@-1", Reference(b"f@-1", None)),
        (b"@2", Reference(b"@2", None)),
        (b"/a/@2", Reference(b"/a/@2", None)),
        (b"/a@1/b", Reference(b"/a@1/b", None)),
        (b"f@\xff", Reference(b"f@\xff", None)),
        (b"\xff\n@7", Reference(b"\xff\n", 7)),
    ],
)
def test_references(text: bytes, reference: Reference) -> None:
    assert parse_reference(text) == reference


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name), st.integers(1, 10**17))
def test_every_name_has_a_notation_for_each_of_its_versions(name: bytes, number: int) -> None:
    assert parse_reference(name + b"@%d" % number) == (name, number)
    assert parse_reference(name + b"@") == (name, None)


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_can_be_parsed(text: bytes) -> None:
    parse_reference(text)
    parse_time(text)
    number = parse_number(text)
    assert number is None or b"%d" % number == text


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        (b"2026-11-22T10:00:00Z", TEN_NS),
        (b"2026-11-22T10:00:00.5Z", TEN_NS + 5 * 10**8),
        (b"2026-11-22T11:30+01:30", TEN_NS),
        (b"2026-11-22 10:00:00+00:00", TEN_NS),
        (b"9999-01-01T00:00:00Z", None),
        (b"0001-01-01", None),
        (b"10:00", None),
        (b"yesterday", None),
        (b"", None),
    ],
)
def test_times(text: bytes, time_ns: int | None) -> None:
    instant = parse_time(text)
    assert (instant and instant.time_ns) == time_ns


def test_a_time_without_zone_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC-5")
        time.tzset()
        assert parse_time(b"2026-11-22T15:00:00") == Instant(TEN_NS)
    time.tzset()
