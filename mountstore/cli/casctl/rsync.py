"""rsync as a child: its progress, its errors, and what it would still copy."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

from mountstore.cli.casctl.destination import STAGING, Destination
from mountstore.cli.casctl.exits import Exit, Failure
from mountstore.cli.exits import printable

_SIGNALLED = 20
_PARTIAL = 23
"""rsync(1), EXIT VALUES. Source files that vanished (24) are an error, too: nothing that is copied may go away."""

_UNREADABLE = re.compile(
    rb'^rsync: \[sender\].*"[^"\n]*/blobs/((?:[0-9a-f]/)+[0-9a-f]{64}_[0-9a-f]+)"', re.MULTILINE
)

_PROGRESS = re.compile(rb"\(xfr#(\d+), (?:ir|to)-chk=(\d+)/(\d+)\)")
_STATISTICS = {
    "files": re.compile(rb"^Number of regular files transferred: ([\d,]+)", re.MULTILINE),
    "bytes": re.compile(rb"^Total transferred file size: ([\d,]+)", re.MULTILINE),
}

_READ_BYTES = 1 << 16
_SAID_SHOWN = 3

OnProgress = Callable[[int, int], None]
"""Told how many files are done, and how many there are as far as rsync knows."""

Beat = Callable[[], None]
"""Called now and then while rsync runs; what it raises ends rsync."""

BEAT_S = 5.0


class PartialFailure(Failure):
    """All was copied but some files.

    Args:
      unreadable: Paths of blobs of which rsync said that it had trouble with them in the source.
    """

    def __init__(self, message: str, unreadable: Sequence[str]) -> None:
        super().__init__(Exit.FAILED, message)
        self.unreadable = unreadable


class Copied(NamedTuple):
    files: int
    bytes: int


class Rsync:
    """Copies what lies below one directory to a destination.

    Args:
      source: A directory.
      options: More for rsync, of the user.

    Raises: Failure if there is no rsync.
    """

    def __init__(self, source: str, destination: Destination, options: Sequence[str] = ()) -> None:
        program = shutil.which("rsync")
        if program is None:
            raise Failure(Exit.FAILED, "rsync is not installed; install the package rsync")
        self._program = program
        self._source = source
        self._destination = destination
        self._options = options

    def copy(
        self,
        below: str,
        *arguments: str,
        names: Sequence[str] | None = None,
        without: Sequence[str] = (),
        on_progress: OnProgress = lambda done, total: None,
        beat: Beat = lambda: None,
    ) -> Copied:
        """Copy what lies in `below`, a directory in the source, or the `names` in it.

        Args:
          without: Paths, from there, of files that are neither copied nor, at the destination, deleted.

        Raises: Failure, with what rsync said; PartialFailure if all was copied but some files.
        """
        said = self._run(
            ["--info=progress2,stats2", *arguments],
            below,
            names=names,
            without=without,
            on_chunk=_ProgressReader(on_progress),
            beat=beat,
        )
        found = {key: pattern.search(said) for key, pattern in _STATISTICS.items()}
        files, size_bytes = (
            0 if match is None else int(match[1].replace(b",", b"")) for match in found.values()
        )
        return Copied(files, size_bytes)

    def missing(
        self, below: str, *arguments: str, without: Sequence[str] = (), beat: Beat = lambda: None
    ) -> Iterator[str]:
        """Files in `below` that a copy with these arguments would transfer, from there. Raises: Failure"""
        said = self._run(
            ["--dry-run", "--out-format=%i %n", *arguments],
            below,
            names=None,
            without=without,
            on_chunk=lambda chunk: None,
            beat=beat,
        )
        for line in said.split(b"\n"):
            # rsync(1), --itemize-changes: `<f` or `>f` is a file that would be transferred.
            flags, _, name = line.partition(b" ")
            if flags[:1] in (b"<", b">") and flags[1:2] == b"f":
                yield os.fsdecode(name)

    def _run(
        self,
        arguments: Sequence[str],
        below: str,
        *,
        names: Sequence[str] | None,
        without: Sequence[str],
        on_chunk: Callable[[bytes], None],
        beat: Beat,
    ) -> bytes:
        """Returns: What it printed, without progress."""
        destination = self._destination
        command = [
            self._program,
            "-a",
            "--outbuf=L",
            *destination.rsync_options,
            *self._options,
            *arguments,
        ]
        if not below:
            # An interrupted run leaves nothing among the blobs.
            command.append(f"--temp-dir={STAGING}")
        with (
            tempfile.TemporaryFile() as errors,
            tempfile.NamedTemporaryFile() as listed,
            tempfile.NamedTemporaryFile() as excluded,
        ):
            if names is not None:
                _write_lines(listed, names)
                command += [f"--files-from={listed.name}"]
            if without:
                _write_lines(excluded, (f"/{path}" for path in without))
                command += [f"--exclude-from={excluded.name}"]
            command += ["--", os.path.join(self._source, below) + "/", destination.rsync_path("blobs", below)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C"},
            )
            try:
                said = _listen(process, on_chunk, beat)
                code = process.wait()
            except BaseException:
                # It removes its temporary files at the destination.
                process.terminate()
                process.wait()
                raise
            if code != 0:
                errors.seek(0)
                told = errors.read()
                if code == _PARTIAL:
                    unreadable = sorted({path.decode() for path in _UNREADABLE.findall(told)})
                    raise PartialFailure(_explain(code, told), unreadable)
                raise Failure(Exit.FAILED, _explain(code, told))
        return said


class _ProgressReader:
    """Finds rsync's progress in what it prints."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def __call__(self, chunk: bytes) -> None:
        found = _PROGRESS.findall(chunk)
        if found:
            rest, total = map(int, found[-1][1:])
            self._on_progress(total - rest, total)


def _listen(process: subprocess.Popen[bytes], on_chunk: Callable[[bytes], None], beat: Beat) -> bytes:
    """Read all that it prints; returns the lines, of those that overwrite each other the last."""
    assert process.stdout is not None
    kept: list[bytes] = []
    rest = b""
    with selectors.DefaultSelector() as selector, process.stdout:
        selector.register(process.stdout, selectors.EVENT_READ)
        next_beat = time.monotonic() + BEAT_S
        while True:
            if not selector.select(max(0.0, next_beat - time.monotonic())) or time.monotonic() >= next_beat:
                beat()
                next_beat = time.monotonic() + BEAT_S
                continue
            chunk = os.read(process.stdout.fileno(), _READ_BYTES)
            if not chunk:
                break
            on_chunk(chunk)
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                kept += [line.rpartition(b"\r")[2] for line in lines.split(b"\n")]
            rest = rest.rpartition(b"\r")[2] if len(rest) > _READ_BYTES else rest
    return b"\n".join([*kept, rest])


def _write_lines(file: IO[bytes], lines: Iterable[str]) -> None:
    file.writelines(os.fsencode(line) + b"\n" for line in lines)
    file.flush()


def _explain(code: int, errors: bytes) -> str:
    lines = [line.strip() for line in os.fsdecode(errors).splitlines() if line.strip()]
    # The last line only repeats the code.
    told = [line for line in lines if not line.startswith("rsync error:")] or lines
    said = "; ".join(map(printable, told[:_SAID_SHOWN]))
    if code == _SIGNALLED:
        return f"rsync was interrupted{': ' + said if said else ''}"
    return f"rsync ended with code {code}: {said}" if said else f"rsync ended with code {code}"
