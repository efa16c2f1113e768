"""Copies of a small store, made once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from care.damage import Specimen, make_interrupted, make_specimen


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return make_specimen(tmp_path_factory.mktemp("specimen") / "store")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: hundreds of stores are made, each flushed several times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="care-") as directory:
        yield Path(directory)


@pytest.fixture
def specimen(original: Specimen, tmp_path: Path) -> Specimen:
    return original.copy(tmp_path / "store")


@pytest.fixture(scope="session")
def interrupted_original(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return make_interrupted(tmp_path_factory.mktemp("interrupted") / "store", tmp_path_factory.mktemp("x") / "s")


@pytest.fixture
def interrupted(interrupted_original: Specimen, tmp_path: Path) -> Specimen:
    """As `kill -9` leaves a store."""
    return interrupted_original.copy(tmp_path / "interrupted")
