"""A store brought back from its blobs alone: a new catalog from the newest snapshot that is complete.

  1. One pass over the tree: which blobs are there, with their sizes (with `full`, with their bytes).
  2. The refs, newest first: everything a snapshot consists of is read and verified by SHA-256, and every content
     looked for. The first one that lacks nothing is taken.
  3. Its records are loaded into a new database beside. Checksums of contents come with the records, so the first
     read of each content verifies it.
  4. The new database is flushed, then put in place. One that was there is moved to `bad/`, never deleted.

An interruption leaves the store as it was; only if the process dies between the renames of 4 there is no catalog,
and the next mount makes one. What a partial recovery leaves hanging is mended in the new database, before that is
put in place, as fsck.cas mends it.

Blocks; any thread. Nothing here reads what the old catalog says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from mountstore.blobs.flush import fsync_path, syncfs
from mountstore.blobs.opening import give_to_owner
from mountstore.blobs.refs import has_refs, read_refs
from mountstore.blobs.tree import BalancedTree
from mountstore.care.inspection import Candidate, Flaw, Inspection, Progress, Survey
from mountstore.care.loading import Loader
from mountstore.care.premises import Premises
from mountstore.care.presence import Presence
from mountstore.care.repair import holds_together, mend_new_catalog
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import CorruptError, StoreError
from mountstore.namespace.inodes import FIRST_COOKIE, ROOT
from mountstore.namespace.pages import UNREADABLE, Root
from mountstore.namespace.rebuilding import remove_catalog
from mountstore.namespace.stale import PASSED_OVER_KEY, SNAPSHOT_KEY, UUID_KEY
from mountstore.store.config import StoreConfig, parse_config, read_config, write_config
from mountstore.store.layout import (
    BAD_NAME,
    BLOBS_NAME,
    CATALOG_FILES,
    CATALOG_NAME,
    CONFIG_NAME,
    NEW_CATALOG_NAME,
    PARTS,
    STAGING_NAME,
)
from mountstore.store.lock import StoreLock

NUMBERS_SKIPPED: Final = 1 << 26
"""Numbers of inodes that may have been given out since the snapshot: none must be given twice (NFS handles)."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of a store."""

    path: str
    survey: Survey
    taken: Candidate
    """The snapshot from which the catalog was made."""
    root: Root
    inodes: int
    names: int
    versions: int
    aside: str | None
    """Where the old catalog is."""
    mended: tuple[str, ...]
    """Partial recovery: what was done about names and inodes that were left hanging."""
    made_settings: bool
    """`store.toml` was made again."""
    elapsed_s: float


def can_rebuild(path: str) -> bool:
    """Whether the directory has no catalog and snapshots to make one from: of a store, or blobs and parts of one.

    Raises: OSError
    """
    try:
        found = set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    if CATALOG_NAME in found or BLOBS_NAME not in found:
        return False
    if CONFIG_NAME not in found and found - PARTS:
        return False
    return has_refs(os.path.join(path, BLOBS_NAME))


def survey_snapshots(
    path: str, *, snapshot: str | None = None, full: bool = False, progress: Progress | None = None
) -> Survey:
    """What a rebuild of the store at `path` would find; changes nothing.

    Args: as `rebuild_store`.

    Raises:
      StoreError: There are no blobs, no such snapshot, or snapshots of several stores.
      OSError: The directory cannot be read.
    """
    return _Rebuild(path, snapshot, full, progress).survey()


def rebuild_store(
    path: str,
    *,
    snapshot: str | None = None,
    partial: bool = False,
    full: bool = False,
    progress: Progress | None = None,
    on_step: Callable[[str], None] = lambda words: None,
) -> Rebuilt:
    """Make a new catalog for the store at `path`, and `store.toml` if it is not there.

    Args:
      snapshot: Its name; default: the newest that is complete.
      partial: If none is complete, recover what is there of the newest that can be read at all (or of `snapshot`).
        Files whose content is missing are there, with all their attributes; reading them fails until it is back.
      full: Read every blob, and count as missing what has not the digest of its name.
      progress: From the calling thread, every few thousand.
      on_step: Told what is done before each step that changes something; if it raises, the rebuild ends there.

    Raises:
      StoreError: There are no blobs, no such snapshot, snapshots of several stores, or none that is complete.
      BusyError: Somebody has the store open for writing.
      NoSpaceError, OSError: The catalog could not be written; the store is as it was.
    """
    rebuild = _Rebuild(path, snapshot, full, progress)
    lock = StoreLock(rebuild.path)
    try:
        rebuild.give_to_owner(lock.path)
        return rebuild.run(partial=partial, on_step=on_step)
    finally:
        lock.release()


class _Loaded(NamedTuple):
    survey: Survey
    taken: Candidate
    root: Root
    settings: str | None
    """What `store.toml` is to say, if it is not there."""
    loader: Loader


class _Rebuild:
    def __init__(self, path: str, snapshot: str | None, full: bool, progress: Progress | None) -> None:
        self.path = os.path.abspath(path)
        self._blobs = os.path.join(self.path, BLOBS_NAME)
        if not os.path.isdir(self._blobs):
            raise StoreError(f"{self._blobs}: there are no blobs to make a catalog from")
        self._snapshot = snapshot
        self._full = full
        self._progress = progress or (lambda words, number: None)
        self._tree = BalancedTree(self._blobs, staging=os.path.join(self.path, STAGING_NAME))
        self._all_refs, self._bad_refs = read_refs(self._blobs)
        self._refs = self._all_refs
        # Whichever is chosen: the others are no longer ahead of the new catalog.
        self._latest_ns = max((ref.time_ns for ref in self._refs), default=0)
        self._presence: Presence | None = None
        # Why snapshots that lack nothing could not be loaded.
        self._contradictory: dict[str, str] = {}
        self._check_refs()

    def _check_refs(self) -> None:
        """Choose among the refs by name and store."""
        if self._snapshot is not None:
            self._refs = [ref for ref in self._refs if ref.name == self._snapshot]
            bad = next((bad.error for bad in self._bad_refs if bad.name == self._snapshot), None)
            if not self._refs:
                raise StoreError(f"{self._blobs}: {bad or f'there is no snapshot {self._snapshot}'}")
        if not self._refs:
            raise StoreError(
                f"{self._blobs}: there is no snapshot that can be read, so nothing says which blobs are what"
            )
        try:
            uuid = read_config(self.path).uuid
        except (StoreError, OSError):
            uuids = {ref.uuid for ref in self._refs}
            if len(uuids) == 1:
                return
            names = ", ".join(f"{ref.name} of {ref.uuid}" for ref in self._refs[:4])
            raise StoreError(
                f"{self._blobs}: has snapshots of {len(uuids)} stores ({names} ...);"
                " say which one, with fsck.cas --rebuild --snapshot NAME"
            ) from None
        if self._snapshot is None and any(ref.uuid == uuid for ref in self._refs):
            self._refs = [ref for ref in self._refs if ref.uuid == uuid]

    # --- looking ---

    def survey(self) -> Survey:
        presence = self._presence
        if presence is None:
            presence = self._presence = Presence(
                self._tree, full=self._full, count=lambda blobs, _: self._progress("blobs looked at", blobs)
            )
        inspection = Inspection(self._tree, presence, self._progress)
        candidates: list[Candidate] = []
        for ref in self._refs:
            why = self._contradictory.get(ref.name)
            if why is None:
                candidates.append(inspection.look(ref))
            else:
                candidates.append(Candidate(ref, 1, (Flaw(f"records that agree: {why}", ""),)))
            if candidates[-1].complete:
                break
        return Survey(
            presence.blobs,
            presence.size_bytes,
            tuple(presence.damaged),
            tuple(self._bad_refs),
            tuple(candidates),
        )

    def _choose(self, survey: Survey, *, partial: bool) -> tuple[Candidate, SnapshotTree]:
        if survey.best is not None:
            return survey.best, SnapshotTree(self._tree, survey.best.ref.root)
        readable = 0
        for candidate in survey.candidates:
            if candidate.ref.name in self._contradictory:
                continue
            try:
                tree = SnapshotTree(self._tree, candidate.ref.root)
            except UNREADABLE:
                continue
            if partial:
                return candidate, tree
            readable += 1
        newest = survey.candidates[0]
        example = f", such as {newest.flaws[0].what}" if newest.flaws else ""
        advice = (
            "bring the missing blobs back, or recover what is there with fsck.cas --rebuild --partial"
            if readable
            else "and the root of none can be read; bring the missing blobs back"
        )
        if self._snapshot is None:
            said = f"no snapshot is complete; the newest, {newest.ref.name}, lacks"
        else:
            said = f"snapshot {newest.ref.name} is not complete; it lacks"
            advice = f"another one may be (fsck.cas --rebuild -n looks for it); otherwise {advice}"
        raise StoreError(f"{self._blobs}: {said} {newest.flaw_count} things{example}; {advice}")

    # --- making ---

    def run(self, *, partial: bool, on_step: Callable[[str], None]) -> Rebuilt:
        started = time.monotonic()
        built = os.path.join(self.path, NEW_CATALOG_NAME)
        try:
            survey, taken, root, settings, loader = self._load(built, partial=partial, on_step=on_step)
            mended: tuple[str, ...] = ()
            if settings is not None:
                on_step("write store.toml")
                write_config(self.path, settings)
                self.give_to_owner(os.path.join(self.path, CONFIG_NAME))
            premises = Premises(self.path)
            premises.catalog = built
            on_step("check what was loaded")
            if not taken.complete or not holds_together(built):
                on_step("mend what hangs")
                mended = mend_new_catalog(premises)
            on_step("flush to disk")
            # The blobs may lie on a file system of their own, and may have been copied just now.
            syncfs(self._blobs)
            syncfs(self.path)
            aside = self._put_in_place(built, on_step)
        except BaseException:
            remove_catalog(built)
            raise
        return Rebuilt(
            path=self.path,
            survey=survey,
            taken=taken,
            root=root,
            inodes=loader.inodes,
            names=loader.names,
            versions=loader.versions,
            aside=aside,
            mended=mended,
            made_settings=settings is not None,
            elapsed_s=time.monotonic() - started,
        )

    def _load(self, built: str, *, partial: bool, on_step: Callable[[str], None]) -> _Loaded:
        """Load the snapshot of choice into a new catalog."""
        while True:
            survey = self.survey()
            taken, tree = self._choose(survey, partial=partial)
            loader = Loader(self._tree, taken, built, self._progress)
            try:
                settings = self._settings(tree.root)
                on_step("load the snapshot")
                loader.load(self._notes(survey, taken, tree.root, settings))
            except CorruptError as exc:
                # Whoever wrote it, or a defect of what did: an older one may be sound.
                self._contradictory[taken.ref.name] = str(exc)
            else:
                return _Loaded(survey, taken, tree.root, settings, loader)

    def _settings(self, root: Root) -> str | None:
        """What `store.toml` has to say, if there is none; one that cannot be read is the owner's to mend."""
        if os.path.lexists(os.path.join(self.path, CONFIG_NAME)):
            try:
                read_config(self.path)
            except StoreError as exc:
                raise StoreError(
                    f"{exc}; mend it, or move it away: then it is made again from the snapshot"
                ) from exc
            return None
        try:
            config: StoreConfig = parse_config(root.settings, "its settings")
        except StoreError as exc:
            raise CorruptError(str(exc)) from exc
        if config.uuid != root.uuid:
            raise CorruptError(f"its settings are of another store, {config.uuid}")
        return root.settings

    def _notes(
        self, survey: Survey, taken: Candidate, root: Root, settings: str | None
    ) -> dict[str, int | str]:
        """What the new catalog is to know."""
        incomplete = {candidate.ref.name for candidate in survey.candidates if not candidate.complete}
        passed_over = [
            ref.name
            for ref in self._all_refs
            if ref.time_ns > taken.ref.time_ns or ref.name in incomplete
        ]
        return {
            **self._numbers(root),
            UUID_KEY: read_config(self.path).uuid if settings is None else root.uuid,
            SNAPSHOT_KEY: self._latest_ns,
            PASSED_OVER_KEY: " ".join(passed_over),
        }

    def _numbers(self, root: Root) -> dict[str, int]:
        """Counters that are beyond every number that any snapshot shows."""
        next_inode, next_cookie = max(root.next_inode, ROOT + 1), max(root.next_cookie, FIRST_COOKIE)
        for ref in self._refs:
            try:
                other = SnapshotTree(self._tree, ref.root).root
            except UNREADABLE:
                continue
            next_inode, next_cookie = max(next_inode, other.next_inode), max(next_cookie, other.next_cookie)
        return {"next_inode": next_inode + NUMBERS_SKIPPED, "next_cookie": next_cookie + NUMBERS_SKIPPED}

    def _put_in_place(self, built: str, on_step: Callable[[str], None]) -> str | None:
        moved: list[tuple[str, str]] = []
        aside: str | None = None
        try:
            # The database first: its WAL alone means nothing, but without its WAL it would be an older state.
            for name in CATALOG_FILES:
                path = os.path.join(self.path, name)
                if not os.path.lexists(path):
                    continue
                if aside is None:
                    aside = self._fresh_directory(os.path.join(self.path, BAD_NAME))
                on_step(f"move {name} to {aside}")
                os.rename(path, os.path.join(aside, name))
                moved.append((path, os.path.join(aside, name)))
            if aside is not None:
                fsync_path(aside, os.O_DIRECTORY)
                fsync_path(self.path, os.O_DIRECTORY)
            on_step("put the catalog in place")
            os.chmod(built, 0o600)
            self.give_to_owner(built)
            os.rename(built, os.path.join(self.path, CATALOG_NAME))
        except BaseException:
            for path, target in reversed(moved):
                os.rename(target, path)
            if aside is not None:
                os.rmdir(aside)
            raise
        fsync_path(self.path, os.O_DIRECTORY)
        return aside

    def _fresh_directory(self, parent: str) -> str:
        os.makedirs(parent, 0o700, exist_ok=True)
        base = path = os.path.join(parent, time.strftime("catalog-%Y-%m-%dT%H%M%SZ", time.gmtime()))
        number = 0
        while True:
            try:
                os.mkdir(path, 0o700)
                break
            except FileExistsError:
                number += 1
                path = f"{base}.{number}"
        self.give_to_owner(parent, path)
        return path

    def give_to_owner(self, *paths: str) -> None:
        """To whom the store belongs."""
        for path in paths:
            give_to_owner(path, self.path)
