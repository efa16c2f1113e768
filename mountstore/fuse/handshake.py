"""Mount, and negotiate with the kernel what libfuse would not ask for.

libfuse owns the /dev/fuse descriptor and answers FUSE_INIT itself, with a set of flags that pyfuse3 gives no
say in. But it also accepts a ready descriptor as mount point `/dev/fd/N`. So we mount ourselves, hand libfuse
one end of a SOCK_SEQPACKET pair, play the kernel to it (its INIT request through the pair, its answer back),
add the flags wanted to the answer, send that to the real kernel, and put the real descriptor in place of
the pair's end with dup2(2). From then on libfuse serves as if it had mounted.

Invariants:
1. Sending the amended answer is the last step that may fail. Whatever goes wrong before it is undone without a
   trace (no mount, no descriptor, no task) and the mount is made the ordinary way, with a warning that says why.
2. Only flags that the kernel offered are added.
3. With HANDLE_KILLPRIV_V2 the daemon has to clear setuid and setgid itself, which it does in any case
   (`mountstore.namespace.files`). Claiming the flag without doing so would be a security hole.

What it relies on in libfuse and pyfuse3, and what was measured: docs/request-loop.md.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntFlag

import pyfuse3
import trio

from mountstore.errors import MountError, MountstoreError, WantsDirectoryError
from mountstore.fuse import kernel_mount, mounts

__all__ = ["Connection", "InitFlag", "close", "mount"]

log = logging.getLogger(__name__)


class InitFlag(IntFlag):
    """FUSE_INIT flags that matter here; <linux/fuse.h>."""

    DONT_MASK = 1 << 6
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28


WANTED_FLAGS = InitFlag.PARALLEL_DIROPS | InitFlag.CACHE_SYMLINKS | InitFlag.HANDLE_KILLPRIV_V2

# Requests the kernel may have under way on its own account (write-back, readahead). Each may hold 2 MiB here
# (libfuse's buffer and our copy), and more than its default of 12 brought nothing measurable.
MAX_BACKGROUND = 16
CONGESTION_THRESHOLD = 12

# The exchange takes about a millisecond; the bound is for a kernel or a libfuse that does not play along.
_EXCHANGE_TIMEOUT_S = 10.0

# struct fuse_in_header + fuse_init_in, struct fuse_out_header + fuse_init_out of <linux/fuse.h>.
_FUSE_INIT = 26
_IN_HEADER = struct.Struct("=IIQQIIII")
_INIT_IN = struct.Struct("=IIII")  # up to flags; flags2 came with 7.36
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28s")
_MESSAGE_BYTES_MAX = 128 * 1024


@dataclass(frozen=True, slots=True)
class Connection:
    """What came of mounting."""

    mountpoint: str
    """Absolute, without symbolic links, as in the mount table."""
    device: int
    """The st_dev of files in the mount; 0 if the mount table does not show it."""
    flags: int
    """The FUSE_INIT flags in force (64 bits); 0 after an ordinary mount, which does not tell."""
    handshake: bool

    @property
    def killpriv_v2(self) -> bool:
        """Whether clearing setuid and setgid on write, truncation and chown is the daemon's duty."""
        return bool(self.flags & InitFlag.HANDLE_KILLPRIV_V2)

    @property
    def parallel_dirops(self) -> bool:
        """Whether look-ups in one directory may overlap."""
        return bool(self.flags & InitFlag.PARALLEL_DIROPS)


class _HandshakeError(MountError):
    """Something about the handshake was not as expected; all of it was undone."""


async def mount(
    operations: pyfuse3.Operations,
    mountpoint: str,
    options: set[str],
    *,
    fsname: str,
    subtype: str = "cas",
    want_handshake: bool = True,
) -> Connection:
    """Mount `operations` and leave pyfuse3 ready for `request_loop.serve` (or `pyfuse3.main`).

    Until that runs, whoever touches the mount point waits. `operations.init()` has been called when this
    returns after a handshake, and is called by the first request otherwise; after a handshake that failed
    late it is called twice. One mount per process.

    Args:
      options: Generic mount options (ro, nosuid, nodev, noexec, noatime, ...), default_permissions,
        allow_other, allow_root, max_read=N. Root gets nosuid and nodev only when asked for.
      fsname: The source in mount tables; any characters.
      want_handshake: False mounts the ordinary way at once.

    Raises:
      MisuseError: An option is not known.
      MountError: Neither way worked; nothing is mounted.
      WantsDirectoryError: The mount point is something else.
      OSError: The mount point cannot be reached (ENOENT, ENOTCONN for a dead mount, ...).

    Cancellation: undoes the mount.
    """
    mountpoint = os.path.realpath(mountpoint)
    if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
        raise WantsDirectoryError(f"{mountpoint} is not a directory")
    # Refuses what it does not know, before anything is mounted.
    plain_options = kernel_mount.libfuse_options(options, fsname=fsname, subtype=subtype, attached=False)
    flags = 0
    reason: MountError | None = None
    if want_handshake:
        try:
            flags = await _mount_by_handshake(operations, mountpoint, options, fsname, subtype)
        except _HandshakeError as exc:
            log.warning("mounting %s without the handshake, which makes it slower: %s", mountpoint, exc)
            reason = exc
    if not flags:
        try:
            pyfuse3.init(operations, mountpoint, plain_options)
        except RuntimeError as exc:
            raise MountError(str(reason or exc)) from exc
    return Connection(mountpoint, _device(mountpoint), flags, handshake=bool(flags))


def close(connection: Connection) -> None:
    """End pyfuse3's session once serving has ended, and take away a mount that is still there.

    Dirty data that the kernel still holds is lost, because nobody serves any more: to end a healthy mount,
    call `mounts.unmount` from a thread while serving; that ends the serving, and this then only cleans up.
    """
    # Not by libfuse, which complains of a mount that is gone.
    pyfuse3.close(unmount=False)
    # The descriptor is closed now, so nothing below can wait for us.
    if connection.device and _device(connection.mountpoint) == connection.device:
        try:
            mounts.unmount(connection.mountpoint, lazy=True)
        except MountstoreError as exc:
            log.warning("%s stays mounted, without anybody serving it: %s", connection.mountpoint, exc)


async def _mount_by_handshake(
    operations: pyfuse3.Operations, mountpoint: str, options: set[str], fsname: str, subtype: str
) -> int:
    """Mount, play the INIT exchange, return the flags in force.

    Raises:
      _HandshakeError: With everything undone.
    """
    with ExitStack() as undo:
        try:
            kernel = kernel_mount.attach(mountpoint, options, fsname=fsname, subtype=subtype)
            undo.callback(_undo_mount, mountpoint)
            undo.callback(os.close, kernel)  # first: an unmount would wait for an answer to INIT
            request = await _read_init(kernel)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                session = theirs.detach()
                attached = kernel_mount.libfuse_options(
                    options, fsname=fsname, subtype=subtype, attached=True
                )
                try:
                    pyfuse3.init(operations, f"/dev/fd/{session}", attached)
                except RuntimeError:
                    os.close(session)
                    raise
                undo.callback(pyfuse3.close, unmount=False)  # closes `session` as well
                answer = await _ask_libfuse(ours, session, request)
            flags, amended = _amend(request, answer)
            os.write(kernel, amended)
        except (OSError, RuntimeError, MountstoreError, ExceptionGroup) as exc:
            raise _HandshakeError(str(exc)) from exc
        undo.pop_all()
    os.dup2(kernel, session, inheritable=False)
    os.close(kernel)
    return flags


def _undo_mount(mountpoint: str) -> None:
    try:
        mounts.unmount(mountpoint, lazy=True)
    except MountstoreError as exc:
        log.warning("could not undo the mount on %s: %s", mountpoint, exc)


async def _read_init(kernel: int) -> bytes:
    """Return the INIT request that the kernel queued when it mounted, checked."""
    with trio.move_on_after(_EXCHANGE_TIMEOUT_S) as patience:
        await trio.lowlevel.wait_readable(kernel)
    if patience.cancelled_caught:
        raise _HandshakeError("the kernel sent no INIT request")
    request = os.read(kernel, _MESSAGE_BYTES_MAX)
    if len(request) < _IN_HEADER.size + _INIT_IN.size:
        raise _HandshakeError(f"an INIT request of {len(request)} bytes")
    size, opcode, *_ = _IN_HEADER.unpack_from(request)
    major, minor, *_ = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    # Before 7.23 the answer is shorter.
    if size != len(request) or opcode != _FUSE_INIT or major != 7 or minor < 23:
        raise _HandshakeError(f"first request {opcode} of {size} bytes, protocol {major}.{minor}")
    return request


async def _ask_libfuse(ours: socket.socket, session: int, request: bytes) -> bytes:
    """Have pyfuse3 serve the one request from its end of the pair, and return what libfuse answers."""
    ours.setblocking(False)
    answer = b""
    with trio.move_on_after(_EXCHANGE_TIMEOUT_S) as patience:
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            nursery.start_soon(_serve_one, ended)
            ours.send(request)
            await trio.lowlevel.wait_readable(ours)
            answer = ours.recv(_MESSAGE_BYTES_MAX)
            # Its one task is on the way to waiting for the next request, perhaps not there yet.
            while not ended.is_set():
                trio.lowlevel.notify_closing(session)
                await trio.lowlevel.checkpoint()
    if patience.cancelled_caught:
        raise _HandshakeError("libfuse did not answer INIT")
    return answer


async def _serve_one(ended: trio.Event) -> None:
    try:
        # One task at most: nothing else gets to wait on the descriptor that is about to be replaced.
        await pyfuse3.main(min_tasks=1, max_tasks=1)
    except* OSError as group:
        log.debug("libfuse ended during the handshake: %s", group.exceptions)
    finally:
        ended.set()


def _amend(request: bytes, answer: bytes) -> tuple[int, bytes]:
    """Return the flags and the answer to the kernel: libfuse's, with what the kernel offered of ours."""
    if len(answer) != _OUT_HEADER.size + _INIT_OUT.size:
        raise _HandshakeError(f"libfuse answered INIT with {len(answer)} bytes")
    size, error, unique = _OUT_HEADER.unpack_from(answer)
    asked = _IN_HEADER.unpack_from(request)[2]
    if size != len(answer) or error != 0 or unique != asked:
        raise _HandshakeError(f"libfuse answered INIT with error {error}")
    offered = _INIT_IN.unpack_from(request, _IN_HEADER.size)[3]
    (major, minor, readahead, flags, _, _, max_write, granularity, max_pages, alignment, flags2, rest) = (
        _INIT_OUT.unpack_from(answer, _OUT_HEADER.size)
    )
    if major != 7:
        raise _HandshakeError(f"libfuse speaks protocol {major}.{minor}")
    flags |= WANTED_FLAGS & offered
    if flags & InitFlag.POSIX_ACL:
        # A directory's default list stands in for the umask, which therefore must be left to the daemon.
        flags |= InitFlag.DONT_MASK & offered
    amended = _OUT_HEADER.pack(size, error, unique) + _INIT_OUT.pack(
        major, minor, readahead, flags, MAX_BACKGROUND, CONGESTION_THRESHOLD,
        max_write, granularity, max_pages, alignment, flags2, rest,
    )  # fmt: skip
    return flags | flags2 << 32, amended


def _device(mountpoint: str) -> int:
    """Return the st_dev of the FUSE mount on `mountpoint`, without asking its daemon; 0 if there is none."""
    found = mounts.mount_at(mountpoint)
    if found is None or not found.filesystem_type.startswith("fuse"):
        return 0
    major, minor = found.device.split(":")
    return os.makedev(int(major), int(minor))
