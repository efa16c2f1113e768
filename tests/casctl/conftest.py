"""Mounts for casctl: always unmounted, their log and their store checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.live import LiveMount, let_everybody_reach

MountMaker = Callable[..., LiveMount]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("mount")


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MountMaker]:
    """Makes mounts as `LiveMount` does, each in a directory of its own."""
    made: list[LiveMount] = []
    let_everybody_reach(tmp_path)

    def make(*options: str, **choices: object) -> LiveMount:
        base = tmp_path / f"m{len(made)}"
        base.mkdir(mode=0o755)
        mount = LiveMount(base, *options, **choices)  # type: ignore[arg-type]  # as LiveMount takes them
        made.append(mount)
        return mount

    yield make
    failures = []
    for mount in made:
        try:
            mount.finish()
        except (Exception, pytest.fail.Exception) as exc:
            failures.append(exc)
    if failures:
        raise failures[0]


@pytest.fixture
def mount(make_mount: MountMaker) -> LiveMount:
    """A new store, mounted as root does by default."""
    return make_mount()


@pytest.fixture(scope="module")
def _shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    base = tmp_path_factory.mktemp("shared")
    let_everybody_reach(base)
    mount = LiveMount(base)
    try:
        yield mount
    finally:
        mount.finish()


@pytest.fixture
def shared_mount(_shared_mount: LiveMount) -> Iterator[LiveMount]:
    """A mount that lasts for the whole module. The log is checked after every test."""
    yield _shared_mount
    _shared_mount.check_log()
