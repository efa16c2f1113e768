"""Pins: lists of blobs that something outside of the store needs, in `STORE/pins/`, read by every collection.

1. A list is replaced whole, and only by one that can be understood: any other would stop every collection.
2. When a list is saved, what it pins is safe from a collection that is running, too: the list is in place first,
   and then every blob is asked for (`BalancedTree.want`). A collection that began before that keeps the blob, or
   has moved it to the trash already, from where it is brought back; one that begins later reads the list.
3. A pinned blob need not be there (yet).
4. A write that ends a line at the end of a list is answered when it is saved: nobody waits for what becomes of a
   file after close(2). Saved by fsync, and by the last to close, is what is written amid a list, or not ended, and
   of a long list all but the first write of who opened it: every save writes all of the list.

`PinList` is a list that somebody has open; all who have the same one open share it. Whatever changes what is in
`STORE/pins/`, or who has it open, does so in its turn (`Pins._turn`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final, NamedTuple

import trio

from mountstore.blobs.digest import Digest
from mountstore.blobs.flush import fsync_path
from mountstore.blobs.opening import open_to_read, private
from mountstore.care.roots import Listed, hashes_below, parse_listed
from mountstore.care.trash_commands import untrash
from mountstore.errors import (
    AbsentError,
    BlobMissingError,
    BusyError,
    ExistsError,
    MisuseError,
    NameTooLongError,
    TooLargeError,
)
from mountstore.namespace.blob_records import find_digests
from mountstore.store import Store
from mountstore.store.layout import STAGING_NAME

__all__ = ["LIST_MAX_BYTES", "PinList", "Pins", "Saved"]

log = logging.getLogger(__name__)

LIST_MAX_BYTES: Final = 128 << 20
"""Some 1.5 million blobs. Split a longer list."""

_LONG_BYTES: Final = 256 << 10
"""Lists beyond are long: some 3,500 blobs."""

_NAME_MAX: Final = 255

_serials = count()


class Saved(NamedTuple):
    """What became of a list."""

    pinned: int
    """Lines that name a blob."""
    returned: int
    """Blobs that were brought back from the trash."""
    missing: list[str]
    """Those that are neither in the tree nor in the trash."""


class Pins:
    """The lists of one store; belongs to the thread that owns it, and blocks in workers.

    Attributes:
      dropped: How often a list that was closed stayed as it was, whatever had been written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[bytes, PinList] = {}
        self._turn = trio.Lock()
        self.dropped = 0

    def _path(self, name: bytes) -> bytes:
        if not name or b"/" in name or name in (b".", b".."):
            raise MisuseError(f"{name!r} is no name for a list")
        if len(name) > _NAME_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes")
        return os.path.join(os.fsencode(self._store.pins), name)

    # --- looking ---

    def names(self) -> list[bytes]:
        try:
            with os.scandir(os.fsencode(self._store.pins)) as entries:
                return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def status(self, name: bytes) -> os.stat_result | None:
        """Of a list as it was saved; None if there is none."""
        try:
            return os.stat(self._path(name), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def read(self, name: bytes) -> bytes:
        """A list as it was saved. Raises: AbsentError."""
        try:
            with open(open_to_read(self._path(name)), "rb") as file:
                return file.read(LIST_MAX_BYTES + 1)
        except FileNotFoundError:
            raise AbsentError(f"there is no list {os.fsdecode(name)}") from None

    def opened(self, name: bytes) -> PinList | None:
        """The list of that name, if somebody has it open for writing."""
        return self._open.get(name)

    # --- writing ---

    def create(self, name: bytes) -> None:
        """An empty list. Raises: ExistsError."""
        self._store.namespace.require_writable()
        os.makedirs(self._store.pins, 0o700, exist_ok=True)
        try:
            os.close(os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise ExistsError(os.fsdecode(name)) from None

    async def open(self, name: bytes) -> PinList:
        """Open a list that is there for writing; to be released. Raises: AbsentError."""
        self._store.namespace.require_writable()
        async with self._turn:
            opened = self._open.get(name)
            if opened is None:
                opened = self._open[name] = PinList(name, self.read(name))
            opened.users += 1
        return opened

    async def write(self, opened: PinList, offset: int | None, data: bytes, *, first: bool) -> None:
        """Write to an open list, at its end without an `offset`; rule 4.

        Args:
          first: It is the first write of who opened it.

        Raises:
          MisuseError, TooLargeError, AbsentError: As `PinList.write`.
          MisuseError, CorruptError, OSError: As `keep`; what was written is tried again by whoever saves next.
        """
        ended = opened.write(len(opened.data) if offset is None else offset, data)
        if ended and (first or len(opened.data) <= _LONG_BYTES):
            await self._keep_lines(opened)

    async def truncate(self, opened: PinList, size_bytes: int) -> None:
        """Give an open list another size; what then ends in a line is saved. Raises: As `write`."""
        opened.truncate(size_bytes)
        # Whoever empties a list is about to write it: until then what it was holds.
        if opened.data.endswith(b"\n"):
            await self._keep_lines(opened)

    async def _keep_lines(self, opened: PinList) -> None:
        async with self._turn:
            await self._keep(opened, opened.data.rfind(b"\n") + 1)

    async def release(self, opened: PinList) -> None:
        """Close a list; the last one saves it.

        Raises: As `keep`; the list in the store is then as it was.
        """
        async with self._turn:
            opened.users -= 1
            if opened.users:
                return
            try:
                await self._keep(opened, len(opened.data))
            except BaseException:
                self.dropped += 1
                raise
            finally:
                if self._open.get(opened.name) is opened:
                    del self._open[opened.name]

    async def keep(self, opened: PinList) -> None:
        """Save an open list, if it was changed.

        Raises:
          MisuseError: A line is no blob.
          CorruptError, OSError: Nothing was changed, or it is not known whether what is pinned will stay.
        """
        async with self._turn:
            await self._keep(opened, len(opened.data))

    async def _keep(self, opened: PinList, size_bytes: int) -> None:
        """Save so much of an open list, in its turn."""
        if opened.saved == opened.serial or opened.removed:
            return
        if opened.refused and not opened.data:
            where = os.fsdecode(opened.name)
            raise MisuseError(f"pins/{where}: it was emptied, and what was written then is no blob")
        serial, size_in_all = opened.serial, len(opened.data)
        data = bytes(opened.data[:size_bytes])
        await self._save(opened.name, data, opened.safe_bytes)
        # Not what was written meanwhile, which is saved by whoever wrote it.
        if opened.serial == serial:
            opened.safe_bytes = data.rfind(b"\n") + 1
            if size_bytes == size_in_all:
                opened.saved = serial

    async def _save(self, name: bytes, data: bytes, begin: int = 0) -> Saved:
        """Replace a list, durably, and see to it that what it pins stays; in its turn.

        Args:
          begin: Of the first line for which that was not seen to when the list was saved before.

        Raises: As `keep`.
        """
        path = self._path(name)
        self._store.namespace.require_writable()
        where = os.fsdecode(name)
        listed = await trio.to_thread.run_sync(_parse, data, where, begin)
        await trio.to_thread.run_sync(self._replace, path, data)
        # What was just placed has no row before the next commit.
        self._store.commits.commit()
        saved = await self._secure(listed)
        for digest in saved.missing[:10]:
            log.warning("pins/%s: there is no blob %s", where, digest)
        if len(saved.missing) > 10:
            log.warning("pins/%s: %d more blobs are not there", where, len(saved.missing) - 10)
        return saved

    def _replace(self, path: bytes, data: bytes) -> None:
        directory = os.path.dirname(path)
        os.makedirs(directory, 0o700, exist_ok=True)
        staging = os.fsencode(os.path.join(self._store.path, STAGING_NAME))
        # In staging, where a leftover is cleared away: every file among the pins counts.
        fresh = os.path.join(staging, b"pins-" + os.urandom(8).hex().encode())
        try:
            with open(fresh, "xb", opener=private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, path)
        except BaseException:
            try:
                os.unlink(fresh)
            except FileNotFoundError:
                pass
            raise
        fsync_path(os.fsdecode(directory))

    async def _secure(self, listed: list[Listed]) -> Saved:
        """Rule 2, when the list is in place."""
        gone = await trio.to_thread.run_sync(self._want, listed)
        missing, returned = [], 0
        for line in gone:
            digest = await trio.to_thread.run_sync(self._find_in_trash, line)
            if digest is None:
                missing.append(line.name)
                continue
            try:
                returned += len(await untrash(self._store, digest))
            except BlobMissingError:
                missing.append(digest.name)
        return Saved(len(listed), returned, missing)

    def _want(self, listed: list[Listed]) -> list[Listed]:
        """Those that are not in the tree, or, as manifests, not whole."""
        tree = self._store.tree
        known = find_digests(
            self._store.catalog.path, (line.sha256 for line in listed if line.size_bytes is None)
        )
        gone = []
        for line in listed:
            digest = line.digest or known.get(line.sha256)
            if digest is None or not tree.want(digest):
                gone.append(line)
                continue
            below = set(hashes_below(tree, digest)) - {digest.sha256}
            if not below:
                continue
            # Each has to be asked for, also after one that is gone. A piece without a record may be in the trash.
            found = sum(tree.want(piece) for piece in find_digests(self._store.catalog.path, below).values())
            if found < len(below):
                gone.append(Listed(*digest))
        return gone

    async def wait_saved(self) -> None:
        """Return when every list that was closed is in place."""
        async with self._turn:
            pass

    async def missing(self, names: Iterable[str]) -> list[str]:
        """Those blobs that are neither in the tree nor in the trash."""
        self._store.commits.commit()
        listed = [parse_listed(name, name) for name in names]
        gone = await trio.to_thread.run_sync(self._want, listed)
        missing = []
        for line in gone:
            found = await self.find_in_trash(line)
            if found is None:
                in_tree = line.digest is not None and self._store.tree.find(line.digest) is not None
                missing += [] if in_tree else [line.name]
        return missing

    async def find_in_trash(self, line: Listed) -> Digest | None:
        """The blob that a line means, if it is in the trash."""
        found = await trio.to_thread.run_sync(self._find_in_trash, line)
        if found is None or await trio.to_thread.run_sync(self._store.trash.find, found) is None:
            return None
        return found

    def _find_in_trash(self, line: Listed) -> Digest | None:
        if line.digest is not None:
            return line.digest
        return next(
            (gone.digest for gone in self._store.trash.walk() if gone.digest.sha256 == line.sha256), None
        )

    async def remove(self, name: bytes) -> None:
        """Remove a list, durably; what it pinned may go at the next collection. Raises: AbsentError."""
        self._store.namespace.require_writable()
        async with self._turn:
            await self._remove(name)

    async def _remove(self, name: bytes) -> None:
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            raise AbsentError(f"there is no list {os.fsdecode(name)}") from None
        opened = self._open.pop(name, None)
        if opened is not None:
            opened.removed = True
        await trio.to_thread.run_sync(fsync_path, self._store.pins)

    async def rename(self, name: bytes, new_name: bytes, *, noreplace: bool = False) -> None:
        """Rename a list, saved first if it is open.

        Raises: AbsentError, ExistsError; MisuseError if the list cannot be understood.
        """
        self._store.namespace.require_writable()
        path, new_path = self._path(name), self._path(new_name)
        async with self._turn:
            opened = self._open.get(name)
            if opened is not None:
                await self._keep(opened, len(opened.data))
            if noreplace and os.path.lexists(new_path):
                raise ExistsError(os.fsdecode(new_name))
            try:
                os.rename(path, new_path)
            except FileNotFoundError:
                raise AbsentError(f"there is no list {os.fsdecode(name)}") from None
            replaced = self._open.pop(new_name, None) if name != new_name else None
            if replaced is not None:
                replaced.removed = True
            if opened is not None:
                del self._open[name]
                opened.name = new_name
                self._open[new_name] = opened
        await trio.to_thread.run_sync(fsync_path, self._store.pins)

    # --- single blobs ---

    async def add(self, name: bytes, digests: Iterable[str]) -> Saved:
        """Add blobs, in any notation of a list, to a list, which is made if need be.

        Raises: BusyError if somebody has it open for writing; as `keep`.
        """
        async with self._turn:
            self._require_closed(name)
            try:
                data = self.read(name)
            except AbsentError:
                data = b""
            known = set(_lines(data))
            wanted = list(dict.fromkeys(digests))
            fresh = [line for line in wanted if line.encode() not in known]
            if data and not data.endswith(b"\n"):
                data += b"\n"
            saved = await self._save(name, data + b"".join(line.encode() + b"\n" for line in fresh))
        return saved._replace(pinned=len(fresh))

    async def discard(self, name: bytes, digest: Listed) -> int:
        """Take a blob off a list; a list that is empty then goes. Returns how many lines named it.

        Raises: AbsentError if there is no such list; BusyError as `add`.
        """
        async with self._turn:
            self._require_closed(name)
            kept, gone = [], 0
            for line in self.read(name).splitlines(keepends=True):
                listed = _parse_line(line, "")
                if listed is not None and listed.means(digest):
                    gone += 1
                else:
                    kept.append(line)
            if gone and not any(line.strip() for line in kept):
                self._store.namespace.require_writable()
                await self._remove(name)
            elif gone:
                await self._save(name, b"".join(kept))
        return gone

    def _require_closed(self, name: bytes) -> None:
        if name in self._open:
            raise BusyError(f"pins/{os.fsdecode(name)} is being written by somebody else")


class PinList:
    """A list that is open for writing.

    Attributes:
      serial: Of the last change of any list.
      saved: The serial of what is in the store.
      safe_bytes: The lines before are in the store as they are here, and what they pin will stay.
      refused: The last write was: whoever emptied the list for it did not mean it to be empty.
    """

    def __init__(self, name: bytes, data: bytes) -> None:
        self.name = name
        self.data = bytearray(data)
        self.users = 0
        self.removed = self.refused = False
        self.serial = self.saved = next(_serials)
        # Somebody may have put the list there by hand.
        self.safe_bytes = 0

    def write(self, offset: int, data: bytes) -> bool:
        """Write, unless that completes a line which is no blob. Returns whether it ended the last line.

        Raises: MisuseError, TooLargeError, AbsentError; nothing was written.
        """
        end = offset + len(data)
        if end > LIST_MAX_BYTES:
            raise TooLargeError(f"a list of pins has at most {LIST_MAX_BYTES} bytes")
        if self.removed:
            raise AbsentError(f"the list {os.fsdecode(self.name)} was removed")
        begin = self._line_before(offset)
        text = bytes(self.data[begin:offset]).ljust(offset - begin, b"\0") + data
        whole = text[: text.rfind(b"\n") + 1]
        self.refused = True
        _parse(whole, os.fsdecode(self.name))
        self.refused = False
        if offset > len(self.data):
            self.data += bytes(offset - len(self.data))
        self.data[offset:end] = data
        self._changed(begin)
        return end == len(self.data) and data.endswith(b"\n")

    def truncate(self, size_bytes: int) -> None:
        """Cut it, or lengthen it with zeros, which have to be overwritten before it is saved."""
        if size_bytes > LIST_MAX_BYTES:
            raise TooLargeError(f"a list of pins has at most {LIST_MAX_BYTES} bytes")
        self.refused = False
        if size_bytes != len(self.data):
            begin = self._line_before(size_bytes)
            del self.data[size_bytes:]
            self.data += bytes(size_bytes - len(self.data))
            self._changed(begin)

    def _line_before(self, offset: int) -> int:
        """Where the line begins that a position is in."""
        return self.data.rfind(b"\n", 0, offset) + 1

    def _changed(self, begin: int) -> None:
        self.serial = next(_serials)
        self.safe_bytes = min(self.safe_bytes, begin)


def _lines(data: bytes) -> Iterator[bytes]:
    for line in data.split(b"\n"):
        yield line.strip()


def _parse(data: bytes, where: str, begin: int = 0) -> list[Listed]:
    """The blobs of a list, from the line at `begin` on. Raises: MisuseError for a line that is none."""
    listed = []
    for number, line in enumerate(data[begin:].split(b"\n"), data.count(b"\n", 0, begin) + 1):
        blob = _parse_line(line, f"pins/{where}: line {number}")
        if blob is not None:
            listed.append(blob)
    return listed


def _parse_line(line: bytes, where: str) -> Listed | None:
    text = line.decode("utf-8", "surrogateescape").strip()
    if not text or text.startswith("#"):
        return None
    return parse_listed(text, where)


