"""Writes that found no room, and who is told of it.

With a writeback cache the kernel takes what is written and sends it later: of a refusal it can tell nobody but
who calls fsync(2) or close(2), and a program that only writes would go on for ever. But before each write(2) it
asks for the attributes of the file, if it has none (linux/fs/fuse/file.c, fuse_cache_write_iter). So after a
refusal it is made to forget them, and the process that writes gets the errno as the answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from pyfuse3 import FUSEError

from mountstore.fuse.mounts import read_mounts
from mountstore.namespace.space import Space

__all__ = ["Refusals"]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class Refusals:
    """The files of one mount to which a write was refused since somebody who writes was told; the trio thread's.

    Attributes:
      errnos: By inode; for handlers that cannot spare a call.
    """

    def __init__(self, space: Space) -> None:
        self.errnos: Final[dict[int, int]] = {}
        self._space = space

    def note(self, inode: int, number: int) -> bool:
        """A write failed with this errno. Returns whether the kernel has to ask for the attributes again."""
        if number not in _NO_ROOM:
            return False
        self.errnos[inode] = number
        return True

    def tell(self, inode: int, pid: int) -> None:
        """Somebody asks for the attributes of a file that is among these.

        Raises: FUSEError if it is a process that writes to it, and there still is no room.
        """
        if not self._space.is_full:
            # What was refused is lost, as fsync or close says; but what is written now is taken.
            del self.errnos[inode]
        elif _writes_to(pid, inode):
            raise FUSEError(self.errnos.pop(inode))

    def settle(self, inode: int) -> None:
        """Who wrote has closed the file, which has told of it."""
        self.errnos.pop(inode, None)


def _writes_to(pid: int, inode: int) -> bool:
    """Whether a process (or thread) has the file of that inode number in a mount of ours open for writing; not if
    that cannot be seen.

    Blocks for some microseconds per descriptor that it has: proc(5), fdinfo.
    """
    directory = f"/proc/{pid}/fdinfo"
    with contextlib.suppress(OSError):
        ours = {mount.number for mount in read_mounts(pid) if mount.ours}
        for number in os.listdir(directory):
            with contextlib.suppress(OSError, KeyError, ValueError), open(f"{directory}/{number}", "rb") as info:
                fields = dict(line.split(b":", 1) for line in info.read().splitlines() if b":" in line)
                writable = int(fields[b"flags"], 8) & os.O_ACCMODE != os.O_RDONLY
                if writable and int(fields[b"ino"]) == inode and int(fields[b"mnt_id"]) in ours:
                    return True
    return False
