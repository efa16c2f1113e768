"""Repairing a store: the plan of a check carried out, so that it may be interrupted anywhere.

  1. The database's integrity, in full: nothing is changed on the word of a wrong index.
  2. The changes to the catalog, then the same checks again on the changed rows, until nothing more is to be
     done. All of it is one transaction, which becomes durable at its end.
  3. The changes to files, each a rename or less, each harmless when it is done twice or not at all.
  4. A check; what it finds in the wake of 3 is mended in the same way.

An interruption before the end of 2 leaves the store as it was, one later leaves findings that the next
check finds again. No content is deleted; see `mountstore.care.premises` for where things go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mountstore.blobs.flush import syncfs, takes_no_writes
from mountstore.care.check_namespace import check_namespace
from mountstore.care.check_versions import check_versions
from mountstore.care.checking import Examination, Reporter, is_about_indexes
from mountstore.care.findings import Change, Finding, Findings, Kind, Report
from mountstore.care.premises import Premises
from mountstore.errors import CorruptError, MountstoreError, ReadOnlyError
from mountstore.namespace.audit import Audit

_PASSES_MAX = 40
"""Two or three are usual. A pass makes at most `KEPT_PER_KIND` changes of a kind."""

_ROUNDS_MAX = 4


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did."""

    before: Report
    made: tuple[Finding, ...]
    """Findings whose change was made, in order; also those that came up on the way."""
    failed: tuple[str, ...]
    """Changes to files that the system refused, with the reason."""
    after: Report
    """The check at the end; `before` if nothing was changed."""


def repair_store(
    path: str,
    *,
    approve: Callable[[Report], bool],
    automatic_only: bool = False,
    full: bool = False,
    progress: Reporter | None = None,
    on_step: Callable[[str], None] = lambda words: None,
) -> Repair:
    """Check the store at `path`, and mend what can be.

    Args:
      approve: Shown the first check; changes are made if it returns True. Not called without a plan.
      automatic_only: Make only changes that lose nothing.
      full, progress: As `check_store`.
      on_step: Told what is done before each step. If it raises, the repair ends there.

    Raises:
      StoreError, BusyError: As `check_store`; nothing was changed.
      ReadOnlyError: Its file system takes no writes.
      CorruptError, NoSpaceError: The catalog could not be changed, and is as it was.
    """
    with Premises.enter(path) as premises:
        if takes_no_writes(premises.path):
            raise ReadOnlyError(f"{path}: its file system is read-only; nothing can be repaired (-n only looks)")
        examination = Examination(premises, full=full, progress=progress)
        before: Report | None = None
        made: list[Finding] = []
        failed: list[str] = []
        for _ in range(_ROUNDS_MAX):
            opened = examination.open_catalog(writable=True)
            if isinstance(opened, Report):
                return Repair(before or opened, tuple(made), tuple(failed), opened)
            with opened as audit:
                report = examination.check(audit)
                planned = report.changes(automatic_only=automatic_only)
                refused = premises.configuration_flaw is not None or not planned or failed
                if refused or (before is None and not approve(report)):
                    return Repair(before or report, tuple(made), tuple(failed), report)
                before = before or report
                made += (mended := _mend_catalog(audit, examination, report, automatic_only, on_step))
            failed += _mend_files(premises, mended, on_step)
            on_step("check")
            # What was read is known from the findings file; not all of it is read again.
            examination = Examination(premises)
        return Repair(before or report, tuple(made), tuple(failed), examination.check_only())


def holds_together(catalog: str) -> bool:
    """Whether names, inodes and histories of a catalog that was just made are as they must be; what they need of
    the tree is not looked at. Takes 0.2 s for 100,000 files.

    Raises: CorruptError
    """
    findings = Findings()
    with Audit(catalog, writable=False) as audit:
        audit.prepare_names()
        check_versions(audit, findings)
        check_namespace(audit, findings)
    return not any(finding.is_error for finding in findings.kept())


def mend_new_catalog(premises: Premises) -> tuple[str, ...]:
    """Mend a catalog that was just made from an incomplete snapshot and is not in place yet: names that stand for
    nothing, inodes without a name, counts. Files whose content is missing are kept as they are.

    Args:
      premises: Locked by the caller; `catalog` is the path of the new one.

    Returns: What was done.

    Raises:
      CorruptError, NoSpaceError: It could not be changed.
    """
    examination = Examination(premises)
    opened = examination.open_catalog(writable=True)
    if isinstance(opened, Report):
        raise CorruptError(f"{premises.catalog}: {opened.findings[0].what}")
    with opened as audit:
        made = _mend_catalog(audit, examination, examination.check(audit), False, lambda words: None)
        return tuple(
            f"{finding.what}: {finding.change.words}"
            for finding in made
            if finding.change is not None and finding.change.catalog is not None
        )


def _mend_catalog(
    audit: Audit,
    examination: Examination,
    report: Report,
    automatic_only: bool,
    on_step: Callable[[str], None],
) -> list[Finding]:
    made: list[Finding] = []
    on_step("check the database")
    problems = audit.integrity(full=True)
    if problems and not is_about_indexes(problems):
        raise CorruptError(f"{audit.path}: nothing was changed, the catalog is damaged: {problems[0]}")
    if problems:
        on_step("make the indexes anew")
        audit.rebuild_indexes()
        if left := audit.integrity(full=True):
            raise CorruptError(f"{audit.path}: nothing was changed, the catalog is damaged: {left[0]}")
        change = Change("make the indexes anew")
        made.append(Finding(Kind.INDEX_DAMAGED, problems[0], change))
        # What was found so far was found with the wrong index.
        report = examination.check(audit)
    for _ in range(_PASSES_MAX):
        planned = report.changes(automatic_only=automatic_only)
        # What concerns files only is done after the commit, and is not found again until then.
        due = [finding for finding in planned if finding.change and finding.change.catalog]
        made += planned
        if not due:
            break
        for finding in due:
            assert finding.change is not None
            assert finding.change.catalog is not None
            on_step(str(finding))
            finding.change.catalog(audit)
        report = examination.check_again(audit)
    on_step("commit")
    audit.commit()
    on_step("committed")
    return made


def _mend_files(premises: Premises, made: list[Finding], on_step: Callable[[str], None]) -> list[str]:
    failed = []
    moved = False
    for finding in made:
        if finding.change is None or finding.change.files is None:
            continue
        on_step(str(finding))
        try:
            finding.change.files(premises)
            moved = True
        except (OSError, MountstoreError) as exc:
            failed.append(f"{finding.what}: {exc}")
    if moved:
        on_step("flush to disk")
        syncfs(premises.path)
    return failed
