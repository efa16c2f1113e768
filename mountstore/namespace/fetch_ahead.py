"""What small files will be read next, to have the disk fetch them meanwhile.

Programs that copy, pack or search a tree read its files as they are listed, which is the order they were made
in, and so the order of their inode numbers. Their blobs lie anywhere in the tree: the kernel cannot know which
comes next, but the catalog does. Only a guess: what is wrong about it costs some reading, and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from mountstore.blobs.digest import Digest

__all__ = ["FetchAhead"]

_RUN = 4
"""So many files in order before any is fetched ahead."""
_GAP = 16
"""The next in order may be so many inode numbers on: directories lie between, and files that were removed."""
_AHEAD = 8
"""How many files are fetched ahead; a disk with a queue takes them all at once."""
_LISTED = 32
"""How many are looked up at a time."""


class FetchAhead:
    """Follows the reads of small files; belongs to the owner's thread.

    Args:
      list_small: Inode numbers and blobs of the next small files behind an inode number, so many at most.
    """

    def __init__(self, list_small: Callable[[int, int], Sequence[tuple[int, Digest]]]) -> None:
        self._list_small = list_small
        self._last = -_GAP
        self._run = 0
        # Those looked up and not fetched yet, and the highest number looked up.
        self._listed: deque[tuple[int, Digest]] = deque()
        self._listed_to = 0
        self._fetched: deque[int] = deque()

    def note(self, number: int, *, waited: bool) -> Sequence[Digest]:
        """A small file is read; return the blobs to fetch now.

        Args:
          waited: Whether the disk had to be waited for. A file that was fetched ahead counts as if it had.
        """
        fetched = self._fetched
        while fetched and fetched[0] < number:
            fetched.popleft()
        if fetched and fetched[0] == number:
            fetched.popleft()
        elif not waited:
            self._run = 0
            return ()
        in_order = self._last < number <= self._last + _GAP
        self._last = number
        if not in_order:
            self._run = 0
            self._listed.clear()
            self._fetched.clear()
            self._listed_to = number
            return ()
        self._run += 1
        return self._next(number) if self._run >= _RUN else ()

    def _next(self, number: int) -> Sequence[Digest]:
        wanted = []
        listed = self._listed
        while len(self._fetched) < _AHEAD:
            if not listed:
                found = self._list_small(max(number, self._listed_to), _LISTED)
                if not found:
                    break
                listed.extend(found)
                self._listed_to = found[-1][0]
            following, digest = listed.popleft()
            if following > number:
                self._fetched.append(following)
                wanted.append(digest)
        return wanted
