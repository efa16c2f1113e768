"""Which old versions are worth their room: the policy, and how people write it. Pure.

What a policy means is `mountstore.care.retention`; users read docs/gc.md. The store's own stands in
`store.toml`, in the table `[versions]`. A directory may have the extended attribute
`user.mountstore.versions`, which changes the policy of the directory above for everything below it.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple

import msgspec

from mountstore.errors import MisuseError

ATTRIBUTE: Final = b"user.mountstore.versions"

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdwy])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_SPAN_MAX_S: Final = 1 << 33  # 272 years: more does not fit into 64 bits of nanoseconds
_SIZE = re.compile(r"(\d+)([KMGT]?)")
_FACTOR: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Step(NamedTuple):
    """One step of thinning: of every stretch of `every_s` seconds one version is kept, for `for_s` seconds."""

    every_s: int
    for_s: int


_NotNegative = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Days = Annotated[float, msgspec.Meta(ge=0)]


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[versions]` of `store.toml`.

    Raises:
      MisuseError: A value is out of range.
    """

    enabled: bool = True
    """False: garbage collection drops every version."""
    keep_last: _NotNegative = 10
    """So many of the newest versions of a name are kept."""
    keep_days: _Days = 1.0
    """All versions that were current in the last so many days are kept; `inf` keeps all."""
    thin: str = "1h:7d,1d:1y"
    """Steps of thinning `EVERY:FOR`, separated by commas; empty for none."""
    max_version_size: _NotNegative = 0
    """Versions of more bytes are not kept at all; 0: no limit."""
    short_lived_days: _Days = 1.0
    """What names that lived less than a minute held is kept for so many days at most; `inf`: as all else."""

    def __post_init__(self) -> None:
        if self.keep_days != self.keep_days or self.short_lived_days != self.short_lived_days:
            raise MisuseError("days must be a number")
        parse_steps(self.thin)

    @property
    def steps(self) -> tuple[Step, ...]:
        return parse_steps(self.thin)


def parse_steps(text: str) -> tuple[Step, ...]:
    """`1h:7d,1d:1y` as steps.

    Raises: MisuseError
    """
    if not text:
        return ()
    steps = []
    for word in text.split(","):
        every, colon, for_ = word.strip().partition(":")
        if not colon:
            raise MisuseError(f"{word.strip()!r} is no step of thinning: write EVERY:FOR, such as 1h:7d")
        step = Step(parse_span(every), parse_span(for_))
        if step.every_s < 1:
            raise MisuseError(f"{word.strip()!r}: the first part must be at least a second")
        steps.append(step)
    return tuple(steps)


def parse_span(text: str) -> int:
    """`90s`, `15m`, `1h`, `7d`, `2w` or `1y` in seconds. Raises: MisuseError"""
    match = _SPAN.fullmatch(text)
    seconds = float(match[1]) * _UNIT_S[match[2]] if match else -1.0
    if match is None or seconds > _SPAN_MAX_S:
        raise MisuseError(f"{text!r} is no span of time: write a number and s, m, h, d, w or y")
    return int(seconds)


def parse_words(text: str, above: Policy, store: Policy) -> Policy:
    """The policy that an attribute's value makes of the one above.

    Words are separated by spaces: `off`, `on`, `default` (the store's policy, whatever stands above), and
    `key=value` with the keys of `Policy`. What is not named stays as it is above.

    Raises:
      MisuseError: It cannot be understood.
    """
    policy = above
    for word in text.split():
        key, equals, value = word.partition("=")
        if word == "off":
            policy = msgspec.structs.replace(policy, enabled=False)
        elif word == "on":
            policy = msgspec.structs.replace(policy, enabled=True)
        elif word == "default":
            policy = store
        elif not equals or key not in _PARSE:
            raise MisuseError(f"{word!r} is not understood in a policy of versions")
        else:
            try:
                policy = msgspec.structs.replace(policy, **{key: _PARSE[key](value)})
            except MisuseError as exc:
                raise MisuseError(f"{key}: {exc}") from None
    return policy


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise MisuseError(f"{text!r} is not a whole number")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise MisuseError(f"{text!r} is no number of days")
    return days


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or len(match[1]) > 15:
        raise MisuseError(f"{text!r} is not a size: give bytes, or a number with K, M, G or T")
    return int(match[1]) * _FACTOR[match[2]]


def _thin(text: str) -> str:
    if text == "none":
        return ""
    parse_steps(text)
    return text


_PARSE: Final = {
    "keep_last": _number,
    "keep_days": _days,
    "thin": _thin,
    "max_version_size": _size,
    "short_lived_days": _days,
}

KEEP_ALL: Final = Policy(keep_days=float("inf"), short_lived_days=float("inf"))
