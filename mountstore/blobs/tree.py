"""The balanced tree: immutable blobs in directories of bounded size, under names that are their digests.

Specified in `docs/format.md`, "Blobs and the balanced tree". Invariants:

1. Under its name a blob is whole or absent: it is written in staging and renamed, so neither a reader nor a
   crash sees half of one.
2. A digest is placed once, and never moves afterwards.
3. A blob goes into the first directory on its way that has fewer than `dir_limit` entries.
4. What is not ours (other names, directories that bear a blob's name, symbolic links) is never touched.

Every method may be called from any thread and blocks on the file system. None makes anything durable,
except `fsync`. Several processes may work on one tree, see `exclusive`.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Container, Iterator
from typing import BinaryIO, Final, NamedTuple

from mountstore.blobs.digest import Buffer, Digest
from mountstore.blobs.flush import begin_flush, fsync_path
from mountstore.blobs.levels import Levels
from mountstore.blobs.opening import open_to_read
from mountstore.blobs.refs import REFS_NAME
from mountstore.blobs.scan import LEVELS_MAX, TreeStatistics, count, scan
from mountstore.blobs.staging import Staged, Staging, drop_file
from mountstore.blobs.streams import PART_BYTES, digest_of_rest, read_up_to
from mountstore.blobs.treelock import LOCK_NAME, SharedLock, Tally, TreeLock, outdate_counts
from mountstore.errors import BlobMissingError, CorruptError, MisuseError, StoreError

__all__ = ["DIR_LIMIT", "LEVELS_MAX", "Added", "BalancedTree", "TreeStatistics"]

DIR_LIMIT: Final = 32000
"""The default of BalancedDiscStorage; ext3 allowed a directory 31998 subdirectories."""
# A stream up to this size is taken into memory, so that one whose content exists is never written.
_IN_MEMORY_BYTES: Final = 4 << 20
_KEY_BYTES: Final = 16


class Added(NamedTuple):
    """What became of content that was to be added."""

    digest: Digest
    path: str
    new: bool
    """False if the tree had it already."""


class _Odd(NamedTuple):
    """A file at a blob's place that is not the blob."""

    directory: str
    damaged: bool
    """A regular file of the wrong size, to be replaced; else something foreign, to be left alone."""


class BalancedTree:
    """Blobs in a directory of their own.

    Args:
        root: Made if absent. A directory made by BalancedDiscStorage is taken as it is.
        staging: Directory on the same file system for half-written blobs, made when first needed; what lies
            in it while no tree is in use is garbage. Default: `.staging` in the root.
        dir_limit: A directory with this many entries (of any kind) takes no further blobs. Need not be the
            same from one use to the next.
        exclusive: The caller warrants that nobody else adds to this tree while the object is in use.
            Otherwise any number of processes may add and delete at once by means of this class
            (BalancedDiscStorage itself knows nothing of the lock: it may read, but not write meanwhile).
        gid: Group of new blobs and directories; None leaves it to the file system.

    Raises:
        MisuseError: `dir_limit` is less than 1.
        OSError: The root cannot be made, or is not a directory.
    """

    def __init__(
        self,
        root: str,
        *,
        staging: str | None = None,
        dir_limit: int = DIR_LIMIT,
        exclusive: bool = False,
        gid: int | None = None,
    ) -> None:
        if dir_limit < 1:
            raise MisuseError(f"a directory must hold at least one entry, not {dir_limit}")
        os.makedirs(root, exist_ok=True)
        # The canonical form: prefixes can then be compared, and chdir does no harm.
        self.root: Final = os.path.realpath(root)
        self.dir_limit: Final = dir_limit
        self._staging = Staging(os.path.realpath(staging or f"{self.root}/.staging"), gid)
        self._own: Final = frozenset(
            (*(f"{self.root}/{name}" for name in (REFS_NAME, ".staging", LOCK_NAME)), self._staging.directory)
        )
        self._shared = not exclusive
        self._lock: TreeLock
        if exclusive:
            outdate_counts(self.root)
            self._lock = threading.Lock()
            self._levels = Levels(self.root, gid, Tally(), alone=True)
        else:
            self._lock = shared = SharedLock(self.root)
            self._levels = Levels(self.root, gid, shared)
        # Blobs whose bytes are known to be whole and, in time, to survive power loss. Any other that is found
        # when the same content is added has its bytes compared, and is replaced if they differ: a crash
        # can leave a blob whose name reached the disk and whose bytes did not. None: all are.
        self.trusted: Container[Digest] | None = None
        # Counts the changes made through this object, under the lock: while it stands still, and nobody
        # else adds, the answer of a look-up holds.
        self._changes = 0
        # Whether the last look-up found its blob: the next most likely does, or does not, likewise.
        self._found = False
        # Directories whose entry in the directory above is durable; known only when nobody else works here.
        self._durable: set[str] = set()
        self._made = 0
        self._distrusted: set[Digest] = set()
        # While somebody watches: what was added, or found there when it was to be added. Under the lock.
        self._wanted: set[bytes] | None = None

    # --- reading ---

    def find(self, digest: Digest) -> str | None:
        """The path of a blob; None if it is not here, or is damaged: of a wrong size, or distrusted."""
        return self._look(digest, self._levels.exists)[0]

    def open(self, digest: Digest) -> int:
        """A descriptor for reading, close-on-exec, owned by the caller.

        Raises:
            BlobMissingError: It is not here.
            CorruptError: There is only a file of another size under its name.
        """
        name = digest.name
        damaged: str | None = None
        for directory in self._way(name):
            path = f"{directory}/{name}"
            try:
                fd = open_to_read(path)
            except FileNotFoundError:
                continue
            except OSError:
                if _is_regular(path):
                    raise
                continue
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                if status.st_size == digest.size_bytes:
                    return fd
                damaged = path
            os.close(fd)
        if damaged is not None:
            raise CorruptError(f"{damaged} has not the size in its name")
        raise BlobMissingError(f"no blob {name} in {self.root}")

    def walk(self) -> Iterator[tuple[Digest, str]]:
        """Every blob with its path, in no order, in memory that does not grow with their number.

        The sizes of the files are not looked at. Blobs that come or go meanwhile may be yielded or not. A
        digest is yielded twice if an adopted directory holds it twice: the older software places a blob anew
        when there is room again nearer to the root.
        """
        for _, found in scan(self.root, self._own):
            if isinstance(found, tuple):
                yield found

    def statistics(self) -> TreeStatistics:
        """Count everything; takes as long as `walk`."""
        return count(self.root, self._own)

    # --- adding ---

    def add_bytes(self, data: Buffer, digest: Digest | None = None) -> Added:
        """Put `data` in, unless it is there: then nothing is written.

        Args:
            data: Any length, also none.
            digest: Its digest, if the caller knows it already.

        Raises:
            MisuseError: `digest` has another length, so it is not that of `data`.
            StoreError: All directories on its way are full, or one is obstructed.
            OSError: As the system says (no space, ...). As in the other cases, nothing was left behind.
        """
        if digest is None:
            digest = Digest.of(data)
        elif digest.size_bytes != (data.nbytes if isinstance(data, memoryview) else len(data)):
            raise MisuseError(f"{digest.name} is not the digest of these bytes: their length is another")
        changes = self._changes
        found, odd = self._look_to_add(digest)
        if found is not None:
            if self._is_trusted(digest) or _holds(found, data):
                return Added(digest, found, False)
            self.distrust(digest)
            odd = self._look(digest, self._levels.is_known)[1]
        staged = self._staging.write(data)
        try:
            return self._place(staged, digest, odd, changes)
        except BaseException:
            drop_file(staged)
            raise

    def distrust(self, digest: Digest) -> None:
        """The blob was found damaged: this object replaces it when the same bytes are added again."""
        self._distrusted.add(digest)

    def add_stream(self, stream: BinaryIO) -> Added:
        """Put in what a stream yields from its position to its end.

        A stream that can seek is read twice if it is long, so that nothing is written if its content exists;
        what cannot seek is written to staging as it comes.

        Raises: as `add_bytes`, and whatever reading raises.
        """
        start = stream.tell() if stream.seekable() else None
        head = read_up_to(stream, _IN_MEMORY_BYTES + 1)
        if len(head) <= _IN_MEMORY_BYTES:
            return self.add_bytes(head)
        if start is not None:
            digest = digest_of_rest(stream, head)
            found, _ = self._look_to_add(digest)
            if found is not None:
                return Added(digest, found, False)
            stream.seek(start)
            head = b""
        with self.create_staging() as staged:
            while True:
                if head:
                    staged.write(head)
                head = read_up_to(stream, PART_BYTES)
                if not head:
                    return self.publish(staged)

    def add_file(self, path: str) -> Added:
        """Put in the content of a file, which is left as it is. Raises: as `add_stream`."""
        with open(path, "rb", buffering=0) as stream:
            return self.add_stream(stream)

    def create_staging(self) -> Staged:
        """An empty staging file, for content that comes in parts; finish with `publish` or `Staged.discard`.

        Raises:
            OSError: Nothing was left behind.
        """
        return self._staging.create()

    def publish(self, staged: Staged | str, digest: Digest | None = None) -> Added:
        """Move a finished file into the tree under its true name.

        If the digest is there already, the staged file is dropped; if what is there has the wrong size, it is
        damage and is replaced.

        Args:
            staged: A staging file, which is closed by this, or the path of any closed regular file on
                the tree's file system, which nobody will change from now on.
            digest: Of its content. May be left out if everything went through `Staged.write`.

        Raises:
            MisuseError: The file is not a regular one, or has another size than the digest.
            StoreError: As `add_bytes`.
            OSError: As the system says. Whenever this raises, the tree is as it was and the staged file is
                whole and still belongs to the caller.
        """
        if isinstance(staged, Staged):
            path = staged.path
            if digest is None:
                digest = staged.digest()
            staged.close()
        else:
            path = staged
            if digest is None:
                raise MisuseError("the digest is needed to publish a file by its path")
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != digest.size_bytes:
            raise MisuseError(f"{path} is not {digest.name}: it is no file or has another size")
        changes = self._changes
        found, odd = self._look_to_add(digest)
        if found is not None:
            if self._is_trusted(digest) or _is_whole(found, digest):
                drop_file(path)
                return Added(digest, found, False)
            self.distrust(digest)
            odd = self._look(digest, self._levels.is_known)[1]
        self._staging.adopt(path, status)
        return self._place(path, digest, odd, changes)

    def _is_trusted(self, digest: Digest) -> bool:
        return self.trusted is None or digest in self.trusted

    # --- removing ---

    def delete(self, digest: Digest) -> None:
        """Remove a blob, damaged or not, and the directories this empties.

        Raises:
            BlobMissingError: It is not here.
        """
        self._take(digest, None)

    def move_out(self, digest: Digest, destination: str) -> None:
        """As `delete`, but the file gets the path `destination`, which is replaced if it exists.

        Raises:
            BlobMissingError: It is not here.
            OSError: It was not moved (another file system, no such directory, ...).
        """
        self._take(digest, destination)

    def delete_path(self, path: str) -> Digest:
        """Remove the blob at `path`, however that leads into the tree, and the directories this empties.

        Raises:
            MisuseError: When all links are resolved, this is not the place of a blob in this tree.
            BlobMissingError: It would be the place of one, but there is none.
        """
        directory, name = os.path.split(path)
        digest = Digest.parse(name)
        directory = os.path.realpath(directory)
        level = len(directory) - len(self.root) >> 1
        if not 1 <= level <= LEVELS_MAX or directory != self._directory(name, level):
            raise MisuseError(f"{path} is not the place of a blob in {self.root}")
        with self._lock:
            path = f"{directory}/{name}"
            if not _is_regular(path):
                raise BlobMissingError(f"no blob at {path}")
            self._unlink(directory, path)
        return digest

    def delete_content(self, content: Buffer | BinaryIO) -> Digest:
        """Remove the blob with the same content as a buffer, or as a stream from its position on.

        Raises:
            BlobMissingError: There is none.
        """
        if isinstance(content, bytes | bytearray | memoryview):
            digest = Digest.of(content)
        else:
            digest = digest_of_rest(content, b"")
        self.delete(digest)
        return digest

    # --- collecting garbage ---

    def watch(self) -> None:
        """From now on take note of everything that is added, also of what is there already: see `retire`.

        Raises:
            MisuseError: Somebody watches already.
        """
        with self._lock:
            if self._wanted is not None:
                raise MisuseError(f"{self.root} is being watched already")
            self._wanted = set()

    def unwatch(self) -> None:
        """Forget what was noted; `retire` moves nothing any more."""
        with self._lock:
            self._wanted = None

    @property
    def is_watched(self) -> bool:
        """Whether somebody watches now."""
        return self._wanted is not None

    def is_wanted(self, digest: Digest) -> bool:
        """Whether it was added since `watch`. One digest in 2**128 is mistaken for another."""
        wanted = self._wanted
        return wanted is None or digest.sha256[:_KEY_BYTES] in wanted

    def want(self, digest: Digest) -> bool:
        """Have a blob count as added, because something outside needs it from now on; whether it is here."""
        return self._look_to_add(digest)[0] is not None

    def retire(self, digest: Digest, destination: str) -> bool:
        """As `move_out`, unless the blob was added since `watch`, by whatever thread; returns whether it moved.

        For whoever adds it at the same time it is as if that came before, and nothing moved, or after, and it
        is put in anew. An addition that began before `watch` is not noticed: the caller waits for those to end.

        Raises:
            OSError: It was not moved.
        """
        with self._lock:
            if self.is_wanted(digest):
                return False
            try:
                self._take_locked(digest, destination)
            except BlobMissingError:
                return False
        return True

    # --- durability ---

    def fsync(self, *paths: str) -> None:
        """Make placed blobs durable, with their names: the files, then the directories up to the root.

        Directories that this object made durable before are left out if nobody else works on the tree.

        Args:
            paths: As returned by `find` or `Added`.

        Raises:
            MisuseError: It is not in the tree.
            OSError, FlushFailedError: As `mountstore.blobs.flush.fsync_path`.
        """
        made = self._made
        flushed: set[str] = set()
        for path in paths:
            if not path.startswith(f"{self.root}/"):
                raise MisuseError(f"{path} is not in {self.root}")
            if len(paths) > 1:
                begin_flush(path)
        for path in paths:
            fsync_path(path)
        for path in paths:
            directory = os.path.dirname(path)
            while directory not in flushed:
                flushed.add(directory)
                fsync_path(directory, os.O_DIRECTORY)
                if directory == self.root or directory in self._durable:
                    break
                directory = os.path.dirname(directory)
        fresh = flushed - {self.root} - self._durable
        if fresh and not self._shared:
            with self._lock:
                if made == self._made:  # or it may be about another directory of that name by now
                    self._durable.update(fresh)

    # --- within ---

    def _directory(self, name: str, level: int) -> str:
        return "/".join((self.root, *name[:level]))

    def _way(self, name: str) -> Iterator[str]:
        """The existing directories in which a blob of this name may be, from the root's children down."""
        directory = self.root
        for letter in name[:LEVELS_MAX]:
            directory = f"{directory}/{letter}"
            if not self._levels.exists(directory):
                return
            yield directory

    def _look(
        self, digest: Digest, exists: Callable[[str], bool]
    ) -> tuple[str | None, tuple[_Odd, ...]]:
        """The whole blob; or None, and what else is at its places. No lock: a placed blob never moves.

        Args:
            exists: Of `Levels`: whether there is a directory.
        """
        name = digest.name
        odd: tuple[_Odd, ...] = ()
        directory = self.root
        for letter in name[:LEVELS_MAX]:  # as `_way`, which as a generator would cost half a microsecond
            directory = f"{directory}/{letter}"
            if not exists(directory):
                break
            path = f"{directory}/{name}"
            # Where nothing is, access(2) is half as dear as an lstat(2) that raises.
            if not self._found and not os.access(path, os.F_OK, follow_symlinks=False):
                continue
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            regular = stat.S_ISREG(status.st_mode)
            if regular and status.st_size == digest.size_bytes and digest not in self._distrusted:
                self._found = True
                return path, odd
            odd = (*odd, _Odd(directory, regular))
        self._found = False
        return None, odd

    def _look_to_add(self, digest: Digest) -> tuple[str | None, tuple[_Odd, ...]]:
        """As `_look`, for a caller who will rely on the blob from now on."""
        if self._wanted is None:
            return self._look(digest, self._levels.is_known)
        with self._lock:
            if self._wanted is not None:
                self._wanted.add(digest.sha256[:_KEY_BYTES])
            return self._look(digest, self._levels.is_known)

    def _place(self, staged: str, digest: Digest, odd: tuple[_Odd, ...], changes: int) -> Added:
        """Rename a correct file to where it belongs.

        Args:
            odd, changes: Result of a look-up that did not find it, and `_changes` from before.
        """
        name = digest.name
        with self._lock:
            while True:
                if self._shared or changes != self._changes:
                    found, odd = self._look(digest, self._levels.is_known)
                    if found is not None:
                        drop_file(staged)
                        return Added(digest, found, False)
                try:
                    path = self._rename(staged, name, odd)
                except FileNotFoundError:
                    # Somebody else deleted the last blob of a directory, and so the directory.
                    self._levels.forget()
                    if not os.path.lexists(staged):
                        raise
                    changes = -1
                else:
                    # Not before the rename: who reads the new number must see the new blob.
                    self._changes += 1
                    self._distrusted.discard(digest)
                    return Added(digest, path, True)

    def _rename(self, staged: str, name: str, odd: tuple[_Odd, ...]) -> str:
        for place in odd:
            if place.damaged:
                path = f"{place.directory}/{name}"
                os.rename(staged, path)
                return path
        directory, made = self._choose(name, [place.directory for place in odd])
        path = f"{directory}/{name}"
        try:
            self._levels.will_add(directory)
            try:
                os.rename(staged, path)
            except BaseException:
                self._levels.not_added(directory)
                raise
        except BaseException:
            if made:
                self._levels.prune(directory)
            raise
        return path

    def _choose(self, name: str, taken: list[str]) -> tuple[str, bool]:
        """The directory for a blob that is not there, and whether it was made for it.

        Args:
            taken: Directories in which something foreign has the name.
        """
        directory = self.root
        for letter in name[:LEVELS_MAX]:
            directory = f"{directory}/{letter}"
            room = self._levels.has_room(directory, self.dir_limit)
            if room is None:
                self._levels.make(directory)
                self._durable.discard(directory)
                self._made += 1
                return directory, True
            if room and directory not in taken:
                return directory, False
        raise StoreError(f"all {LEVELS_MAX} directories on the way of {name} are full")

    def _take(self, digest: Digest, destination: str | None) -> None:
        with self._lock:
            self._take_locked(digest, destination)

    def _take_locked(self, digest: Digest, destination: str | None) -> None:
        name = digest.name
        places = [directory for directory in self._way(name) if _is_regular(f"{directory}/{name}")]
        if not places:
            raise BlobMissingError(f"no blob {name} in {self.root}")
        for directory in reversed(places):
            moves = directory == places[0] and destination is not None
            self._unlink(directory, f"{directory}/{name}", destination if moves else None)

    def _unlink(self, directory: str, path: str, destination: str | None = None) -> None:
        if destination is None:
            os.unlink(path)
        else:
            os.rename(path, destination)
        self._changes += 1
        self._levels.removed(directory)
        self._levels.prune(directory)


def _holds(path: str, data: Buffer) -> bool:
    """Whether a file consists of these bytes."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall() == data
    except FileNotFoundError:
        return False


def _is_whole(path: str, digest: Digest) -> bool:
    """Whether a file has this digest."""
    try:
        with open(path, "rb", buffering=0) as file:
            return digest_of_rest(file, b"") == digest
    except FileNotFoundError:
        return False


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
