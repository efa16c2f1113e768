"""Commands about whole trees: clone, rmtree, and restore from a snapshot."""

from __future__ import annotations

from mountstore.care.snapshots import Snapshots
from mountstore.care.trees import Made
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind
from mountstore.control.context import Context

__all__ = ["COMMANDS", "restore_from_snapshot"]


async def _clone(context: Context, arguments: Arguments) -> Answer:
    target = arguments.path("dest")
    made = await context.services.trees.clone(arguments.path("src"), target, context.progress)
    return await _show(context, target, made)


async def restore_from_snapshot(context: Context, arguments: Arguments) -> Answer:
    """`restore --snapshot`."""
    path, to = arguments.path("path"), arguments.path_or_none("to")
    snapshot = await Snapshots(context.store).open(arguments.text("snapshot"))
    trees, replace = context.services.trees, arguments.flag("replace")
    made = await trees.restore(snapshot, path, to=to, replace=replace, progress=context.progress)
    return await _show(context, path if to is None else to, made)


async def _show(context: Context, path: bytes, made: Made) -> Answer:
    await context.invalidate(*made.place)
    return {"path": path, "files": made.files, "directories": made.directories, "bytes": made.size_bytes}


async def _remove(context: Context, arguments: Arguments) -> Answer:
    path = arguments.path("path")
    place, name = context.services.trees.remove(path)
    await context.invalidate(*place)
    if arguments.flag("wait"):
        await context.services.trees.wait_removed(name)
    return {"path": path}


COMMANDS = (
    Command(
        "clone",
        "Make a copy of a file or directory that shares all contents, as it is at one instant.",
        _clone,
        (
            Argument("SRC", "a file or directory", Kind.PATH, required=True),
            Argument("DEST", "a name that is free", Kind.PATH, required=True),
        ),
        long=True,
    ),
    Command(
        "rmtree",
        "Remove a directory with all that is in it, in an instant; names in it keep their old versions.",
        _remove,
        (
            Argument("PATH", "a directory", Kind.PATH, required=True),
            Argument("--wait", "until it is deleted, not only gone", Kind.FLAG),
        ),
        long=True,
    ),
)
