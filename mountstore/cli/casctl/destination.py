"""Where a backup goes: a directory here, or one on another machine, reached over ssh."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mountstore.blobs.refs import REFS_NAME, Ref, decode_ref
from mountstore.cli.casctl.exits import Exit, Failure
from mountstore.cli.exits import printable
from mountstore.errors import CorruptError

DEFAULT_SHELL = ("ssh", "-o", "BatchMode=yes")

STAGING = ".staging"
"""Where files lie at the destination, in `blobs`, until they are whole."""

# Only the last directory is made: if the one above is missing, a disk is not mounted. Blobs can be read by whoever
# gets to them.
_MAKE = """
[ -d "$1" ] || mkdir -m 700 -- "$1" || exit
"""

_CLEAR = """
cd -- "$1" && staging=$2 && shift 2 || exit
for mark; do
    where=
    [ -e "$mark" ] && where="is a store itself (it has $mark)"
    [ -e "../$mark" ] && where="lies in a store (there is ../$mark)"
    [ -z "$where" ] && continue
    echo "$where, so it is no place for a backup" >&2
    exit 1
done
if [ -d refs ] || [ -d "$staging" ]; then
    echo "holds blobs itself, of a store or a backup; a backup goes to the directory above one of blobs" >&2
    exit 1
fi
mkdir -p "blobs/$staging" blobs/refs && rm -f "blobs/$staging/".*_*.??????
"""

# Prints ./NAME:LINE for each line of each. That there is none is no error; what cannot be read is damaged.
_REFS = f"""
cd -- "$1/blobs/{REFS_NAME}" || exit
find . -maxdepth 1 -type f ! -name '.*' -exec grep -a -H '' {{}} + || :
"""

_FINISH = """
cd -- "$1" || exit
rm -f "blobs/$2/".*_*.??????
rmdir "blobs/$2"
sync -f .
"""


@dataclass(frozen=True, slots=True)
class Destination:
    """A directory that has, or gets, a directory `blobs`."""

    path: str
    host: str | None = None
    """As ssh takes it, perhaps with a user."""
    shell: tuple[str, ...] = DEFAULT_SHELL
    """The program that reaches the host, with its arguments."""

    @classmethod
    def parse(cls, text: str, shell: str | None) -> Destination:
        """Raises: Failure"""
        head, colon, tail = text.partition(":")
        if not colon or "/" in head:
            return cls(os.path.realpath(text))
        if tail.startswith(":") or head == "rsync":
            raise Failure(
                Exit.USAGE,
                f"{printable(text)}: an rsync daemon cannot be asked what it stored; give a directory or"
                " HOST:DIRECTORY",
            )
        if head.startswith("-") or not head:
            raise Failure(Exit.USAGE, f"{printable(text)}: names no host")
        words = tuple(shlex.split(shell)) if shell else DEFAULT_SHELL
        return cls(tail.rstrip("/") or ("/" if tail else "."), head, words)

    def __str__(self) -> str:
        return printable(self.path if self.host is None else f"{self.host}:{self.path}")

    def rsync_path(self, *below: str) -> str:
        """How rsync is told of what lies below, a directory's content."""
        path = "/".join((self.path.rstrip("/"), *below)) + "/"
        if self.host is None:
            return path
        # Else a relative path that begins with a dash would be an option, and a colon another host.
        return f"{self.host}:{path if path.startswith('/') else './' + path}"

    @property
    def rsync_options(self) -> list[str]:
        """rsync keeps a remote shell from taking the path apart with -s."""
        return [] if self.host is None else ["-s", "-e", shlex.join(self.shell)]

    def command(self, script: str, *arguments: str) -> list[str]:
        """A shell script as a command that runs it where the destination is, with `arguments` as $1, $2, …"""
        words = ["sh", "-c", script, "sh", *arguments]
        if self.host is None:
            return words
        return [*self.shell, self.host, "--", shlex.join(words)]

    def run(self, script: str, *arguments: str, given: Iterable[str] = ()) -> str:
        """Run a shell script there and return what it printed.

        Raises: Failure if it does not end well.
        """
        done = subprocess.run(
            self.command(script, *arguments),
            input="".join(f"{line}\n" for line in given),
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
        if done.returncode != 0:
            raise Failure(Exit.FAILED, f"{self}: {last_line(done.stderr) or f'code {done.returncode}'}")
        return done.stdout

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Make the directories that are missing, and clear what an interrupted copy left.

        Until the end no other backup is made there by this machine.

        Raises: Failure
        """
        from mountstore.store.layout import CATALOG_NAME, CONFIG_NAME

        # Who has one of these beside its blobs is a store at work, not a backup.
        arguments = self.path, STAGING, CATALOG_NAME, CONFIG_NAME
        if self.host is not None:
            self.run(_MAKE + _CLEAR, *arguments)
            yield
            return
        self.run(_MAKE, self.path)
        with self._alone():
            self.run(_CLEAR, *arguments)
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failure(Exit.FAILED, f"{self}: another backup is being made there") from None
            except OSError:
                # NFS locks no directory.
                pass
            yield
        finally:
            os.close(fd)

    def refs(self) -> list[Ref]:
        """The snapshots there, but for refs that are damaged. Raises: Failure"""
        texts: dict[str, str] = {}
        for line in self.run(_REFS, self.path).split("\n"):
            name, _, text = line.removeprefix("./").partition(":")
            texts[name] = f"{texts.get(name, '')}{text}\n"
        refs = []
        for name, text in texts.items():
            with suppress(CorruptError):
                refs.append(decode_ref(text.encode(errors="surrogateescape"), name))
        return refs

    def sync(self) -> None:
        """Return when what was copied survives a power loss there. Raises: Failure"""
        self.run('cd -- "$1" && sync -f .', self.path)

    def finish(self) -> None:
        """As `sync`, when nothing more will be copied. Raises: Failure"""
        self.run(_FINISH, self.path, STAGING)


def last_line(text: str) -> str:
    """What a program said last, which is mostly why it failed."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else ""
