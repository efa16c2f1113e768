"""The trash: blobs that were collected, by the day on which they were, until they are purged.

    trash/2026-11-22/ab/ab12..._1f    days in UTC; `ab` are the first two characters of the name

A blob is moved here by a rename, so its bytes are as they were. One that was collected, added anew and collected
again lies here twice. Nothing here is needed by anything: deleting it by hand does no harm.

Every method blocks on the file system; any thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from mountstore.blobs.digest import Digest
from mountstore.blobs.streams import digest_of_rest
from mountstore.blobs.tree import Added, BalancedTree
from mountstore.errors import BlobMissingError, CorruptError, MisuseError

__all__ = ["Discarded", "Trash"]

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


class Discarded(NamedTuple):
    """A blob in the trash."""

    digest: Digest
    path: str
    day: date


class Trash:
    """The trash of one tree.

    Args:
        path: Of its directory, on the tree's file system; made when it is needed.
    """

    def __init__(self, path: str, tree: BalancedTree) -> None:
        self.path: Final = path
        self._tree = tree

    def discard(self, digest: Digest) -> bool:
        """Move a blob here, unless it was added since the tree is watched (`BalancedTree.retire`).

        Returns: Whether it was moved.

        Raises:
            OSError: It was not moved.
        """
        name = digest.name
        directory = f"{self.path}/{datetime.now(UTC).date().isoformat()}/{name[:2]}"
        destination = f"{directory}/{name}"
        while True:
            try:
                return self._tree.retire(digest, destination)
            except FileNotFoundError:
                # No such directory yet, or no longer: `purge` removes those it empties.
                os.makedirs(self.path, 0o700, exist_ok=True)
                os.makedirs(directory, exist_ok=True)

    def walk(self) -> Iterator[Discarded]:
        """Everything here, the latest day first."""
        for day in sorted(self._days(), reverse=True):
            for directory in _scan(f"{self.path}/{day.isoformat()}"):
                if not directory.is_dir(follow_symlinks=False):
                    continue
                for entry in _scan(directory.path):
                    try:
                        yield Discarded(Digest.parse(entry.name), entry.path, day)
                    except MisuseError:
                        continue

    def find(self, digest: Digest) -> str | None:
        """Where a blob lies here, the latest one; None if it does not."""
        name = digest.name
        for day in sorted(self._days(), reverse=True):
            path = f"{self.path}/{day.isoformat()}/{name[:2]}/{name}"
            if os.path.lexists(path):
                return path
        return None

    def put_back(self, digest: Digest) -> Added:
        """Move a blob back into the tree.

        Raises:
            BlobMissingError: It is not here.
            CorruptError: It is here, with other bytes.
        """
        path = self.find(digest)
        if path is None:
            raise BlobMissingError(f"no blob {digest.name} in the trash")
        with open(path, "rb", buffering=0) as file:
            if digest_of_rest(file, b"") != digest:
                raise CorruptError(f"{path} is damaged: its bytes are not those of its name")
        added = self._tree.publish(path, digest)
        _prune(os.path.dirname(path), self.path)
        return added

    def purge(self, older_than_days: float) -> Iterator[int]:
        """Delete what was collected on days that ended longer ago; 0: everything. Yields each blob's size."""
        now = datetime.now(UTC)
        for day in sorted(self._days()):
            end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
            if older_than_days > 0 and (now - end) / timedelta(days=1) < older_than_days:
                continue
            for directory in list(_scan(f"{self.path}/{day.isoformat()}")):
                if not directory.is_dir(follow_symlinks=False):
                    continue
                for entry in list(_scan(directory.path)):
                    try:
                        size_bytes = Digest.parse(entry.name).size_bytes
                    except MisuseError:
                        continue
                    os.unlink(entry.path)
                    yield size_bytes
                _prune(directory.path, self.path)

    def _days(self) -> list[date]:
        days = []
        for entry in _scan(self.path):
            if _DAY.fullmatch(entry.name):
                try:
                    days.append(date.fromisoformat(entry.name))
                except ValueError:
                    continue
        return days


def _scan(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _prune(directory: str, root: str) -> None:
    """Remove a directory and those above it, below `root`, as far as they are empty."""
    while directory != root:
        try:
            os.rmdir(directory)
        except OSError:
            return
        directory = os.path.dirname(directory)
