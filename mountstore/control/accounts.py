"""Commands that tell what things are and what they cost: info, df, du."""

from __future__ import annotations

import msgspec
import trio

from mountstore.care.path_info import describe_path
from mountstore.care.sharing import report_sharing
from mountstore.care.space_report import report_space, settle
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, Rows
from mountstore.control.context import Context


async def _info(context: Context, arguments: Arguments) -> Answer:
    info = await describe_path(
        context.store,
        arguments.path("path"),
        pieces=arguments.flag("pieces"),
        sharing=arguments.flag("sharing"),
    )
    return _fields(info)


async def _df(context: Context, arguments: Arguments) -> Answer:
    return {**_fields(await report_space(context.store)), "store": context.store.path}


async def _du(context: Context, arguments: Arguments) -> Answer:
    await settle(context.store)
    paths = arguments.paths("path") or [b"/"]
    rows: Rows = []
    for place, path in enumerate(paths):
        context.progress(place, len(paths), "paths")
        sharing = await trio.to_thread.run_sync(report_sharing, context.store, path)
        rows.append({"path": path, **_fields(sharing)})
    context.progress(len(paths), len(paths), "paths")
    return {"rows": rows}


def _fields(report: object) -> dict[str, object]:
    fields = msgspec.to_builtins(report)
    assert isinstance(fields, dict)
    return fields


COMMANDS = (
    Command(
        "info",
        "Tell what stands behind a path: its content, the blobs it consists of and where they lie, its versions.",
        _info,
        (
            Argument("PATH", "a path, or PATH@N for an old version", Kind.VERSION, required=True),
            Argument("--pieces", "list the pieces of a large file", Kind.FLAG),
            Argument("--sharing", "compare with the rest of the store, which takes longer", Kind.FLAG),
        ),
    ),
    Command(
        "df",
        "Tell what the files show, what is stored for them, for versions and in the trash, and what the disk has.",
        _df,
    ),
    Command(
        "du",
        "Tell what files and directories cost: what they show, what only they need, what they share.",
        _du,
        (Argument("PATH", "a file or directory; without one, everything", Kind.PATH, many=True),),
        long=True,
    ),
)
