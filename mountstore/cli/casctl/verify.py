"""casctl verify: whether a directory of blobs, a store's or a backup's, is what its names and snapshots say."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from mountstore.cli.casctl.arguments import OwnCommand, Settings
from mountstore.cli.casctl.exits import Exit
from mountstore.cli.casctl.progress import ProgressBar
from mountstore.cli.casctl.rendering import number
from mountstore.cli.exits import printable
from mountstore.cli.sizes import size
from mountstore.control.command import Argument, Kind

if TYPE_CHECKING:
    from mountstore.care.verify import Verification

_SHOWN = 20
"""Of each kind of flaw; --json has all that are kept."""


def _run(settings: Settings, got: argparse.Namespace) -> int:
    from mountstore.care.verify import verify_blobs

    told_s = 0.0
    with ProgressBar("verify", shown=not settings.quiet and not settings.json) as bar:

        def tell(words: str, done: int) -> None:
            nonlocal told_s
            if not settings.json:
                bar.tell(done, None, words)
            elif time.monotonic() - told_s >= 1:
                told_s = time.monotonic()
                answer = {"type": "progress", "done": done, "total": None, "unit": words}
                print(json.dumps(answer), flush=True)

        found = verify_blobs(got.dir, full=not got.quick, progress=tell)
    if settings.json:
        print(json.dumps({"type": "result", **_fields(found)}))
    elif not settings.quiet or not found.ok:
        _show(found)
    return Exit.OK if found.ok else Exit.FAILED


def _fields(found: Verification) -> dict[str, object]:
    return {
        "path": found.path,
        "ok": found.ok,
        "blobs": found.blobs,
        "bytes": found.size_bytes,
        "damaged": list(found.damaged),
        "bad_refs": [{"name": ref.name, "error": ref.error} for ref in found.bad_refs],
        "snapshots": [
            {
                "name": snapshot.ref.name,
                "time_ns": snapshot.ref.time_ns,
                "complete": snapshot.complete,
                "flaws": snapshot.flaw_count,
                "first_flaws": [flaw.what for flaw in snapshot.flaws],
            }
            for snapshot in found.snapshots
        ],
        "full": found.full,
    }


def _show(found: Verification) -> None:
    _list([f"damaged: {what}" for what in found.damaged])
    _list([f"ref {ref.name}: {ref.error}" for ref in found.bad_refs])
    for snapshot in found.snapshots:
        if not snapshot.complete:
            print(f"snapshot {printable(snapshot.ref.name)} lacks {number(snapshot.flaw_count)} things:")
            _list([f"  {flaw.what}" for flaw in snapshot.flaws])
    complete = sum(snapshot.complete for snapshot in found.snapshots)
    looked = "every byte read" if found.full else "sizes compared"
    print(
        f"{printable(found.path)}: {number(found.blobs)} whole blobs, {size(found.size_bytes)}, {looked};"
        f" {number(len(found.damaged))} damaged; {complete} of {len(found.snapshots)} snapshots complete"
    )
    if not found.snapshots:
        print("note: without a snapshot there are contents, but no names: nothing could be restored by name")


def _list(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        print(printable(line))
    if len(lines) > _SHOWN:
        print(f"  and {number(len(lines) - _SHOWN)} more")


VERIFY = OwnCommand(
    "verify",
    "Check a directory of blobs, a store's or a backup's, and whether its snapshots are complete; needs no mount.",
    _run,
    (
        Argument("DIR", "a store, a backup, or a directory of blobs", Kind.FILE, required=True),
        Argument("--quick", "compare sizes instead of reading every blob", Kind.FLAG),
    ),
)
