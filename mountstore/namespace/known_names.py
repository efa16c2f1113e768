"""What names stand for, as far as it is in memory: a look-up in a tenth of the time.

Invariant: whoever changes the table of names tells it here, when that is done. A directory is known as a whole
from when it is made, so what is not known in it is not there: programs ask for every name before they make it.
"""

from __future__ import annotations

from itertools import islice

__all__ = ["KnownNames"]

_WHOLE_MAX = 10_000


class KnownNames:
    """Inode numbers by directory and name.

    Args:
      limit: So many names are kept, those longest here go first; 0: nothing is, since others change the table.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inodes: dict[tuple[int, bytes], int] = {}
        self._whole: set[int] = set()

    def get(self, parent: int, name: bytes) -> int | None:
        """The inode; 0 if the name stands for nothing, None if that is not known."""
        found = self._inodes.get((parent, name))
        return 0 if found is None and parent in self._whole else found

    def keep(self, parent: int, name: bytes, inode: int) -> None:
        """The name stands for this inode, or with 0 for nothing."""
        inodes = self._inodes
        if len(inodes) >= self._limit:
            if not self._limit:
                return
            self._whole.clear()
            for oldest in list(islice(inodes, self._limit // 4)):
                del inodes[oldest]
        inodes[parent, name] = inode

    def remove(self, parent: int, name: bytes) -> int:
        """The name stands for nothing any more; return what it stood for, 0 if that was not known."""
        return self._inodes.pop((parent, name), 0)

    def begin(self, directory: int) -> None:
        """This directory was just made."""
        if self._limit:
            if len(self._whole) >= _WHOLE_MAX:
                self._whole.clear()
            self._whole.add(directory)

    def doubt(self, parent: int, name: bytes) -> None:
        """The name may stand for something else than is known."""
        self._inodes.pop((parent, name), None)
        self._whole.discard(parent)

    def clear(self) -> None:
        """Nothing is known any more."""
        self._inodes.clear()
        self._whole.clear()
