"""The checker: compares the catalog with itself and with the tree, and tells what it found.

A check changes nothing in the store except the findings file (`mountstore.care.notes`), and that only when
there is something worth keeping. What can be wrong with a store is a finding, whatever the bytes on disk;
exceptions are for what prevents checking (no store, in use, no memory).

The order matters: the database's own integrity first, since nothing it says counts before; the tree next,
since contents are judged by what is there; links last, since all else may change them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from mountstore.blobs.refs import Ref, read_refs
from mountstore.blobs.scan import is_bare
from mountstore.care.check_contents import check_blob_rows, check_contents, read_manifests
from mountstore.care.check_namespace import check_namespace
from mountstore.care.check_snapshots import check_snapshots, survey_snapshots
from mountstore.care.check_staging import check_staging
from mountstore.care.check_versions import check_versions
from mountstore.care.findings import Change, Finding, Findings, Kind, Report, Statistics
from mountstore.care.notes import (
    FINDINGS_MAX,
    BadBlob,
    NotedFinding,
    Notes,
    read_notes,
    write_notes,
)
from mountstore.care.premises import Premises
from mountstore.care.rehash import Progress, add_damaged, rehash_some, rehash_tree
from mountstore.care.survey import survey_tree
from mountstore.errors import CorruptError
from mountstore.namespace.audit import Audit
from mountstore.namespace.connection import REBUILD_HINT
from mountstore.store.layout import CATALOG_NAME
from mountstore.store.lineage import lineage_flaw

Reporter = Callable[[Progress], None]


def check_store(path: str, *, full: bool = False, progress: Reporter | None = None) -> Report:
    """Check the store at `path`, which nobody may have open for writing; changes nothing.

    Args:
      full: Read every blob and compare all indexes as well.
      progress: Told how far the reading is.

    Raises:
      StoreError: There is no store, or one of another release.
      BusyError: Somebody has it open for writing.
      OSError: It cannot be locked or looked at.
    """
    with Premises.enter(path) as premises:
        return Examination(premises, full=full, progress=progress).check_only()


def presumed_clean(path: str) -> bool:
    """Whether the store was closed in order, can be mounted for writing as far as a glance tells, and the last
    check or scrub, if there was one, left no error.

    Raises: As `check_store`.
    """
    with Premises.enter(path) as premises:
        if premises.configuration is None or premises.catalog_flaw() is not None:
            return False
        try:
            with Audit(premises.catalog) as audit:
                return (
                    _is_closed(audit)
                    and not read_notes(premises.notes).errors
                    and lineage_flaw(audit.meta, premises.configuration.uuid, read_refs(premises.blobs)[0]) is None
                    and not (is_bare(premises.blobs) and audit.count("blob"))
                )
        except CorruptError:
            return False


def closed_in_order(path: str) -> bool:
    """Whether the last who had the store at `path` open for writing has closed it; False if nobody can tell.

    Looks at the catalog only, and needs no lock.
    """
    try:
        with Audit(os.path.join(path, CATALOG_NAME)) as audit:
            return _is_closed(audit)
    except (CorruptError, OSError):
        return False


def _is_closed(audit: Audit) -> bool:
    return not audit.schema_differences() and audit.meta("clean") == 1


class Examination:
    """One check of a store that is locked, and what a repair has to know of it afterwards.

    Args:
      full, progress: As `check_store`.
    """

    def __init__(
        self, premises: Premises, *, full: bool = False, progress: Reporter | None = None
    ) -> None:
        self.premises = premises
        self.full = full
        self._progress = progress
        self._bad: list[BadBlob] = []
        self._refs: list[Ref] = []

    def check_only(self) -> Report:
        """Check without the possibility of changes."""
        opened = self.open_catalog(writable=False)
        if isinstance(opened, Report):
            return opened
        with opened as audit:
            return self.check(audit)

    def open_catalog(self, *, writable: bool) -> Audit | Report:
        """The catalog, or the report that there is none to be read."""
        flaw = self.premises.catalog_flaw()
        if flaw is None:
            try:
                return Audit(self.premises.catalog, writable=writable)
            except CorruptError as exc:
                flaw = str(exc)
        findings = Findings()
        self._check_surroundings(findings)
        return self._report(_catalog_damaged(findings, flaw), Statistics(), clean=False)

    def check(self, audit: Audit) -> Report:
        """Check everything."""
        started = time.monotonic()
        findings = Findings()
        self._bad = []
        self._check_surroundings(findings)
        clean = False
        statistics = Statistics()
        try:
            if not _check_database(audit, findings, full=self.full):
                return self._report(findings, statistics, clean=False)
            clean = audit.meta("clean") == 1
            self._check_tree(audit, findings)
            drafts = check_staging(self.premises, audit, findings)
            self._check_rows(audit, findings)
            statistics = self._statistics(audit, drafts)
        except CorruptError as exc:
            _catalog_damaged(findings, str(exc))
        statistics = replace(statistics, elapsed_s=time.monotonic() - started)
        report = self._report(findings, statistics, clean=clean)
        self._take_notes(report)
        return report

    def check_again(self, audit: Audit) -> Report:
        """Check the catalog's rows once more, after changes in the open transaction; the tree is known.

        Raises:
          CorruptError: The catalog cannot be read.
        """
        findings = Findings()
        self._check_rows(audit, findings)
        return self._report(findings, Statistics(), clean=False)

    def _check_rows(self, audit: Audit, findings: Findings) -> None:
        audit.prepare_names()
        read_manifests(self.premises, audit, findings)
        check_contents(audit, findings)
        check_snapshots(self.premises, audit, findings, self._refs)
        check_blob_rows(audit, findings)
        check_versions(audit, findings)
        check_namespace(audit, findings)

    def _check_surroundings(self, findings: Findings) -> None:
        if self.premises.configuration_flaw is not None:
            findings.add(
                Kind.CONFIGURATION_DAMAGED,
                f"store.toml: {self.premises.configuration_flaw}; nothing is repaired before it is right"
                " (docs/fsck.md)",
            )
        for name in self.premises.unknown_names():
            findings.add(Kind.FOREIGN, f"{os.path.join(self.premises.path, name)} is not part of the store")

    def _check_tree(self, audit: Audit, findings: Findings) -> None:
        survey_tree(self.premises, audit, findings)
        self._refs = survey_snapshots(self.premises, audit, findings)
        if self.full:
            self._bad = rehash_tree(self.premises, audit, findings, self._progress)
            return
        self._recall_bad(audit, findings)
        # After power loss these may have the right size and yet not their bytes.
        self._bad += rehash_some(self.premises, audit, findings, audit.unsynced())

    def _recall_bad(self, audit: Audit, findings: Findings) -> None:
        """What an earlier full check found, as far as the files are still the same."""
        for bad in read_notes(self.premises.notes).bad_blobs:
            digest = bad.digest()
            if digest is None or bad.level not in audit.levels_of(digest):
                continue
            path = self.premises.blob_path(digest, bad.level)
            status = os.lstat(path)
            if (status.st_size, status.st_mtime_ns) == (bad.size_bytes, bad.mtime_ns):
                audit.mark_damaged(digest, bad.level)
                add_damaged(findings, path, digest)
                self._bad.append(bad)

    def _statistics(self, audit: Audit, drafts: int) -> Statistics:
        blobs, blob_bytes = audit.tree_totals()
        garbage_blobs, garbage_bytes = audit.garbage_totals()
        return Statistics(
            inodes=audit.count("inode"),
            entries=audit.count("entry"),
            blobs=blobs,
            blob_bytes=blob_bytes,
            garbage_blobs=garbage_blobs,
            garbage_bytes=garbage_bytes,
            drafts=drafts,
            rehashed_blobs=blobs if self.full else 0,
        )

    def _report(self, findings: Findings, statistics: Statistics, *, clean: bool) -> Report:
        return Report(self.premises.path, findings.kept(), findings.counts(), statistics, clean, self.full)

    def _take_notes(self, report: Report) -> None:
        old = read_notes(self.premises.notes)
        if not (self.full or report.error_count or self._bad or old.errors or old.bad_blobs or old.findings):
            return
        now = time.time()
        notes = Notes(
            checked_s=now,
            full_s=now if self.full else old.full_s,
            errors=report.error_count,
            bad_blobs=self._bad,
            findings=[_noted(finding) for finding in report.findings[:FINDINGS_MAX]],
        )
        try:
            write_notes(self.premises.notes, notes)
        except OSError:
            pass  # a store that takes no writes can be checked all the same


def _noted(finding: Finding) -> NotedFinding:
    # JSON is UTF-8; names need not be.
    what = finding.what.encode("utf-8", "backslashreplace").decode()
    return NotedFinding(finding.kind, what, finding.change.words if finding.change else None)


def _catalog_damaged(findings: Findings, flaw: str) -> Findings:
    findings.add(
        Kind.CATALOG_DAMAGED, flaw if flaw.endswith(REBUILD_HINT) else f"{flaw}; {REBUILD_HINT}"
    )
    return findings


def _check_database(audit: Audit, findings: Findings, *, full: bool) -> bool:
    """Whether the catalog's answers can be trusted."""
    problems = audit.integrity(full=full)
    if problems and is_about_indexes(problems):
        findings.add(
            Kind.INDEX_DAMAGED,
            f"{len(problems)} differences between tables and their indexes, such as: {problems[0]}",
            Change("make the indexes anew", catalog=Audit.rebuild_indexes),
        )
        return False
    if problems:
        _catalog_damaged(findings, f"the catalog is damaged: {problems[0]}")
        return False
    differing = audit.schema_differences()
    if differing:
        _catalog_damaged(findings, f"the catalog's parts are not as they should be: {', '.join(differing)}")
        return False
    return True


def is_about_indexes(problems: list[str]) -> bool:
    """Whether nothing but indexes is wrong, which hold nothing of their own."""
    return all(
        problem.startswith(("wrong # of entries in index ", "non-unique entry in index "))
        or (problem.startswith("row ") and " missing from index " in problem)
        for problem in problems
    )
