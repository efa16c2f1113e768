"""A store on disk: create, open, lock, configuration. Paths inside it are known here and in `blobs` only.

    store.toml   format number, uuid, limits, retention of versions; a directory without it is written to only if
                 it is empty
    blobs/       the balanced tree
    catalog.db   SQLite, WAL
    staging/     drafts too large for memory, half-written blobs
    bad/         damaged blobs, moved aside
    trash/       blobs that were collected, by day
    pins/        lists of digests that something outside needs
    lock         held with flock(2) by whoever may write
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import tempfile
import tomllib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Self

import msgspec
import trio

from mountstore.blobs.chunking import DEFAULT_PARAMETERS, ChunkingParameters
from mountstore.blobs.flush import fsync_path, syncfs
from mountstore.blobs.refs import has_refs
from mountstore.blobs.trash import Trash
from mountstore.blobs.tree import DIR_LIMIT, BalancedTree
from mountstore.errors import BusyError, ExistsError, StoreError
from mountstore.namespace.catalog import BlobIndex, Catalog
from mountstore.namespace.commits import Committer
from mountstore.namespace.contents import Contents
from mountstore.namespace.drafts import Drafts, inode_of_draft
from mountstore.namespace.files import Files
from mountstore.namespace.inodes import InodeTable
from mountstore.namespace.ledger import Ledger
from mountstore.namespace.namespace import Namespace
from mountstore.namespace.paths import find_paths
from mountstore.namespace.policy import Policy
from mountstore.namespace.recall import Recall
from mountstore.namespace.recall_tree import TreeRecall
from mountstore.namespace.recovery import Recovered, recover_contents
from mountstore.namespace.renditions import Renditions
from mountstore.namespace.replaced import Replaced
from mountstore.namespace.sealing import Sealer
from mountstore.namespace.shared_inodes import SharedInodeTable
from mountstore.namespace.snapshot_policy import SnapshotPolicy
from mountstore.namespace.space import Space
from mountstore.namespace.timeline import Timeline
from mountstore.namespace.versions import Versions
from mountstore.namespace.xattrs import Attributes

log = logging.getLogger(__name__)

STORE_FORMAT = 1

CONFIG_NAME = "store.toml"
BLOBS_NAME = "blobs"
CATALOG_NAME = "catalog.db"
STAGING_NAME = "staging"
KEPT_NAME = "kept"
LOCK_NAME = "lock"
BAD_NAME = "bad"
TRASH_NAME = "trash"
PINS_NAME = "pins"

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`store.toml`; see docs/format.md."""

    format: int
    uuid: str
    dir_limit: int = DIR_LIMIT
    piece_min: int = DEFAULT_PARAMETERS.min_size
    piece_avg: int = DEFAULT_PARAMETERS.avg_size
    piece_max: int = DEFAULT_PARAMETERS.max_size
    hole_min: int = DEFAULT_PARAMETERS.hole_min
    versions: Policy = Policy()
    snapshots: SnapshotPolicy = SnapshotPolicy()

    def chunking(self) -> ChunkingParameters:
        return ChunkingParameters(
            min_size=self.piece_min,
            avg_size=self.piece_avg,
            max_size=self.piece_max,
            piece_max=self.piece_max,
            hole_min=self.hole_min,
        )


def create_store(
    path: str,
    *,
    dir_limit: int = DIR_LIMIT,
    piece_max: int = DEFAULT_PARAMETERS.max_size,
    uid: int | None = None,
    gid: int | None = None,
) -> StoreConfig:
    """Make a store in an absent or empty directory.

    A directory that holds nothing but `blobs/` is made a store too: the blobs are adopted as they are. With
    snapshots among them it was a store, and `mountstore.care.rebuild` makes it one again. Others than the owner
    and the group of the directory lose all access to it.

    Args:
      dir_limit: Most entries of a directory in the balanced tree.
      piece_max: Largest file, in bytes, that is kept as one blob; larger ones are cut into pieces of
        a 32nd of it at least, an eighth on average; zeros become a hole from a 64th of it on.
      uid, gid: Owner of the root directory in the mount; default: of this process.

    Raises:
      ExistsError: There is a store already.
      StoreError: The directory holds something else.
      MisuseError: A limit is out of range.
    """
    config = StoreConfig(
        format=STORE_FORMAT,
        uuid=str(uuid.uuid4()),
        dir_limit=dir_limit,
        piece_min=max(piece_max // 32, 64),
        piece_avg=max(piece_max // 8, 256),
        piece_max=piece_max,
        hole_min=max(piece_max // 64, 64),
    )
    config.chunking()
    os.makedirs(path, 0o700, exist_ok=True)
    found = set(os.listdir(path))
    if CONFIG_NAME in found:
        raise ExistsError(f"{path}: is a store already")
    # lost+found: an empty file system may be the store.
    if found - {BLOBS_NAME, "lost+found"}:
        raise StoreError(
            f"{path}: is neither a store nor empty (found {sorted(found)[0]!r});"
            " give an empty or absent directory"
        )
    blobs = os.path.join(path, BLOBS_NAME)
    adopted = BLOBS_NAME in found and bool(os.listdir(blobs))
    if adopted and has_refs(blobs):
        raise StoreError(
            f"{blobs}: has snapshots, so an empty store is not made of it; mount {path}, or use"
            " fsck.cas --rebuild, to have back what they show"
        )
    # Blobs can be read by whoever gets to them, whatever the modes of the files they belong to.
    os.chmod(path, os.stat(path).st_mode & 0o7770)
    BalancedTree(os.path.join(path, BLOBS_NAME), dir_limit=dir_limit)
    os.makedirs(os.path.join(path, STAGING_NAME), 0o700, exist_ok=True)
    catalog = Catalog(os.path.join(path, CATALOG_NAME))
    # The group may be let in for the sake of the blobs (docs/serving.md), not for this.
    os.chmod(catalog.path, 0o600)
    inodes = InodeTable(catalog)
    inodes.create_root(os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid)
    inodes.flush()
    catalog.set_meta("clean", 1)
    if adopted:
        # Others may need what lies there: garbage collection leaves alone what was never used here.
        catalog.set_meta("adopted", 1)
    catalog.close()
    # The configuration makes it a store: last, and whole.
    write_config(path, config_text(config))
    syncfs(path)
    return config


def config_text(config: StoreConfig) -> str:
    """What `store.toml` has to say for this configuration."""
    lines = ["# A store of mountstore. The pieces' sizes decide how files are cut: never change them.\n"]
    fields = msgspec.to_builtins(config)
    tables = {key: fields.pop(key) for key in ("versions", "snapshots")}
    lines += _assignments(fields)
    lines.append("\n# Which old versions garbage collection keeps; without a line the value shown is meant.\n")
    lines += _table("versions", tables["versions"], Policy())
    lines.append("\n# How many automatic snapshots are kept: the last of so many hours, days and months.\n")
    lines += _table("snapshots", tables["snapshots"], SnapshotPolicy())
    return "".join(lines)


def _table(name: str, fields: dict[str, object], usual: msgspec.Struct) -> list[str]:
    """A table of TOML in which what is as usual is a comment."""
    known = _assignments(msgspec.to_builtins(usual))
    return [f"[{name}]\n", *(f"# {line}" if line in known else line for line in _assignments(fields))]


def write_config(path: str, text: str) -> None:
    """Put `store.toml` into the store at `path`, in one step, so that it survives power loss."""
    target = os.path.join(path, CONFIG_NAME)
    with open(target + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(target + ".new", target)
    fsync_path(path, os.O_DIRECTORY)


def _assignments(fields: dict[str, object]) -> list[str]:
    """Fields as lines of TOML."""
    lines = []
    for key, value in fields.items():
        text = f'"{value}"' if isinstance(value, str) else str(value)
        lines.append(f"{key} = {text.lower() if isinstance(value, bool) else text}\n")
    return lines


def read_config(path: str) -> StoreConfig:
    """The configuration of the store at `path`.

    Raises:
      StoreError: Not a store, one of another format, or a configuration that cannot be used.
    """
    file = os.path.join(path, CONFIG_NAME)
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read()
    except FileNotFoundError:
        raise StoreError(f"{path}: is not a store (no {CONFIG_NAME}); mkfs.cas makes one") from None
    except UnicodeDecodeError as exc:
        raise StoreError(f"{file}: cannot be read: {exc}") from exc
    return parse_config(text, file)


def parse_config(text: str, file: str) -> StoreConfig:
    """The configuration in the text of a `store.toml`; `file` says in errors where it was found.

    Raises:
      StoreError: Of another format, or it cannot be used.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise StoreError(f"{file}: cannot be read: {exc}") from exc
    if raw.get("format") != STORE_FORMAT:
        raise StoreError(
            f"{file}: store format {raw.get('format')!r}, this release reads {STORE_FORMAT};"
            " use the release that wrote it"
        )
    try:
        config = msgspec.convert(raw, StoreConfig)
        config.chunking()
        if config.dir_limit < 1:
            raise ValueError(f"dir_limit must be 1 or more, not {config.dir_limit}")
    except Exception as exc:
        raise StoreError(f"{file}: {exc}") from exc
    return config


class StoreLock:
    """The store's lock, held from `__init__` to `release`.

    The file is never deleted, and says who holds it; what counts is the flock, which ends with the process.

    Raises:
      BusyError: Somebody holds it.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.join(path, LOCK_NAME)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 4096, 0).decode(errors="replace").split()
            os.close(self._fd)
            who = f"pid {holder[0]} on {holder[1]}" if len(holder) >= 2 else "another process"
            raise BusyError(f"{path}: the store is in use by {who}") from None
        # Only for the message that somebody else gets: a full disk is no reason not to mount.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()} {socket.gethostname()} {boot_id()}\n".encode(), 0)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        os.close(self._fd)


def boot_id() -> str:
    """Tells one boot of this machine from the next."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Store:
    """An open store; the caller's thread, under trio, owns it. Use `Store.open`.

    Everything that changes contents needs `running`, which commits and syncs in the background.
    """

    def __init__(self, path: str, *, read_only: bool, commit_s: float, acl: bool) -> None:
        self.path = path
        self.config = read_config(path)
        self.read_only = read_only
        self._lock = None if read_only else StoreLock(path)
        try:
            self._open_parts(commit_s, acl)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _open_parts(self, commit_s: float, acl: bool) -> None:
        path = self.path
        staging = os.path.join(path, STAGING_NAME)
        if not self.read_only:
            os.makedirs(staging, exist_ok=True)
        self.catalog = Catalog(
            os.path.join(path, CATALOG_NAME), read_only=self.read_only, must_exist=True
        )
        self.tree = BalancedTree(
            os.path.join(path, BLOBS_NAME),
            staging=staging,
            dir_limit=self.config.dir_limit,
            exclusive=not self.read_only,
        )
        self.trash = Trash(os.path.join(path, TRASH_NAME), self.tree)
        self.pins = os.path.join(path, PINS_NAME)
        if not self.read_only:
            self._known = BlobIndex(self.catalog.path)
            self.tree.trusted = self._known
        self.ledger = Ledger(self.catalog)
        self.renditions = Renditions(self.catalog)
        self.replaced = Replaced(self.catalog)
        self.inodes = SharedInodeTable(self.catalog) if self.read_only else InodeTable(self.catalog)
        # Held while a snapshot is taken, and by garbage collection at the instant whose state it marks.
        self.snapshotting = trio.Lock()
        self.space = Space(path if self.read_only else staging)
        self.versions = Versions(self.catalog, self.inodes)
        self.namespace = Namespace(self.catalog, self.inodes, self.versions, read_only=self.read_only, acl=acl)
        self.attributes = Attributes(self.catalog, self.inodes, self.namespace, acl=acl)
        self.commits = Committer(
            catalog=self.catalog,
            inodes=self.inodes,
            ledger=self.ledger,
            replaced=self.replaced,
            tree=self.tree,
            interval_s=commit_s,
            on_doubt=self._stop_writes,
        )
        parameters = self.config.chunking()
        self.contents = Contents(self.tree, self.ledger, self.catalog.small_contents)
        self.timeline = Timeline(
            catalog=self.catalog, inodes=self.inodes, versions=self.versions, contents=self.contents
        )
        self.drafts = Drafts(
            catalog=self.catalog,
            inodes=self.inodes,
            contents=self.contents,
            tree=self.tree,
            parameters=parameters,
            staging=staging,
            space=self.space,
            replaced=self.replaced,
        )
        self.sealer = Sealer(
            inodes=self.inodes,
            ledger=self.ledger,
            versions=self.versions,
            contents=self.contents,
            drafts=self.drafts,
            tree=self.tree,
            parameters=parameters,
        )
        self.recall = Recall(
            namespace=self.namespace,
            inodes=self.inodes,
            timeline=self.timeline,
            contents=self.contents,
            ledger=self.ledger,
            sealer=self.sealer,
            tree=self.tree,
            parameters=parameters,
        )
        self.tree_recall = TreeRecall(
            namespace=self.namespace,
            inodes=self.inodes,
            timeline=self.timeline,
            contents=self.contents,
            sealer=self.sealer,
            recall=self.recall,
        )
        self.files = Files(
            inodes=self.inodes,
            contents=self.contents,
            drafts=self.drafts,
            sealer=self.sealer,
            hard_sync=self.commits.hard_sync,
            doubt=self.commits.doubt,
        )
        self.commits.take_retired = self.drafts.take_retired
        self.commits.seal_closed = self.sealer.seal_closed
        self.commits.keep_open = self.files.keep_open
        self.commits.on_full = self._set_full
        self.namespace.on_replaced = self.drafts.note_taken_over

    @classmethod
    def open(cls, path: str, *, read_only: bool = False, commit_s: float = 5.0, acl: bool = False) -> Self:
        """Open the store at `path`.

        Raises:
          StoreError: Not a store, or one that cannot be used.
          BusyError: Somebody has it open for writing (not if `read_only`).
          CorruptError: The catalog cannot be read.
        """
        return cls(os.path.abspath(path), read_only=read_only, commit_s=commit_s, acl=acl)

    def _stop_writes(self) -> None:
        self.namespace.read_only = True
        try:
            self.catalog.set_meta("doubt", 1)
            self.commits.commit()
        except Exception as exc:
            log.error("%s", exc)

    def _set_full(self, full: bool) -> None:
        self.namespace.no_room = full

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """The store at work: recovers what a crash left, then commits and syncs until the context ends;
        then seals what is drafted, syncs, and closes.

        Raises:
          ExceptionGroup: Contents that could not be sealed at the end; their staging files are kept.
        """
        if self.read_only:
            try:
                yield self
            finally:
                self._close()
            return
        self._recover()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.commits.run)
                try:
                    yield self
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            # Shielded: whatever ended the mount, what was acknowledged is to reach the disk.
            with trio.CancelScope(shield=True):
                await self._finish()

    def _recover(self) -> None:
        """Bring the store into order after whatever ended its last use; see docs/durability.md.

        Each step may be repeated after a crash in the middle of it.
        """
        clean = bool(self.catalog.get_meta("clean", 1))
        doubt = bool(self.catalog.get_meta("doubt", 0))
        rebooted = self.catalog.get_meta("boot_id") != boot_id()
        recovered = None
        if not clean:
            recovered = recover_contents(
                self.catalog, self.tree, aside=os.path.join(self.path, BAD_NAME), cold=doubt
            )
        orphans = self.inodes.remove_orphans()
        drafts = self.drafts.restore()
        if recovered is not None:
            log.warning(
                "the store was not unmounted cleanly%s; %d drafts brought back, %d removed files dropped,"
                " %d blobs checked",
                " before the machine went down" if rebooted else "",
                drafts,
                orphans,
                recovered.checked,
            )
        self._clear_staging()
        self.catalog.set_meta("clean", 0)
        self.catalog.set_meta("boot_id", boot_id())
        self.catalog.set_meta("doubt", 0)
        self.commits.commit()
        self.catalog.flush_wal()
        if recovered is not None:
            self._report(recovered)

    def _report(self, recovered: Recovered) -> None:
        for inode in recovered.restored:
            log.warning("%s: the last changes did not reach the disk; it is as before", self._name(inode))
        for inode in recovered.lost:
            log.error("%s: its content did not reach the disk; it cannot be read", self._name(inode))

    def _name(self, inode: int) -> str:
        paths = find_paths(self.catalog.path, inode)
        return " = ".join(os.fsdecode(path) for path in paths) or f"inode {inode}"

    def _clear_staging(self) -> None:
        """Half-written blobs of the last run go, and drafts of files that were removed; others that are nobody's
        are kept aside."""
        staging = os.path.join(self.path, STAGING_NAME)
        used = self.drafts.staging_in_use()
        for entry in os.scandir(staging):
            if entry.name in used or entry.is_dir(follow_symlinks=False):
                continue
            inode = inode_of_draft(entry.name)
            if inode is not None and not self.catalog.was_removed(inode):
                kept = os.path.join(staging, KEPT_NAME)
                os.makedirs(kept, exist_ok=True)
                os.rename(entry.path, os.path.join(kept, entry.name))
                log.warning("%s: an unsealed draft of the last run is kept in %s", entry.name, kept)
            else:
                os.unlink(entry.path)

    async def _finish(self) -> None:
        try:
            for inode in self.namespace.forget_all():
                try:
                    await self.files.drop(inode)
                except Exception as exc:
                    log.error("inode %d: a removed file stays until the next mount: %s", inode.id, exc)
            sealed = False
            try:
                await self.sealer.seal_all()
                sealed = True
            finally:
                await self.commits.sync_now()
                if sealed:
                    self.catalog.set_meta("clean", 1)
                    self.commits.commit()
        finally:
            self._close()
            syncfs(self.path)

    def _close(self) -> None:
        self.contents.close()
        if not self.read_only:
            self._known.close()
        try:
            self.catalog.close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def open_scratch(self) -> IO[bytes]:
        """A file without a name on the store's disk, unbuffered, for reading and writing; blocks."""
        return tempfile.TemporaryFile(buffering=0, dir=os.path.join(self.path, STAGING_NAME))

    def statvfs(self) -> os.statvfs_result:
        """The file system below."""
        return self.space.statvfs()
