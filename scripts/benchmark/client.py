"""The compiled client (client.c), built anew for every run of the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmark.figures import Timing

__all__ = ["Client"]

_SOURCE = Path(__file__).with_name("client.c")


class Client:
    """Runs operations of client.c.

    Args:
      directory: Where the program is built; it must last as long as this object is used.

    Raises:
      subprocess.CalledProcessError: It does not compile.
      FileNotFoundError: There is no cc.
    """

    def __init__(self, directory: str) -> None:
        self._program = os.path.join(directory, "client")
        subprocess.run(["cc", "-O2", "-o", self._program, str(_SOURCE)], check=True)

    def __call__(self, operation: str, directory: str, **values: int | str) -> Timing:
        """Run one operation in `directory`; the values are those described in client.c.

        Returns:
          The number of names worked on, and the time.

        Raises:
          subprocess.CalledProcessError: A system call failed; the client has said which.
        """
        words = [f"{key}={value}" for key, value in values.items()]
        done = subprocess.run(
            [self._program, operation, f"dir={directory}", *words], stdout=subprocess.PIPE, check=True
        )
        answer = json.loads(done.stdout)
        return Timing(amount=float(answer["count"]), elapsed_s=max(1, int(answer["ns"])) / 1e9)
