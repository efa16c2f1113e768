"""Let the kernel read further ahead in a mount: requests of 1 MiB instead of 128 KiB, several at a time.

FUSE offers no way to ask for more than the kernel's default, but the mount's backing device has a knob in
sysfs, writable by root.
"""

from __future__ import annotations

import os

__all__ = ["raise_readahead"]


def raise_readahead(device: int, kib: int = 4096) -> bool:
    """Raise the mount's readahead to at least `kib`; never lower what an administrator has set.

    Args:
      device: The st_dev of the mount (`Connection.device`).

    Returns:
      Whether it is at least `kib` now; False when it cannot be read or written (not root, no sysfs).
    """
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(path, "r+b", buffering=0) as knob:
            if int(knob.read()) < kib:
                knob.write(b"%d" % kib)
    except (OSError, ValueError):
        return False
    return True
