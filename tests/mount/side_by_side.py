"""The same commands in a mount and beside it, in the file system that holds the temporary files.

Each scenario runs line by line in both places. After each line exit status, output and all that can be seen of
the files must be equal. The file system beside has to be one with access control lists and all kinds of
extended attributes: ext4 or xfs, say.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

from mount.live import PATIENCE_S, LiveMount, run

# Who runs a line: uid, gid, supplementary groups. Nobody has a name, so that nothing depends on /etc/passwd.
WHO: dict[str, tuple[int, int, list[int]]] = {
    "root": (0, 0, []),
    "ann": (41001, 41001, [42000]),
    "bob": (41002, 41002, []),
    "eve": (41003, 42000, []),
    "nobody": (65534, 65534, []),
}

def run_line(line: str, directory: Path) -> str:
    """Run a line with sh; returns exit status and output, without what names the directory."""
    who, colon, command = line.partition(": ")
    if not colon or who not in WHO:
        who, command = "root", line
    uid, gid, groups = WHO[who]
    done = subprocess.run(
        ["sh", "-c", f"umask 022; {command}"],
        cwd=directory,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        user=uid,
        group=gid,
        extra_groups=groups,
        timeout=PATIENCE_S,
    )
    output = re.sub(r"\b\w{3} +\d+ \d\d:\d\d\b", "TIME", done.stdout)
    return f"exit {done.returncode}\n{output}"


def state_of(directory: Path) -> str:
    """All that can be seen of the files in a directory, in words."""
    paths = sorted(str(path.relative_to(directory)) for path in [directory, *directory.rglob("*")])
    lines = []
    for path in paths:
        full = directory / path
        found = full.lstat()
        lines.append(f"{path}: {found.st_mode:o} {found.st_uid} {found.st_gid} {found.st_nlink} {found.st_rdev:x}")
        lines += [
            f"  {name}={os.getxattr(full, name, follow_symlinks=False).hex()}"
            for name in sorted(os.listxattr(full, follow_symlinks=False))
        ]
        if stat.S_ISREG(found.st_mode):
            lines.append(f"  {full.read_bytes()!r}")
    # getfacl would follow the links.
    paths = [path for path in paths if not (directory / path).is_symlink()]
    lines.append(run("getfacl", "-n", "-p", "--", *paths, cwd=directory))
    return "\n".join(lines)


def compare(script: str, directory: Path, beside: Path) -> None:
    """Run each line of a scenario in both directories."""
    for line in filter(None, map(str.strip, script.splitlines())):
        here, there = run_line(line, directory), run_line(line, beside)
        assert here == there, f"{line}\nin the mount: {here}\nbeside: {there}"
        assert state_of(directory) == state_of(beside), f"after: {line}"


def twins(mount: LiveMount, name: str) -> tuple[Path, Path]:
    """An empty directory in the mount and one beside it."""
    name = re.sub(r"\W+", "-", name)
    directories = mount.path / name, mount.path.parent / f"beside-{name}"
    for directory in directories:
        directory.mkdir()
        directory.chmod(0o755)
    return directories
