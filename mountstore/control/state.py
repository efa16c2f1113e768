"""The state of a mount in numbers: `status`, `stats` and `metrics`. All is at hand, so nothing here waits, but for
a disk that has refused what it should have had room for: it is tried again (`Space.is_full`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from mountstore import __version__
from mountstore.control.command import Answer, Arguments, Command
from mountstore.control.context import Context, Services
from mountstore.control.jobs import Jobs, State

__all__ = ["COMMANDS", "Metric", "metrics", "statistics", "status", "text_of"]


def status(services: Services, jobs: Jobs) -> dict[str, object]:
    """What is mounted, and whether it is well."""
    store = services.store
    disk = store.statvfs()
    running = [job for job in jobs.all() if job.state is State.RUNNING]
    drafted = len(store.drafts.inodes)
    return {
        "store": store.path,
        "uuid": store.config.uuid,
        "mountpoint": services.mountpoint,
        "version": __version__,
        "pid": os.getpid(),
        "started_s": round(services.started_s, 3),
        "uptime_s": round(time.time() - services.started_s, 3),
        "read_only": store.namespace.read_only,
        "in_doubt": store.commits.in_doubt,
        "no_room": store.no_room,
        "versions": store.versions.enabled,
        "files_being_written": drafted,
        "uncommitted": store.commits.has_changes,
        "waiting_bytes": store.space.claimed_bytes,
        "jobs_running": len(running),
        "collection_held": services.holds.describe(),
        "last_collection": services.last_collection,
        "disk_bytes": disk.f_blocks * disk.f_frsize,
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
    }


class Metric(NamedTuple):
    """One number. `name` is as in `stats`; Prometheus has `mountstore_` before it, `_total` behind counters."""

    name: str
    value: float
    help: str
    counter: bool = True


def gather(services: Services, jobs: Jobs) -> Iterator[Metric]:
    """All numbers."""
    store = services.store
    counted = services.statistics
    ledger, verified, commits = store.ledger, store.contents.verified, store.commits
    disk = store.statvfs()
    yield Metric("requests", services.count_requests(), "Requests of the kernel.")
    yield Metric("read_bytes", counted.read_bytes, "Bytes of files the kernel asked for, not having them.")
    yield Metric("write_bytes", counted.write_bytes, "Bytes of files the kernel handed over.")
    yield Metric("new_blobs", ledger.blobs_new, "Blobs placed in the tree.")
    yield Metric("new_bytes", ledger.bytes_new, "Bytes of blobs placed in the tree.")
    yield Metric("deduplicated_blobs", ledger.blobs_known, "Blobs written that were in the tree already.")
    yield Metric("deduplicated_bytes", ledger.bytes_known, "Bytes written that were in the tree already.")
    yield Metric("verified_blobs", verified.verified, "Blobs that were verified when they were read.")
    yield Metric("damaged_blobs", verified.failed, "Times a blob that was read was found damaged.")
    yield Metric("commits", commits.commits, "Commits of the catalog.")
    yield Metric("syncs", commits.syncs, "Times that everything was flushed to disk.")
    yield Metric("commands", counted.commands, "Commands that were run.")
    yield Metric("failed_commands", counted.failed_commands, "Commands that failed or were refused.")
    yield Metric("collections", counted.collections, "Collections of garbage.")
    yield Metric("collected_blobs", counted.collected_blobs, "Blobs moved to the trash.")
    yield Metric("collected_bytes", counted.collected_bytes, "Bytes of blobs moved to the trash.")
    yield Metric("purged_blobs", counted.purged_blobs, "Blobs deleted from the trash.")
    yield Metric("purged_bytes", counted.purged_bytes, "Bytes of blobs deleted from the trash.")
    yield Metric("scrubbed_blobs", counted.scrubbed_blobs, "Blobs read by scrub.")
    yield Metric("scrubbed_bytes", counted.scrubbed_bytes, "Bytes read by scrub.")
    yield Metric("scrub_damaged_blobs", counted.scrub_damaged_blobs, "Damaged blobs found by scrub.")
    yield Metric("uptime_seconds", time.time() - services.started_s, "Time since the mount began.", False)
    yield Metric("writable", not store.namespace.read_only, "Whether writes are taken.", False)
    yield Metric("in_doubt", commits.in_doubt, "Whether a failed flush has stopped writes.", False)
    yield Metric("no_room", store.no_room, "Whether writes are refused for want of room.", False)
    yield Metric("inodes_in_memory", store.inodes.in_memory(), "Inodes in memory.", False)
    yield Metric("drafts", len(store.drafts.inodes), "Files with changes that are not sealed.", False)
    yield Metric("waiting_bytes", store.space.claimed_bytes, "Bytes accepted and not yet sealed.", False)
    yield Metric("catalog_wal_bytes", store.catalog.wal_bytes(), "Size of the catalog's log.", False)
    yield Metric("jobs_running", len([j for j in jobs.all() if j.ended_s is None]), "Commands running.", False)
    yield Metric("collection_holds", len(services.holds), "Holds that keep collections off.", False)
    yield Metric("disk_size_bytes", disk.f_blocks * disk.f_frsize, "Size of the store's file system.", False)
    yield Metric("disk_free_bytes", disk.f_bavail * disk.f_frsize, "Free there, for ordinary users.", False)
    yield Metric("resident_memory_bytes", _resident_bytes(), "Memory of the daemon.", False)
    last = services.last_collection
    if last is not None:
        yield Metric("last_collection_seconds", last.at_s, "When the last collection ended (Unix time).", False)
        yield Metric("live_bytes", last.live_bytes, "Of files, at the last collection.", False)
        yield Metric("versions_bytes", last.versions_bytes, "Only of old versions, at the last collection.", False)
        yield Metric("snapshots_bytes", last.snapshots_bytes, "Only of snapshots, at the last collection.", False)
        yield Metric("trash_bytes", last.trash_bytes, "In the trash, after the last collection.", False)
        yield Metric("reclaimable_bytes", last.reclaimable_bytes, "Garbage, after the last collection.", False)


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


def statistics(services: Services, jobs: Jobs) -> dict[str, object]:
    """All numbers, by name."""
    return {metric.name: _number(metric.value) for metric in gather(services, jobs)}


def metrics(services: Services, jobs: Jobs) -> bytes:
    """All numbers for Prometheus, in its text format 0.0.4."""
    lines = [
        "# HELP mountstore_info The mount.\n# TYPE mountstore_info gauge\n"
        f'mountstore_info{{version="{__version__}",uuid="{services.store.config.uuid}"}} 1\n'
    ]
    for metric in gather(services, jobs):
        name = f"mountstore_{metric.name}{'_total' if metric.counter else ''}"
        kind = "counter" if metric.counter else "gauge"
        lines.append(f"# HELP {name} {metric.help}\n# TYPE {name} {kind}\n{name} {_number(metric.value)}\n")
    return "".join(lines).encode("ascii")


def _number(value: float) -> float:
    return round(value, 3) if isinstance(value, float) else int(value)


def text_of(fields: dict[str, object]) -> bytes:
    """For people and programs."""
    import msgspec

    return json.dumps(fields, indent=2, default=msgspec.to_builtins).encode("ascii") + b"\n"


async def _status(context: Context, arguments: Arguments) -> Answer:
    return status(context.services, context.jobs)


async def _statistics(context: Context, arguments: Arguments) -> Answer:
    return statistics(context.services, context.jobs)


COMMANDS = (
    Command("status", "Say what is mounted, and whether it is well.", _status),
    Command("stats", "Count what happened since the mount began.", _statistics),
)
