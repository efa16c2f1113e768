"""mkfs.cas: make a store with chosen limits."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from mountstore.cli.exits import Exit, Failure, printable, run_guarded
from mountstore.cli.options import DIR_LIMIT_MAX, DIR_LIMIT_MIN, Parser
from mountstore.cli.stores import is_vacant, told_of

PROGRAM = "mkfs.cas"

USAGE = "mkfs.cas [--dir-limit N] [--piece-max SIZE] [-n] [-q] STORE"

EPILOG = """\
STORE is made if it does not exist; otherwise it must be empty, or hold nothing but a directory `blobs`
in the form of a balanced tree (as BalancedDiscStorage leaves it), which is adopted as it is;
if that has snapshots, as a backup of a store has, the store is made again from the newest complete one.
Nothing that is there is ever overwritten; there is no option that forces it.

exit codes: 0 made; 1 wrong usage; 2 system error; 4 a bug in mkfs.cas; 32 not made
"""

PIECE_MAX_MIN = 64 * 1024
PIECE_MAX_MAX = 16 * 1024 * 1024

_SIZE = re.compile(r"(\d+)([KMkm]?)(?:iB|B)?")
_FACTOR = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_size(text: str) -> int:
    """A size in bytes from `4194304`, `4096K` or `4M`.

    Raises:
      Failure: It is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Failure(Exit.USAGE, f"{text} is not a size: give bytes, or a number with K or M")
    return int(match[1]) * _FACTOR[match[2].lower()]


def _dir_limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not DIR_LIMIT_MIN <= int(text) <= DIR_LIMIT_MAX:
        raise Failure(
            Exit.USAGE, f"--dir-limit {text}: must be a whole number from {DIR_LIMIT_MIN} to {DIR_LIMIT_MAX}"
        )
    return int(text)


def _piece_max(text: str) -> int:
    size_bytes = parse_size(text)
    if not PIECE_MAX_MIN <= size_bytes <= PIECE_MAX_MAX:
        raise Failure(Exit.USAGE, f"--piece-max {text}: must be from {PIECE_MAX_MIN} to {PIECE_MAX_MAX} bytes")
    return size_bytes


def _run(argv: Sequence[str]) -> int:
    parser = Parser(PROGRAM, "Make a store in the directory STORE.", USAGE, EPILOG)
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--dir-limit", metavar="N", help="entries in a directory of blobs (32000)")
    parser.add_argument("--piece-max", metavar="SIZE", help="largest file kept as one blob (4M)")
    parser.add_argument("-n", "--dry-run", action="store_true", help="check everything, make nothing")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing when all is well")
    # mkfs(8) passes these through; they need no answer.
    parser.add_argument("-t", dest="type", default="cas", help="ignored, for mkfs(8)")
    parser.add_argument("-v", "--verbose", action="store_true", help="ignored, for mkfs(8)")
    got = parser.parse_intermixed_args(list(argv))
    if not got.store:
        raise Failure(Exit.USAGE, "the store is an empty string")
    dir_limit = None if got.dir_limit is None else _dir_limit(got.dir_limit)
    piece_max = None if got.piece_max is None else _piece_max(got.piece_max)

    store = os.path.realpath(got.store)
    if os.path.lexists(store) and not os.path.isdir(store):
        raise Failure(Exit.FAILED, f"{got.store} is not a directory")
    if _was_a_store(store):
        if dir_limit is not None or piece_max is not None:
            raise Failure(
                Exit.USAGE,
                f"{got.store} was a store, as its snapshots say, and gets the limits it had: give no --dir-limit"
                " or --piece-max",
            )
        return _make_again(got.store, store, dry_run=got.dry_run, quiet=got.quiet)
    from mountstore.store.layout import BLOBS_NAME, LOST_FOUND_NAME

    adopting = not is_vacant(store)
    if adopting and set(os.listdir(store)) - {LOST_FOUND_NAME} != {BLOBS_NAME}:
        raise Failure(Exit.FAILED, f"{got.store} is not empty: {_what_is_there(store)}")
    if got.dry_run:
        if not got.quiet:
            print(f"{printable(got.store)}: a store can be made here")
        return Exit.OK

    from mountstore.store.create import create_store

    limits = {"dir_limit": dir_limit, "piece_max": piece_max}
    config = create_store(store, **{name: value for name, value in limits.items() if value is not None})
    if not got.quiet:
        adopted = ", adopting the blobs that are there" if adopting else ""
        print(f"{printable(got.store)}: made a store{adopted}")
        print(f"uuid       {config.uuid}")
        print(f"dir_limit  {config.dir_limit} entries")
        print(f"piece_max  {config.piece_max} bytes")
    return Exit.OK


def _was_a_store(store: str) -> bool:
    """Whether there is nothing but blobs, with snapshots among them."""
    from mountstore.care.rebuild import can_rebuild
    from mountstore.store.layout import CONFIG_NAME

    return not os.path.lexists(os.path.join(store, CONFIG_NAME)) and can_rebuild(store)


def _make_again(given: str, store: str, *, dry_run: bool, quiet: bool) -> int:
    from mountstore.care.rebuild import rebuild_store

    if dry_run:
        if not quiet:
            print(f"{printable(given)}: the store can be made again from its snapshots")
        return Exit.OK
    rebuilt = rebuild_store(store)
    if not quiet:
        for line in told_of(rebuilt):
            print(f"{printable(given)}: {printable(line)}")
    return Exit.OK


def _what_is_there(store: str) -> str:
    from mountstore.store.layout import CONFIG_NAME

    names = sorted(os.listdir(store))
    if CONFIG_NAME in names:
        return "it is a store already"
    shown = ", ".join(map(printable, names[:3]))
    return f"it holds {shown}{' and more' if len(names) > 3 else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_guarded(PROGRAM, lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
