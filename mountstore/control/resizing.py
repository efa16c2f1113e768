"""The command `resize`: which images, under which names, and what the kernel is to forget.

A result takes its name as any program's new file would that was renamed to it: whole or not at all, what the name
stood for before becoming a version. It has the owner and permissions of the file it replaces, or else those of
the image it was made of. A name that has just these bytes already is left as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from mountstore.blobs.clock import now_ns
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, Rows
from mountstore.control.context import Context
from mountstore.control.imaging import Found, resize
from mountstore.control.patterns import Entry, files_in, is_pattern, joined, matching
from mountstore.control.places import find_inode
from mountstore.errors import (
    AbsentError,
    FoundDirectoryError,
    ImageError,
    MisuseError,
    MountstoreError,
    ReadOnlyError,
    TooLargeError,
    WantsDirectoryError,
)
from mountstore.images.geometry import parse_geometry
from mountstore.images.job import SUFFIX, Format, Job, format_of, new_job, parse_format
from mountstore.images.workers import WORKERS
from mountstore.namespace.history import Version
from mountstore.namespace.inodes import Inode
from mountstore.namespace.namespace import Caller
from mountstore.namespace.notation import parse_reference
from mountstore.namespace.paths import parts_of
from mountstore.namespace.placing import place
from mountstore.store import Store

_ROWS_MAX: Final = 1000
"""Failures that an answer lists; all are counted."""

_BATCH: Final = 200
"""Names looked at before others have their turn."""


class _Source(NamedTuple):
    """An image to resize: its path, and its place if it is what the path stands for now."""

    path: bytes
    place: Entry | None


class _Task(NamedTuple):
    source: _Source
    target: Entry
    path: bytes
    """Of the target."""


class _Failure(NamedTuple):
    task: _Task
    exc: Exception


class _Wish:
    """What the options say of every image."""

    def __init__(self, arguments: Arguments) -> None:
        self.geometry = arguments.text("geometry")
        self.fill = arguments.flag("fill")
        self.strip = arguments.flag("strip")
        self.quality = arguments.integer("quality") if "quality" in arguments else None
        self.background = arguments.text("background", "white")
        self.format = parse_format(arguments.text("format")) if "format" in arguments else None
        geometry = parse_geometry(self.geometry)
        if self.fill:
            geometry.require_fillable()
        self.job(Format.JPEG)

    def job(self, format: Format) -> Job:
        return new_job(
            self.geometry,
            format,
            fill=self.fill,
            quality=self.quality,
            strip=self.strip,
            background=self.background,
        )

    def job_for(self, name: bytes) -> Job:
        return self.job(self.format or format_of(name))

    def name_for(self, source: bytes) -> bytes:
        """The name that what is made of a file gets, in another directory."""
        if self.format is None:
            return source
        try:
            if format_of(source) is self.format:
                return source
        except MisuseError:
            pass
        stem, dot, _ = source.rpartition(b".")
        return (stem if dot and stem else source) + b"." + SUFFIX[self.format].encode()


async def _resize(context: Context, arguments: Arguments) -> Answer:
    store = context.store
    store.namespace.require_writable()
    wish = _Wish(arguments)
    path, target = arguments.path("src"), arguments.path("dest")
    inode = _find(store, path)
    if inode is not None and inode.is_directory:
        sources = [_Source(*found) async for found in files_in(store, inode.id, path)]
    elif inode is None and is_pattern(path) and not _is_version(store, path):
        sources = [_Source(*found) async for found in matching(store, path)]
        if not sources:
            raise AbsentError(f"{_shown(path)}: no file has such a name")
    else:
        return await _resize_one(context, wish, path, inode, target)
    return await _resize_all(context, wish, sources, target)


# --- one image ---


async def _resize_one(
    context: Context, wish: _Wish, path: bytes, inode: Inode | None, target: bytes
) -> Answer:
    store = context.store
    if inode is not None and not inode.is_regular:
        raise MisuseError(f"{_shown(path)}: is {_kind_of(inode)}, not a file")
    source = _Source(path, None if inode is None else _place_of(store, path))
    *_, name = parts_of(parse_reference(path).name if inode is None else path) or [b""]
    found = _find(store, target)
    if found is not None and found.is_directory:
        into, target = found.id, joined(target, wish.name_for(name))
        at = Entry(into, parts_of(target)[-1])
    elif target.endswith(b"/"):
        raise AbsentError(f"{_shown(target)}: there is no such directory")
    else:
        at = _place_of(store, target)
    task = _Task(source, at, target)
    _require_other(task, {source.place})
    try:
        found_as, changed = await _perform(context, wish, task)
    except (ImageError, TooLargeError, MisuseError) as exc:
        raise type(exc)(f"{_shown(path)}: {exc}") from exc
    rendition = found_as.rendition
    digest = rendition.content.digest
    assert digest is not None
    return {
        "path": target,
        "width": rendition.width,
        "height": rendition.height,
        "frames": rendition.frames,
        "size_bytes": rendition.content.size_bytes,
        "digest": digest.name,
        "remembered": found_as.remembered,
        "changed": changed,
    }


async def _perform(context: Context, wish: _Wish, task: _Task) -> tuple[Found, bool]:
    """Make one image; returns it, and whether the target changed by it."""
    store = context.store
    at = task.target
    job = wish.job_for(at.name)
    _, version = await store.recall.find_version(task.source.path)
    replaced = store.namespace.find(*at)
    if replaced is not None and replaced.draft is not None and replaced.writers == 0:
        # Just closed: what it has becomes a version.
        await store.sealer.seal(replaced)

    def use(found: Found) -> tuple[Found, bool]:
        return found, _put(store, at, found, version)

    found, changed = await resize(store, context.services.images, version, job, use)
    if changed:
        await context.invalidate(*at)
    return found, changed


def _put(store: Store, at: Entry, found: Found, version: Version) -> bool:
    """Give the target the rendition, without awaiting; False if it has just that already."""
    content = found.rendition.content
    mode, uid, gid = version.mode & 0o777, version.uid, version.gid
    taken = store.namespace.find(*at)
    if taken is not None:
        _require_replaceable(taken, at)
        if taken.content == content and taken.draft is None:
            return False
        # Without its access control list, and new: nobody gets in whom that kept out, nobody becomes its owner.
        mode, uid, gid = store.versions.kept_mode(taken) & 0o777, taken.uid, taken.gid
    place(
        store.namespace,
        store.inodes,
        at.directory,
        at.name,
        content,
        allocated=found.rendition.allocated,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=now_ns(),
    )
    return True


def _require_replaceable(taken: Inode, at: Entry) -> None:
    if taken.is_directory:
        raise FoundDirectoryError(f"{_shown(at.name)}: is a directory")
    if not taken.is_regular:
        raise MisuseError(f"{_shown(at.name)}: is {_kind_of(taken)}, and is not replaced by an image")


def _require_other(task: _Task, sources: set[Entry | None]) -> None:
    """Raises: MisuseError if a source would be replaced by its own, or another's, result."""
    if task.target in sources:
        raise MisuseError(
            f"{_shown(task.path)}: is a source, and would be replaced by the result; give another DEST"
        )


# --- many images ---


async def _plan(wish: _Wish, sources: Sequence[_Source], directory: int) -> dict[bytes, _Source]:
    """What is to be made in a directory, 0 for one that is not there yet: by its names.

    Raises: MisuseError if two would get the same name, or one would replace a source: nothing was done.
    """
    own: set[Entry | None] = set()
    for count, source in enumerate(sources):
        own.add(source.place)
        await _give_way(count)
    named: dict[bytes, _Source] = {}
    for count, source in enumerate(sources):
        assert source.place is not None
        name = wish.name_for(source.place.name)
        _require_other(_Task(source, Entry(directory, name), name), own)
        if name in named:
            first, second = _shown(named[name].path), _shown(source.path)
            raise MisuseError(f"{_shown(name)}: would be made of both {first} and {second}")
        named[name] = source
        await _give_way(count)
    return named


async def _give_way(count: int) -> None:
    """Let others have their turn now and then."""
    if count % _BATCH == _BATCH - 1:
        await trio.lowlevel.checkpoint()


async def _make_directory(context: Context, path: bytes) -> int:
    """Make a directory like the one it lies in."""
    namespace = context.store.namespace
    at = _place_of(context.store, path)
    namespace.require_place(*at)
    above = namespace.get(at.directory)
    mode = stat.S_IFDIR | context.store.versions.kept_mode(above) & 0o777
    made = namespace.create(at.directory, at.name, mode, Caller(above.uid, above.gid))
    await context.invalidate(*at)
    return made.id


async def _resize_all(context: Context, wish: _Wish, sources: Sequence[_Source], target: bytes) -> Answer:
    found = _find(context.store, target)
    if found is not None and not found.is_directory:
        raise WantsDirectoryError(f"{_shown(target)}: must be a directory, since there may be many images")
    named = await _plan(wish, sources, 0 if found is None else found.id)
    into = await _make_directory(context, target) if found is None else found.id
    counts = dict.fromkeys(("made", "remembered", "unchanged", "failed"), 0)
    failures: list[_Failure] = []
    refusals: list[ReadOnlyError] = []
    waiting = iter(named.items())

    async def work() -> None:
        for name, source in waiting:
            task = _Task(source, Entry(into, name), joined(target, name))
            try:
                found_as, changed = await _perform(context, wish, task)
            except ReadOnlyError as exc:
                # The others would fare no better.
                refusals.append(exc)
                nursery.cancel_scope.cancel()
            except (MountstoreError, OSError) as exc:
                counts["failed"] += 1
                if len(failures) < _ROWS_MAX:
                    failures.append(_Failure(task, exc))
            else:
                counts["remembered" if found_as.remembered else "made"] += 1
                counts["unchanged"] += not changed
            done = counts["made"] + counts["remembered"] + counts["failed"]
            context.progress(done, len(named), "images")
            await trio.lowlevel.checkpoint()

    context.progress(0, len(named), "images")
    async with trio.open_nursery() as nursery:
        for _ in range(min(WORKERS, len(named))):
            nursery.start_soon(work)
    if refusals:
        raise refusals[0]
    rows: Rows = [
        {"path": task.source.path, "error": context.services.explain(exc), "message": str(exc)}
        for task, exc in sorted(failures, key=lambda failure: failure.task.source.path)
    ]
    return {"images": len(named), **counts, "rows": rows}


# --- paths ---


def _find(store: Store, path: bytes) -> Inode | None:
    """What a path leads to, or None. Raises: WantsDirectoryError, MisuseError."""
    try:
        return find_inode(store, path)
    except AbsentError:
        return None


def _place_of(store: Store, path: bytes) -> Entry:
    """Where a name is, or would be. Raises: AbsentError, WantsDirectoryError if there is no such directory."""
    *above, name = parts_of(path) or [b""]
    if not name:
        raise FoundDirectoryError(f"{_shown(path)}: is a directory")
    directory = _find(store, b"/".join(above))
    if directory is None:
        raise AbsentError(f"{_shown(path)}: there is no directory {_shown(b'/'.join(above))}")
    if not directory.is_directory:
        raise WantsDirectoryError(f"{_shown(path)}: {_shown(b'/'.join(above))} is no directory")
    return Entry(directory.id, name)


def _is_version(store: Store, path: bytes) -> bool:
    """Whether `path@N` means a version of a name that has characters of a pattern."""
    reference = parse_reference(path)
    return reference.selector is not None and _find(store, reference.name) is not None


def _kind_of(inode: Inode) -> str:
    return "a symbolic link" if stat.S_ISLNK(inode.mode) else "no regular file"


def _shown(path: bytes) -> str:
    return os.fsdecode(path)


COMMANDS = (
    Command(
        "resize",
        "Make smaller or larger images of images, in JPEG, PNG, WebP, TIFF, AVIF or GIF.",
        _resize,
        (
            Argument("SRC", "an image, or PATH@N; a directory; a pattern", Kind.VERSION, required=True),
            Argument("GEOMETRY", "as ImageMagick's: 100x100, x100, 100x100!, ^, >, <, 50%, 10000@", required=True),
            Argument("DEST", "a file or directory; for many images, a directory", Kind.PATH, required=True),
            Argument("--fill", "cover WxH and cut off what stands out", Kind.FLAG),
            Argument("--format", "instead of what DEST's suffix says", value="FORMAT"),
            Argument("--quality", "1 to 100, for JPEG, WebP and AVIF", Kind.INTEGER, value="N"),
            Argument("--strip", "without EXIF data, in sRGB without a colour profile", Kind.FLAG),
            Argument("--background", "under what is transparent, in a JPEG", value="COLOUR"),
        ),
        long=True,
    ),
)
