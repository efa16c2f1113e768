"""The directories of a balanced tree: which exist, and how many entries each holds.

Counting a directory means listing it (milliseconds when it is full), so counts are kept. They are kept per
directory path; every entry counts, also subdirectories and files that are not blobs, because that is how
BalancedDiscStorage counts. A kept count may be too high (when somebody else removed entries), never too low
as long as everybody who adds follows `mountstore.blobs.treelock`.

Only to be used by the holder of the tree's lock, except `exists`, which any thread may call.
"""

from __future__ import annotations

import os
import stat

from mountstore.errors import StoreError

__all__ = ["Levels"]


class Levels:
    """What is known of the directories below `root`; paths are absolute and without a final slash."""

    def __init__(self, root: str, gid: int | None) -> None:
        self._root = root
        self._gid = gid
        self._known: set[str] = set()
        self._entries: dict[str, int] = {}

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

    def entries(self, directory: str) -> int | None:
        """How many entries a directory holds; None if it does not exist.

        Raises:
            StoreError: Something else is in its place.
        """
        count = self._entries.get(directory)
        if count is not None:
            return count
        if not self.exists(directory):
            if os.path.lexists(directory):
                raise StoreError(f"{directory} is not a directory, so no blob can be placed there")
            return None
        try:
            count = len(os.listdir(directory))
        except FileNotFoundError:
            self.forget()
            return None
        self._entries[directory] = count
        return count

    def make(self, directory: str) -> None:
        """Make an empty directory with the mode and group of its parent's making: those of the root.

        Raises:
            OSError: It was not made.
        """
        os.mkdir(directory)
        try:
            wanted = stat.S_IMODE(os.stat(self._root).st_mode) | stat.S_IRWXU
            status = os.lstat(directory)
            if self._gid is not None and status.st_gid != self._gid:
                os.chown(directory, -1, self._gid, follow_symlinks=False)
            if stat.S_IMODE(status.st_mode) != wanted:
                os.chmod(directory, wanted)
        except BaseException:
            os.rmdir(directory)
            raise
        self.added(os.path.dirname(directory))
        self._known.add(directory)
        self._entries[directory] = 0

    def added(self, directory: str) -> None:
        """One more entry is in `directory`."""
        if directory in self._entries:
            self._entries[directory] += 1

    def removed(self, directory: str) -> None:
        """One entry is gone from `directory`."""
        if directory in self._entries:
            self._entries[directory] -= 1

    def prune(self, directory: str) -> None:
        """Remove `directory` and those above it as far as they are empty; never the root."""
        while directory != self._root:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:  # not empty; and a directory that cannot be removed does no harm
                return
            self._known.discard(directory)
            self._entries.pop(directory, None)
            directory = os.path.dirname(directory)
            self.removed(directory)

    def forget(self) -> None:
        """Drop everything known: somebody else may have changed the tree."""
        self._known.clear()
        self._entries.clear()
