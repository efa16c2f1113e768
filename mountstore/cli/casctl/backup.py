"""casctl backup: a copy of a store's blobs that the whole store can be had back from, made while it is in use.

Order, and why the copy is complete
  1. A snapshot is taken: what it needs is on disk, and no collection takes it.
  2. Garbage collection is held, so no blob goes away meanwhile. The hold is renewed while the copy goes on and
     ends by itself if this program is killed. The refs that are there now are the ones to be copied.
  3. The blobs are copied; those the destination has are left alone, since blobs never change.
  4. What was there at 2 is compared by name and size, or by its bytes; what is not right is copied again.
  5. All that is flushed there; then the refs are copied, and flushed. So a ref at the destination never lacks a
     blob, wherever this is interrupted, and the next run goes on from there.
  6. Garbage collection goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from mountstore.blobs.clock import now_ns
from mountstore.blobs.refs import REFS_NAME
from mountstore.cli.casctl.arguments import OwnCommand, Settings
from mountstore.cli.casctl.backup_check import BLOB_FILTER, damaged_blobs, missing_blobs
from mountstore.cli.casctl.backup_source import Source, open_source, refs_of
from mountstore.cli.casctl.destination import Destination
from mountstore.cli.casctl.exits import PROGRAM, Exit, Failure
from mountstore.cli.casctl.places import Resolver, find_place, mount_of
from mountstore.cli.casctl.progress import ProgressBar
from mountstore.cli.casctl.rendering import number, value
from mountstore.cli.casctl.rsync import Copied, Rsync
from mountstore.cli.exits import printable, say
from mountstore.cli.sizes import size
from mountstore.control.command import Argument, Kind

_NAMES_SHOWN = 10


class _Teller:
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
        teller: _Teller,
    ) -> None:
        self._source = source
        self._blobs = os.path.join(source.store, "blobs")
        self._destination = destination
        self._full = full
        self._mirror = mirror
        self._rsync = Rsync(self._blobs, destination, options)
        self._teller = teller

    def run(self) -> dict[str, object]:
        """Returns: What was done. Raises: Failure"""
        began_s = time.monotonic()
        source, destination = self._source, self._destination
        destination.prepare()
        source.snapshot()
        wait = self._teller.stage("waiting for a collection to end")
        source.hold(lambda: wait(0, None))
        before_ns = now_ns()
        refs = refs_of(source.store)
        if not refs:
            raise Failure(
                Exit.FAILED,
                f"{printable(source.store)}: there is no snapshot, so nothing could be had back from a copy; mount"
                " the store and take one (casctl snapshot)",
            )
        if self._mirror:
            # Refs first, or one of them might lack a blob for a while.
            self._copy_refs(refs, "--delete", "--existing", "--ignore-existing")
        copied = self._copy_blobs("--ignore-existing")
        copied = self._mend(copied, before_ns)
        destination.sync()
        self._copy_refs(refs)
        if self._mirror:
            self._copy_blobs("--delete", "--existing", "--ignore-existing", title="removing")
        destination.finish()
        if self._full and destination.host is None:
            self._follow(refs)
        return {
            "destination": str(destination),
            "copied": {"blobs": copied.files, "bytes": copied.bytes},
            "snapshots": len(refs),
            "checked": "every byte" if self._full else "names and sizes",
            "elapsed_s": round(time.monotonic() - began_s, 3),
        }

    def _copy_blobs(
        self, *arguments: str, names: Sequence[str] | None = None, title: str = "copying"
    ) -> Copied:
        tell = self._teller.stage(title)
        return self._rsync.copy(
            "", *arguments, *BLOB_FILTER, names=names, on_progress=tell, beat=self._source.keep
        )

    def _copy_refs(self, refs: Sequence[str], *arguments: str) -> None:
        self._teller.stage("snapshots")
        if "--delete" in arguments:
            # rsync deletes nothing when it is given names.
            self._rsync.copy(REFS_NAME, *arguments, "--exclude=.*")
        else:
            names = [f"{REFS_NAME}/{name}" for name in refs]
            # A snapshot may have been deleted meanwhile.
            self._rsync.copy("", "--checksum", "--ignore-missing-args", *arguments, names=names)

    def _follow(self, refs: Sequence[str]) -> None:
        """See that what the snapshots need is there: what the store itself lacks was not to be copied.

        Raises: Failure
        """
        from mountstore.care.verify import verify_blobs

        self._teller.stage("following snapshots")
        found = verify_blobs(
            self._destination.path, full=False, progress=lambda words, done: self._source.keep()
        )
        for snapshot in found.snapshots:
            if snapshot.ref.name in refs and not snapshot.complete:
                flaw = snapshot.flaws[0].what if snapshot.flaws else "something"
                raise Failure(
                    Exit.FAILED,
                    f"snapshot {printable(snapshot.ref.name)} is not complete, neither here nor in the store:"
                    f" {printable(flaw)}; fsck.cas tells which files that concerns",
                )

    def _mend(self, copied: Copied, before_ns: int) -> Copied:
        """Compare, copy again what is not right, and compare that again."""
        wrong = self._wrong(before_ns, None)
        if not wrong:
            return copied
        say(PROGRAM, f"{len(wrong)} blobs at {self._destination} are missing or damaged; copying them again")
        again = self._copy_blobs("--ignore-times", names=wrong, title="copying again")
        wrong = self._wrong(before_ns, wrong)
        if wrong:
            shown = ", ".join(printable(name) for name in wrong[:_NAMES_SHOWN])
            more = f" and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""
            raise Failure(
                Exit.FAILED,
                f"{self._destination}: not complete, and no snapshot was copied: {shown}{more}: missing, or not"
                " what the name says; is the blob in the store whole? (casctl scrub tells)",
            )
        return Copied(copied.files + again.files, copied.bytes + again.bytes)

    def _wrong(self, before_ns: int, only: Sequence[str] | None) -> list[str]:
        self._teller.stage("comparing")
        wrong = missing_blobs(self._rsync, self._blobs, before_ns, self._source.keep)
        if self._full:
            tell = self._teller.stage("reading the copy")
            damaged = damaged_blobs(self._destination, only, on_progress=tell, beat=self._source.keep)
            wrong = sorted({*wrong, *damaged})
        return wrong


def _check_apart(store: str, destination: Destination) -> None:
    """Raises: Failure if a copy would be made of the copy."""
    if destination.host is not None:
        return
    path = destination.path
    for one, other in ((path, store), (store, path)):
        if os.path.commonpath([one, other]) == other:
            raise Failure(Exit.USAGE, f"{destination} and the store {printable(store)} lie in each other")
    place = find_place(path)
    if place is not None and os.path.realpath(place.mount.source) == os.path.realpath(store):
        raise Failure(Exit.USAGE, f"{destination} lies in the mount of the store that is to be backed up")


def _check_readable(store: str) -> None:
    blobs = os.path.join(store, "blobs")
    try:
        os.listdir(blobs)
    except PermissionError:
        raise Failure(
            Exit.DENIED, f"{printable(blobs)}: cannot be read by this user; try it as root"
        ) from None
    except OSError as exc:
        raise Failure(Exit.FAILED, f"{printable(store)}: is not a store: {exc.strerror}") from exc


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP are taken for an interrupt, so that what was begun is ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(settings: Settings, got: argparse.Namespace) -> int:
    destination = Destination.parse(got.dest, got.rsh)
    with ExitStack() as stack:
        stack.enter_context(_ending_in_order())
        if got.store is not None:
            store, mount = got.store, mount_of(got.store)
        else:
            mount = Resolver(settings.mount).mount()
            store = mount.source
        _check_apart(os.path.realpath(store), destination)
        _check_readable(store)
        bar = stack.enter_context(ProgressBar("backup", shown=not settings.quiet and not settings.json))
        teller = _Teller(settings, bar)
        source = stack.enter_context(open_source(mount, store))
        options = shlex.split(got.rsync or "")
        done = Backup(
            source, destination, full=got.full, mirror=got.mirror, options=options, teller=teller
        ).run()
    if settings.json:
        print(json.dumps({"type": "result", **done}))
    elif not settings.quiet:
        copied = done["copied"]
        assert isinstance(copied, dict)
        print(
            f"{destination}: {number(copied['blobs'])} blobs copied, {size(copied['bytes'])};"
            f" {done['snapshots']} snapshots; checked {done['checked']}; {value('elapsed_s', done['elapsed_s'])}"
        )
    return Exit.OK


BACKUP = OwnCommand(
    "backup",
    "Copy the blobs to a directory, here or over ssh, while the mount is in use, and check the copy.",
    _run,
    (
        Argument("DEST", "a directory, or HOST:DIRECTORY; gets a directory blobs", required=True),
        Argument("--full", "check every byte of the copy, not only names and sizes", Kind.FLAG),
        Argument("--mirror", "remove from the copy what the store does not have any more", Kind.FLAG),
        Argument(
            "--store", "the directory of a store, mounted or not, instead of a mount", Kind.FILE, value="DIR"
        ),
        Argument("--rsh", "what reaches HOST (ssh -o BatchMode=yes)", value="COMMAND"),
        Argument("--rsync", "more options for rsync (--bwlimit=10M)", value="OPTIONS"),
    ),
    details="docs/backup.md tells about timers, restoring, and checking a copy with sha256sum alone.",
)
