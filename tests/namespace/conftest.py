"""A store in this process, at work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mountstore.store import Store
from mountstore.store.create import create_store

OpenStore = Callable[..., AbstractAsyncContextManager[Store]]

PIECE_MAX = 64 << 10
"""Small, so that a file of some hundred KiB is a manifest."""


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    """A new store whose files become manifests beyond `PIECE_MAX`."""
    path = str(tmp_path / "store")
    create_store(path, piece_max=PIECE_MAX)
    return path


@pytest.fixture
async def store(store_path: str) -> AsyncIterator[Store]:
    """An open store that commits and syncs."""
    async with Store.open(store_path).running() as store:
        yield store
