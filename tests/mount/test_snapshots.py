"""Snapshots of a mount: at its end, by the clock, and when it is killed while one is taken."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from care.pictures import of_catalog, of_snapshot, refs_in

from mount.live import SCALE, LiveMount
from mountstore.blobs.refs import read_ref
from mountstore.blobs.tree import BalancedTree
from mountstore.care.snapshot_tree import SnapshotTree


def check_snapshots(store: Path) -> None:
    """Every ref leads to a whole snapshot, whose contents are all there."""
    tree = BalancedTree(str(store / "blobs"), staging=str(store / "staging"))
    for name in refs_in(store):
        snapshot = SnapshotTree(tree, read_ref(str(store / "blobs"), name).root)
        of_snapshot(snapshot)
        for content in snapshot.references():
            assert content.digest is not None
            assert tree.find(content.digest) is not None, name


def check_newest(store: Path) -> None:
    """The newest snapshot shows what the catalog has."""
    tree = BalancedTree(str(store / "blobs"), staging=str(store / "staging"))
    newest = SnapshotTree(tree, read_ref(str(store / "blobs"), refs_in(store)[0]).root)
    assert of_snapshot(newest) == of_catalog(str(store / "catalog.db"))


def test_a_mount_that_changed_something_leaves_a_snapshot_of_its_end(tmp_path: Path) -> None:
    mount = LiveMount(tmp_path)
    try:
        (mount.path / "file").write_bytes(b"written and closed")
        mount.unmount()
        assert len(refs_in(mount.store)) == 1
        check_newest(mount.store)
        mount.start()
        assert (mount.path / "file").read_bytes() == b"written and closed"
        mount.unmount()
        assert len(refs_in(mount.store)) == 1
        mount.start()
        (mount.path / "file").chmod(0o600)
        mount.terminate()
        # Two in one second have different names, and are of one hour.
        assert len(refs_in(mount.store)) == 1
        check_newest(mount.store)
    finally:
        mount.finish()


def test_nosnapshots_takes_none(tmp_path: Path) -> None:
    mount = LiveMount(tmp_path, "nosnapshots")
    try:
        (mount.path / "file").write_bytes(b"bytes")
        mount.unmount()
        assert refs_in(mount.store) == []
    finally:
        mount.finish()


def test_a_mount_that_is_killed_while_it_takes_snapshots(tmp_path: Path) -> None:
    mount = LiveMount(tmp_path, "snapshots=1")
    choice = random.Random(1)
    try:
        for round_ in range(3 * SCALE):
            ended = threading.Event()

            def write(directory: Path, ended: threading.Event) -> None:
                number = 0
                try:
                    while not ended.is_set():
                        (directory / f"{number % 100}").write_bytes(b"%d" % number)
                        (directory / f"{number % 100}").rename(directory / f"{number % 50}-renamed")
                        number += 1
                except OSError:
                    assert ended.is_set()

            directory = mount.path / f"d{round_}"
            directory.mkdir()
            writer = threading.Thread(target=write, args=(directory, ended))
            writer.start()
            ended.wait(1.0 + choice.random())
            ended.set()
            mount.kill()
            writer.join()
            check_snapshots(mount.store)
            mount.start()
        assert refs_in(mount.store)
        mount.unmount()
        check_snapshots(mount.store)
        check_newest(mount.store)
    finally:
        mount.finish()
