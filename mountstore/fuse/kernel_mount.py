"""Attach a FUSE connection to a mount point without libfuse; `mountstore.fuse.mounts` detaches it.

libfuse keeps the /dev/fuse descriptor to itself, and its option parser trips over commas, backslashes
and non-ASCII bytes in the name of the file system. Here the descriptor comes straight from mount(2), or
from `fusermount3` for those who may not mount, and the name goes to the kernel as it is.

Nothing in here asks the mounted file system anything, so all of it may be called before anybody serves
requests. Thread: any; blocks for the milliseconds that mounting takes.
"""

from __future__ import annotations

import array
import ctypes
import os
import re
import socket
import stat
import subprocess
from collections.abc import Collection

from mountstore.errors import MisuseError, MountError
from mountstore.fuse.mounts import find_fusermount

__all__ = ["attach", "libfuse_options"]

_FUSERMOUNT_TIMEOUT_S = 30.0

# mount(2) flags by option name: (flag, whether the option sets it). See <linux/mount.h>.
_MOUNT_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "dirsync": (128, True),
    "noatime": (1024, True),
    "atime": (1024, False),
    "nodiratime": (2048, True),
    "diratime": (2048, False),
    "relatime": (1 << 21, True),
    "norelatime": (1 << 21, False),
    "strictatime": (1 << 24, True),
    "nostrictatime": (1 << 24, False),
    "lazytime": (1 << 25, True),
    "nolazytime": (1 << 25, False),
}
# A FUSE inode never updates its atime in the kernel, so these change nothing; newer releases of
# fusermount3 refuse them.
_ATIME_OPTIONS = frozenset(name for name in _MOUNT_FLAGS if name.endswith(("atime", "lazytime")))
_KERNEL_OPTIONS = frozenset(("default_permissions", "allow_other"))
# Known to libfuse alone, whoever mounts: allow_root is allow_other with a check in libfuse.
_LIBFUSE_OPTIONS = frozenset(("allow_root", "debug"))

_libc = ctypes.CDLL(None, use_errno=True)


def attach(mountpoint: str, options: Collection[str], *, fsname: str, subtype: str) -> int:
    """Mount a new FUSE connection and return its descriptor; the caller owns it.

    Root mounts with mount(2) and gets exactly the flags asked for; everybody else, and a root without
    CAP_SYS_ADMIN, goes through fusermount3, which adds nosuid and nodev. The kernel's INIT request is
    ready to be read from the descriptor (close-on-exec, blocking); until it is answered, whoever touches
    the mount point waits.

    Args:
      mountpoint: An existing absolute path.
      options: Generic mount options, default_permissions, allow_other, allow_root, max_read=N.
      fsname: What mount tables show as the source; any characters but NUL.
      subtype: The type becomes `fuse.<subtype>`.

    Raises:
      MisuseError: An option is not known; nothing was mounted.
      MountError: fusermount3 is not there or refused; nothing was mounted.
      OSError: mount(2) or /dev/fuse refused; nothing was mounted.
    """
    flags, kernel_options = _split(options)
    if os.geteuid() == 0:
        try:
            return _attach_by_syscall(mountpoint, flags, kernel_options, fsname, subtype)
        except PermissionError:
            pass  # root of a container: fusermount3 may still be allowed to
    return _attach_by_fusermount(mountpoint, options, kernel_options, fsname, subtype)


def libfuse_options(options: Collection[str], *, fsname: str, subtype: str, attached: bool) -> set[str]:
    """Return the option set for `pyfuse3.init`.

    Args:
      attached: The kernel has its options already; only those that libfuse itself acts on remain.

    pyfuse3 encodes every option as ASCII, so what is outside of it is written as the octal escapes that
    libfuse's parser undoes. max_read is dropped: pyfuse3 cannot repeat it in its INIT answer, and libfuse
    then refuses to start. For root, libfuse mounts nosuid and nodev unless told otherwise, mount(8) does not.
    """
    if attached:
        return {option for option in options if option in _LIBFUSE_OPTIONS}
    _split(options)
    kept = {o for o in options if not o.startswith("max_read=") and o not in _ATIME_OPTIONS}
    if os.geteuid() == 0:
        kept |= {usual for usual in ("dev", "suid") if f"no{usual}" not in options}
    return kept | {f"fsname={_octal(fsname)}", f"subtype={_octal(subtype)}"}


def _split(options: Collection[str]) -> tuple[int, list[str]]:
    """Sort mount options into mount(2) flags and what FUSE parses itself."""
    flags = 0
    kernel_options = []
    for option in sorted(options):
        if option in _MOUNT_FLAGS:
            flag, on = _MOUNT_FLAGS[option]
            flags |= flag if on else 0
        elif option in _KERNEL_OPTIONS or re.fullmatch(r"max_read=\d+", option):
            kernel_options.append(option)
        elif option not in _LIBFUSE_OPTIONS:
            raise MisuseError(f"unknown mount option: {option}")
    if "allow_root" in options and "allow_other" not in options:
        kernel_options.append("allow_other")
    return flags, kernel_options


def _attach_by_syscall(
    mountpoint: str, flags: int, kernel_options: list[str], fsname: str, subtype: str
) -> int:
    root_type = stat.S_IFMT(os.stat(mountpoint).st_mode)
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = [
        f"fd={descriptor}",
        f"rootmode={root_type:o}",
        f"user_id={os.getuid()}",
        f"group_id={os.getgid()}",
    ]
    answer = _libc.mount(
        os.fsencode(fsname),
        os.fsencode(mountpoint),
        os.fsencode(f"fuse.{subtype}"),
        ctypes.c_ulong(flags),
        ",".join([*data, *kernel_options]).encode("ascii"),
    )
    if answer != 0:
        code = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(code, os.strerror(code), mountpoint)
    return descriptor


def _attach_by_fusermount(
    mountpoint: str, options: Collection[str], kernel_options: list[str], fsname: str, subtype: str
) -> int:
    program = find_fusermount()
    if program is None:
        raise MountError("fusermount3 not found: without it only root can mount")
    wanted = [o for o in sorted(options) if o in _MOUNT_FLAGS and o not in _ATIME_OPTIONS]
    wanted += [*kernel_options, f"fsname={_backslash(fsname)}", f"subtype={_backslash(subtype)}"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_FUSERMOUNT_TIMEOUT_S)
        process = subprocess.Popen(
            [program, "-o", ",".join(wanted), "--", mountpoint],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
        )
        theirs.close()
        try:
            descriptor = _receive_descriptor(ours)
            _, complaint = process.communicate(timeout=_FUSERMOUNT_TIMEOUT_S)
        except (TimeoutError, subprocess.TimeoutExpired):
            process.kill()
            process.communicate()
            raise MountError("fusermount3 did not answer") from None
    if descriptor is None:
        raise MountError(_one_line(complaint) or f"fusermount3 ended with status {process.returncode}")
    os.set_inheritable(descriptor, False)
    return descriptor


def _receive_descriptor(connection: socket.socket) -> int | None:
    """Return the one descriptor that comes with the next message, None at the end of the stream."""
    descriptors = array.array("i")
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload)
    return descriptors[0] if descriptors else None


def _one_line(output: bytes) -> str:
    return " ".join(output.decode(errors="backslashreplace").split())


def _backslash(value: str) -> str:
    """Escape an option value for fusermount3, which undoes a backslash before any byte."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _octal(value: str) -> str:
    """Escape an option value for libfuse's parser (`\\ooo`), leaving ASCII only."""
    plain = b"-./_:+@=" + bytes(range(0x30, 0x3A)) + bytes(range(0x41, 0x5B)) + bytes(range(0x61, 0x7B))
    return "".join(chr(b) if b in plain else f"\\{b:03o}" for b in os.fsencode(value))
