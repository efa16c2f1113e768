"""casctl backup: its arguments, where no backup goes, and how it is ended."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from mountstore.cli.casctl.arguments import OwnCommand, Settings
from mountstore.cli.casctl.backup_run import Backup, Teller
from mountstore.cli.casctl.backup_source import open_source
from mountstore.cli.casctl.destination import Destination
from mountstore.cli.casctl.exits import PROGRAM, Exit, Failure
from mountstore.cli.casctl.places import Resolver, find_place, mount_of
from mountstore.cli.casctl.progress import ProgressBar
from mountstore.cli.casctl.rendering import number, value
from mountstore.cli.exits import printable, say
from mountstore.cli.sizes import size
from mountstore.control.command import Argument, Kind
from mountstore.store.layout import BLOBS_NAME


def _check_apart(store: str, destination: Destination) -> None:
    """Raises: Failure if a copy would be made of the copy."""
    if destination.host is not None:
        return
    path = destination.path
    # Either may lie elsewhere, by a symbolic link.
    blobs, copies = (os.path.realpath(os.path.join(above, BLOBS_NAME)) for above in (store, path))
    for one, other in ((path, store), (store, path), (path, blobs), (copies, blobs)):
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
        teller = Teller(settings, bar)
        source = stack.enter_context(open_source(mount, store))
        stack.enter_context(destination.prepared())
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
    flaws = done["flaws"]
    assert isinstance(flaws, list)
    for flaw in flaws:
        say(PROGRAM, flaw)
    return Exit.FAILED if flaws else Exit.OK


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
        Argument("--rsync", "more options for rsync (--rsync=--bwlimit=10M)", value="OPTIONS"),
    ),
    details="docs/backup.md tells about timers, restoring, and checking a copy with sha256sum alone.",
)
