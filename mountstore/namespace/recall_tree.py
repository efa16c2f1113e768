"""Getting a directory back as it was at a time, with all below it: a new tree, in which no byte is copied.

What was there at a time is said by `mountstore.namespace.past`. The new tree has the contents, modes, owners and
times of then; it grows under a temporary name beside its own and takes that when it is whole. Hard links come
back as files of their own; extended attributes, devices and removed symbolic links are not recorded, and do not
come back.

Everything runs on the owner's thread, in short steps: others go on working meanwhile. The kernel is not told.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

import trio

from mountstore.errors import (
    AbsentError,
    BlobMissingError,
    CorruptError,
    ExistsError,
    MisuseError,
    StaleError,
    WantsDirectoryError,
    shown,
)
from mountstore.namespace.contents import Contents
from mountstore.namespace.inodes import ROOT, Inode, InodeTable
from mountstore.namespace.namespace import Caller, Namespace
from mountstore.namespace.notation import Instant
from mountstore.namespace.past import PastDirectory, PastFile, PastLink, PastThing, thing_at, things_at
from mountstore.namespace.placing import free_name, place_of
from mountstore.namespace.recall import Recall
from mountstore.namespace.sealing import Sealer
from mountstore.namespace.timeline import Timeline
from mountstore.namespace.versions import Versions

_DOTS = 2
"""Position in a listing behind `.` and `..`."""

_STEP = 64
"""Entries made between two checkpoints: some milliseconds."""


class RestoredTree(NamedTuple):
    """What came back."""

    inode: int
    """The new directory."""
    files: int
    directories: int
    links: int
    size_bytes: int
    """Of the files together."""
    failed: list[tuple[bytes, Exception]]
    """Paths below it whose content is lost, and why; everything else is there."""


class TreeRecall:
    """Directories of one store as they were."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        inodes: InodeTable,
        versions: Versions,
        timeline: Timeline,
        contents: Contents,
        sealer: Sealer,
        recall: Recall,
    ) -> None:
        self._namespace = namespace
        self._inodes = inodes
        self._versions = versions
        self._timeline = timeline
        self._contents = contents
        self._sealer = sealer
        self._recall = recall

    async def restore(self, path: bytes, instant: Instant, *, to: bytes | None = None) -> RestoredTree:
        """Make a directory as `path` was at a time.

        Args:
          to: What the new directory is called; default: `path` itself, if that was removed.

        Raises:
          AbsentError: There was no such directory, or there is none for `to` to be in.
          WantsDirectoryError: `path` was a file, or something on the way to `to` is one.
          ExistsError: The new name is taken.
          MisuseError: `to` lies in `path`, where it would be restored itself, or is no name.
          ReadOnlyError, NoSpaceError: What was made by then was removed.

        Cancellation: As an error.
        """
        self._namespace.require_writable()
        # What was closed is current, also if it is still being sealed.
        await self._sealer.settle_or_keep()
        past = self._directory_at(path, instant.time_ns)
        target = path if to is None else to
        parent, name = place_of(self._namespace, target)
        if self._namespace.find(parent, name) is not None:
            raise ExistsError(f"{shown(target)}: give a name that is free")
        if past.inode in self._above(parent):
            raise MisuseError(f"{shown(target)}: lies in the directory that is to be restored")
        made_as = free_name(self._namespace, parent)
        top = self._make_directory(parent, made_as, past)
        try:
            # Garbage collection waits for the whole, since it may drop the versions that are read.
            with self._contents.adding():
                restored = await self._fill(top, past, instant.time_ns)
            self._namespace.rename(parent, made_as, parent, name, noreplace=True)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._remove(parent, made_as, top)
            raise
        return restored

    # --- finding ---

    def _directory_at(self, path: bytes, time_ns: int) -> PastDirectory:
        found: PastThing | None = PastDirectory(ROOT, None)
        for part in [part for part in path.split(b"/") if part]:
            if not isinstance(found, PastDirectory):
                raise WantsDirectoryError(f"{shown(path)}: was no directory then")
            found = thing_at(self._timeline, self._timeline.line(found.inode, part), time_ns)
            if found is None:
                raise AbsentError(f"{shown(path)}: was not there then")
        if not isinstance(found, PastDirectory):
            raise WantsDirectoryError(f"{shown(path)}: was no directory then")
        return found

    def _above(self, directory: int) -> set[int]:
        """A directory and all that it lies in, but for the root: that may hold its own past."""
        found = set()
        while directory != ROOT:
            found.add(directory)
            directory = self._inodes.get(directory).parent
        return found

    # --- making ---

    async def _fill(self, top: int, past: PastDirectory, time_ns: int) -> RestoredTree:
        """Make what was in a directory and below.

        Directories are known by their numbers: objects of inodes do not stay while others work.
        """
        files = directories = links = size_bytes = steps = 0
        failed: list[tuple[bytes, Exception]] = []
        waiting = [(top, past, b"")]
        # With their times, to be set when nothing is made in them any more.
        done: list[tuple[int, int]] = []
        while waiting:
            directory, source, above = waiting.pop()
            done.append((directory, self._attributes(source)[3]))
            for name, thing in things_at(self._timeline, source.inode, time_ns):
                steps += 1
                if steps % _STEP == 0:
                    await trio.lowlevel.checkpoint()
                if isinstance(thing, PastDirectory):
                    if thing.inode != top:
                        made = self._make_directory(directory, name, thing)
                        waiting.append((made, thing, above + name + b"/"))
                        directories += 1
                elif isinstance(thing, PastLink):
                    self._make_link(directory, name, thing.inode)
                    links += 1
                else:
                    try:
                        await self._make_file(directory, name, thing)
                        files += 1
                        size_bytes += thing.version.size_bytes
                    except (CorruptError, BlobMissingError) as exc:
                        failed.append((above + name, exc))
        for number, (directory, mtime_ns) in enumerate(done, 1):
            inode = self._inodes.get(directory)
            inode.mtime_ns = mtime_ns
            self._inodes.changed(inode)
            if number % _STEP == 0:
                await trio.lowlevel.checkpoint()
        return RestoredTree(top, files, directories, links, size_bytes, failed)

    def _attributes(self, past: PastDirectory) -> tuple[int, int, int, int]:
        """Mode, owner, group and time of a directory."""
        removed = past.removed
        if removed is not None:
            return removed.mode, removed.uid, removed.gid, removed.mtime_ns
        try:
            inode = self._inodes.get(past.inode)
        except StaleError:
            raise AbsentError(f"inode {past.inode} was removed meanwhile") from None
        return self._versions.kept_mode(inode), inode.uid, inode.gid, inode.mtime_ns

    def _make_directory(self, parent: int, name: bytes, past: PastDirectory) -> int:
        mode, uid, gid, _ = self._attributes(past)
        inode = self._namespace.create(parent, name, stat.S_IFDIR | mode & 0o7777, Caller(uid, gid))
        inode.mode = inode.mode & ~stat.S_ISGID | mode & stat.S_ISGID
        inode.gid = gid
        self._inodes.changed(inode)
        return inode.id

    def _make_link(self, parent: int, name: bytes, source: Inode) -> None:
        caller = Caller(source.uid, source.gid)
        inode = self._namespace.create(parent, name, source.mode, caller, target=source.target)
        inode.gid = source.gid
        inode.mtime_ns = source.mtime_ns
        self._inodes.changed(inode)

    async def _make_file(self, parent: int, name: bytes, past: PastFile) -> None:
        content, allocated = await self._recall.content_of(past.version)
        self._recall.place(parent, name, past.version, content, allocated)

    async def _remove(self, parent: int, name: bytes, top: int) -> None:
        """Take away what was made, without leaving versions of it."""
        waiting = [(parent, name, top)]
        steps = 0
        while waiting:
            above, called, directory = waiting[-1]
            steps += 1
            if steps % _STEP == 0:
                await trio.lowlevel.checkpoint()
            listing = self._namespace.listing(self._inodes.get(directory), _DOTS)
            left = next(listing, None)
            listing.close()
            with self._versions.disabled():
                if left is None:
                    waiting.pop()
                    self._namespace.rmdir(above, called)
                elif left[2].is_directory:
                    waiting.append((directory, left[1], left[2].id))
                else:
                    self._namespace.unlink(directory, left[1])
