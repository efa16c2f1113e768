"""Mounts for tests: always unmounted, their log and their store checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.live import SCALE, LiveMount, let_everybody_reach
from mount.picture import assert_same, picture

MountMaker = Callable[..., LiveMount]


_HERE = Path(__file__).parent
_EVERYTHING_MOUNTS = (_HERE, _HERE.parent / "casctl", _HERE.parent / "durability")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of all directories whose conftest has this: it may be called for each of them."""
    for item in items:
        directory = item.path.parent
        if directory in _EVERYTHING_MOUNTS and item.get_closest_marker("mount") is None:
            item.add_marker("mount")
            if SCALE > 1 and directory == _HERE:
                item.add_marker(pytest.mark.timeout(300 * SCALE))


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
    """A new store, mounted as root does by default (other users may use it)."""
    return make_mount()


@pytest.fixture(scope="module")
def _shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    base = tmp_path_factory.mktemp("shared")
    let_everybody_reach(base)
    mount = LiveMount(base)
    try:
        yield mount
        before = picture(mount.path, exact=True)
        mount.remount()
        assert_same(picture(mount.path, exact=True), before)
    finally:
        mount.finish()


@pytest.fixture
def shared_mount(_shared_mount: LiveMount) -> Iterator[LiveMount]:
    """A mount that lasts for the whole module, and after it must look the same when mounted again.

    The log is checked after every test.
    """
    yield _shared_mount
    _shared_mount.check_log()


@pytest.fixture(params=["plain", "mount"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory, once on the disk's own file system and once in the module's mount.

    What the disk's file system does is right; that the test passes there shows that the test is.
    """
    if request.param == "plain":
        let_everybody_reach(tmp_path)
        directory = tmp_path / "plain"
    else:
        mount: LiveMount = request.getfixturevalue("shared_mount")
        directory = mount.path / f"{len(os.listdir(mount.path))}-{request.function.__name__[:60]}"
    directory.mkdir()
    directory.chmod(0o777)
    return directory
