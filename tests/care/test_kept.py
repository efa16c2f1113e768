"""What was set aside: listed, removed; and only what belongs to a file that exists is kept at all."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from care.damage import Specimen
from mountstore.care.checking import check_store
from mountstore.care.findings import Kind
from mountstore.care.kept import Kept, KeptKind, list_kept, purge_kept
from mountstore.care.repair import repair_store
from mountstore.namespace.inodes import ROOT
from mountstore.store import Store

NEVER_MADE = 1 << 40


def shown(kept: list[Kept]) -> list[tuple[KeptKind, str, int, int | None]]:
    return [(file.kind, os.path.basename(file.path), file.size_bytes, file.inode) for file in kept]


def test_what_was_set_aside_is_listed_and_removed(specimen: Specimen) -> None:
    store = specimen.path
    assert list_kept(str(store)) == []
    (store / "staging/kept").mkdir(parents=True)
    (store / "staging/kept/draft-7-abc").write_bytes(b"four")
    (store / "bad").mkdir(exist_ok=True)
    blob = store / "bad" / ("0" * 64 + "_3")
    blob.write_bytes(b"bad")
    (store / "bad/notes.txt").write_bytes(b"")
    os.utime(blob, (1, 1))
    expected = [
        (KeptKind.DRAFT, "draft-7-abc", 4, 7),
        (KeptKind.BLOB, blob.name, 3, None),
        (KeptKind.FOREIGN, "notes.txt", 0, None),
    ]
    assert shown(list_kept(str(store))) == expected
    assert shown(purge_kept(str(store), older_than_s=3600, dry_run=True)) == [expected[1]]
    assert shown(purge_kept(str(store), older_than_s=3600)) == [expected[1]]
    assert shown(list_kept(str(store))) == [expected[0], expected[2]]
    assert len(purge_kept(str(store))) == 2
    assert list_kept(str(store)) == []
    assert not check_store(str(store)).errors


def leave_drafts(store: Path, existing: int, removed: int) -> None:
    for inode in (existing, removed, NEVER_MADE):
        (store / f"staging/draft-{inode}-1").write_bytes(b"draft")


async def make_and_remove(path: Path) -> tuple[int, int]:
    """Numbers of an inode that exists, and of one that did."""
    async with Store.open(str(path)).running() as store:
        directory = store.namespace.get(ROOT)
        files = [(name, inode) for _, name, inode in store.namespace.listing(directory, 0) if inode.is_regular]
        (name, removed), (_, existing) = files[:2]
        store.namespace.unlink(ROOT, name)
        return existing.id, removed.id


def test_a_mount_keeps_drafts_but_for_those_of_removed_files(specimen: Specimen) -> None:
    existing, removed = trio.run(make_and_remove, specimen.path)
    leave_drafts(specimen.path, existing, removed)

    async def mount() -> None:
        async with Store.open(str(specimen.path)).running():
            pass

    trio.run(mount)
    assert {file.inode for file in list_kept(str(specimen.path))} == {NEVER_MADE, existing}
    assert [name for name in os.listdir(specimen.path / "staging") if name != "kept"] == []


def test_a_repair_keeps_the_same(specimen: Specimen) -> None:
    existing, removed = trio.run(make_and_remove, specimen.path)
    leave_drafts(specimen.path, existing, removed)
    assert check_store(str(specimen.path)).counts == {Kind.STAGING_LEFTOVER: 3}
    assert repair_store(str(specimen.path), approve=lambda report: True).after.counts == {}
    assert {file.inode for file in list_kept(str(specimen.path))} == {NEVER_MADE, existing}
