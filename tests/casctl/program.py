"""Running casctl as people do; in this process where nothing depends on its being one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from mountstore.cli.casctl.main import main

CASCTL = Path(sys.executable).parent / "casctl"

PATIENCE_S = 120

# Another user may not be able to reach this Python (below /root, say): all that may be needed is imported before.
_AS_USER = """
import difflib, encodings.ascii, encodings.latin_1, importlib, os, pkgutil, sys, traceback
import mountstore
for module in pkgutil.walk_packages(mountstore.__path__, "mountstore."):
    importlib.import_module(module.name)
from mountstore.cli.casctl.main import main
uid = int(sys.argv[1])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
sys.exit(main(sys.argv[2:]))
"""


def environment(**changes: str) -> dict[str, str]:
    """Without what the user who runs the tests has set."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("CASCTL")}
    return {**kept, "LC_ALL": "C.UTF-8", **changes}


class Ended:
    """What a run printed, and its exit code."""

    def __init__(self, returncode: int, stdout: str, stderr: str) -> None:
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


def casctl(*arguments: str | Path, cwd: Path | None = None, **changes: str) -> Ended:
    """Run it to its end, whatever that is."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape", write_through=True)
        for _ in range(2)
    )
    with (
        contextlib.chdir(cwd or os.getcwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, environment(**changes), clear=True),
    ):
        code = main([str(argument) for argument in arguments])
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return Ended(code, *texts)


def casctl_as(uid: int, *arguments: str | Path, cwd: Path | None = None) -> Ended:
    """Run it as another user."""
    ended = subprocess.run(
        [sys.executable, "-c", _AS_USER, str(uid), *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=PATIENCE_S,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def done(*arguments: str | Path, cwd: Path | None = None, **changes: str) -> str:
    """Run it, expect that it works; returns what it printed."""
    ended = casctl(*arguments, cwd=cwd, **changes)
    assert ended.returncode == 0, (arguments, ended.returncode, ended.stdout, ended.stderr)
    assert not ended.stderr, ended.stderr
    return ended.stdout


def answers(*arguments: str | Path, cwd: Path | None = None, **changes: str) -> list[dict[str, Any]]:
    """The answers of a command that works."""
    return [json.loads(line) for line in done("--json", *arguments, cwd=cwd, **changes).splitlines()]


def result(*arguments: str | Path, cwd: Path | None = None, **changes: str) -> dict[str, Any]:
    """The result of a command that works."""
    (found,) = [answer for answer in answers(*arguments, cwd=cwd, **changes) if answer["type"] == "result"]
    return found
