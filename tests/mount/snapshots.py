"""A tree with everything in it that a snapshot has to show, and asking a mount's control file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from mount.live import LiveMount
from mount.picture import Sight, picture


def ask(mount: LiveMount, line: str) -> dict[str, Any]:
    """The result of one command, which has to succeed."""
    with open(mount.path / ".cas/control", "r+b", buffering=0) as control:
        control.write(line.encode("utf-8", "surrogateescape") + b"\n")
        answers = [json.loads(text) for text in control.readall().splitlines()]
    (result,) = [answer for answer in answers if answer["type"] == "result"]
    return result  # type: ignore[no-any-return]  # it is an object


def fill(top: Path) -> None:
    """Files of all kinds and sizes, links, attributes, odd names and times, in a directory that is there."""
    (top / "small").write_bytes(b"some bytes")
    (top / "empty").touch()
    (top / "large").write_bytes(os.urandom(1 << 20) * 5)
    with open(top / "holes", "wb") as file:
        file.seek(20 << 20)
        file.write(b"end")
    os.mkdir(top / "deep")
    where = top
    for name in ("deep", "er", "and", "deeper"):
        where = where / name
        where.mkdir(exist_ok=True)
        (where / "file").write_bytes(name.encode())
    os.link(top / "small", where / "small too")
    os.link(top / "small", top / "small as well")
    os.symlink("deep/er", top / "to deep")
    os.symlink(b"\xff\n nowhere", top / "dangling")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    for odd in (b"\xff\xfe", b"a\nb", b" ", b"x" * 255, b".hidden", b"-n", "ä😀".encode()):
        (top / os.fsdecode(odd)).write_bytes(odd)
    os.setxattr(top / "small", "user.note", b"\0value")
    os.setxattr(top / "deep", "user.of a directory", b"x" * 2000)
    os.setxattr(top / "fifo", "trusted.note", b"seen by root", follow_symlinks=False)
    (top / "large").chmod(0o440)
    (top / "deep").chmod(0o2750)
    os.chown(top / "small", 1234, 4321)
    os.chown(top / "dangling", 77, 78, follow_symlinks=False)
    os.utime(top / "empty", ns=(1, 2))
    os.utime(top / "deep", ns=(3, 987_654_321_123_456_789))
    (top / "hollow").mkdir()


def seen(top: Path, *, exact: bool = True) -> dict[bytes, Sight]:
    """What can be seen below a directory, but for inode numbers; with times if `exact`."""
    return {name: sight._replace(number=0) for name, sight in picture(top, exact=exact).items()}
