"""Taking away what a decoder has no business with: called in a worker, for good.

A worker reads one open file and writes another. It needs no names, no network and no rights, so they go, as far
as the kernel has the means: Landlock (no file can be opened, no TCP), an empty network and the user "nobody" if
it is root. None of these is relied on: limits of memory and time are, and fail loudly.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from typing import Final

_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_VERSION: Final = 1  # flag: tell which
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWNET: Final = 0x40000000
_NOBODY: Final = 65534
_NICE: Final = 5
_OOM_SCORE: Final = "1000"

# Rights that Landlock can take, by its version: on files; and to use TCP, which it knows since the fourth.
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_NET_RIGHTS: Final = 0b11
_NET_SINCE: Final = 4


def confine() -> None:
    """Give up names, network and rights, and be the first to go when memory runs out, and the last to get the
    processor. What has not been imported by now cannot be."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.nice(_NICE)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(_OOM_SCORE)
    if os.geteuid() == 0:
        libc.unshare(_CLONE_NEWNET)
        # In a container, root may not be allowed to, or there may be no other user.
        with suppress(OSError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _landlock(libc)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _landlock(libc: ctypes.CDLL) -> None:
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:
        return
    rights = (ctypes.c_uint64 * 2)(_FILE_RIGHTS[min(version, _NET_SINCE)], _NET_RIGHTS)
    size = ctypes.sizeof(rights) if version >= _NET_SINCE else ctypes.sizeof(ctypes.c_uint64)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rights, ctypes.c_size_t(size), 0)
    if ruleset >= 0:
        libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


def end_with_parent() -> None:
    """Have this process killed when its parent ends, which must have one thread."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def address_space_bytes() -> int:
    """What this process has of it now; not to be asked of a confined one, which cannot open /proc."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def limit(*, address_space: int, cpu_s: int, wall_s: float, result_bytes: int) -> None:
    """Limit this process. Beyond, it gets MemoryError or OSError, or, for its time, is killed.

    Args:
      address_space: Bytes in all.
      cpu_s, wall_s: Of processor time in all, of time from now.
      result_bytes: That a file may become long.
    """
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    # The first signal says what it was, the second, SIGKILL, comes a second later.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (result_bytes, result_bytes))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
