"""The kernel's mount table: what is mounted where, whether it is alive, and taking it away.

Nothing here starts a daemon or needs pyfuse3, so the command line programs can afford it.
Mount points are absolute paths without symbolic links in them (`os.path.realpath`), because that is
what the kernel's table holds. See proc(5) on mountinfo, umount2(2), fusermount3(1).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from dataclasses import dataclass

from mountstore.errors import AbsentError, BusyError, MisuseError, MountError, NotPermittedError

FILESYSTEM_TYPE = "fuse.cas"
"""The type the kernel shows for our mounts: `fuse`, with the subtype `cas`."""

# umount2(2); the values are kernel ABI.
_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

# What a FUSE mount answers when nobody serves it: its daemon is gone, or the connection was aborted.
_DEAD_ERRNOS = (errno.ENOTCONN, errno.ECONNABORTED)

_FUSERMOUNT_PATH = "/usr/local/bin:/usr/bin:/bin"
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    device: str
    """The `major:minor` that stat(2) shows for its files."""
    filesystem_type: str
    source: str
    """What was mounted, as the kernel tells it; for our mounts, the store."""
    read_only: bool
    """The file system takes no writes, wherever it is mounted."""
    root: str = "/"
    """Which directory of it is mounted here: another one for a bind mount of a part."""
    user_id: int | None = None
    """Who mounted it; the kernel tells of FUSE mounts only."""
    number: int = 0
    """The `mnt_id` that /proc/PID/fdinfo shows for its files."""

    @property
    def ours(self) -> bool:
        return self.filesystem_type == FILESYSTEM_TYPE


def _unescape(field: bytes) -> str:
    """Undo mountinfo's octal escapes (blank, tab, newline, backslash, hash)."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts in a mountinfo file, oldest first; of two on one mount point the later one is on top."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(b" ")
        separator = fields.index(b"-", 6)
        options = fields[separator + 3].split(b",")
        mounts.append(
            Mount(
                mountpoint=_unescape(fields[4]),
                device=fields[2].decode("ascii"),
                filesystem_type=_unescape(fields[separator + 1]),
                source=_unescape(fields[separator + 2]),
                read_only=b"ro" in options,
                root=_unescape(fields[3]),
                number=int(fields[0]),
                user_id=next((int(o[8:]) for o in options if o.startswith(b"user_id=")), None),
            )
        )
    return mounts


def read_mounts(pid: int | None = None) -> list[Mount]:
    """The mounts this process, or another one, sees, oldest first. Raises: OSError"""
    with open(f"/proc/{'self' if pid is None else pid}/mountinfo", "rb") as table:
        return parse_mountinfo(table.read())


def mount_at(mountpoint: str) -> Mount | None:
    """The topmost mount on exactly this directory, or None."""
    return next((m for m in reversed(read_mounts()) if m.mountpoint == mountpoint), None)


def is_gone(mount: Mount) -> bool:
    """Whether the kernel has given up the whole file system, not just this mount point of it.

    Bind mounts, other mount namespaces and open files after a lazy unmount keep it. Every FUSE file system
    has a backing device in sysfs, which goes with it.
    """
    return not os.path.exists(f"/sys/class/bdi/{mount.device}")


def is_dead(path: str) -> bool:
    """Whether `path` lies on a FUSE mount that nobody serves any more.

    Thread: any; blocks as long as a daemon that is there does not answer.
    """
    try:
        os.stat(path)
        # The kernel may still know attributes; this it has to ask for.
        os.statvfs(path)
    except OSError as exc:
        return exc.errno in _DEAD_ERRNOS
    return False


def find_fusermount() -> str | None:
    """The path of fusermount3, also for a caller with an empty environment; None if there is none."""
    # Imported where needed: together they would be a third of the start-up of mount.cas.
    import shutil

    return shutil.which("fusermount3", path=f"{os.environ.get('PATH', '')}:{_FUSERMOUNT_PATH}")


def unmount(mountpoint: str, *, force: bool = False, lazy: bool = False) -> None:
    """Take away the topmost mount on `mountpoint`.

    Data the kernel still holds is handed to the daemon first, except with `force`.

    Args:
      mountpoint: As in the mount table; symbolic links are not followed.
      force: Abort the connection, so that programs waiting for the daemon get an error, then detach.
      lazy: Detach now, let go of it when the last user is done.

    Raises:
      BusyError: Somebody uses it; nothing was changed. Not with `force` or `lazy`.
      NotPermittedError: The caller may not unmount it.
      AbsentError: Nothing is mounted there.
      MountError: Anything else the kernel or fusermount3 said.

    Thread: any; blocks until the kernel has written back.
    """
    if os.geteuid() == 0:
        # Once the connection is aborted, who still uses the mount gets nothing but errors, and lets go at leisure.
        _unmount_as_root(mountpoint, _MNT_FORCE | _MNT_DETACH if force else _MNT_DETACH if lazy else 0)
    else:
        if force:
            raise MisuseError("only root can force an unmount; -l (lazy) works for everybody")
        _unmount_by_fusermount(mountpoint, lazy=lazy)


def _unmount_as_root(mountpoint: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags | _UMOUNT_NOFOLLOW) == 0:
        return
    number = ctypes.get_errno()
    reason = f"{mountpoint}: {os.strerror(number)}"
    if number in (errno.EBUSY, errno.EAGAIN):
        raise BusyError(f"{mountpoint} is in use")
    if number in (errno.EPERM, errno.EACCES):
        raise NotPermittedError(reason)
    # The kernel says EINVAL of a mount, too, that came from a more privileged namespace and stays there.
    if number in (errno.EINVAL, errno.ENOENT) and mount_at(mountpoint) is None:
        raise AbsentError(f"{mountpoint} is not mounted")
    raise MountError(reason)


def _unmount_by_fusermount(mountpoint: str, *, lazy: bool) -> None:
    program = find_fusermount()
    if program is None:
        raise MountError("fusermount3 not found: install the package fuse3")
    import subprocess

    command = [program, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0:
        return
    # fusermount3 tells only in words, and only in English: it never calls setlocale(3).
    said = os.fsdecode(done.stderr).strip()
    if said.endswith("Device or resource busy"):
        raise BusyError(f"{mountpoint} is in use")
    if "not found in" in said:
        # Of the mounts there are, it looks only at those of the caller.
        mount = mount_at(mountpoint)
        if mount is not None and mount.ours:
            raise NotPermittedError(f"{mountpoint}: only root, or the user who mounted it, may unmount it")
        raise AbsentError(f"{mountpoint} is not mounted")
    raise MountError(said or f"fusermount3 ended with code {done.returncode}")
