"""The version directories of a mount, docs/versions.md: what `D/.versions` and everything below it shows.

    D/.versions/            names of D that have a history; any name that exists can be looked up
      NAME/                 of a regular file, live or gone
        1 2 3 ...           superseded versions, then the current one
        latest              -> the highest number
        at/TIME             -> ../N, the version of that time
      NAME/                 of a directory, live or removed: its own `.versions`
      NAME@N NAME@TIME      the same files as NAME/N and NAME/at/TIME
      NAME@                 the same as NAME/, for names that mean something else here (`.at`)
      .at/TIME/...          the directory as it was at that time

Permissions: a version has the owner and mode it had, without the rights to write and without setuid and setgid
(an old program that was replaced for its holes is not to come back to life). A directory has those of the
directory it speaks of, without the right to write: nobody gets at a name here who could not list it there.

What is current is what the last close or fsync left; who looks waits for a file that was just closed to be sealed.
"""

from __future__ import annotations

import stat
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

from mountstore.errors import AbsentError, StaleError
from mountstore.fuse.virtual import Appearance, Directory, File, Link, Node
from mountstore.namespace.history import Version
from mountstore.namespace.inodes import Inode
from mountstore.namespace.notation import Instant, parse_number, parse_reference, parse_time
from mountstore.namespace.past import PastFile, PastLink, PastThing, thing_at, things_at
from mountstore.namespace.timeline import Line, Timeline, VersionReader
from mountstore.store import Store

AT = b".at"
"""In a version directory: the directory as it was."""


_new = tuple.__new__
_FILE = stat.S_IFREG


class _Owner(NamedTuple):
    """What a virtual directory takes over from the one it speaks of."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int


class VersionsView:
    """Makes the nodes.

    Args:
      cache_s: How long the kernel may keep what never changes.
    """

    def __init__(self, store: Store, cache_s: float) -> None:
        self.timeline: Timeline = store.timeline
        self.cache_s = cache_s
        self._inodes = store.inodes
        self._kept_mode = store.versions.kept_mode
        self._seal = store.sealer.seal_or_keep

    def of_directory(self, inode: int) -> Directory:
        """`.versions` of a directory of the store."""
        return _Names(self, inode, self.owner(inode, None), inode)

    def owner(self, inode: int, last: _Owner | None) -> _Owner:
        """What a directory looks like now; `last`, if it is gone."""
        try:
            found = self._inodes.get(inode)
        except StaleError:
            if last is None:
                raise
            return last
        return _Owner(self._kept_mode(found), found.uid, found.gid, found.mtime_ns, found.ctime_ns)

    async def settled(self, parent: int, name: bytes) -> Line:
        """The line of a name, when a file that was closed is sealed."""
        line = self.timeline.line(parent, name)
        inode = line.inode
        if inode is not None and inode.draft is not None and inode.writers == 0:
            await self._seal(inode)
            line = self.timeline.line(parent, name)
        return line

    def named(self, names: _Names, name: bytes) -> Node | None:
        """NAME/, if there is or was something of that name with a content."""
        line = self.timeline.line(names.inode, name)
        inode = line.inode
        if inode is not None and inode.is_directory:
            return _Names(self, inode.id, self.owner(inode.id, None), names)
        if line.current:
            return _Line(names, name)
        latest = self.timeline.latest(line)
        last = self._get(line, latest) if latest else None
        if last is None:
            return None
        if inode is None and last.directory:
            return _Names(self, last.directory, _owner_of(last), names)
        return _Line(names, name)

    def numbered(self, line: Line, number: int, above: Directory) -> Node | None:
        """The node of one version."""
        version = self._get(line, number)
        return None if version is None else self.version(line, number, version, above)

    def version(self, line: Line, number: int, version: Version, above: Directory) -> Node:
        if version.directory:
            return _Names(self, version.directory, _owner_of(version), above)
        return self.file(line, number, version[1:6])

    def file(self, line: Line, number: int, shown: tuple[int, int, int, int, int]) -> Node:
        """A version that is a file; `shown` are size, mode, uid, gid, mtime_ns."""
        timeout_s = 0.0 if number == line.current else self.cache_s
        return _VersionFile(self, (line.parent, line.name, number, shown), (timeout_s, self.cache_s))

    def gone(self, known: Mapping[int, Node]) -> Iterator[tuple[int, bytes] | None]:
        """Among what the kernel knows, the versions that were there and are gone: directory and name of each.

        None for every file looked at, so that the caller can pause.
        """
        numbers = {node.key: number for number, node in known.items() if isinstance(node, _Virtual)}
        pasts: dict[int, list[int]] = {}
        for number, node in known.items():
            if isinstance(node, _Past):
                pasts.setdefault(node.inode, []).append(number)
        for node in known.values():
            if not isinstance(node, _VersionFile):
                continue
            yield None
            parent, name, number, _ = node.key
            if self._get(self.timeline.line(parent, name), number) is not None:
                continue
            places = [(("line", parent, name), b"%d" % number), (("names", parent), b"%s@%d" % (name, number))]
            for key, entry in places:
                if key in numbers:
                    yield numbers[key], entry
            for past in pasts.get(parent, ()):
                yield past, name

    def _get(self, line: Line, number: int) -> Version | None:
        try:
            return self.timeline.get(line, number)
        except AbsentError:
            return None


def _owner_of(version: Version) -> _Owner:
    return _Owner(version.mode, version.uid, version.gid, version.mtime_ns, version.until_ns)


class _Virtual(Directory):
    """A directory with the rights of one of the store's. It may change at any time, so nothing is kept."""

    __slots__ = ("_above", "_owner", "inode", "view")

    def __init__(self, view: VersionsView, inode: int, owner: _Owner, above: Directory | int) -> None:
        self.view = view
        self.inode = inode
        self._owner = owner
        self._above = above

    @property
    def above(self) -> Directory | int:
        return self._above

    def owned(self) -> _Owner:
        """What the directory it speaks of looks like."""
        self._owner = self.view.owner(self.inode, self._owner)
        return self._owner

    def appearance(self) -> Appearance:
        owner = self.owned()
        mode = stat.S_IFDIR | owner.mode & 0o555
        return Appearance(mode, owner.uid, owner.gid, 4096, owner.mtime_ns, owner.ctime_ns, 0.0, 0.0)


class _Names(_Virtual):
    """`.versions` of a directory, live or removed."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        return "names", self.inode

    async def lookup(self, name: bytes) -> Node | None:
        if name == AT:
            return _Moments(self.view, self.inode, self._owner, self)
        found = self.view.named(self, name)
        if found is not None:
            return found
        reference = parse_reference(name)
        if reference.name == name:
            return None
        if reference.selector is None:
            return self.view.named(self, reference.name)
        line = await self.view.settled(self.inode, reference.name)
        selector = reference.selector
        number = self.view.timeline.at(line, selector.time_ns) if isinstance(selector, Instant) else selector
        return self.view.numbered(line, number, self)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return self._list()

    def _list(self) -> Iterator[tuple[bytes, Node]]:
        for name in self.view.timeline.names(self.inode):
            node = self.view.named(self, name)
            if node is not None:
                yield (name + b"@" if name == AT else name), node


class _Line(_Virtual):
    """NAME/: the versions of a name."""

    __slots__ = ("name",)

    def __init__(self, names: _Virtual, name: bytes) -> None:
        super().__init__(names.view, names.inode, names._owner, names)
        self.name = name

    @property
    def key(self) -> Hashable:
        return "line", self.inode, self.name

    async def lookup(self, name: bytes) -> Node | None:
        if name == b"at":
            return _MomentsOfName(self, self.name)
        line = await self.view.settled(self.inode, self.name)
        if name == b"latest":
            latest = self.view.timeline.latest(line)
            return _VersionLink(self, b"%d" % latest) if latest else None
        number = parse_number(name)
        return None if number is None else self.view.numbered(line, number, self)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return self._list(await self.view.settled(self.inode, self.name))

    def _list(self, line: Line) -> Iterator[tuple[bytes, Node]]:
        view = self.view
        parent, name, current = line.parent, line.name, line.current
        kept, unkept = (view.cache_s, view.cache_s), (0.0, view.cache_s)
        number = 0
        for number, directory, shown in view.timeline.shown(line):
            if not directory:
                timeouts_s = unkept if number == current else kept
                yield b"%d" % number, _VersionFile(view, (parent, name, number, shown), timeouts_s)
                continue
            node = self.view.numbered(line, number, self)
            if node is not None:
                yield b"%d" % number, node
        yield b"at", _MomentsOfName(self, self.name)
        if number:
            yield b"latest", _VersionLink(self, b"%d" % number)


class _MomentsOfName(_Line):
    """NAME/at/: any time can be looked up, none is listed."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        return "moments of name", self.inode, self.name

    async def lookup(self, name: bytes) -> Node | None:
        instant = parse_time(name)
        if instant is None:
            return None
        line = await self.view.settled(self.inode, self.name)
        number = self.view.timeline.at(line, instant.time_ns)
        return _VersionLink(self, b"../%d" % number) if number else None

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return iter(())


class _Moments(_Virtual):
    """.at/: any time can be looked up, none is listed."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        return "moments", self.inode

    async def lookup(self, name: bytes) -> Node | None:
        instant = parse_time(name)
        return None if instant is None else _Past(self.view, self.inode, self._owner, self, instant.time_ns)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return iter(())


class _Past(_Virtual):
    """A directory as it was at a time, see `mountstore.namespace.timeline`."""

    __slots__ = ("time_ns",)

    def __init__(
        self, view: VersionsView, inode: int, owner: _Owner, above: Directory | int, time_ns: int
    ) -> None:
        super().__init__(view, inode, owner, above)
        self.time_ns = time_ns

    @property
    def key(self) -> Hashable:
        return "past", self.inode, self.time_ns

    async def lookup(self, name: bytes) -> Node | None:
        return self._node(await self.view.settled(self.inode, name))

    def _node(self, line: Line) -> Node | None:
        thing = thing_at(self.view.timeline, line, self.time_ns)
        return None if thing is None else self._show(thing)

    def _show(self, thing: PastThing) -> Node:
        if isinstance(thing, PastFile):
            return self.view.file(thing.line, thing.number, thing.version[1:6])
        if isinstance(thing, PastLink):
            return _PastLink(thing.inode)
        owner = _owner_of(thing.removed) if thing.removed is not None else self.view.owner(thing.inode, None)
        return _Past(self.view, thing.inode, owner, self, self.time_ns)

    async def listing(self) -> Iterator[tuple[bytes, Node]]:
        return self._list()

    def _list(self) -> Iterator[tuple[bytes, Node]]:
        for name, thing in things_at(self.view.timeline, self.inode, self.time_ns):
            yield name, self._show(thing)


_VersionKey = tuple[int, bytes, int, tuple[int, int, int, int, int]]
"""Directory, name and number of a version; its size, mode, uid, gid and `mtime_ns`. Without the content: of a
prefix that is another one after every append, with the same bytes."""


class _VersionFile(File):
    """One version of a file. Thousands are made for one listing.

    Args:
      timeouts_s: How long the kernel may keep the name, and what stat(2) shows.
    """

    __slots__ = ("_timeouts_s", "_view", "key")

    key: _VersionKey

    def __init__(self, view: VersionsView, key: _VersionKey, timeouts_s: tuple[float, float]) -> None:
        self._view = view
        self.key = key
        self._timeouts_s = timeouts_s

    def appearance(self) -> Appearance:
        size, mode, uid, gid, mtime_ns = self.key[3]
        mode = _FILE | mode & 0o555
        entry_timeout_s, attr_timeout_s = self._timeouts_s
        # Appearance(...), in half the time.
        return _new(
            Appearance,
            (mode, uid, gid, size, mtime_ns, mtime_ns, entry_timeout_s, attr_timeout_s, None, 1, 0, -1),
        )

    async def open(self) -> tuple[VersionReader, bool]:
        # Looked up again: what had its bytes when the name was looked up may have been superseded itself.
        parent, name, number, shown = self.key
        line = await self._view.settled(parent, name)
        version = self._view._get(line, number)
        if version is None or version.directory or version.size_bytes != shown[0]:
            raise StaleError(f"{name!r}: version {number} is no longer there")
        # One that is current may be sealed again before it is superseded.
        return self._view.timeline.open(version), number != line.current


class _VersionLink(Link):
    """`latest`, or a time."""

    __slots__ = ("_line", "_target")

    def __init__(self, line: _Line, target: bytes) -> None:
        self._line = line
        self._target = target

    @property
    def key(self) -> Hashable:
        return "link", self._line.inode, self._line.name, self._target

    @property
    def target(self) -> bytes:
        return self._target

    def appearance(self) -> Appearance:
        _, uid, gid, mtime_ns, ctime_ns = self._line.owned()
        return Appearance(stat.S_IFLNK | 0o777, uid, gid, len(self._target), mtime_ns, ctime_ns, 0.0, 0.0)


class _PastLink(Link):
    """A symbolic link that has been there since."""

    __slots__ = ("_id", "_mtime_ns", "_target", "_uid_gid")

    def __init__(self, inode: Inode) -> None:
        assert inode.target is not None
        self._id = inode.id
        self._target = inode.target
        self._uid_gid = inode.uid, inode.gid
        self._mtime_ns = inode.mtime_ns

    @property
    def key(self) -> Hashable:
        return "symlink", self._id

    @property
    def target(self) -> bytes:
        return self._target

    def appearance(self) -> Appearance:
        times = self._mtime_ns, self._mtime_ns
        return Appearance(stat.S_IFLNK | 0o777, *self._uid_gid, len(self._target), *times, 0.0, 0.0)
