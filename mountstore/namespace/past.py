"""What a directory held at a time: the rules of `mountstore.namespace.timeline`, for names and whole directories.

Everything runs on the owner's thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mountstore.errors import AbsentError
from mountstore.namespace.history import Version
from mountstore.namespace.inodes import Inode
from mountstore.namespace.timeline import Line, Timeline

__all__ = ["PastDirectory", "PastFile", "PastLink", "PastThing", "thing_at", "things_at"]


class PastFile(NamedTuple):
    """A name stood for a file: for this version of its line."""

    line: Line
    number: int
    version: Version


class PastDirectory(NamedTuple):
    """A name stood for a directory; `removed` has its attributes if it is gone, else the inode has them."""

    inode: int
    removed: Version | None


class PastLink(NamedTuple):
    """A name stood for a symbolic link, which is still there."""

    inode: Inode


PastThing = PastFile | PastDirectory | PastLink


def thing_at(timeline: Timeline, line: Line, time_ns: int) -> PastThing | None:
    """What a name stood for at a time; None if for nothing, or that is not known (devices, removed links)."""
    number = timeline.at(line, time_ns)
    if number:
        try:
            version = timeline.get(line, number)
        except AbsentError:
            # Garbage collection took it.
            return None
        if not version.directory:
            return PastFile(line, number, version)
        if timeline.inhabited(version.directory, time_ns):
            return PastDirectory(version.directory, version)
    inode = line.inode
    if inode is None or inode.btime_ns > time_ns:
        return None
    if inode.is_directory:
        return PastDirectory(inode.id, None)
    return PastLink(inode) if inode.target is not None else None


def things_at(timeline: Timeline, directory: int, time_ns: int) -> Iterator[tuple[bytes, PastThing]]:
    """What was in a directory, which may have been removed, at a time; it may change meanwhile."""
    for name in timeline.names(directory):
        thing = thing_at(timeline, timeline.line(directory, name), time_ns)
        if thing is not None:
            yield name, thing
    for name, inode in timeline.entries(directory):
        if inode.btime_ns > time_ns:
            continue
        line = timeline.line(directory, name)
        # The others have been listed.
        if not line.superseded:
            thing = thing_at(timeline, line, time_ns)
            if thing is not None:
                yield name, thing
