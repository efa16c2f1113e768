"""Reading every blob again: is it still what its name says?

Two threads read and hash; both release the interpreter lock, so that keeps two cores or the disk busy. More
would only make a disk seek.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple

from mountstore.blobs.digest import Digest, Hasher
from mountstore.blobs.opening import open_to_read
from mountstore.care.findings import Change, Findings, Kind
from mountstore.care.notes import BadBlob
from mountstore.care.premises import Premises
from mountstore.care.survey import aside
from mountstore.namespace.audit import Audit

_THREADS: Final = 2
_PART_BYTES: Final = 1 << 20
_BATCH_BLOBS: Final = 64
_BATCH_BYTES: Final = 16 << 20
_UNDER_WAY: Final = 3 * _THREADS


class Hashes(NamedTuple):
    """Of a file as it was read."""

    digest: Digest
    checksum: bytes
    mtime_ns: int


class Progress(NamedTuple):
    """How far a rehash is."""

    done_blobs: int
    blobs: int
    done_bytes: int
    bytes: int
    elapsed_s: float

    @property
    def remaining_s(self) -> float:
        """An estimate: what is left takes as long for each byte as what is done; 0 when nothing is known."""
        return self.elapsed_s * (self.bytes - self.done_bytes) / self.done_bytes if self.done_bytes else 0.0


class _Job(NamedTuple):
    digest: Digest
    level: int
    path: str
    known_checksum: bytes | None


_Outcome = Hashes | OSError


def read_hashes(path: str) -> Hashes:
    """Read a file, in little memory; blocks, any thread. Raises: OSError."""
    fd = open_to_read(path)
    try:
        status = os.fstat(fd)
        mtime_ns = status.st_mtime_ns
        hasher = Hasher()
        # Clearing a buffer of a MiB takes longer than reading and hashing a small file.
        buffer = bytearray(min(status.st_size + 1, _PART_BYTES))
        view = memoryview(buffer)
        while length := os.readv(fd, [buffer]):
            hasher.update(view[:length])
    finally:
        os.close(fd)
    return Hashes(hasher.digest(), hasher.checksum(), mtime_ns)


def rehash_tree(
    premises: Premises, audit: Audit, findings: Findings, report: Callable[[Progress], None] | None = None
) -> list[BadBlob]:
    """Hash every whole file of the surveyed tree, and mark what is damaged.

    Args:
        report: Called every few blobs, from the calling thread.
    """
    blobs, size_bytes = audit.tree_totals()
    jobs = (
        _Job(digest, level, premises.blob_path(digest, level), checksum)
        for digest, level, checksum in audit.files()
    )
    return _rehash(jobs, blobs, size_bytes, audit, findings, report)


def rehash_some(premises: Premises, audit: Audit, findings: Findings, digests: list[Digest]) -> list[BadBlob]:
    """The same for these, as far as they are in the tree."""
    jobs = [
        _Job(digest, level, premises.blob_path(digest, level), audit.checksum_of(digest))
        for digest in digests
        for level in audit.levels_of(digest)
    ]
    return _rehash(iter(jobs), len(jobs), 0, audit, findings, None)


def _rehash(
    jobs: Iterator[_Job],
    blobs: int,
    size_bytes: int,
    audit: Audit,
    findings: Findings,
    report: Callable[[Progress], None] | None,
) -> list[BadBlob]:
    started = time.monotonic()
    done_blobs = done_bytes = 0
    bad: list[BadBlob] = []
    under_way: deque[tuple[list[_Job], Future[list[_Outcome]]]] = deque()
    pool = ThreadPoolExecutor(_THREADS, "rehash")
    try:
        batches = _batches(jobs)
        while True:
            for batch in islice(batches, max(0, _UNDER_WAY - len(under_way))):
                under_way.append((batch, pool.submit(_hash_batch, batch)))
            if not under_way:
                return bad
            batch, future = under_way.popleft()
            outcomes = future.result()
            for job, outcome in zip(batch, outcomes, strict=True):
                flaw = _judge(job, outcome, audit, findings)
                if flaw is not None:
                    bad.append(flaw)
            audit.note_checksums(
                (outcome.checksum, *job.digest)
                for job, outcome in zip(batch, outcomes, strict=True)
                if isinstance(outcome, Hashes) and outcome.digest == job.digest and job.known_checksum is None
            )
            done_blobs += len(batch)
            done_bytes += sum(job.digest.size_bytes for job in batch)
            if report is not None:
                report(Progress(done_blobs, blobs, done_bytes, size_bytes, time.monotonic() - started))
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(jobs: Iterator[_Job]) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    size_bytes = 0
    for job in jobs:
        batch.append(job)
        size_bytes += job.digest.size_bytes
        if len(batch) == _BATCH_BLOBS or size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _hash_batch(batch: list[_Job]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for job in batch:
        try:
            outcomes.append(read_hashes(job.path))
        except OSError as exc:
            outcomes.append(exc)
    return outcomes


def _judge(job: _Job, outcome: _Outcome, audit: Audit, findings: Findings) -> BadBlob | None:
    if isinstance(outcome, OSError):
        # The disk may answer another time: nothing is done about it, and nothing is remembered.
        audit.mark_damaged(job.digest, job.level)
        findings.add(Kind.UNREADABLE, f"{job.path}: {outcome.strerror or outcome}")
        return None
    if outcome.digest != job.digest:
        audit.mark_damaged(job.digest, job.level)
        add_damaged(findings, job.path, job.digest)
        return BadBlob(job.digest.name, job.level, outcome.digest.size_bytes, outcome.mtime_ns)
    if job.known_checksum is not None and job.known_checksum != outcome.checksum:
        add_wrong_checksum(findings, job.digest, outcome.checksum)
    return None


def add_damaged(findings: Findings, path: str, digest: Digest) -> None:
    findings.add(
        Kind.BLOB_DAMAGED, f"{path}: its bytes are not those that were written", aside(path, digest)
    )


def add_wrong_checksum(findings: Findings, digest: Digest, right: bytes) -> None:
    findings.add(
        Kind.CHECKSUM_WRONG,
        f"the catalog has another checksum of blob {digest.name}, whose digest is right",
        Change("correct the checksum", catalog=Record(digest, right)),
    )


class Record:
    """Puts a blob's row right."""

    __slots__ = ("_checksum", "_digest")

    def __init__(self, digest: Digest, checksum: bytes) -> None:
        self._digest = digest
        self._checksum = checksum

    def __call__(self, audit: Audit) -> None:
        audit.record_blob(self._digest, self._checksum)
