"""Mounts for casctl: always unmounted, their log and their store checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.conftest import make_mount, mount
from mount.live import LiveMount, let_everybody_reach

__all__ = ["make_mount", "mount"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("mount")


@pytest.fixture(scope="module")
def _shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    base = tmp_path_factory.mktemp("shared")
    let_everybody_reach(base)
    made = LiveMount(base)
    try:
        yield made
    finally:
        made.finish()


@pytest.fixture
def shared_mount(_shared_mount: LiveMount) -> Iterator[LiveMount]:
    """A mount that lasts for the whole module. The log is checked after every test."""
    yield _shared_mount
    _shared_mount.check_log()
