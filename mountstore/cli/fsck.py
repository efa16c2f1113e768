"""fsck.cas: check a store that is not mounted, and repair it; options and exit codes as fsck(8) has them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mountstore.cli.exits import Exit, Failure, cause_of, message_of, printable, say
from mountstore.cli.fsck_dialogue import PROGRAM, Code, ask, listed, progress_lines
from mountstore.cli.options import Parser
from mountstore.cli.sizes import size
from mountstore.cli.streams import open_standard_streams
from mountstore.errors import MountstoreError

if TYPE_CHECKING:
    from mountstore.care.findings import Finding, Report
    from mountstore.care.rehash import Progress
    from mountstore.care.repair import Repair

USAGE = """fsck.cas [-n | -y | -p | -a] [-f] [--full] [-v] STORE
       fsck.cas --rebuild [--partial] [--snapshot NAME] [-n | -y] [--full] [-v] STORE"""

EPILOG = """\
Without -n, -y, -p or -a the findings are shown and you are asked before anything is changed.
What is found is kept in STORE/fsck.json: a repair after a --full check does not read every blob again.
Nothing that holds data is deleted: damaged blobs go to STORE/bad, files without a name to /lost+found.
--rebuild takes the newest snapshot of which all blobs are there; an old catalog is moved to STORE/bad.

exit codes (a sum): 0 no errors; 1 errors were repaired; 4 errors are left; 8 the check, or the
catalog, could not be made; 16 wrong usage; 32 interrupted
"""


def _run(argv: Sequence[str]) -> int:
    what = "Check the store in the directory STORE, which must not be mounted."
    parser = Parser(PROGRAM, what, USAGE, EPILOG)
    parser.add_argument("store", metavar="STORE")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-n", dest="look", action="store_true", help="change nothing")
    how.add_argument("-y", dest="yes", action="store_true", help="make every change that can be made")
    how.add_argument("-p", dest="auto", action="store_true", help="make only changes that lose nothing")
    how.add_argument("-a", dest="auto", action="store_true", help="the same")
    parser.add_argument("-f", "--force", action="store_true", help="with -p: check a clean store as well")
    parser.add_argument("--full", action="store_true", help="read every blob and verify its digest")
    parser.add_argument("-v", "--verbose", action="store_true", help="list every finding and every step")
    parser.add_argument("--rebuild", action="store_true", help="make a new catalog from the blobs alone")
    parser.add_argument("--partial", action="store_true", help="with --rebuild: if no snapshot is complete, too")
    parser.add_argument("--snapshot", metavar="NAME", help="with --rebuild: from this one, not the newest")
    parser.add_argument("-r", action="store_true", help="no effect, for fsck(8)")
    parser.add_argument("-t", dest="type", default="cas", help="ignored, for fsck(8)")
    # fsck(8) hands -C<fd> down for a progress bar; there is none to draw here.
    got = parser.parse_intermixed_args([word for word in argv if not re.fullmatch(r"-C\d*", word)])
    if not got.store:
        raise _usage("the store is an empty string")
    if got.rebuild:
        from mountstore.cli.rebuilding import run

        return run(got)
    if got.partial or got.snapshot is not None:
        raise _usage("--partial and --snapshot go with --rebuild")

    from mountstore.care.checking import check_store, presumed_clean

    if got.auto and not got.force and not got.full and presumed_clean(got.store):
        if got.verbose:
            print(f"{printable(got.store)}: clean")
        return Code.OK
    progress = progress_lines(_progress_line) if got.full and sys.stderr.isatty() else None
    asking = not (got.look or got.yes or got.auto)
    if got.look or (asking and not sys.stdin.isatty()):
        report = check_store(got.store, full=got.full, progress=progress)
        _show(report, verbose=got.verbose)
        if asking and report.changes(automatic_only=False):
            say(PROGRAM, "nothing was changed: there is no terminal to ask at; give -n, -p or -y")
        return _code_of(report)
    return _repair(got.store, got.auto, asking, got.full, got.verbose, progress)


def _usage(message: str) -> Failure:
    return Failure(Exit.USAGE, message)


def _repair(
    store: str,
    auto: bool,
    asking: bool,
    full: bool,
    verbose: bool,
    progress: Callable[[Progress], None] | None,
) -> int:
    from mountstore.care.repair import repair_store

    shown: list[Report] = []

    def approve(report: Report) -> bool:
        _show(report, verbose=verbose)
        shown.append(report)
        return not asking or ask(f"Make {_count(len(report.changes(automatic_only=auto)), 'change')}?")

    def on_step(words: str) -> None:
        if verbose:
            print(f"  {printable(words)}")

    repair = repair_store(
        store, approve=approve, automatic_only=auto, full=full, progress=progress, on_step=on_step
    )
    if not shown:
        _show(repair.before, verbose=verbose)
    if not repair.made:
        return _code_of(repair.after)
    return _show_repair(repair, verbose=verbose)


def _show_repair(repair: Repair, *, verbose: bool) -> int:
    print(f"{printable(repair.before.path)}: {_count(len(repair.made), 'change')} made")
    code = Code.REPAIRED
    for reason in repair.failed:
        say(PROGRAM, f"could not be done: {reason}")
        code |= Code.FAILED
    if repair.after.findings:
        print("left:")
        _show(repair.after, verbose=verbose)
    return code | _code_of(repair.after)


def _code_of(report: Report) -> Code:
    return Code.ERRORS_LEFT if report.error_count else Code.OK


def _show(report: Report, *, verbose: bool) -> None:
    path = printable(report.path)
    order = sorted(report.findings, key=lambda finding: not finding.is_error)
    shown = listed(order, verbose=verbose)
    for finding in shown:
        _show_one(finding)
    if len(shown) < sum(report.counts.values()):
        for kind, number in report.counts.items():
            print(f"  {number:10d}  {kind}")
    if not report.clean:
        print(f"{path}: was not closed in order; mounting it recovers what was not finished")
    got = report.statistics
    errors, notes = report.error_count, sum(report.counts.values()) - report.error_count
    remarks = f", {_count(notes, 'note')}" if notes else ""
    print(
        f"{path}: {_count(errors, 'error') if errors else 'no errors'}"
        f"{remarks};"
        f" {_count(got.inodes, 'inode')}, {_count(got.entries, 'name')},"
        f" {_count(got.blobs, 'blob')} of {size(got.blob_bytes)}"
        f" ({_count(got.garbage_blobs, 'blob')} of {size(got.garbage_bytes)} unused by files and versions);"
        f" {got.elapsed_s:.1f} s"
    )
    _show_kept(report.path)


def _show_kept(store: str) -> None:
    """Say what was set aside, now or earlier: nothing else reminds anybody of it."""
    from mountstore.care.kept import list_kept

    try:
        kept = list_kept(store)
    except OSError:
        return
    if kept:
        kept_bytes = sum(file.size_bytes for file in kept)
        print(
            f"{printable(store)}: {_count(len(kept), 'file')} of {size(kept_bytes)} set aside in staging/kept and"
            " bad; nothing refers to them: see what is of use, then remove them"
        )


def _show_one(finding: Finding) -> None:
    mark = "error" if finding.is_error else "note"
    print(f"{mark}: {printable(str(finding))}")
    if finding.change is not None:
        asks = "" if finding.change.automatic else " (with -y, or when asked)"
        print(f"    -> {printable(finding.change.words)}{asks}")


def _progress_line(progress: Progress) -> str:
    rate = progress.done_bytes / max(progress.elapsed_s, 0.001)
    return (
        f"{100 * progress.done_bytes // max(progress.bytes, 1):3d} %"
        f"  {size(progress.done_bytes)} of {size(progress.bytes)}"
        f"  {progress.done_blobs} of {progress.blobs} blobs"
        f"  {size(rate)}/s  {_duration(progress.remaining_s)} left"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    open_standard_streams()
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except (Exception, KeyboardInterrupt) as exc:
        cause = cause_of(exc)
        if isinstance(cause, Failure):
            code = Code.USAGE
        elif isinstance(cause, KeyboardInterrupt):
            code = Code.INTERRUPTED
        else:
            code = Code.FAILED
            if not isinstance(cause, MountstoreError | OSError | MemoryError):
                import traceback

                traceback.print_exc()
        say(PROGRAM, message_of(exc))
        return code


if __name__ == "__main__":
    sys.exit(main())
