"""How long the mount of a store with very many files takes after kill -9.

    python -m durability.million --files 1000000
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mount.live import LiveMount

from durability.load import Client
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest, checksum
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

_PER_DIRECTORY = 1000


def make_store(path: str, files: int) -> None:
    """A store whose catalog has so many files, a thousand in each directory; none of their blobs exists."""
    create_store(path)
    store = Store.open(path)
    try:
        caller = Caller(0, 0)
        for number in range(files):
            if number % _PER_DIRECTORY == 0:
                store.commits.commit()
                directory = store.namespace.create(ROOT, b"d%d" % (number // _PER_DIRECTORY), 0o040755, caller)
            inode = store.namespace.create(directory.id, b"file-%d.jpg" % number, 0o100644, caller)
            data = b"%d" % number
            digest = Digest.of(data)
            inode.content = Content(ContentKind.BLOB, digest, digest.size_bytes)
            inode.size = inode.allocated = digest.size_bytes
            store.catalog.add_blobs([(digest.sha256, digest.size_bytes, checksum(data))])
            if number % 50_000 == 49_999:
                store.commits.commit()
                store.catalog.checkpoint()
        store.commits.commit()
    finally:
        store._close()


def time_mount_after_kill(mount: LiveMount, *, seconds: float) -> float:
    """Work in a mount for a while, kill it, and mount it again; returns how long that took, in seconds."""
    directory = mount.path / f"work-{time.monotonic_ns()}"
    directory.mkdir()
    client = Client(directory, 1)
    client.start()
    time.sleep(seconds)
    client.expect_crash()
    mount.kill()
    client.stop()
    started = time.monotonic()
    mount.start()
    os.stat(mount.path)
    return time.monotonic() - started


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="scripts/million")
    parser.add_argument("--files", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    base = Path(tempfile.mkdtemp(prefix="million-"))
    try:
        started = time.monotonic()
        make_store(str(base / "store"), options.files)
        print(f"made {options.files} files in {time.monotonic() - started:.0f} s", flush=True)
        mount = LiveMount(base, checked=False)
        try:
            for _ in range(3):
                took_s = time_mount_after_kill(mount, seconds=4)
                print(f"mounted after kill -9 in {took_s:.2f} s, the start of Python included", flush=True)
        finally:
            mount.unmount()
    finally:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
