"""What a worker gives up before it looks at an image."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

CONFINED = """
import encodings.idna, socket, sys
from mountstore.images.confine import confine
confine()
results = []
for attempt in (
    lambda: open("/etc/passwd").read(),
    lambda: open(sys.argv[1], "w"),
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5),
):
    try:
        attempt()
        results.append("done")
    except OSError as exc:
        results.append(type(exc).__name__)
print(*results)
"""


def landlock_version() -> int:
    command = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
    return int(subprocess.run([sys.executable, "-c", command], capture_output=True, check=True).stdout)


def test_what_is_confined_opens_no_file_and_no_connection(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "target").chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-c", CONFINED, str(tmp_path / "target"), str(port)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # An older kernel takes less away; as root the network goes all the same, and files of others.
    if landlock_version() >= 4:
        assert found[:2] == ["PermissionError", "PermissionError"]
        assert found[2] in ("PermissionError", "OSError")
    elif os.geteuid() == 0:
        assert found[2] == "OSError"
