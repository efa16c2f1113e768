"""Files on their way into the balanced tree.

A blob is written under a temporary name in the staging directory, which lies on the tree's file system, and
gets its true name by rename(2) when it is whole. What a crash leaves here is garbage; whoever owns the
staging directory removes it.

Invariant: a staging file has mode 0444 and the tree's group from the moment it is made, so that the rename
is all that publishing takes.
"""

from __future__ import annotations

import itertools
import os
import stat
from types import TracebackType
from typing import Final, Self

from mountstore.blobs.digest import Buffer, Digest, Hasher

__all__ = ["BLOB_MODE", "Staged", "Staging", "drop_file", "write_all"]

BLOB_MODE: Final = 0o444
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write_all(fd: int, data: Buffer) -> None:
    """Write the whole of `data` at the descriptor's position.

    Raises:
        OSError: Only part of it, or nothing, was written.
    """
    written = os.write(fd, data)
    size_bytes = data.nbytes if isinstance(data, memoryview) else len(data)
    if written != size_bytes:
        rest = memoryview(data).cast("B")
        while written < size_bytes:
            written += os.write(fd, rest[written:])


def drop_file(path: str) -> None:
    """Remove a file if it exists."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class Staged:
    """One file being written. Not to be used from two threads at once.

    Used as a context manager it removes the file at the end, unless it was published meanwhile.
    """

    __slots__ = ("_hasher", "fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path: Final = path
        self.fd = fd
        """Open for reading and writing; -1 when closed."""
        self._hasher = Hasher()

    def write(self, data: Buffer) -> None:
        """Append `data`.

        Raises:
            OSError: The content is in doubt; what remains is `discard`.
        """
        write_all(self.fd, data)
        self._hasher.update(data)

    def digest(self) -> Digest:
        """Of all that went through `write`; what was written to `fd` directly is not counted."""
        return self._hasher.digest()

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def discard(self) -> None:
        """Close and remove the file; nothing happens if it is gone or published."""
        try:
            self.close()
        finally:
            drop_file(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class Staging:
    """A directory of staging files; made when first needed. Any thread, several processes."""

    def __init__(self, directory: str, gid: int | None) -> None:
        self.directory: Final = directory
        self._gid = gid
        self._counter = itertools.count()
        self._prefix = self._new_prefix()
        # The umask is this process's own, so that one file tells for all.
        self._mode_is_given = False

    def create(self) -> Staged:
        """An empty file.

        Raises:
            OSError: Nothing was left behind.
        """
        path, fd = self._create()
        return Staged(path, fd)

    def write(self, data: Buffer) -> str:
        """A finished file with this content; returns its path.

        Raises:
            OSError: Nothing was left behind.
        """
        path, fd = self._create()
        try:
            try:
                write_all(fd, data)
            finally:
                os.close(fd)
        except BaseException:
            drop_file(path)
            raise
        return path

    def adopt(self, path: str, status: os.stat_result) -> None:
        """Give a file made elsewhere the mode and group of a blob; `status` is its lstat."""
        if self._gid is not None and status.st_gid != self._gid:
            os.chown(path, -1, self._gid, follow_symlinks=False)
        if stat.S_IMODE(status.st_mode) != BLOB_MODE:
            os.chmod(path, BLOB_MODE)

    def _create(self) -> tuple[str, int]:
        while True:
            path = f"{self._prefix}{next(self._counter):x}"
            try:
                fd = os.open(path, _CREATE, BLOB_MODE)
            except FileNotFoundError:
                os.makedirs(self.directory, 0o700, exist_ok=True)
                self._mode_is_given = False
                continue
            except FileExistsError:  # a forked process shares the prefix and the count
                self._prefix = self._new_prefix()
                continue
            try:
                if not self._mode_is_given:
                    self._give_mode(fd)
                if self._gid is not None and os.fstat(fd).st_gid != self._gid:
                    os.fchown(fd, -1, self._gid)
            except BaseException:
                os.close(fd)
                drop_file(path)
                raise
            return path, fd

    def _give_mode(self, fd: int) -> None:
        """Look whether umask and access control lists leave a new file the mode it is made with; else set it."""
        self._mode_is_given = stat.S_IMODE(os.fstat(fd).st_mode) == BLOB_MODE
        if not self._mode_is_given:
            os.fchmod(fd, BLOB_MODE)

    def _new_prefix(self) -> str:
        return f"{self.directory}/{os.getpid():x}-{os.urandom(4).hex()}-"
