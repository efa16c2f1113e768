"""Commands about what is kept: gc, its holds, the trash, pins, prune."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import trio

from mountstore.blobs.digest import Digest
from mountstore.care.expiry import Only
from mountstore.care.gc import collect, prune
from mountstore.care.gc_report import GRACE_S, Options, Report
from mountstore.care.roots import Listed
from mountstore.care.trash_commands import OLDER_THAN_DAYS, purge, untrash
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, parse_digest
from mountstore.control.context import Context, LastCollection
from mountstore.control.holds import HOLD_S
from mountstore.control.places import find_place
from mountstore.errors import AbsentError, BlobMissingError, MisuseError
from mountstore.namespace.policy import Policy

__all__ = ["COMMANDS"]

_LIST = b"pinned"
"""The list of `pin`, if none is named."""

_BUSY = "garbage is being collected already, or the trash is being purged"


@contextmanager
def _collecting(context: Context, *, dry_run: bool = False) -> Iterator[None]:
    if not dry_run:
        context.services.holds.require_none()
    with context.exclusively("collection", _BUSY):
        yield


async def _gc(context: Context, arguments: Arguments) -> Answer:
    if "older_than" in arguments and not arguments.flag("purge"):
        raise MisuseError("--older-than says what --purge deletes; give that as well")
    options = Options(
        dry_run=arguments.flag("dry_run"),
        purge=arguments.flag("purge"),
        older_than_days=arguments.number("older_than", OLDER_THAN_DAYS),
        keep_files=tuple(arguments.texts("keep")),
        grace_s=arguments.number("grace", GRACE_S),
        adopted=arguments.flag("adopted"),
        despite_damage=arguments.flag("despite_damage"),
    )
    with _collecting(context, dry_run=options.dry_run):
        # A list that was just closed may not be in place yet.
        await context.services.pins.wait_saved()
        report = await collect(context.store, options, progress=context.progress)
    _count(context, report)
    if any(report.versions_dropped.values()) and not options.dry_run:
        await context.services.forget_versions()
    return _fields(report)


def _count(context: Context, report: Report) -> None:
    counted = context.statistics
    if not report.dry_run:
        counted.collections += 1
        counted.collected_blobs += report.reclaimable.blobs
        counted.collected_bytes += report.reclaimable.bytes
        counted.purged_blobs += report.purged.blobs
        counted.purged_bytes += report.purged.bytes
    context.services.last_collection = LastCollection(
        at_s=round(time.time(), 3),
        live_bytes=report.live.bytes,
        versions_bytes=report.versions.bytes,
        snapshots_bytes=report.snapshots.bytes,
        trash_bytes=report.trash.bytes,
        reclaimable_bytes=report.reclaimable.bytes if report.dry_run else 0,
    )


def _fields(report: Report) -> dict[str, object]:
    return {
        **{field: getattr(report, field) for field in report.__struct_fields__},
        "reclaimable": report.reclaimable,
    }


async def _hold(context: Context, arguments: Arguments) -> Answer:
    timeout_s = arguments.number("timeout", HOLD_S)
    again = arguments.integer("again") if "again" in arguments else None
    # Whoever holds copies a tree in which nothing moves.
    with context.exclusively("collection", _BUSY):
        number = context.services.holds.take(timeout_s, again)
    return {"hold": number, "left_s": timeout_s}


async def _release(context: Context, arguments: Arguments) -> Answer:
    number = arguments.integer("hold") if "hold" in arguments else None
    return {"released": context.services.holds.release(number)}


async def _purge(context: Context, arguments: Arguments) -> Answer:
    context.store.namespace.require_writable()
    with _collecting(context):
        purged = await purge(context.store, arguments.number("older_than", OLDER_THAN_DAYS))
    context.statistics.purged_blobs += purged.blobs
    context.statistics.purged_bytes += purged.bytes
    last = context.services.last_collection
    if last is not None:
        left = max(last.trash_bytes - purged.bytes, 0)
        context.services.last_collection = msgspec.structs.replace(last, trash_bytes=left)
    return {"blobs": purged.blobs, "bytes": purged.bytes}


async def _untrash(context: Context, arguments: Arguments) -> Answer:
    rows = []
    for text in arguments.texts("digest"):
        digest = await _digest_in_trash(context, text)
        returned = await untrash(context.store, digest)
        rows += [{"blob": blob.name, "bytes": blob.size_bytes} for blob in returned]
    return {"rows": rows}


async def _digest_in_trash(context: Context, text: str) -> Digest:
    sha256, size_bytes = parse_digest(text)
    if size_bytes is not None:
        digest = Digest(sha256, size_bytes)
        if await trio.to_thread.run_sync(context.store.trash.find, digest) is None:
            if context.store.tree.find(digest) is not None:
                return digest
            raise AbsentError(f"there is no blob {digest.name}, neither in the trash nor in the tree")
        return digest
    found = await context.services.pins.find_in_trash(Listed(sha256, None))
    if found is None:
        raise AbsentError(f"there is no blob {sha256.hex()} in the trash")
    return found


async def _pin(context: Context, arguments: Arguments) -> Answer:
    digests = arguments.texts("digest")
    for text in digests:
        parse_digest(text)
    names = [text.rpartition("/")[2] for text in digests]
    name = _list_name(arguments)
    missing = await context.services.pins.missing(names)
    if missing:
        raise AbsentError(f"there is no blob {missing[0]}, neither in the tree nor in the trash")
    saved = await context.services.pins.add(name, names)
    if saved.missing:
        raise BlobMissingError(f"blob {saved.missing[0]} is not whole: pieces of it are missing")
    return {"list": name, "pinned": saved.pinned, "returned": saved.returned}


async def _unpin(context: Context, arguments: Arguments) -> Answer:
    pins = context.services.pins
    names = [_list_name(arguments)] if "list" in arguments else pins.names()
    count = 0
    for text in arguments.texts("digest"):
        wanted = Listed(*parse_digest(text))
        gone = sum([await pins.discard(name, wanted) for name in names if pins.status(name) is not None])
        if not gone:
            raise AbsentError(f"{text} is not pinned" + (f" in {arguments.text('list')}" * ("list" in arguments)))
        count += gone
    return {"unpinned": count}


def _list_name(arguments: Arguments) -> bytes:
    return os.fsencode(arguments.text("list")) or _LIST


async def _prune(context: Context, arguments: Arguments) -> Answer:
    if not ("keep_last" in arguments or "keep_days" in arguments or arguments.flag("all")):
        raise MisuseError("say what is kept: --keep-last N, --keep-days DAYS, or --all to keep nothing")
    policy = Policy(
        keep_last=arguments.integer("keep_last"),
        keep_days=arguments.number("keep_days"),
        thin="",
        short_lived_days=float("inf"),
    )
    place = find_place(context.store, arguments.path("path"), gone=True)
    only = Only(place.inode, None, policy) if place.is_directory else Only(place.parent, place.name, policy)
    dry_run = arguments.flag("dry_run")
    with context.exclusively("collection", _BUSY):
        dropped = await prune(context.store, only, dry_run=dry_run)
    if dropped and not dry_run:
        await context.services.forget_versions()
    return {"dry_run": dry_run, "versions_dropped": sum(dropped.values())}


_DIGESTS = Argument("DIGEST", "the name of a blob, or its SHA-256", Kind.DIGEST, required=True, many=True)
_IN_LIST = Argument("--list", "the name of the list in .cas/pins", value="NAME")

COMMANDS = (
    Command(
        "gc",
        "Drop old versions that the policy lets go, and move blobs that nothing needs to the trash.",
        _gc,
        (
            Argument("--dry-run", "only tell what would be done", Kind.FLAG),
            Argument("--purge", "then delete old trash", Kind.FLAG),
            Argument(
                "--older-than", "of --purge: keep what is younger (7); 0: all goes", Kind.NUMBER, value="DAYS"
            ),
            Argument("--keep", "a list of blobs to keep", Kind.FILE, many=True),
            Argument("--grace", "leave blobs alone that were placed since (3600)", Kind.NUMBER, value="SECONDS"),
            Argument("--adopted", "also what lay in the tree before it was a store and was never used", Kind.FLAG),
            Argument("--despite-damage", "also if contents cannot be read, whose pieces may go", Kind.FLAG),
        ),
        long=True,
    ),
    Command(
        "gc hold",
        "Keep collections and purges off, while the store is copied, until released or a time has passed.",
        _hold,
        (
            Argument("--timeout", "when it ends by itself (3600)", Kind.NUMBER, value="SECONDS"),
            Argument("--again", "have this hold last so long from now on", Kind.INTEGER, value="HOLD"),
        ),
    ),
    Command(
        "gc release",
        "End a hold, or all of them.",
        _release,
        (Argument("HOLD", "its number", Kind.INTEGER),),
    ),
    Command(
        "purge",
        "Delete old trash for good.",
        _purge,
        (Argument("--older-than", "keep what is younger (7); 0: all goes", Kind.NUMBER, value="DAYS"),),
        long=True,
    ),
    Command(
        "untrash",
        "Bring blobs back from the trash; the next collection takes them again, unless they are used or pinned.",
        _untrash,
        (_DIGESTS,),
    ),
    Command(
        "pin",
        "Keep blobs that something outside of the store needs; what is in the trash comes back.",
        _pin,
        (_IN_LIST, _DIGESTS),
    ),
    Command("unpin", "Take blobs off a list, or off all lists.", _unpin, (_IN_LIST, _DIGESTS)),
    Command(
        "prune",
        "Drop old versions of a file, or of everything below a directory, whatever the policy keeps.",
        _prune,
        (
            Argument("PATH", "a file or a directory, which may have been removed", Kind.PATH, required=True),
            Argument("--keep-last", "keep so many of the newest versions of each name", Kind.INTEGER, value="N"),
            Argument("--keep-days", "keep those superseded in the last so many days", Kind.NUMBER, value="DAYS"),
            Argument("--all", "keep none", Kind.FLAG),
            Argument("--dry-run", "only tell what would be done", Kind.FLAG),
        ),
        long=True,
    ),
)
