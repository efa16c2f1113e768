"""Copies of a small store, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from care.damage import Specimen, make_interrupted, make_specimen


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return make_specimen(tmp_path_factory.mktemp("specimen") / "store")


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
