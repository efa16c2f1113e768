"""A null file system in a process of its own, with handlers that can be held up and watched.

As a program it serves: JSON configuration in argv, JSON lines on standard output (the first one when
mounted), one command a line on standard input. As a module it is the tests' side of that.
"""

from __future__ import annotations

import collections
import ctypes
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, RequestContext

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from nullfs import NullFS

from mountstore.fuse import handshake, kernel_mount, mounts, request_loop

PATIENCE_S = 60.0
NOBODY = 65534
# close(2) does not wait for RELEASE. When the unmount overtakes it, pyfuse3 finds nobody to answer, or libfuse
# cannot read it.
LATE_RELEASE = re.compile(
    r"(ERROR fuse_release(dir)?\(\): fuse_reply_\* failed with No such file or directory"
    r"|fuse: reading device: Software caused connection abort)\n?"
)


class Served:
    """The tests' side: starts the program, speaks with it, and leaves neither process nor mount behind."""

    def __init__(self, mountpoint: Path, **configuration: object) -> None:
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"mountpoint": str(mountpoint), **configuration})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"it ended: {self.process.communicate(timeout=PATIENCE_S)[1]}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it logged."""
        _, log = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, LATE_RELEASE.sub("", log)

    def unmounted(self) -> str:
        """Unmount, expect a clean end, return what it logged."""
        mounts.unmount(str(self.mountpoint))
        status, log = self.ended()
        assert status == 0, log
        assert mounts.mount_at(str(self.mountpoint)) is None
        return log

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        if mounts.mount_at(str(self.mountpoint)) is not None:
            mounts.unmount(str(self.mountpoint), lazy=True)


class WatchedFS(NullFS):
    """Look-ups of `slow*` wait for the command `release`, those of `thread*` for a worker thread."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: collections.Counter[str] = collections.Counter()
        self.release_slow = trio.Event()

    async def lookup(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self.asked["lookup"] += 1
        if name.startswith(b"slow"):
            say({"held": name.decode()})
            await self.release_slow.wait()
        elif name.startswith(b"thread"):
            await trio.to_thread.run_sync(int)
        if name.startswith((b"slow", b"thread", b"quick")):
            raise FUSEError(2)
        return await super().lookup(parent_inode, name, ctx)

    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        self.asked["getxattr"] += 1
        return await super().getxattr(inode, name, ctx)

    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        self.asked["readlink"] += 1
        return await super().readlink(inode, ctx)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        self.asked["write"] += 1
        self.asked["largest write"] = max(self.asked["largest write"], len(buf))
        return await super().write(fh, off, buf)


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


async def lateness_s(wait_s: float, times: int) -> list[float]:
    """How late each of several timers fired."""
    late = []
    for _ in range(times):
        due_s = time.perf_counter() + wait_s
        await trio.sleep(wait_s)
        late.append(time.perf_counter() - due_s)
    return late


async def thread_turns_s(times: int) -> list[float]:
    """How long a thread took to do nothing and be noticed."""
    took = []
    for _ in range(times):
        started_s = time.perf_counter()
        await trio.to_thread.run_sync(int)
        took.append(time.perf_counter() - started_s)
        await trio.sleep(0.003)
    return took


async def idle_cpu_s(idle_s: float) -> float:
    """The CPU time this process spends while nothing is asked of it."""
    started_s = time.process_time()
    await trio.sleep(idle_s)
    return time.process_time() - started_s


def quick_wake() -> dict[str, bool]:
    """Whether idle cores can be kept quick to wake, and whether they are just now."""
    assert request_loop._installed is not None
    wake = request_loop._installed._quick_wake
    if wake is None:
        return {"open": False, "held": False}
    return {"open": wake._descriptor is not None, "held": wake.held}


async def obey(operations: WatchedFS, nursery: trio.Nursery) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as commands:
        rest = b""
        while chunk := await commands.receive_some():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                nursery.start_soon(do, operations, line.decode())


async def do(operations: WatchedFS, command: str) -> None:
    match command.split():
        case ["asked"]:
            say(operations.asked)
        case ["release"]:
            operations.release_slow.set()
        case ["terminate"]:
            pyfuse3.terminate()
        case ["timers"]:
            say({"late_s": await lateness_s(0.02, 25)})
        case ["threads"]:
            say({"took_s": await thread_turns_s(50)})
        case ["quick", "wake"]:
            say(quick_wake())
        case ["let", "go"]:
            while (wake := quick_wake())["held"]:
                await trio.sleep(request_loop._LINGER_S)
            say(wake)
        case ["idle"]:
            say({"cpu_s": await idle_cpu_s(1.0)})


def hinder(step: str) -> None:
    """Make one step of the handshake go wrong."""
    read, main, write = os.read, pyfuse3.main, os.write

    def no_mount(*_: object, **__: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    def wrong_request(descriptor: int, size: int) -> bytes:
        request = read(descriptor, size)
        return request[:4] + b"\x01\0\0\0" + request[8:]

    async def silence(**_: int) -> None:
        await trio.sleep_forever()

    async def failure(**_: int) -> None:
        raise ExceptionGroup("", [OSError(5, "fuse_session_receive_buf failed")])

    def refused_write(descriptor: int, data: bytes) -> int:
        if len(data) < 16:
            return write(descriptor, data)
        return write(descriptor, data[:8] + b"\xff" * 8 + data[16:])  # answers a request nobody made

    def wrong_answer(request: bytes, answer: bytes) -> tuple[int, bytes]:
        return amend(request, answer[:-1])

    def refused_answer(request: bytes, answer: bytes) -> tuple[int, bytes]:
        return amend(request, answer[:4] + b"\xfb\xff\xff\xff" + answer[8:])

    amend = handshake._amend
    match step:
        case "mount":
            kernel_mount.attach = no_mount
        case "no fusermount3":
            kernel_mount.find_fusermount = lambda: None  # type: ignore[attr-defined]
        case "request":
            os.read = wrong_request
        case "silent libfuse":
            handshake._EXCHANGE_TIMEOUT_S = 0.1
            pyfuse3.main = restored_after_first(silence, main)
        case "failing libfuse":
            handshake._EXCHANGE_TIMEOUT_S = 0.1
            pyfuse3.main = restored_after_first(failure, main)
        case "short answer":
            handshake._amend = wrong_answer
        case "refusal":
            handshake._amend = refused_answer
        case "kernel":
            os.write = refused_write  # type: ignore[assignment]
        case "both":
            kernel_mount.attach = no_mount
            pyfuse3.init = no_session  # type: ignore[assignment]
        case _:
            raise ValueError(step)


def restored_after_first(instead: Any, original: Any) -> Any:
    def first(*arguments: Any, **named: Any) -> Any:
        pyfuse3.main = original
        return instead(*arguments, **named)

    return first


def no_session(*_: object) -> None:
    raise RuntimeError("fuse_session_mount failed")


def become(uid: int) -> None:
    """Go on as an ordinary user, who may not be able to reach this Python any more."""
    for name in ("subprocess", "encodings.ascii", "encodings.idna"):
        __import__(name)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, or /proc/self would still belong to root


def fuse_descriptors() -> int:
    """How many descriptors of this process are open on /dev/fuse."""
    targets = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return targets.count("/dev/fuse")


async def serve(configuration: dict[str, Any]) -> None:
    operations = WatchedFS()
    connection = await handshake.mount(
        operations,
        configuration["mountpoint"],
        {"default_permissions", *configuration.get("options", ())},
        fsname=configuration.get("fsname", "watched"),
        want_handshake=configuration.get("handshake", True),
    )
    try:
        fast = configuration.get("fast", True) and request_loop.install(
            quick_wake=configuration.get("quick_wake", True)
        )
        say(
            {
                "handshake": connection.handshake,
                "flags": connection.flags,
                "killpriv_v2": connection.killpriv_v2,
                "parallel_dirops": connection.parallel_dirops,
                "device": connection.device,
                "fast": fast,
                "fuse descriptors": fuse_descriptors(),
            }
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, operations, nursery)
            await request_loop.serve()
            nursery.cancel_scope.cancel()
    finally:
        handshake.close(connection)


def main() -> None:
    configuration = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if configuration.get("uid"):
        become(configuration["uid"])
    if configuration.get("pyfuse3_version"):
        pyfuse3.__version__ = configuration["pyfuse3_version"]
    if configuration.get("hinder"):
        hinder(configuration["hinder"])
    try:
        trio.run(serve, configuration)
    except Exception as exc:
        say({"error": type(exc).__name__, "message": str(exc)})
        raise


if __name__ == "__main__":
    main()
