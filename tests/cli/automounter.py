"""A small automounter, run in a mount namespace of its own: `automounter.py MOUNTPOINT COMMAND...`.

It does what systemd does for x-systemd.automount: mounts autofs, waits until somebody looks, and runs
COMMAND in its own process group to cover it. Prints what the one who looked has seen.
See Documentation/filesystems/autofs.rst in the kernel sources.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys

_READY = 0x9360  # AUTOFS_IOC_READY
_FAIL = 0x9361  # AUTOFS_IOC_FAIL
_PACKET_BYTES = 304  # struct autofs_v5_packet on 64 bits
_TYPE_MISSING_DIRECT = 5

mountpoint, *command = sys.argv[1:]
os.setpgid(0, 0)
reader, writer = os.pipe()
options = f"fd={writer},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"automounter", os.fsencode(mountpoint), b"autofs", 0, options.encode()) != 0:
    sys.exit(f"mounting autofs: {os.strerror(ctypes.get_errno())}")
os.close(writer)
root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)

looking = subprocess.Popen(["ls", mountpoint + "/"], start_new_session=True)
_, packet_type, token = struct.unpack_from("iiI", os.read(reader, _PACKET_BYTES))
assert packet_type == _TYPE_MISSING_DIRECT, packet_type
mounted = subprocess.run(command, check=False, timeout=30).returncode == 0
fcntl.ioctl(root, _READY if mounted else _FAIL, token)
sys.exit(looking.wait(timeout=30) if mounted else 1)
