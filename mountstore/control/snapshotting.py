"""Commands about snapshots: taking, listing, comparing, deleting."""

from __future__ import annotations

from itertools import islice

import trio

from mountstore.care.snapshot_diff import diff
from mountstore.care.snapshots import SnapshotInfo, Snapshots
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind
from mountstore.control.context import Context
from mountstore.errors import MisuseError

__all__ = ["COMMANDS"]

_ROWS_MAX = 10_000
"""More differences are counted but not told, unless all are asked for."""

_PATHS_MAX_BYTES = 64 << 20
"""Nor are paths beyond this sum, whoever asks: those of n directories in each other take n ** 2 bytes."""


async def _snapshot(context: Context, arguments: Arguments) -> Answer:
    snapshots = Snapshots(context.store)
    if arguments.flag("auto"):
        if "name" in arguments:
            raise MisuseError("--auto: an automatic snapshot has the time as its name; give no name")
        automatic = await snapshots.take_automatic()
        if automatic is None:
            return {"name": None}
        taken = automatic
    else:
        name = arguments.text("name") if "name" in arguments else None
        taken = await snapshots.take(name, progress=context.progress)
    return {
        **_row(taken.info),
        "new_blobs": taken.new_blobs,
        "new_bytes": taken.new_bytes,
        "elapsed_s": round(taken.elapsed_s, 3),
    }


async def _snapshots(context: Context, arguments: Arguments) -> Answer:
    return {"rows": [_row(info) for info in await Snapshots(context.store).list()]}


def _row(info: SnapshotInfo) -> dict[str, object]:
    row: dict[str, object] = {
        "name": info.name,
        "time_s": info.time_ns / 1e9,
        "automatic": info.automatic,
        "inodes": info.inodes,
        "bytes": info.bytes,
        "root": info.root.name,
    }
    return row if info.flaw is None else {**row, "flaw": info.flaw}


async def _delete(context: Context, arguments: Arguments) -> Answer:
    snapshots = Snapshots(context.store)
    names = arguments.texts("name")
    await snapshots.delete(*names)
    for name in names:
        await context.services.forget_snapshot(name)
    return {"deleted": names}


async def _diff(context: Context, arguments: Arguments) -> Answer:
    snapshots = Snapshots(context.store)
    old = await snapshots.open(arguments.text("old"))
    new = await snapshots.open(arguments.text("new"))

    def compare() -> tuple[list[dict[str, object]], int]:
        found = diff(old, new, trio.from_thread.check_cancelled)
        rows: list[dict[str, object]] = []
        room = _PATHS_MAX_BYTES
        for path, difference in islice(found, None if arguments.flag("all") else _ROWS_MAX):
            room -= len(path)
            if room < 0:
                break
            rows.append({"path": b"/" + path, "difference": difference.value})
        return rows, len(found) - len(rows)

    rows, more = await trio.to_thread.run_sync(compare)
    return {"rows": rows, "more": more}


COMMANDS = (
    Command(
        "snapshot",
        "Take a snapshot of the whole tree; without a name, the time is the name.",
        _snapshot,
        (
            Argument("NAME", "letters, digits, and _ . + -; not beginning with auto-"),
            Argument("--auto", "as those by the hour: if anything changed, and not kept for ever", Kind.FLAG),
        ),
        long=True,
    ),
    Command("snapshots", "List snapshots, newest first.", _snapshots),
    Command(
        "snapshot-delete",
        "Delete snapshots; what only they had goes with the next gc.",
        _delete,
        (Argument("NAME", "of a snapshot", required=True, many=True),),
    ),
    Command(
        "snapshot-diff",
        "List the paths that differ between two snapshots.",
        _diff,
        (
            Argument("OLD", "name of a snapshot", required=True),
            Argument("NEW", "name of a snapshot", required=True),
            Argument("--all", f"tell all of them, not only {_ROWS_MAX}", Kind.FLAG),
        ),
        long=True,
    ),
)
