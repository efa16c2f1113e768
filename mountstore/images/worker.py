"""The process in which images are decoded: `python -m mountstore.images.worker FD`.

It serves one connected SOCK_SEQPACKET socket, its descriptor FD, and says with an empty `Outcome` that it is
ready. Each message is a `Request` with two descriptors: the image to read and the empty file to write. Each is
answered with an `Outcome`. The end of the socket ends the process.

Each job is done in a child of its own, forked off when everything is loaded: what a hostile image makes of
that, or how much memory it takes, ends with it; and the next job need not wait for Python to start. There
is one thread here, so forking is safe.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from typing import NoReturn

import msgspec

from mountstore.errors import MisuseError, TooLargeError
from mountstore.images.confine import address_space_bytes, confine, end_with_parent, limit
from mountstore.images.job import MESSAGE_MAX, Outcome, Request
from mountstore.images.render import Made, UnreadableError, prepare, render

_DESCRIPTORS = 2


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    prepare()
    base_bytes = address_space_bytes()
    confine()
    # What decoders print is nobody's business; what went wrong before was.
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    gc.collect()
    gc.freeze()
    connection.send(msgspec.json.encode(Outcome()))
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_MAX, _DESCRIPTORS)
        if not message:
            return
        source, result = descriptors
        try:
            request = msgspec.json.decode(message, type=Request)
            outcome = _in_child(request, source, result, base_bytes, connection)
        finally:
            os.close(source)
            os.close(result)
        connection.send(outcome)


def _in_child(request: Request, source: int, result: int, base_bytes: int, connection: socket.socket) -> bytes:
    """Do the job in a child; returns the outcome, encoded."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        connection.close()
        end_with_parent()
        _work(request, source, result, base_bytes, told)
    os.close(told)
    with open(answer, "rb") as stream:
        outcome = stream.read(MESSAGE_MAX)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return msgspec.json.encode(_killed(os.WTERMSIG(status), request))
    return outcome or msgspec.json.encode(Outcome(error="the decoder ended without a result"))


def _killed(number: int, request: Request) -> Outcome:
    limits = request.limits
    if number in (signal.SIGALRM, signal.SIGXCPU):
        return Outcome(
            error=f"it took longer than {limits.cpu_s} s of processor time, or {limits.wall_s:g} s in all",
            too_large=True,
        )
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return Outcome(error=f"the decoder died of it ({name})")


def _work(request: Request, source: int, result: int, base_bytes: int, told: int) -> NoReturn:
    """In the child: do the job, tell the outcome, and end."""
    try:
        limits = request.limits
        try:
            limit(
                address_space=base_bytes + limits.memory_bytes,
                cpu_s=limits.cpu_s,
                wall_s=limits.wall_s,
                result_bytes=limits.result_bytes,
            )
            with open(source, "rb", closefd=False) as image:
                image.seek(0)
                made = render(request.job, image, limits)
            outcome = _written(made, result, limits.result_bytes)
        except MemoryError:
            needs = f"it needs more than {limits.memory_bytes >> 20} MiB of memory"
            outcome = Outcome(error=needs, too_large=True)
        except TooLargeError as exc:
            outcome = Outcome(error=str(exc), too_large=True)
        except (MisuseError, UnreadableError) as exc:
            outcome = Outcome(error=str(exc))
        os.write(told, msgspec.json.encode(outcome))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _written(made: Made, result: int, result_bytes: int) -> Outcome:
    size_bytes = len(made.data)
    if size_bytes > result_bytes:
        raise TooLargeError(f"the result has {size_bytes:,} bytes; the limit is {result_bytes:,}")
    with open(result, "r+b", buffering=0, closefd=False) as file:
        # One that was killed may have begun.
        file.truncate(0)
        file.seek(0)
        view = memoryview(made.data)
        while view:
            view = view[file.write(view) :]
    return Outcome(made.size.width, made.size.height, made.frames, size_bytes)


if __name__ == "__main__":
    main()
