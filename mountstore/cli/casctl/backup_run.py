"""A copy of a store's blobs that the whole store can be had back from, made while the store is in use.

Order, and why the copy is complete
  1. A snapshot is taken: what it needs is on disk, and no collection takes it.
  2. Garbage collection is held, so no blob goes away meanwhile. The hold is renewed while the copy goes on and
     ends by itself if this program is killed. The refs that are there now are the ones to be copied.
  3. The blobs are copied; those the destination has are left alone, since blobs never change.
  4. What was there at 2 is compared by name and size, or by its bytes; what is not right is copied again.
  5. All that is flushed there; then the refs are copied, as they were at 2, and flushed. So a ref at the
     destination never lacks a blob that the store has, wherever this is interrupted, and the next run goes on from
     there.
  6. Garbage collection goes on.

What is damaged in the store never takes the place of what is whole at the destination, keeps nothing else from
being copied, and is told at the end. As long as a snapshot of the store lacks something, nothing is removed there.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mountstore.blobs.clock import now_ns
from mountstore.blobs.opening import give_to_owner, open_fresh
from mountstore.blobs.refs import REFS_NAME, Ref, encode_ref, read_refs
from mountstore.cli.casctl.arguments import Settings
from mountstore.cli.casctl.backup_check import BLOB_FILTER, damaged_blobs, missing_blobs
from mountstore.cli.casctl.backup_source import Source
from mountstore.cli.casctl.destination import Destination
from mountstore.cli.casctl.exits import PROGRAM, Exit, Failure
from mountstore.cli.casctl.progress import ProgressBar
from mountstore.cli.casctl.rsync import Copied, PartialFailure, Rsync
from mountstore.cli.casctl.source_check import Condition, blobs_noted, blobs_of_wrong_size, condition_of
from mountstore.cli.exits import printable, say
from mountstore.store.layout import BLOBS_NAME

if TYPE_CHECKING:
    from mountstore.care.inspection import Candidate
    from mountstore.care.verify import Verification

_NAMES_SHOWN = 10


class Teller:
    """Says how far it is, for people or as JSON lines."""

    def __init__(self, settings: Settings, bar: ProgressBar) -> None:
        self._json = settings.json
        self._bar = bar

    def stage(self, title: str) -> Callable[[int, int | None], None]:
        self._bar.rename(title)
        told_s = 0.0

        def tell(done: int, total: int | None) -> None:
            nonlocal told_s
            if not self._json:
                self._bar.tell(done, total, "files")
            elif time.monotonic() - told_s >= 1 or done == total:
                told_s = time.monotonic()
                progress = {"type": "progress", "stage": title, "done": done, "total": total, "unit": "files"}
                print(json.dumps(progress), flush=True)

        return tell


class Backup:
    """One run.

    Args:
      full: Read every byte at the destination, too.
      mirror: Remove at the destination what the store does not have any more.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        *,
        full: bool,
        mirror: bool,
        options: Sequence[str],
        teller: Teller,
    ) -> None:
        self._source = source
        self._blobs = os.path.join(source.store, BLOBS_NAME)
        self._destination = destination
        self._full = full
        self._mirror = mirror
        self._options = options
        self._rsync = Rsync(self._blobs, destination, options)
        self._teller = teller
        # Blobs of the store that are known to be damaged: they are neither copied nor compared.
        self._damaged: list[str] = []
        self._flaws: list[str] = []

    def run(self) -> dict[str, object]:
        """Returns: What was done; `flaws` tell why the copy is not all that it should be. Raises: Failure"""
        began_s = time.monotonic()
        source, destination = self._source, self._destination
        source.snapshot()
        wait = self._teller.stage("waiting for a collection to end")
        source.hold(lambda: wait(0, None))
        before_ns = now_ns()
        refs = self._refs()
        copied_before = destination.refs()
        self._require_own(refs, copied_before)
        wrong = blobs_of_wrong_size(self._blobs, source.keep)
        self._damaged = sorted({*wrong, *blobs_noted(source.store, source.keep)})
        followed = self._follow(source.store)
        mirror = self._mirror and self._may_remove(refs, copied_before, followed)
        if mirror:
            # Refs first, or one of them might lack a blob for a while.
            self._remove_refs()
        copied = self._copy()
        copied = self._mend(copied, before_ns, mirror=mirror)
        self._tell_damaged()
        destination.sync()
        # Flushing may have taken long, and calls nobody meanwhile.
        source.keep()
        self._copy_refs(refs)
        if mirror:
            self._copy_blobs("--delete", "--existing", "--ignore-existing", title="removing")
        destination.finish()
        self._tell_incomplete(refs, followed)
        return {
            "destination": str(destination),
            "ok": not self._flaws,
            "copied": {"blobs": copied.files, "bytes": copied.bytes},
            "snapshots": len(refs),
            "checked": "every byte" if self._full else "names and sizes",
            "flaws": self._flaws,
            "elapsed_s": round(time.monotonic() - began_s, 3),
        }

    def _refs(self) -> list[Ref]:
        """The snapshots that are to be copied. Raises: Failure if there is none."""
        refs, bad = read_refs(self._blobs)
        self._flaws += [
            f"snapshot {printable(ref.name)}: its ref in the store is no good, and was not copied: {ref.error}"
            for ref in bad
        ]
        if refs:
            return refs
        why = f"the refs of all snapshots are damaged: {bad[0].error}" if bad else "there is no snapshot"
        raise Failure(
            Exit.FAILED,
            f"{printable(self._source.store)}: {why}, so nothing could be had back from a copy; mount the store"
            " and take one (casctl snapshot)",
        )

    def _require_own(self, refs: Sequence[Ref], copied_before: Sequence[Ref]) -> None:
        """Raises: Failure if the destination has snapshots of a store that this one has none of."""
        own = {ref.uuid for ref in refs}
        for ref in copied_before:
            if ref.uuid not in own:
                raise Failure(
                    Exit.FAILED,
                    f"{self._destination}: is the backup of another store ({ref.uuid}; snapshot"
                    f" {printable(ref.name)}), not of {printable(self._source.store)} ({refs[0].uuid}): each needs"
                    " a directory of its own",
                )

    def _may_remove(
        self, refs: Sequence[Ref], copied_before: Sequence[Ref], followed: Verification
    ) -> bool:
        """Whether what the store does not have is to be removed: the copy may have what the store has lost, or
        be none of this store."""
        if not copied_before:
            return False
        latest = max(copied_before, key=lambda ref: ref.time_ns)
        if latest.time_ns > refs[0].time_ns:
            self._flaws.append(
                f"{self._destination}: nothing was removed, since snapshot {printable(latest.name)} there is"
                " later than all of the store, which may have been put back from a copy; a new snapshot of the"
                " store ends that"
            )
            return False
        why = [f"{_name(lacks)}: {_lacking(lacks)}" for lacks in followed.snapshots if not lacks.complete]
        why += [printable(bad.error) for bad in followed.bad_refs]
        if not why:
            return True
        self._flaws.append(f"{self._destination}: nothing was removed, since the store is damaged: {why[0]}")
        return False

    def _copy(self) -> Copied:
        """Copy what is not there yet, all that can be read."""
        try:
            return self._copy_blobs("--ignore-existing")
        except PartialFailure as exc:
            unreadable = [
                path for path in exc.unreadable if condition_of(self._blobs, path) is Condition.DAMAGED
            ]
            if not unreadable:
                raise
            self._damaged += unreadable
        return self._copy_blobs("--ignore-existing")

    def _copy_blobs(
        self, *arguments: str, names: Sequence[str] | None = None, title: str = "copying"
    ) -> Copied:
        tell = self._teller.stage(title)
        return self._rsync.copy(
            "",
            *arguments,
            *BLOB_FILTER,
            names=names,
            without=self._damaged,
            on_progress=tell,
            beat=self._source.keep,
        )

    def _remove_refs(self) -> None:
        self._teller.stage("snapshots")
        # rsync deletes nothing when it is given names.
        self._rsync.copy(REFS_NAME, "--delete", "--existing", "--ignore-existing", "--exclude=.*")

    def _copy_refs(self, refs: Sequence[Ref]) -> None:
        """As they were when collections were held: of one that was deleted since, the copy is whole as well."""
        self._teller.stage("snapshots")
        like = os.path.join(self._blobs, REFS_NAME)
        with tempfile.TemporaryDirectory() as directory:
            os.mkdir(os.path.join(directory, REFS_NAME))
            for ref in refs:
                path = os.path.join(directory, REFS_NAME, ref.name)
                with open(open_fresh(path), "wb") as file:
                    file.write(encode_ref(ref))
                os.utime(path, ns=(ref.time_ns, ref.time_ns))
                give_to_owner(path, like)
            # rsync gives the directory there what this one has.
            give_to_owner(os.path.join(directory, REFS_NAME), like)
            os.chmod(os.path.join(directory, REFS_NAME), stat.S_IMODE(os.stat(like).st_mode))
            names = [f"{REFS_NAME}/{ref.name}" for ref in refs]
            Rsync(directory, self._destination, self._options).copy("", "--checksum", names=names)

    def _follow(self, path: str) -> Verification:
        """Look for all that the snapshots at `path` need, by name and size."""
        from mountstore.care.verify import verify_blobs

        self._teller.stage("following snapshots")
        return verify_blobs(path, full=False, progress=lambda words, done: self._source.keep())

    def _tell_incomplete(self, refs: Sequence[Ref], followed: Verification) -> None:
        """Which snapshots lack something in the store, and whether the copy has it."""
        lacking = {snapshot.ref.name: snapshot for snapshot in followed.snapshots if not snapshot.complete}
        if self._destination.host is not None:
            self._flaws += [
                f"{_name(snapshot)} is not complete in the store: {_lacking(snapshot)}; fsck.cas tells which files"
                " that concerns"
                for snapshot in lacking.values()
            ]
            return
        if not self._full and not lacking:
            return
        names = {ref.name for ref in refs}
        found = self._follow(self._destination.path)
        for snapshot in found.snapshots:
            if snapshot.ref.name not in names:
                continue
            if not snapshot.complete:
                self._flaws.append(
                    f"{_name(snapshot)} is not complete, neither here nor in the store: {_lacking(snapshot)};"
                    " fsck.cas tells which files that concerns"
                )
            elif snapshot.ref.name in lacking:
                self._flaws.append(
                    f"{_name(snapshot)} is complete in the copy, but not in the store:"
                    f" {_lacking(lacking[snapshot.ref.name])}"
                )
        self._flaws += [f"{self._destination}: {printable(bad.error)}" for bad in found.bad_refs]

    def _mend(self, copied: Copied, before_ns: int, *, mirror: bool) -> Copied:
        """Compare, copy again what is not right and can be had from the store, and compare that again.

        Args:
          mirror: What the store does not have is going to be removed.

        Raises: Failure
        """
        found: dict[Condition, list[str]] = {condition: [] for condition in Condition}
        for path in self._wrong(before_ns, None):
            self._source.keep()
            found[condition_of(self._blobs, path)].append(path)
        self._damaged += found[Condition.DAMAGED]
        if found[Condition.ABSENT] and not mirror:
            self._flaws.append(
                f"{self._destination}: damaged, and not in the store any more: {_listed(found[Condition.ABSENT])};"
                " snapshots there may need them (casctl verify tells), and --mirror removes them"
            )
        mendable = found[Condition.WHOLE]
        if not mendable:
            return copied
        say(PROGRAM, f"{len(mendable)} blobs at {self._destination} are missing or damaged; copying them again")
        again = self._copy_blobs("--ignore-times", names=mendable, title="copying again")
        wrong = self._wrong(before_ns, mendable)
        if wrong:
            raise Failure(
                Exit.FAILED,
                f"{self._destination}: not complete, and no snapshot was copied: {_listed(wrong)}: missing, or not"
                " what the name says; is its disk in order?",
            )
        return Copied(copied.files + again.files, copied.bytes + again.bytes)

    def _wrong(self, before_ns: int, only: Sequence[str] | None) -> list[str]:
        self._teller.stage("comparing")
        keep = self._source.keep
        wrong = missing_blobs(self._rsync, self._blobs, before_ns, without=self._damaged, beat=keep)
        if self._full:
            tell = self._teller.stage("reading the copy")
            damaged = damaged_blobs(self._destination, only, on_progress=tell, beat=keep)
            wrong = sorted({*wrong, *damaged}.difference(self._damaged))
        return wrong

    def _tell_damaged(self) -> None:
        """Of what the store has lost, what does the copy have?"""
        if not self._damaged:
            return
        self._teller.stage("comparing")
        lost = damaged_blobs(self._destination, self._damaged, beat=self._source.keep)
        kept = sorted(set(self._damaged).difference(lost))
        if kept:
            self._flaws.append(
                f"damaged in the store, whole in the copy, and left there as they are: {_listed(kept)}; what is"
                " copied from there into the mount, under any name, mends the files that have lost it"
            )
        if lost:
            self._flaws.append(
                f"damaged in the store, and not whole in the copy: {_listed(lost)}; fsck.cas tells which files"
                " that concerns"
            )


def _name(snapshot: Candidate) -> str:
    return f"snapshot {printable(snapshot.ref.name)}"


def _lacking(snapshot: Candidate) -> str:
    return f"it lacks {printable(snapshot.flaws[0].what) if snapshot.flaws else 'something'}"


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
    return ", ".join(map(printable, paths[:_NAMES_SHOWN])) + more
