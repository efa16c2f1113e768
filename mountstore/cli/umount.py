"""umount.cas: unmount a store and wait until everything in it is safe on disk.

umount(8) calls this as `umount.fuse.cas DIRECTORY [-flnrv]` if mount(8) noted an option such as `uhelper=cas`
(libmount otherwise looks for `umount.fuse` only). The kernel lets go of a mount before its daemon has written
the last of it. That is over when the daemon's process ends; a pidfd opened before the unmount tells, however
soon the number is used again.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mountstore.cli.exits import Exit, Failure, run_guarded, say
from mountstore.cli.options import Parser
from mountstore.cli.servers import Server, ended_safely, find_server, mounts_of, store_of, was_left_unsafe
from mountstore.errors import AbsentError, BusyError
from mountstore.fuse.mounts import Mount, is_dead, is_gone, mount_at, unmount

PROGRAM = "umount.cas"

USAGE = "umount.cas [-flnrv] MOUNTPOINT | STORE"

FORCED_WAIT_S = 10
"""With -f, a daemon that has not ended after this time is taken to hang."""

EPILOG = f"""\
Returns when the daemon has put everything on disk and ended. A lazy unmount (-l) of a mount in use
returns at once, and the daemon goes on until the last user is done. A forced one (-f) takes the mount
from everybody, and waits {FORCED_WAIT_S} s at most for a daemon that may hang.

exit codes: 0 unmounted; 1 usage or permission; 2 system error, or unmounted but not all is safe on disk;
4 a bug in umount.cas; 8 interrupted; 32 not unmounted
"""

USERS_SHOWN = 10
"""As many processes are named when a mount is busy; finding more only takes time."""


@dataclass(frozen=True, slots=True)
class User:
    """A process that keeps a mount busy."""

    pid: int
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.how})"


def find_users(mountpoint: str, *, limit: int = USERS_SHOWN) -> list[User]:
    """The processes that work in, run from, or have open something below `mountpoint`, at most `limit`.

    Processes of others are invisible to an ordinary user, and so are not found.
    """
    users: list[User] = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        how = _use(f"/proc/{pid}", mountpoint)
        if how is not None:
            users.append(User(pid, _name_of(pid), how))
            if len(users) == limit:
                break
    return users


def _use(process: str, mountpoint: str) -> str | None:
    for link, how in (("cwd", "works in"), ("root", "has as root"), ("exe", "runs")):
        if (target := _link_below(f"{process}/{link}", mountpoint)) is not None:
            return f"{how} {target}"
    for directory, how in (("fd", "has open"), ("map_files", "has mapped")):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{process}/{directory}"):
                if (target := _link_below(f"{process}/{directory}/{name}", mountpoint)) is not None:
                    return f"{how} {target}"
    return None


def _link_below(link: str, mountpoint: str) -> str | None:
    try:
        target = os.readlink(link)
    except OSError:
        return None
    return target if target == mountpoint or target.startswith(mountpoint.rstrip("/") + "/") else None


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return "?"


def find_mount(given: str) -> Mount:
    """The mount of ours that `given` names, by mount point or by store.

    Raises:
      Failure: There is none, or several mounts of that store.
    """
    for path in _ways_to_write(given):
        mount = mount_at(path)
        if mount is not None and mount.ours:
            return mount
    of_store = mounts_of(path)
    if len(of_store) > 1:
        places = ", ".join(m.mountpoint for m in of_store)
        raise Failure(Exit.USAGE, f"{given} is mounted more than once: name one of {places}")
    if of_store:
        return of_store[0]
    if mount is not None:
        raise Failure(Exit.FAILED, f"{given} is a mount of type {mount.filesystem_type}: that is umount's work")
    raise Failure(Exit.FAILED, f"{given} is not mounted")


def _ways_to_write(given: str) -> Iterator[str]:
    """Absolute forms of a path, ending with the one without symbolic links.

    That one is the last because resolving a mount point asks its daemon, which may hang; resolving the
    directory above it does not.
    """
    directory, name = os.path.split(given.rstrip("/"))
    if name not in ("", ".", ".."):
        yield os.path.join(os.path.realpath(directory), name)
    yield os.path.realpath(given)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(PROGRAM, "Unmount a store and wait until it is safe on disk.", USAGE, EPILOG)
    parser.add_argument("target", metavar="MOUNTPOINT")
    parser.add_argument("-f", "--force", action="store_true", help="abort what waits for the daemon (root)")
    parser.add_argument("-l", "--lazy", action="store_true", help="detach now, end when nobody uses it")
    parser.add_argument("-n", action="store_true", help="no effect (there is no mtab to write)")
    parser.add_argument("-r", action="store_true", help="no effect (a mount cannot turn read-only)")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is done")
    parser.add_argument("-t", dest="type", help="ignored, for umount(8)")
    parser.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="refused: use nsenter --mount")
    got = parser.parse_intermixed_args(list(argv))
    if got.namespace is not None:
        raise Failure(
            Exit.USAGE,
            f"-N {got.namespace}: other mount namespaces are entered with nsenter --mount=… umount.cas …",
        )
    if not got.target:
        raise Failure(Exit.USAGE, "the mount point is an empty string")

    mount = find_mount(got.target)
    server = find_server(mount)
    # Asking the mount may take for ever when its daemon hangs: not if it is there, or with -f and -l.
    dead = server is None and not (got.force or got.lazy) and is_dead(mount.mountpoint)
    try:
        unmount(mount.mountpoint, force=got.force, lazy=got.lazy or dead)
    except BusyError as exc:
        raise Failure(Exit.FAILED, _busy_message(mount.mountpoint, got.target)) from exc
    except AbsentError:
        # Somebody else was faster; what is left is to wait.
        pass
    if server is None and was_left_unsafe(mount):
        raise _unsafe(mount, got.target)
    # Where the connection was aborted the daemon ends, whoever still has the mount somewhere.
    ending = got.force or is_gone(mount)
    if ending and server is not None:
        _wait_for_safety(mount, server, got.target, forced=got.force, verbose=got.verbose)
    elif ending:
        if not dead and not mount.read_only:
            say(PROGRAM, f"{got.target} is unmounted, but its daemon is out of sight and was not waited for")
    elif not got.lazy:
        say(PROGRAM, f"{store_of(mount)} is still mounted elsewhere (a bind mount, a container): it goes on")
    if got.verbose:
        say(PROGRAM, f"{got.target} is unmounted")
    return Exit.OK


def _wait_for_safety(mount: Mount, server: Server, given: str, *, forced: bool, verbose: bool) -> None:
    """Wait until the daemon of a mount that is gone has put everything on disk and ended.

    Raises:
      Failure: It ended before that; or, if `forced`, it has not ended within `FORCED_WAIT_S`.
    """
    if verbose:
        limit = f", but no longer than {FORCED_WAIT_S} s" if forced else ""
        say(PROGRAM, f"waiting until {store_of(mount)} is safe on disk{limit}")
    if not _has_ended(server.pidfd, within_s=FORCED_WAIT_S if forced else None):
        raise Failure(
            Exit.SYSTEM,
            f"{given} is unmounted, but its daemon (pid {server.pid}) has not ended within {FORCED_WAIT_S} s and"
            f" holds {store_of(mount)}: if it is at work, wait until it ends; if it hangs, end it with"
            f" kill -KILL {server.pid}, and the next mount recovers what is there",
        )
    if not ended_safely(mount, server):
        raise _unsafe(mount, given)


def _unsafe(mount: Mount, given: str) -> Failure:
    return Failure(
        Exit.SYSTEM,
        f"{given} is unmounted, but its daemon ended before all of {store_of(mount)} was safe on disk;"
        " its log says why, and the next mount recovers what is there",
    )


def _has_ended(pidfd: int, *, within_s: float | None) -> bool:
    """Whether the process behind a pidfd ends within some time; None: wait as long as it takes."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if within_s is None else within_s * 1000))


def _busy_message(mountpoint: str, given: str) -> str:
    users = find_users(mountpoint)
    if not users:
        return f"{given} is in use by something out of sight (another user's process, or a mount below it)"
    more = ", and maybe more" if len(users) == USERS_SHOWN else ""
    return f"{given} is in use by {', '.join(map(str, users))}{more}"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns umount(8)'s exit code."""
    return run_guarded(PROGRAM, lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
