"""Leaving the terminal: fork, serve in the child, and end the parent when the child is ready or has failed.

What a caller of mount(8) relies on:

1. the parent ends only when the mount works or will never work, with the right code and the child's message;
2. the child keeps nothing of the caller: session, directory, standard streams, descriptors, so a script
   that reads the parent's output does not wait for the child;
3. a parent that is interrupted takes the child with it.

The child is forked before anything starts a thread or an event loop. It leaves the caller's session only when
it is ready: while an automount is pending, autofs makes every process wait that is not in systemd's process
group, and that would be the very process that is to make the mount (systemd starts mount(8) in its own group
for that reason).
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable

from mountstore.cli.exits import Exit, exit_code_of, message_of

_READY = b"+"
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_PRE_READY_OUTPUT_BYTES = 2000

Serve = Callable[[Callable[[], None]], None]
"""Serves until the mount is gone; calls its argument once when the mount works."""


def serve_detached(serve: Serve) -> tuple[Exit, str]:
    """Run `serve` in a process of its own and return as soon as it is ready or has failed.

    Returns:
      OK and an empty string when the child said it is ready; otherwise the code and message of the
      exception that ended it. When interrupted (SIGINT, SIGTERM), the child is ended first, and the code is
      INTERRUPTED.

    The caller sees to it that the standard streams are open (`open_standard_streams`): the child puts others in
    their place, and the pipe between the two must not be among them.

    Thread: the only one of the process.
    """
    reader, writer = os.pipe()
    # Held back from before the fork until whoever gets them knows what to do about the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    pid = os.fork()
    if pid == 0:
        _child(serve, writer)
    os.close(writer)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        with open(reader, "rb") as pipe:
            report = pipe.read()
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        return Exit.INTERRUPTED, "interrupted"
    finally:
        signal.signal(signal.SIGTERM, before)
    if report == _READY:
        return Exit.OK, ""
    _, status = os.waitpid(pid, 0)
    if not report:
        return Exit.BUG, f"the serving process ended unexpectedly ({_fate(status)})"
    code, _, message = report.partition(b"\n")
    return Exit(int(code)), os.fsdecode(message)


def _fate(wait_status: int) -> str:
    if os.WIFSIGNALED(wait_status):
        return f"signal {os.WTERMSIG(wait_status)}"
    return f"exit code {os.waitstatus_to_exitcode(wait_status)}"


def _child(serve: Serve, writer: int) -> None:
    """Never returns: the frames below belong to the parent."""
    code = Exit.BUG
    try:
        # What libfuse or fusermount3 print on failure is kept, to be told with the failure.
        said = os.memfd_create("before-ready", os.MFD_CLOEXEC)
        _leave_caller(keep=(writer, said))
        os.dup2(said, 2)
        code = _serve_and_report(serve, writer, said)
    finally:
        logging.shutdown()
        os._exit(code)


def _serve_and_report(serve: Serve, writer: int, said: int) -> Exit:
    ready = False

    def on_ready() -> None:
        nonlocal ready
        ready = True
        os.setsid()
        os.dup2(1, 2)
        os.close(said)
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, _READY)
        os.close(writer)
        notify_service_manager(f"READY=1\nMAINPID={os.getpid()}")

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        serve(on_ready)
    except BaseException as exc:
        code = exit_code_of(exc)
        if not ready:
            output = os.fsdecode(os.pread(said, _PRE_READY_OUTPUT_BYTES, 0)).split()
            message = f"{message_of(exc)} ({' '.join(output)})" if output else message_of(exc)
            with contextlib.suppress(BrokenPipeError):
                os.write(writer, b"%d\n%s" % (code, os.fsencode(message)))
        logger = logging.getLogger("mountstore")
        logger.critical("%s", message_of(exc), exc_info=exc if code is Exit.BUG else None)
        return code
    return Exit.OK


def _leave_caller(keep: tuple[int, ...]) -> None:
    """Give up the caller's directory, standard streams and every descriptor not in `keep`.

    SIGINT and SIGTERM raise KeyboardInterrupt until the serving loop takes them over, even if the caller, as
    shells do for what they start in the background, had SIGINT ignored.
    """
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def serve_here(serve: Serve) -> None:
    """Run `serve` in this process, in the foreground; a closed terminal ends it as SIGTERM does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    serve(lambda: notify_service_manager("READY=1"))


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as the system lets it have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify_service_manager(state: str) -> None:
    """Tell systemd `state`, if it asked to be told; see sd_notify(3). Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    target = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), target)


def called_by_mount8() -> bool:
    """Whether the calling process is mount(8), going by its executable.

    The executable of a setuid mount(8) that was started by an ordinary user cannot be looked up; then the
    name of the process decides. A shell script called `mount` is not mount(8): its executable is the shell.
    """
    parent = os.getppid()
    try:
        return os.path.basename(os.readlink(f"/proc/{parent}/exe")) in ("mount", "busybox")
    except PermissionError:
        with open(f"/proc/{parent}/comm") as comm:
            return comm.read().strip() == "mount"
    except OSError:
        return False
