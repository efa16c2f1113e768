"""What names stand for, or which histories they have, as far as it is in memory: a look-up in a tenth of the time.

Invariant: whoever changes the table of names tells it here, when that is done. A directory is known as a whole
from when there is nothing in it, so what is not known in it is not there: programs ask for every name before they
make it, and a name that is removed for the first time has no history.
"""

from __future__ import annotations

from itertools import islice

__all__ = ["KnownNames"]

_WHOLE_MAX = 10_000


class KnownNames:
    """Numbers, of inodes or of histories, by directory and name.

    Args:
      limit: So many names are kept, those longest here go first; 0: nothing is, since others change the table.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._whole: set[int] = set()

    def get(self, parent: int, name: bytes) -> int | None:
        """The number; 0 if the name has none, None if that is not known."""
        found = self._numbers.get((parent, name))
        return 0 if found is None and parent in self._whole else found

    def keep(self, parent: int, name: bytes, number: int) -> None:
        """The name has this number, or with 0 none."""
        numbers = self._numbers
        if len(numbers) >= self._limit:
            if not self._limit:
                return
            self._whole.clear()
            for oldest in list(islice(numbers, self._limit // 4)):
                del numbers[oldest]
        numbers[parent, name] = number

    def remove(self, parent: int, name: bytes) -> int:
        """The name has no number any more; return which it had, 0 if that was not known."""
        return self._numbers.pop((parent, name), 0)

    def begin(self, directory: int) -> None:
        """No name in this directory has a number."""
        if self._limit:
            if len(self._whole) >= _WHOLE_MAX:
                self._whole.clear()
            self._whole.add(directory)

    def doubt(self, parent: int, name: bytes) -> None:
        """The name may have another number than is known."""
        self._numbers.pop((parent, name), None)
        self._whole.discard(parent)

    def clear(self) -> None:
        """Nothing is known any more."""
        self._numbers.clear()
        self._whole.clear()
