"""The directories of a balanced tree: which exist, and how many entries each holds.

Counting a directory means listing it (milliseconds when it is full), so counts are kept, together with the
tally of that moment (`mountstore.blobs.treelock`): what was added and removed since then, by anybody and
anywhere below the same first-level directory, says between which bounds the count must be by now. Only when
they do not decide whether there is room is the directory listed again. Every entry counts, also
subdirectories and files that are not blobs, because that is how BalancedDiscStorage counts.

Only to be used by the holder of the tree's lock, except `exists` and `is_known`, which any thread may call.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from mountstore.blobs.treelock import Tally
from mountstore.errors import StoreError

__all__ = ["Levels"]


class _Count(NamedTuple):
    entries: int
    added: int
    """The tally when it was taken."""
    removed: int


class Levels:
    """What is known of the directories below `root`; paths are absolute and without a final slash.

    Args:
      alone: Nobody else adds to the tree.
    """

    def __init__(self, root: str, gid: int | None, tally: Tally, *, alone: bool = False) -> None:
        self._root = root
        self._gid = gid
        self._known: set[str] = set()
        self._alone = alone
        # Raised before anything is made or forgotten: what a look-up beside that found is not kept.
        self._generation = 0
        self._absent: set[str] = set()
        self._tally = tally
        self._counts: dict[str, _Count] = {}

    def exists(self, directory: str) -> bool:
        """Whether this is a directory of its own; a symbolic link to one is not.

        A directory that somebody else removed may be reported for longer than it exists.
        """
        if directory in self._known:
            return True
        if not os.access(directory, os.F_OK):  # mostly so, and half as dear as an lstat(2) that raises
            return False
        try:
            status = os.lstat(directory)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISDIR(status.st_mode):
            return False
        self._known.add(directory)
        return True

    def is_known(self, directory: str) -> bool:
        """As `exists`, for who adds: alone in the tree, what was not there is not looked for again."""
        if directory in self._known:
            return True
        if directory in self._absent:
            return False
        generation = self._generation
        found = self.exists(directory)
        if not found and self._alone:
            self._absent.add(directory)
            if generation != self._generation:
                self._absent.discard(directory)
        return found

    def has_room(self, directory: str, dir_limit: int) -> bool | None:
        """Whether a directory has fewer than `dir_limit` entries; None if it does not exist.

        Raises:
            StoreError: Something else is in its place.
        """
        slot = self._slot(directory)
        added, removed = self._tally.added[slot], self._tally.removed[slot]
        count = self._counts.get(directory)
        if count is not None and count.added <= added and count.removed <= removed:
            if count.entries + (added - count.added) < dir_limit:
                return True
            if count.entries - (removed - count.removed) >= dir_limit:
                return False
        if not self.exists(directory):
            if os.path.lexists(directory):
                raise StoreError(f"{directory} is not a directory, so no blob can be placed there")
            return None
        try:
            entries = len(os.listdir(directory))
        except FileNotFoundError:
            self.forget()
            return None
        self._counts[directory] = _Count(entries, added, removed)
        return entries < dir_limit

    def make(self, directory: str) -> None:
        """Make an empty directory with the mode and group of its parent's making: those of the root.

        Raises:
            OSError: It was not made.
        """
        parent = os.path.dirname(directory)
        self._generation += 1
        self.will_add(parent)
        try:
            os.mkdir(directory)
        except BaseException:
            self.not_added(parent)
            raise
        try:
            wanted = stat.S_IMODE(os.stat(self._root).st_mode) | stat.S_IRWXU
            status = os.lstat(directory)
            if self._gid is not None and status.st_gid != self._gid:
                os.chown(directory, -1, self._gid, follow_symlinks=False)
            if stat.S_IMODE(status.st_mode) != wanted:
                os.chmod(directory, wanted)
        except BaseException:
            os.rmdir(directory)
            self.removed(parent)
            raise
        self._known.add(directory)
        self._absent.discard(directory)
        slot = self._slot(directory)
        self._counts[directory] = _Count(0, self._tally.added[slot], self._tally.removed[slot])

    def will_add(self, directory: str) -> None:
        """The caller is about to add one entry to `directory`."""
        if directory != self._root:
            noted = self._tally.note(self._slot(directory), 1, 0)
            count = self._counts.get(directory)
            if count is not None:  # from here on it may be one too high, which does no harm
                self._counts[directory] = _Count(count.entries + 1, count.added + noted, count.removed)

    def not_added(self, directory: str) -> None:
        """After `will_add`: it came to nothing."""
        count = self._counts.get(directory)
        if count is not None:
            self._counts[directory] = count._replace(entries=count.entries - 1)

    def removed(self, directory: str) -> None:
        """One entry is gone from `directory`, removed by the caller."""
        if directory != self._root:
            try:
                noted = self._tally.note(self._slot(directory), 0, 1)
            except OSError:
                # The others will think it fuller than it is; freeing space must not fail for want of space.
                noted = 1
            count = self._counts.get(directory)
            if count is not None:
                self._counts[directory] = _Count(count.entries - 1, count.added, count.removed + noted)

    def prune(self, directory: str) -> None:
        """Remove `directory` and those above it as far as they are empty; never the root."""
        while directory != self._root:
            parent = os.path.dirname(directory)
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                self.forget()
            except OSError:  # not empty; and a directory that cannot be removed does no harm
                return
            else:
                self._known.discard(directory)
                self._counts.pop(directory, None)
                self.removed(parent)
            directory = parent

    def _slot(self, directory: str) -> int:
        return int(directory[len(self._root) + 1], 16)

    def forget(self) -> None:
        """Drop everything known: somebody else may have changed the tree."""
        self._generation += 1
        self._known.clear()
        self._absent.clear()
        self._counts.clear()
