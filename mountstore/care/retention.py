"""Which versions of a name are kept: a pure function of the versions, the time and the policy.

A version is kept if one of these holds:
  1. It is one of the `keep_last` newest.
  2. It was superseded in the last `keep_days` days.
  3. It is the first that was superseded in one of the stretches of time of a step of thinning, that is, what
     the name held when the stretch began; for as long as the step says, counted from the end of the stretch.

and none of these, which come first:
  4. Versions are off.
  5. It is larger than `max_version_size`.
  6. The name lived less than a minute (a journal, a lock file), more than `short_lived_days` ago.

What the name holds now is no version, and nothing here concerns it.

Invariants (tests/care/test_retention.py)
  1. Evaluating again what was kept, at the same time, keeps all of it.
  2. What was dropped is not missed later: it would be dropped at any later time too, whatever was superseded
     since. For stretches are cut out of absolute time (UTC), and of each the first is taken, which never
     changes.
  3. A policy with more in it keeps more: raising a number, lengthening a step or adding one drops nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from mountstore.namespace.policy import Policy

__all__ = ["Policy", "Reason", "Superseded", "Verdict", "judge"]

_DAY_NS: Final = 86_400 * 10**9


class Superseded(NamedTuple):
    """One version of a name, as far as it matters here."""

    until_ns: int
    """When it was superseded."""
    size_bytes: int
    fleeting: bool = False
    """The name that held it lived less than a minute."""


class Reason(StrEnum):
    """Why a version is kept or dropped."""

    LATEST = "among the latest"
    RECENT = "recent"
    THINNED = "kept by thinning"

    OFF = "versions are off"
    TOO_LARGE = "too large"
    SHORT_LIVED = "short-lived name"
    EXPIRED = "old"


class Verdict(NamedTuple):
    """What becomes of a version."""

    keep: bool
    reason: Reason


def judge(versions: Sequence[Superseded], now_ns: int, policy: Policy) -> list[Verdict]:
    """A verdict for each version of one name.

    Args:
      versions: Oldest first. Their times need not be in order (clocks are set), their order is what counts.
    """
    latest = len(versions) - policy.keep_last
    recent_ns = now_ns - _DAY_NS * policy.keep_days
    fleeting_ns = now_ns - _DAY_NS * policy.short_lived_days
    largest = policy.max_version_size or max((version.size_bytes for version in versions), default=0)
    thinned = _thinned(versions, now_ns, policy)
    verdicts = []
    for place, version in enumerate(versions):
        if not policy.enabled:
            verdict = Verdict(False, Reason.OFF)
        elif version.size_bytes > largest:
            verdict = Verdict(False, Reason.TOO_LARGE)
        elif version.fleeting and version.until_ns <= fleeting_ns:
            verdict = Verdict(False, Reason.SHORT_LIVED)
        elif place >= latest:
            verdict = Verdict(True, Reason.LATEST)
        elif version.until_ns > recent_ns:
            verdict = Verdict(True, Reason.RECENT)
        elif place in thinned:
            verdict = Verdict(True, Reason.THINNED)
        else:
            verdict = Verdict(False, Reason.EXPIRED)
        verdicts.append(verdict)
    return verdicts


def _thinned(versions: Sequence[Superseded], now_ns: int, policy: Policy) -> set[int]:
    """Places of the versions that thinning keeps."""
    kept = set()
    for every_s, for_s in policy.steps:
        every_ns = every_s * 10**9
        # Stretches from this one on end late enough.
        oldest = (now_ns - for_s * 10**9) // every_ns
        seen = set()
        for place, version in enumerate(versions):
            stretch = version.until_ns // every_ns
            if stretch >= oldest and stretch not in seen:
                seen.add(stretch)
                kept.add(place)
    return kept
