"""Everything here mounts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.conftest import MountMaker, make_mount, mount, pytest_collection_modifyitems

__all__ = ["MountMaker", "make_mount", "mount", "pytest_collection_modifyitems"]


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on a tmpfs, for disks in files."""
    path = Path(tempfile.mkdtemp(prefix="mountstore-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)
