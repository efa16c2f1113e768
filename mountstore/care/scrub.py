"""Scrub: read every blob of a store that is in use, and tell which are not what they were.

Disks lose bytes silently; a scrub finds that while a backup still has them. What it finds damaged is verified anew
at the next touch, so nobody gets its bytes, and it is replaced when the same content is written again. It is noted
for `fsck.cas`, which tells which files that concerns without reading everything once more.

Bytes are read from the disk, not from the page cache, as far as the system lets itself be told.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

import msgspec
import trio
from xxhash import xxh3_128

from mountstore.blobs.digest import CHECKSUM_BYTES, Digest, Hasher
from mountstore.blobs.opening import open_to_read
from mountstore.care.notes import BadBlob, note_bad_blobs
from mountstore.care.stretches import Progress, Stretch, no_progress
from mountstore.namespace.blob_records import BlobRecords
from mountstore.store import Store
from mountstore.store.layout import NOTES_NAME

__all__ = ["ScrubReport", "scrub"]

log = logging.getLogger(__name__)

_PART_BYTES: Final = 1 << 20
_LISTED_MAX: Final = 1000


class ScrubReport(msgspec.Struct, kw_only=True):
    """What was read and found."""

    blobs: int = 0
    bytes: int = 0
    damaged: list[str] = msgspec.field(default_factory=list)
    """Names of damaged blobs, up to a thousand."""
    damaged_blobs: int = 0
    unreadable: list[str] = msgspec.field(default_factory=list)
    """Blobs that the disk does not give, and what it says; up to a thousand."""
    unreadable_blobs: int = 0
    elapsed_s: float = 0.0


async def scrub(
    store: Store, *, full: bool = False, rate_bytes_s: float = 0.0, progress: Progress = no_progress
) -> ScrubReport:
    """Read the blobs of a store that is `running`, one after another, in a worker.

    Args:
      full: Compare with the digests; else with the checksums, which are ten times as fast, where one is known.
      rate_bytes_s: Read no faster than this; 0: as fast as one thread can.

    Raises: OSError, CorruptError: The tree or the catalog cannot be read at all.

    Cancellation: After a twentieth of a second, and the blob being read.
    """
    started = time.monotonic()
    if not store.read_only:
        store.commits.commit()
    records = await trio.to_thread.run_sync(BlobRecords, store.catalog.path)
    try:
        total = await trio.to_thread.run_sync(records.total_bytes)
        reader = _Scrub(store, records, full)
        more = True
        while more:
            more = await trio.to_thread.run_sync(reader.stretch)
            report = reader.report
            progress(report.bytes, max(report.bytes, total), "bytes")
            if rate_bytes_s > 0:
                ahead_s = report.bytes / rate_bytes_s - (time.monotonic() - started)
                if ahead_s > 0:
                    await trio.sleep(ahead_s)
    finally:
        records.close()
    report.elapsed_s = round(time.monotonic() - started, 3)
    return report


class _Scrub:
    """One pass; in one worker at a time."""

    def __init__(self, store: Store, records: BlobRecords, full: bool) -> None:
        self._store = store
        self._records = records
        self._full = full
        self._walk = store.tree.walk()
        self.report = ScrubReport()

    def stretch(self) -> bool:
        """Go on for a while; whether there is more."""
        stretch = Stretch(self._walk)
        unreadable = self.report.unreadable_blobs
        bad = [flaw for digest, path in stretch if (flaw := self._look(digest, path)) is not None]
        unreadable = self.report.unreadable_blobs - unreadable
        if (bad or unreadable) and not self._store.read_only:
            try:
                note_bad_blobs(os.path.join(self._store.path, NOTES_NAME), bad, unreadable)
            except OSError as exc:
                log.warning("%s: what a scrub found could not be noted: %s", NOTES_NAME, exc.strerror or exc)
        return stretch.more

    def _look(self, digest: Digest, path: str) -> BadBlob | None:
        report = self.report
        known = None if self._full else self._records.checksum(digest)
        try:
            found = _hash(path, known is not None)
        except FileNotFoundError:
            # Collected since.
            return None
        except OSError as exc:
            report.unreadable_blobs += 1
            log.error("%s: %s", path, exc.strerror or exc)
            if len(report.unreadable) < _LISTED_MAX:
                report.unreadable.append(f"{digest.name}: {exc.strerror or exc}")
            return None
        report.blobs += 1
        report.bytes += digest.size_bytes
        if found == (known if known is not None else digest.sha256):
            return None
        if known is not None and _hash(path, False) == digest.sha256:
            log.warning("the catalog has another checksum of blob %s, whose bytes are right", digest.name)
            return None
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        self._store.contents.verified.discard(digest)
        self._store.tree.distrust(digest)
        report.damaged_blobs += 1
        log.error("%s is damaged: its bytes are not what was written; fsck.cas tells which files have it", path)
        if len(report.damaged) < _LISTED_MAX:
            report.damaged.append(digest.name)
        level = os.path.relpath(path, self._store.tree.root).count("/")
        return BadBlob(digest.name, level, status.st_size, status.st_mtime_ns)


def _hash(path: str, fast: bool) -> bytes:
    """The checksum or the SHA-256 of a file. Raises: OSError."""
    fd = open_to_read(path)
    try:
        # Clean pages only, and not those that are mapped: what is left was read from the disk not long ago.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = bytearray(_PART_BYTES)
        view = memoryview(buffer)
        if fast:
            quick = xxh3_128()
            while length := os.readv(fd, [buffer]):
                quick.update(view[:length])
            assert quick.digest_size == CHECKSUM_BYTES
            return quick.digest()
        hasher = Hasher()
        while length := os.readv(fd, [buffer]):
            hasher.update(view[:length])
        return hasher.digest().sha256
    finally:
        os.close(fd)
