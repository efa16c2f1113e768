"""What programs wrote comes back from the blobs alone: by a mount, and by a reader that needs no package."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import trio

from mount.conftest import MountMaker
from mount.live import LiveMount, run
from mount.picture import picture
from mountstore.blobs.digest import Digest
from mountstore.care.snapshots import Snapshots
from mountstore.namespace.listing import begins
from mountstore.store import Store

READER = Path(__file__).parents[2] / "scripts" / "read-store"
PIECE_MAX = 64 << 10


def noise(seed: int, size: int) -> bytes:
    return b"".join(Digest.of(b"%d.%d" % (seed, i)).sha256 for i in range(size // 32 + 1))[:size]


def write_everything(top: Path) -> None:
    """One of each kind of file, by ordinary means."""
    (top / "small").write_bytes(b"a few bytes")
    (top / "empty").touch()
    (top / "large").write_bytes(noise(1, 3_000_000))
    with open(top / "holes", "wb") as file:
        file.seek(1 << 30)
        file.write(noise(2, 200_000))
        file.truncate(3 << 30)
    deep = top
    for level in range(30):
        deep = deep / f"level {level}"
        deep.mkdir(mode=0o750)
    (deep / "\udcff\n odd").write_bytes(b"deep down")
    os.link(deep / "\udcff\n odd", top / "second name")
    os.symlink("level 0/nowhere", top / "pointer")
    os.mkfifo(top / "pipe", 0o620)
    os.mknod(top / "device", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)
    (top / "nothing in it").mkdir()
    many = top / "many"
    many.mkdir()
    # Some names are chosen so that the listing has an index of two levels.
    for name in [f"{n}" for n in range(120_000) if n < 1500 or begins(b"%d" % n, 1)]:
        (many / name).write_text(name)
    os.setxattr(top / "small", "user.colour", b"\0\x01blue")
    os.setxattr(many, "user.many", noise(3, 3000))
    os.setxattr(top / "large", "trusted.secret", b"")
    os.chown(top / "small", 1234, 4321)
    os.chmod(top / "small", 0o6755)
    os.utime(top / "large", ns=(1_000_000_001, -7_000_000_003))
    run("setfacl", "-m", "u:1234:r", top / "empty")


def fill(make_mount: MountMaker) -> tuple[LiveMount, dict[bytes, object]]:
    """Returns: A store that is not mounted any more, with a snapshot `all`, and what was seen in it."""
    mount = make_mount("acl", piece_max=PIECE_MAX)
    write_everything(mount.path)
    # Overwritten and removed: no part of what is seen.
    (mount.path / "empty").write_bytes(b"for a moment")
    (mount.path / "empty").write_bytes(b"")
    (mount.path / "gone").write_bytes(b"gone")
    (mount.path / "gone").unlink()
    seen: dict[bytes, object] = dict(picture(mount.path))
    mount.unmount()

    async def take() -> None:
        async with Store.open(str(mount.store)).running() as store:
            await Snapshots(store).take("all")

    trio.run(take)
    return mount, seen


def test_the_blobs_alone_bring_everything_back(make_mount: MountMaker, tmp_path: Path) -> None:
    mount, seen = fill(make_mount)

    extracted = tmp_path / "extracted"
    command = [sys.executable, "-I", "-S", str(READER), str(mount.store / "blobs"), str(extracted), "all"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "snapshot all extracted" in said
    assert picture(extracted) == seen
    assert os.stat(extracted / "large").st_mtime_ns == -7_000_000_003
    assert os.stat(extracted / "holes").st_blocks * 512 < 1 << 20
    shutil.rmtree(extracted)

    copy = tmp_path / "copy"
    copy.mkdir()
    run("rsync", "-a", mount.store / "blobs", copy)
    shutil.rmtree(mount.store)
    os.rename(copy, mount.store)
    mount.announce("has no catalog; one is made from the blobs")
    mount.announce("made from snapshot|store.toml was made again")
    mount.start()
    assert dict(picture(mount.path)) == seen
    assert (mount.path / ".versions" / "gone" / "1").read_bytes() == b"gone"
    (mount.path / "small").write_bytes(b"and it goes on")
    mount.remount()
    assert (mount.path / "small").read_bytes() == b"and it goes on"


def test_the_reader_refuses_what_is_damaged(make_mount: MountMaker, tmp_path: Path) -> None:
    mount = make_mount()
    (mount.path / "file").write_bytes(b"some bytes")
    mount.unmount()
    mount.start()
    (mount.path / "file2").write_bytes(b"others")
    mount.unmount()
    name = Digest.of(b"some bytes").name
    (blob,) = (mount.store / "blobs").rglob(name)
    blob.chmod(0o644)
    blob.write_bytes(b"some bytez")
    command = [sys.executable, str(READER), str(mount.store / "blobs"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{name} is damaged" in done.stderr
    done = subprocess.run([*command, "no-such"], capture_output=True, text=True, check=False)
    assert "no such snapshot; there are: auto-" in done.stderr
    blob.write_bytes(b"some bytes")
    blob.chmod(0o444)
