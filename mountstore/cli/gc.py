"""gc.cas: collect garbage in a store that is not mounted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mountstore.cli.exits import Exit, Failure, printable, run_guarded
from mountstore.cli.options import Parser
from mountstore.cli.sizes import size
from mountstore.errors import BusyError

if TYPE_CHECKING:
    from mountstore.care.gc_report import Options, Report
    from mountstore.care.sweep import Tally

PROGRAM = "gc.cas"

USAGE = (
    "gc.cas [--dry-run] [--purge] [--older-than DAYS] [--keep FILE]... [--grace SECONDS] [--adopted]"
    " [--despite-damage] [--json] [-q] STORE"
)

EPILOG = """\
Old versions that the policy lets go are dropped, and blobs that nothing needs are moved to STORE/trash, where they
stay until they are purged. See docs/gc.md.

exit codes: 0 done; 1 wrong usage; 2 system error; 4 a bug in gc.cas; 8 interrupted; 32 not done
"""


def _run(argv: Sequence[str]) -> int:
    parser = Parser(PROGRAM, "Collect garbage in the store STORE, which must not be mounted.", USAGE, EPILOG)
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be done")
    parser.add_argument("--purge", action="store_true", help="then delete old trash")
    parser.add_argument("--older-than", metavar="DAYS", help="of --purge: keep what is younger (7); 0: all goes")
    parser.add_argument("--keep", metavar="FILE", action="append", default=[], help="a list of blobs to keep")
    parser.add_argument("--grace", metavar="SECONDS", help="leave blobs alone that were placed since (3600)")
    parser.add_argument(
        "--adopted", action="store_true", help="also what lay in the tree before it was a store and was never used"
    )
    parser.add_argument(
        "--despite-damage", action="store_true", help="also if contents cannot be read, whose pieces may go"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing when all is well")
    got = parser.parse_intermixed_args(list(argv))
    if not got.store:
        raise Failure(Exit.USAGE, "the store is an empty string")

    from mountstore.care.gc_report import GRACE_S, Options
    from mountstore.care.trash_commands import OLDER_THAN_DAYS

    options = Options(
        dry_run=got.dry_run,
        purge=got.purge,
        older_than_days=_number("--older-than", got.older_than, OLDER_THAN_DAYS),
        keep_files=tuple(map(os.path.abspath, got.keep)),
        grace_s=_number("--grace", got.grace, GRACE_S),
        adopted=got.adopted,
        despite_damage=got.despite_damage,
    )
    if got.older_than is not None and not got.purge:
        raise Failure(Exit.USAGE, "--older-than says what --purge deletes; give that as well")
    report = _collect(got.store, options)
    if got.json:
        import msgspec

        print(msgspec.json.encode(report).decode())
    elif not got.quiet:
        _show(got.store, report)
    return Exit.OK


def _number(option: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise Failure(Exit.USAGE, f"{option} {text}: must be a number, 0 or more")
    return number


def _collect(path: str, options: Options) -> Report:
    import trio

    from mountstore.care.gc import collect
    from mountstore.store import Store

    async def body() -> Report:
        async with opened.running():
            return await collect(opened, options)

    try:
        opened = Store.open(path)
    except BusyError as exc:
        raise Failure(
            Exit.FAILED,
            f"{exc}; a mounted store collects its garbage itself: write gc to .cas/control in the mount",
        ) from exc
    return trio.run(body)


def _show(store: str, report: Report) -> None:
    would = "would be " if report.dry_run else ""
    for flaw in report.flaws:
        print(f"note: {printable(flaw)}")
    lines = [("live", report.live), ("old versions", report.versions)]
    lines += [("snapshots", report.snapshots)] if report.snapshots.blobs else []
    lines += [(reason, tally) for reason, tally in report.kept.items() if tally.blobs]
    lines += [(f"{would}collected: {reason}", tally) for reason, tally in report.collected.items() if tally.blobs]
    lines += [("purged", report.purged)] if report.purged.blobs else []
    lines += [("in the trash", report.trash)]
    for what, tally in lines:
        print(f"  {what:36} {_tally(tally)}")
    for reason, number in sorted(report.versions_dropped.items()):
        print(f"  {would}dropped versions: {reason}: {number}")
    got = report.reclaimable
    print(
        f"{printable(store)}: {got.blobs} of"
        f" {got.blobs + _staying(report)} blobs"
        f" {would}collected, {size(got.bytes)}; {report.versions_kept} old versions kept,"
        f" {sum(report.versions_dropped.values())} {would}dropped; {report.elapsed_s:.1f} s"
    )


def _staying(report: Report) -> int:
    return sum(tally.blobs for tally in (report.live, report.versions, report.snapshots, *report.kept.values()))


def _tally(tally: Tally) -> str:
    return f"{tally.blobs:10} blobs {size(tally.bytes):>12}"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_guarded(PROGRAM, lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
