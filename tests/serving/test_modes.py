"""Who can get at the files of a store past its mount."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from mountstore.care.pins import Pins
from mountstore.care.snapshots import Snapshots
from mountstore.store import Store
from mountstore.store.create import create_store


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize(("before", "after"), [(None, 0o700), (0o755, 0o750), (0o2777, 0o2770)])
def test_others_get_nothing_of_a_new_store(tmp_path: Path, before: int | None, after: int) -> None:
    path = tmp_path / "store"
    if before is not None:
        path.mkdir()
        path.chmod(before)
    create_store(str(path))
    assert mode_of(path) == after


@pytest.mark.parametrize("mode", [0o750, 0o2750])
@pytest.mark.trio
async def test_blobs_have_the_group_of_their_root(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "store"
    create_store(str(path))
    blobs = path / "blobs"
    gid = 4711 if os.geteuid() == 0 else os.getgroups()[-1]  # only root may give files to any group
    os.chown(blobs, -1, gid)
    blobs.chmod(mode)
    async with Store.open(str(path)).running() as store:
        placed = Path(store.tree.add_bytes(b"content").path)
    assert [(p.stat().st_gid, mode_of(p)) for p in (placed, placed.parent)] == [(gid, 0o444), (gid, mode)]


def test_a_group_that_is_let_in_gets_blobs_only(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create_store(str(path))

    async def use() -> None:
        async with Store.open(str(path)).running() as store:
            for file in path.glob("catalog.db*"):
                assert mode_of(file) == 0o600, file
            assert len(list(path.glob("catalog.db*"))) > 1
            await Snapshots(store).take("one")
            await Pins(store).add(b"list", [])

    trio.run(use)
    # From a ref everything can be reached.
    assert mode_of(path / "blobs" / "refs") == 0o700
    assert mode_of(path / "blobs" / "refs" / "one") == 0o600
    assert mode_of(path / "pins") == 0o700
    assert mode_of(path / "catalog.db") == 0o600
    assert mode_of(path / "staging") == 0o700
