"""The device that FUSE is served through."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fuse_for_everybody() -> Iterator[None]:
    """/dev/fuse as udev makes it, if root runs the tests; without udev, in a container, it may be root's alone."""
    if os.getuid() != 0:
        yield
        return
    with open("/dev/fuse", "rb", buffering=0) as device:
        # Or a test beside this one, which does the same, would put it back too soon.
        fcntl.flock(device, fcntl.LOCK_EX)
        mode = os.fstat(device.fileno()).st_mode
        os.fchmod(device.fileno(), mode | 0o666)
        try:
            yield
        finally:
            os.fchmod(device.fileno(), mode)
