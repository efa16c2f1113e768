"""Holds: nothing is collected or purged while somebody copies the store. Each ends by itself in time."""

from __future__ import annotations

import time
from typing import Final

from mountstore.errors import AbsentError, BusyError, MisuseError

__all__ = ["HOLD_MAX_S", "HOLD_S", "Holds"]

HOLD_S: Final = 3600.0
HOLD_MAX_S: Final = 7 * 86400.0


class Holds:
    """The holds of one mount."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._next = 1

    def __len__(self) -> int:
        self._expire()
        return len(self._until)

    def _expire(self) -> None:
        now = time.monotonic()
        self._until = {number: until for number, until in self._until.items() if until > now}

    def take(self, timeout_s: float, number: int | None = None) -> int:
        """Begin a hold, or have one last `timeout_s` from now; returns its number.

        Raises: AbsentError if that hold has ended; MisuseError for a time that is no time.
        """
        if not 0 < timeout_s <= HOLD_MAX_S:
            raise MisuseError(f"a hold lasts up to {HOLD_MAX_S:.0f} seconds, not {timeout_s:g}")
        self._expire()
        if number is None:
            number = self._next
            self._next += 1
        elif number not in self._until:
            raise AbsentError(f"hold {number} has ended")
        self._until[number] = time.monotonic() + timeout_s
        return number

    def release(self, number: int | None) -> int:
        """End a hold, or all of them; returns how many. Raises: AbsentError if it has ended."""
        self._expire()
        if number is None:
            count = len(self._until)
            self._until.clear()
            return count
        if self._until.pop(number, None) is None:
            raise AbsentError(f"there is no hold {number}, or it has ended")
        return 1

    def require_none(self) -> None:
        """Raises: BusyError"""
        self._expire()
        if self._until:
            number, until = max(self._until.items(), key=lambda item: item[1])
            left_s = until - time.monotonic()
            raise BusyError(
                f"collections are held for {left_s:.0f} more seconds (hold {number}), mostly by a backup;"
                " `gc release` ends that"
            )

    def describe(self) -> list[dict[str, object]]:
        self._expire()
        now = time.monotonic()
        return [{"hold": number, "left_s": round(until - now, 1)} for number, until in sorted(self._until.items())]
