"""Blobs opened to be read."""

from __future__ import annotations

import errno
import os
from fcntl import F_GETFL, fcntl
from pathlib import Path

import pytest

from mountstore.blobs.opening import open_to_read
from mountstore.blobs.tree import BalancedTree

NOBODY = 65534


def read(path: str | Path) -> bytes:
    fd = open_to_read(str(path))
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def touches(fd: int) -> bool:
    """Whether reading from a descriptor changes the time of access."""
    try:
        return not fcntl(fd, F_GETFL) & os.O_NOATIME
    finally:
        os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    path.chmod(0o444)
    return path


def test_reading_changes_no_time_of_access(file: Path) -> None:
    assert read(file) == b"bytes"
    assert not touches(open_to_read(str(file)))


def test_blobs_are_opened_so(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"))
    assert not touches(tree.open(tree.add_bytes(b"bytes").digest))


def test_who_does_not_own_it_reads_it_all_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.chmod(0o755)
    monkeypatch.chdir(file.parent)
    os.seteuid(NOBODY)
    try:
        assert read(file.name) == b"bytes"
        assert touches(open_to_read(file.name))
    finally:
        os.seteuid(0)
    file.chmod(0)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionError):
            read(file.name)
    finally:
        os.seteuid(0)


def test_neither_links_nor_what_is_not_there(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(OSError) as refusal:
        read(tmp_path / "link")
    assert refusal.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")
