"""Commands about what is on the disk: sync and scrub."""

from __future__ import annotations

import msgspec

from mountstore.care.scrub import scrub
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind
from mountstore.control.context import Context

__all__ = ["COMMANDS"]

_MIB = 1 << 20


async def _sync(context: Context, arguments: Arguments) -> Answer:
    store = context.store
    store.namespace.require_writable()
    await store.sealer.settle()
    await store.commits.hard_sync()
    return {}


async def _scrub(context: Context, arguments: Arguments) -> Answer:
    with context.exclusively("scrub", "a scrub is running already"):
        report = await scrub(
            context.store,
            full=arguments.flag("full"),
            rate_bytes_s=arguments.number("rate") * _MIB,
            progress=context.progress,
        )
    counted = context.statistics
    counted.scrubbed_blobs += report.blobs
    counted.scrubbed_bytes += report.bytes
    counted.scrub_damaged_blobs += report.damaged_blobs + report.unreadable_blobs
    fields = msgspec.to_builtins(report)
    assert isinstance(fields, dict)
    return fields


COMMANDS = (
    Command("sync", "Have everything written so far survive power loss.", _sync),
    Command(
        "scrub",
        "Read every blob, and tell which are damaged.",
        _scrub,
        (
            Argument("--full", "compare SHA-256 digests, not only checksums", Kind.FLAG),
            Argument("--rate", "read no faster than this", Kind.NUMBER, value="MIB_PER_SECOND"),
        ),
        long=True,
    ),
)
