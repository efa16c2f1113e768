"""Whether a backup holds what it should: by names and sizes, or by every byte.

The second asks nothing of the other side but sh, find, sed and sha256sum; docs/backup.md has the same for people.
"""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryFile

from mountstore.blobs.clock import now_ns
from mountstore.blobs.refs import REFS_NAME
from mountstore.cli.casctl.destination import Destination, last_line
from mountstore.cli.casctl.exits import Exit, Failure
from mountstore.cli.casctl.rsync import BEAT_S, Beat, Rsync

BLOB_FILTER = (f"--exclude=/{REFS_NAME}", "--exclude=/.*", "--exclude=/lost+found")
"""What of `blobs/` is no blob: refs go later, what begins with a dot belongs to whoever writes, and lost+found to
the file system whose root this is."""

LIST_SUMS = r"""sed -nE 's|^(\./.*/([0-9a-f]{64})_[0-9a-f]+)$|\2  \1|p'"""
"""Turns paths of blobs into lines for sha256sum: the sum that the name tells, and the path."""

_FIND = "find . -type f"

# Prints how many it looks at, then sha256sum's verdicts.
_CHECK = f"""
export LC_ALL=C
list=$(mktemp) || exit
trap 'rm -f "$list" "$list.sums"' EXIT
cd -- "$1/blobs" || exit
{{paths}} >"$list" || exit
{LIST_SUMS} "$list" >"$list.sums" || exit
wc -l <"$list.sums" || exit
sha256sum --check "$list.sums" 2>/dev/null || :
"""


def missing_blobs(
    rsync: Rsync, source: str, before_ns: int, *, without: Sequence[str], beat: Beat
) -> list[str]:
    """Blobs that were there before a time and are not at the destination, or have another size.

    Args:
      source: The store's `blobs`.
      without: Paths from there that are not looked at.
      before_ns: By the clock of files (`mountstore.blobs.clock`).

    Raises: Failure
    """
    missing = []
    for name in rsync.missing("", "--size-only", *BLOB_FILTER, without=without, beat=beat):
        try:
            placed_ns = os.stat(os.path.join(source, name)).st_ctime_ns
        except FileNotFoundError:
            continue
        # Of a clock that was set back, a time to come tells nothing.
        if not before_ns <= placed_ns <= now_ns():
            missing.append(name)
    return missing


def damaged_blobs(
    destination: Destination,
    only: Iterable[str] | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    beat: Beat = lambda: None,
) -> list[str]:
    """Blobs at the destination whose bytes are not those of their names; reads them all there.

    Args:
      only: Look at these alone, paths from its `blobs`.
      on_progress: Told how many were read, of how many.

    Raises: Failure
    """
    script = _CHECK.replace("{paths}", _FIND if only is None else "cat")
    with TemporaryFile() as listed, TemporaryFile() as errors:
        listed.write(b"".join(b"./" + os.fsencode(name) + b"\n" for name in only or ()))
        listed.seek(0)
        process = subprocess.Popen(
            destination.command(script, destination.path), stdin=listed, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            verdicts = _Verdicts(on_progress)
            damaged = list(verdicts.read(process, beat))
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if code or verdicts.done != verdicts.total:
            errors.seek(0)
            said = last_line(os.fsdecode(errors.read()))
            raise Failure(
                Exit.FAILED,
                f"{destination}: only {verdicts.done} of {verdicts.total} blobs could be checked:"
                f" {said or f'code {code}'}",
            )
    return damaged


class _Verdicts:
    """What the script prints."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self._on_progress = on_progress
        self.done = 0
        self.total = -1

    def read(self, process: subprocess.Popen[bytes], beat: Beat) -> Iterator[str]:
        """Yields the paths of those that are not as they should be."""
        assert process.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as selector, process.stdout:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                while not selector.select(BEAT_S):
                    beat()
                beat()
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                yield from self._take(lines)
                self._on_progress(self.done, self.total)

    def _take(self, lines: list[bytes]) -> Iterator[str]:
        """sha256sum(1) says `PATH: OK`, `PATH: FAILED` or `PATH: FAILED open or read`."""
        for line in lines:
            if self.total < 0:
                self.total = int(line)
                continue
            path, _, said = os.fsdecode(line).rpartition(": ")
            if said != "OK":
                yield path.removeprefix("./")
            self.done += 1
