"""Commands about old versions: versions, restore, undelete, diff, policy."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import trio

from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, Rows
from mountstore.control.context import Context
from mountstore.control.places import Place, find_inode, find_place
from mountstore.control.trees import restore_from_snapshot
from mountstore.errors import (
    AbsentError,
    FoundDirectoryError,
    MisuseError,
    NoAttributeError,
    WantsDirectoryError,
    shown,
)
from mountstore.namespace.history import Version
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.notation import Instant, parse_number, parse_reference, parse_time
from mountstore.namespace.policy import ATTRIBUTE, Policy, parse_words
from mountstore.namespace.recall import Selector
from mountstore.namespace.timeline import NOT_YET_NS

__all__ = ["COMMANDS"]

_ROWS = 100
"""Rows made in one go."""

_FAILURES_MAX = 1000
"""Files of a restored directory that could not be brought back which an answer lists; all are counted."""


async def _versions(context: Context, arguments: Arguments) -> Answer:
    path = arguments.path("path")
    rows: Rows = []
    for number, version, current in await context.store.recall.list_versions(path):
        rows.append({"version": number, "current": current, **_describe(version)})
        if len(rows) % _ROWS == 0:
            await trio.lowlevel.checkpoint()
    return {"path": path, "rows": rows}


def _describe(version: Version) -> dict[str, object]:
    digest = version.content.digest if version.content is not None and version.size_bytes else None
    return {
        "directory": bool(version.directory),
        "bytes": 0 if version.directory else version.size_bytes,
        "mode": f"{stat.S_IMODE(version.mode):04o}",
        "uid": version.uid,
        "gid": version.gid,
        "modified": _time(version.mtime_ns),
        "superseded": None if version.until_ns == NOT_YET_NS else _time(version.until_ns),
        "blob": None if digest is None else digest.name,
    }


def _time(time_ns: int) -> str:
    """ISO 8601, in UTC, to the microsecond, rounded up: `@TIME` then finds what began at that time."""
    seconds, microseconds = divmod(-(-time_ns // 1000), 1_000_000)
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return when.replace(microsecond=microseconds, tzinfo=None).isoformat() + "Z"


async def _restore(context: Context, arguments: Arguments) -> Answer:
    if "snapshot" in arguments:
        return await restore_from_snapshot(context, arguments)
    if arguments.flag("replace"):
        raise MisuseError("--replace is about directories of a --snapshot; a file is replaced anyway")
    path, to = arguments.path("path"), arguments.path_or_none("to")
    reference = parse_reference(path)
    try:
        inode = await context.store.recall.restore(path, to=to)
    except FoundDirectoryError:
        if not isinstance(reference.selector, Instant):
            if to is not None and _is_directory(context, to):
                raise
            raise FoundDirectoryError(f"{shown(path)} is a directory: say of which time, as PATH@TIME") from None
        return await _restore_tree(context, reference.name, reference.selector, to)
    restored = path if to is None else to
    place = _place_with(context, inode, [restored, reference.name])
    await _show(context, place)
    return {"path": _path_of(context, inode, restored, path), "bytes": inode.size}


def _is_directory(context: Context, path: bytes) -> bool:
    try:
        return find_inode(context.store, path).is_directory
    except AbsentError:
        return False


async def _restore_tree(context: Context, path: bytes, instant: Instant, to: bytes | None) -> Answer:
    """A directory as it was, under a name that is free."""
    restored = await context.store.tree_recall.restore(path, instant, to=to)
    made = path if to is None else to
    await _show(context, find_place(context.store, made))
    return {
        "path": made,
        "files": restored.files,
        "directories": restored.directories,
        "links": restored.links,
        "bytes": restored.size_bytes,
        "failed": len(restored.failed),
        "rows": [{"path": lost, "message": str(exc)} for lost, exc in restored.failed[:_FAILURES_MAX]],
    }


async def _undelete(context: Context, arguments: Arguments) -> Answer:
    path = arguments.path("path")
    inode = await context.store.recall.undelete(path)
    await _show(context, _place_with(context, inode, [path]))
    return {"path": path, "bytes": inode.size}


def _place_with(context: Context, inode: Inode, paths: list[bytes]) -> Place | None:
    """The place among some paths at which an inode stands."""
    for path in paths:
        try:
            place = find_place(context.store, path)
        except (AbsentError, MisuseError, WantsDirectoryError):
            continue
        if place.inode == inode.id:
            return place
    return None


def _path_of(context: Context, inode: Inode, restored: bytes, path: bytes) -> bytes:
    return restored if _place_with(context, inode, [restored]) else parse_reference(path).name


async def _show(context: Context, place: Place | None) -> None:
    """Have the kernel look at a changed name anew."""
    if place is not None:
        await context.invalidate(place.parent, place.name)


async def _diff(context: Context, arguments: Arguments) -> Answer:
    path = arguments.path("path")
    recall = context.store.recall
    numbers: list[int] = []
    for key in ("old", "new"):
        selector = _selector(arguments.text(key)) if key in arguments else await _current(context, path)
        number, _ = await recall.find_version(path, selector)
        numbers.append(number)
    difference = await recall.diff(path, *numbers)
    old, new = (
        {"version": number, **_describe(version)}
        for number, version in zip(numbers, (difference.old, difference.new), strict=True)
    )
    changed = [key for key in ("bytes", "mode", "uid", "gid", "modified") if old[key] != new[key]]
    return {
        "path": path,
        "same_bytes": difference.first is None,
        "first_difference": difference.first,
        "changed": changed,
        "rows": [old, new],
    }


async def _current(context: Context, path: bytes) -> Selector:
    return (await context.store.recall.list_versions(path))[-1].number


def _selector(text: str) -> int | Instant:
    data = text.removeprefix("@").encode("utf-8", "surrogateescape")
    selector = parse_number(data) or parse_time(data)
    if selector is None:
        raise MisuseError(f"{text!r} is neither the number of a version nor a time")
    return selector


async def _policy(context: Context, arguments: Arguments) -> Answer:
    path = arguments.path("path")
    directory = find_inode(context.store, path)
    if not directory.is_directory:
        raise WantsDirectoryError(f"{shown(path)}: a policy is a directory's")
    words = " ".join(arguments.texts("words"))
    if words or arguments.flag("clear"):
        if words and arguments.flag("clear"):
            raise MisuseError("--clear takes the policy away; give no words")
        await _set_policy(context, path, directory, words)
    own = _words_of(context, directory)
    effective = context.store.config.versions
    for inode in _way(context, path):
        said = _words_of(context, inode)
        if said is not None:
            effective = parse_words(said, effective, context.store.config.versions)
    return {"path": path, "words": own, "policy": msgspec.to_builtins(effective)}


async def _set_policy(context: Context, path: bytes, directory: Inode, words: str) -> None:
    store = context.store
    store.namespace.require_writable()
    if not words:
        try:
            store.attributes.remove(directory, ATTRIBUTE)
        except NoAttributeError:
            return
    else:
        # Whether it can be understood does not depend on what it changes.
        parse_words(words, Policy(), store.config.versions)
        store.attributes.set(directory, ATTRIBUTE, words.encode("ascii", "replace"))
    await context.services.forget_attributes(directory.id)


def _words_of(context: Context, directory: Inode) -> str | None:
    if not directory.xattrs:
        return None
    try:
        return context.store.attributes.get(directory, ATTRIBUTE).decode("ascii", "replace")
    except NoAttributeError:
        return None


def _way(context: Context, path: bytes) -> Iterator[Inode]:
    """The directories from the root to a path."""
    yield context.store.namespace.get(ROOT)
    parent = ROOT
    for part in [part for part in path.split(b"/") if part and part != b"."]:
        inode = context.store.namespace.find(parent, part)
        if inode is None or not inode.is_directory:
            raise FoundDirectoryError(shown(path))
        yield inode
        parent = inode.id


_PATH = Argument("PATH", "a file, which may have been removed", Kind.PATH, required=True)

COMMANDS = (
    Command("versions", "List the versions of a file, oldest first.", _versions, (_PATH,)),
    Command(
        "restore",
        "Let a file be as it was in an old version, or a file or directory as in a snapshot.",
        _restore,
        (
            Argument("PATH", "PATH@N or PATH@TIME, of a directory PATH@TIME", Kind.VERSION, required=True),
            Argument("--to", "leave it as it is, and make or replace this one", Kind.PATH, value="DEST"),
            Argument("--snapshot", "take it from this snapshot", value="NAME"),
            Argument("--replace", "of --snapshot: a directory that is there is removed", Kind.FLAG),
        ),
        long=True,
    ),
    Command("undelete", "Bring a removed file back as it was last.", _undelete, (_PATH,)),
    Command(
        "diff",
        "Tell how two versions of a file differ.",
        _diff,
        (
            _PATH,
            Argument("OLD", "the number of a version, or a time", required=True),
            Argument("NEW", "the same; without it, what the file is now"),
        ),
    ),
    Command(
        "policy",
        "Show which versions are kept below a directory, or change that.",
        _policy,
        (
            Argument("PATH", "a directory", Kind.PATH, required=True),
            Argument("WORDS", "off, on, default, keep_last=N, keep_days=D, thin=..., as in docs/gc.md", many=True),
            Argument("--clear", "have the policy of the directory above again", Kind.FLAG),
        ),
    ),
)
