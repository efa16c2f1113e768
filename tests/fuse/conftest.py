"""A place to mount on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """An empty directory to mount on, for this user only."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path
