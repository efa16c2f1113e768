"""mount.cas: mount a store, as a command and as mount(8)'s helper for the types cas and fuse.cas.

The order: read the arguments, check what can be checked, go to the background, open the store, mount, and
only when the mount answers end with code 0. Whatever is heavy is imported by the process that serves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from mountstore.cli.checks import (
    check_allow_other,
    check_apart,
    check_log_file,
    check_mountpoint,
    check_platform,
    clear_dead_mount,
)
from mountstore.cli.daemon import (
    called_by_mount8,
    notify_service_manager,
    raise_descriptor_limit,
    serve_detached,
    serve_here,
)
from mountstore.cli.exits import Exit, Failure, run_guarded, say
from mountstore.cli.options import Choices, Request, parse_arguments
from mountstore.errors import MountstoreError
from mountstore.fuse.mount_options import MountOptions

PROGRAM = "mount.cas"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns mount(8)'s exit code."""
    return run_guarded(PROGRAM, lambda: run(parse_arguments(sys.argv[1:] if argv is None else argv)))


def run(request: Request) -> int:
    """Do what `request` asks for.

    Raises:
      MountstoreError, OSError: Nothing was mounted.
    """
    fake = request.fake or (request.f_flag and not request.foreground and called_by_mount8())
    foreground = not fake and (request.foreground or request.f_flag)
    choices = request.choices
    for option in choices.unknown:
        say(PROGRAM, f"ignoring the unknown option {option}")

    store = os.path.realpath(request.store)
    mountpoint = os.path.realpath(request.mountpoint)
    check_apart(store, mountpoint)
    dead = check_mountpoint(mountpoint, request.mountpoint)
    log = _log_destination(choices, foreground=foreground)
    if os.path.isabs(log):
        check_log_file(log, store, mountpoint)
    allow_other = choices.allow_other if choices.allow_other is not None else os.geteuid() == 0
    if allow_other:
        check_allow_other()
    check_platform()
    if fake:
        if request.verbose:
            say(PROGRAM, f"{request.store} would be mounted on {request.mountpoint} (-f: fake)")
        return Exit.OK
    if dead is not None:
        say(PROGRAM, f"cleaning up a dead mount on {request.mountpoint}")
        clear_dead_mount(dead, request.mountpoint)

    options = replace(choices.mount, allow_other=allow_other)
    serve = _server(store, mountpoint, options, dir_limit=choices.dir_limit, log=log)
    if foreground:
        serve_here(serve)
        return Exit.OK
    code, message = serve_detached(serve)
    if code is not Exit.OK:
        say(PROGRAM, message)
        return code
    _await_answer(mountpoint, request.mountpoint)
    if request.verbose:
        say(PROGRAM, f"{request.store} is mounted on {request.mountpoint}, log: {log}")
    return Exit.OK


def _log_destination(choices: Choices, *, foreground: bool) -> str:
    if foreground:
        return choices.log or "stderr"
    if choices.log == "stderr":
        raise Failure(Exit.USAGE, "log=stderr works in the foreground only: mount.cas --foreground")
    from mountstore.cli.logs import default_destination

    return choices.log or default_destination()


def _server(
    store: str, mountpoint: str, options: MountOptions, *, dir_limit: int | None, log: str
) -> Callable[[Callable[[], None]], None]:
    """What the serving process runs: log, make the store if need be, serve."""

    def serve(on_ready: Callable[[], None]) -> None:
        from mountstore.cli.logs import log_to

        try:
            if os.path.isabs(log):
                os.makedirs(os.path.dirname(log), exist_ok=True)
            log_to(log)
        except FileExistsError as exc:
            raise Failure(Exit.SYSTEM, f"cannot log to {log}: {exc.filename} is not a directory") from exc
        except OSError as exc:
            raise Failure(Exit.SYSTEM, f"cannot log to {log}: {exc.strerror}") from exc
        raise_descriptor_limit()

        from mountstore.cli.stores import prepare_store
        from mountstore.fuse import heap
        from mountstore.fuse.session import serve as serve_session

        heap.tune()
        if options.snapshot is None:
            prepare_store(store, dir_limit=dir_limit, read_only=options.read_only)
        serve_session(store, mountpoint, options, on_ready)
        notify_service_manager("STOPPING=1")

    return serve


def _await_answer(mountpoint: str, given: str) -> None:
    """Ask the mount for its root directory, which answers when the mount truly works."""
    try:
        os.stat(mountpoint)
    except OSError as exc:
        from mountstore.fuse.mounts import unmount

        # What is told to have failed is not to be found there, with a daemon that holds the store.
        with suppress(OSError, MountstoreError):
            unmount(mountpoint, lazy=True)
        raise Failure(
            Exit.FAILED,
            f"{given} was mounted, but does not answer: {exc.strerror}; it is unmounted again, its log says why",
        ) from exc


if __name__ == "__main__":
    sys.exit(main())
