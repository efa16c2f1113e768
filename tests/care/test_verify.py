"""A directory of blobs is checked by its names alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from care.damage import overwrite
from care.recovery import NEW, Lost, make_lost
from mountstore.blobs.digest import Digest
from mountstore.care.verify import verify_blobs
from mountstore.errors import StoreError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return make_lost(tmp_path_factory.mktemp("source") / "store")


@pytest.fixture
def lost(source: Lost, tmp_path: Path) -> Lost:
    return source.to(tmp_path / "copy")


def sha256sum(blobs: Path) -> set[str]:
    """What coreutils think is damaged."""
    names = sorted(path for path in blobs.rglob("*_*") if "refs" not in path.parts)
    lines = "".join(f"{path.name[:64]}  {path}\n" for path in names)
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet"], input=lines, capture_output=True, text=True, check=False
    )
    return {line.partition(": ")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("full", [True, False])
def test_a_sound_copy(lost: Lost, full: bool) -> None:
    before = sorted(os.listdir(lost.blobs))
    for path in (lost.path, lost.blobs):
        found = verify_blobs(str(path), full=full)
        assert found.ok
        assert found.blobs == sum(1 for _ in lost.blobs.rglob("*_*"))
        assert [snapshot.ref.name for snapshot in found.snapshots] == ["second", "first"]
    assert sorted(os.listdir(lost.blobs)) == before
    assert not sha256sum(lost.blobs)


def test_changed_bytes(lost: Lost) -> None:
    paths = [lost.content(NEW), lost.content(b"version 7")]
    for path in paths:
        overwrite(path, 3, b"?")
    found = verify_blobs(str(lost.blobs))
    assert not found.ok
    damaged = {line.partition(": ")[0] for line in found.damaged}
    assert damaged == {str(path) for path in paths} == sha256sum(lost.blobs)
    assert [snapshot.flaw_count for snapshot in found.snapshots] == [2, 2]
    assert verify_blobs(str(lost.blobs), full=False).ok, "sizes are right"


def test_missing_and_cut_blobs(lost: Lost) -> None:
    lost.content(b"the last one").unlink()
    cut = lost.content(b"version 7")
    cut.chmod(0o644)
    cut.write_bytes(b"vers")
    for full in (True, False):
        found = verify_blobs(str(lost.blobs), full=full)
        assert not found.ok
        assert len(found.damaged) == 1
        assert [snapshot.flaw_count for snapshot in found.snapshots] == [2, 1]
        assert {flaw.blob for flaw in found.snapshots[0].flaws} == {
            Digest.of(b"the last one").name,
            Digest.of(b"version 7").name,
        }


def test_a_bad_ref(lost: Lost) -> None:
    (lost.blobs / "refs" / "third").write_text("not a ref")
    (lost.blobs / "refs" / ".fourth.tmp").write_text("half of one")
    found = verify_blobs(str(lost.blobs))
    assert not found.ok
    assert [bad.name for bad in found.bad_refs] == ["third"]


def test_no_blobs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a directory of blobs"):
        verify_blobs(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()
    assert verify_blobs(str(tmp_path)).blobs == 0
    (tmp_path / "something").write_text("else")
    with pytest.raises(StoreError, match="it has none"):
        verify_blobs(str(tmp_path))
