"""fsck.cas --rebuild: a new catalog from the blobs."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from mountstore.care.inspection import Candidate, Survey
from mountstore.care.rebuild import Rebuilt, rebuild_store, survey_snapshots
from mountstore.cli.exits import Exit, Failure, printable, say
from mountstore.cli.fsck_dialogue import PROGRAM, Code, ask, listed, progress_lines
from mountstore.cli.stores import time_text, told_of
from mountstore.errors import StoreError
from mountstore.store.layout import CATALOG_NAME


def run(got: Namespace) -> int:
    """Do what the arguments of fsck.cas with --rebuild ask for; returns its exit code.

    Whoever was to be asked and did not say yes gets the code of any other failure: no catalog was made.

    Raises:
      Failure: The arguments contradict each other.
      MountstoreError, OSError: Nothing could be made; the store is as it was.
    """
    if got.auto:
        raise Failure(Exit.USAGE, "--rebuild replaces the catalog, so it goes with -n or -y, not with -p or -a")
    if not os.path.isdir(got.store):
        raise StoreError(f"{got.store} is not a directory")
    progress = progress_lines(_progress_line) if sys.stderr.isatty() else None
    choice = {"snapshot": got.snapshot, "full": got.full, "progress": progress}
    replacing = os.path.lexists(os.path.join(got.store, CATALOG_NAME))
    if got.look or (replacing and not got.yes):
        survey = survey_snapshots(got.store, **choice)
        _show_survey(survey, verbose=got.verbose)
        if got.look:
            return Code.OK if survey.best is not None else Code.ERRORS_LEFT
        if survey.best is None and not got.partial:
            say(PROGRAM, "no snapshot is complete; with --partial what is there is recovered")
            return Code.FAILED
        if not sys.stdin.isatty():
            say(PROGRAM, "nothing was changed: there is a catalog, and no terminal to ask at; give -n or -y")
            return Code.FAILED
        if not ask("Replace the catalog (the old one is kept in bad/)?"):
            return Code.FAILED
    rebuilt = rebuild_store(got.store, partial=got.partial, **choice)
    _show_rebuilt(got.store, rebuilt, verbose=got.verbose)
    return Code.REPAIRED if rebuilt.taken.complete else Code.REPAIRED | Code.ERRORS_LEFT


def _show_survey(survey: Survey, *, verbose: bool) -> None:
    print(f"{survey.blobs} whole blobs, {survey.size_bytes} bytes; {len(survey.damaged)} damaged")
    for path in listed(survey.damaged, verbose=verbose):
        print(f"  {printable(path)}")
    for bad in survey.bad_refs:
        print(printable(bad.error))
    for candidate in survey.candidates:
        ref = candidate.ref
        if candidate.complete:
            print(f"snapshot {ref.name} ({time_text(ref.time_ns)}) is complete; the catalog would be made from it")
        else:
            print(f"snapshot {ref.name} ({time_text(ref.time_ns)}) lacks {candidate.flaw_count} things")
            _show_flaws(candidate, verbose=verbose)


def _show_flaws(candidate: Candidate, *, verbose: bool) -> None:
    shown = listed([flaw.what for flaw in candidate.flaws], verbose=verbose)
    for what in shown:
        print(f"  {printable(what)}")
    if len(shown) < candidate.flaw_count:
        print(f"  and {candidate.flaw_count - len(shown)} more")


def _show_rebuilt(store: str, rebuilt: Rebuilt, *, verbose: bool) -> None:
    for line in told_of(rebuilt):
        print(f"{printable(store)}: {printable(line)}")
    if rebuilt.taken.complete:
        return
    print("what could not be brought back:")
    _show_flaws(rebuilt.taken, verbose=verbose)
    for line in listed(rebuilt.mended, verbose=verbose):
        print(f"  {printable(line)}")
    print("Files whose content is missing are there, and cannot be read; fsck.cas -n lists their names.")
    print("They are whole again when the missing blobs are copied back, or the same content is written anywhere.")


def _progress_line(words: str, number: int) -> str:
    return f"{words}: {number}"
