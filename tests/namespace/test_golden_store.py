"""A store that an earlier release made stays readable, and can be worked on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from golden.make_store import PIECE_MAX, ROOT_USER, describe, noise
from mount.consistency import check_store

from mountstore.store import Store
from mountstore.store.config import STORE_FORMAT

GOLDEN = Path(__file__).parent.parent / "golden"
pytestmark = pytest.mark.trio


@pytest.fixture(params=range(1, STORE_FORMAT + 1))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the golden store of each format."""
    path = tmp_path / f"store-{request.param}"
    shutil.copytree(GOLDEN / path.name, path)
    shutil.copy(GOLDEN / f"{path.name}.json", tmp_path)
    # What version control does not keep.
    for directory, _, names in os.walk(path / "blobs"):
        for name in names:
            os.chmod(os.path.join(directory, name), 0o444)
    return path


async def test_everything_in_it_is_found(golden: Path) -> None:
    expected = json.loads(golden.with_suffix(".json").read_text())
    for read_only in (True, False):
        async with Store.open(str(golden), read_only=read_only).running() as store:
            assert await describe(store) == expected
    check_store(golden)


async def test_it_can_be_written_to(golden: Path) -> None:
    async with Store.open(str(golden)).running() as store:
        large = store.namespace.find(1, b"large")
        assert large is not None
        blobs = {digest for digest, _ in store.tree.walk()}
        copy = store.namespace.create(1, b"copy", 0o100644, ROOT_USER)
        handle = store.files.open(copy, writable=True, privileged=True)
        await store.files.write(handle, 0, noise(1, 130_000))
        await store.files.release(handle)
        # Cut as it was then: not one new blob.
        assert copy.content == large.content
        assert {digest for digest, _ in store.tree.walk()} == blobs
        handle = store.files.open(large, writable=True, privileged=True)
        await store.files.write(handle, 50_000, b"changed")
        await store.files.release(handle)
        around = noise(1, 50_009)
        assert await store.files.read(large, 49_998, 11) == around[49_998:50_000] + b"changed" + around[-2:]
        assert len({digest for digest, _ in store.tree.walk()} - blobs) * PIECE_MAX < 100_000
    check_store(golden)
