"""How people write versions and times: `path@N`, `path@TIME`, `2026-11-22T10:00:00`. Pure; parsed here only.

A name may hold `@` itself, so `a@2` may be a name of its own: whoever looks names up tries the whole text first,
and takes it apart only if there is no such name. An `@` at the end selects nothing and says that what stands
before it is the name: `a@2@` is the name `a@2`, whatever there is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_NUMBER = re.compile(rb"[1-9][0-9]{0,17}")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NS_MAX = (1 << 63) - 1


class Instant(NamedTuple):
    """A time to look back to."""

    time_ns: int


class Reference(NamedTuple):
    """A name or path, and which version of it: a number, an instant, or None for what there is."""

    name: bytes
    selector: int | Instant | None


def parse_number(text: bytes) -> int | None:
    """A version's number as it is shown: decimal, from 1, without leading zeros; None if it is none."""
    return int(text) if _NUMBER.fullmatch(text) else None


def parse_time(text: bytes) -> Instant | None:
    """A time in ISO 8601, local unless it ends in `Z` or an offset; None if it is none.

    A date alone is its midnight; fractions count to the microsecond.
    """
    try:
        when = datetime.fromisoformat(text.decode("ascii"))
        microseconds = (when.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError, OSError):
        return None
    time_ns = microseconds * 1000
    return Instant(time_ns) if abs(time_ns) <= _NS_MAX else None


def parse_reference(text: bytes) -> Reference:
    """Take `name@N`, `name@TIME` or `name@` apart at the last `@`; anything else is a name as it is.

    In a path, only the last component is looked at: `/a@1/b` is a path without a version.
    """
    name, at, suffix = text.rpartition(b"@")
    if not at or b"/" in suffix or not name or name.endswith(b"/"):
        return Reference(text, None)
    if not suffix:
        return Reference(name, None)
    selector = parse_number(suffix) or parse_time(suffix)
    return Reference(text, None) if selector is None else Reference(name, selector)
