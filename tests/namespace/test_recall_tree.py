"""A directory as it was, made again."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest
import trio

from mountstore.blobs.clock import now_ns
from mountstore.blobs.digest import Digest
from mountstore.errors import AbsentError, ExistsError, MisuseError, NoSpaceError, WantsDirectoryError
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.notation import Instant
from namespace.test_versions import CALLER, Program, program

pytestmark = pytest.mark.trio


def instant() -> Instant:
    """Now, by the clock of the store; what is done next is later."""
    now = now_ns()
    while now_ns() <= now:
        pass
    return Instant(now)


def make_directory(p: Program, name: bytes, parent: int = ROOT, mode: int = 0o750) -> int:
    return p.store.namespace.create(parent, name, stat.S_IFDIR | mode, CALLER).id


def names(p: Program) -> list[bytes]:
    return sorted(name for _, name, _ in p.store.namespace.listing(p.store.namespace.get(ROOT), 2))


async def tree(p: Program, directory: int) -> dict[bytes, bytes | int]:
    """Contents of files, targets of links, modes of directories, by path."""
    found: dict[bytes, bytes | int] = {}
    waiting = [(b"", directory)]
    while waiting:
        above, number = waiting.pop()
        entries = [(name, inode) for _, name, inode in p.store.namespace.listing(p.store.namespace.get(number), 2)]
        for name, inode in entries:
            if inode.is_directory:
                found[above + name] = inode.mode
                waiting.append((above + name + b"/", inode.id))
            else:
                target = inode.target
                found[above + name] = target if target is not None else await p.store.files.read(inode, 0, 1 << 30)
    return found


def blobs(path: Path) -> set[str]:
    return {name for _, _, names in os.walk(path / "store/blobs") for name in names}


def inode_of(p: Program, path: bytes) -> Inode:
    inode = p.store.namespace.get(ROOT)
    for part in path.split(b"/"):
        inode = p.find(part, inode.id)
    return inode


async def test_a_directory_comes_back_as_it_was_and_nothing_is_copied(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        top = make_directory(p, b"d")
        inner = make_directory(p, b"inner", top, 0o711)
        make_directory(p, b"empty", top)
        await p.save(b"f", b"first", parent=top)
        await p.save(b"same", b"always", parent=top)
        await p.save(b"gone", b"to be removed", parent=inner)
        await p.save(b"large", random.Random(1).randbytes(9_000_000), parent=inner)
        p.store.namespace.create(top, b"link", stat.S_IFLNK | 0o777, CALLER, target=b"f")
        then = instant()
        expected = await tree(p, top)
        mtime_ns = inode_of(p, b"d/inner/large").mtime_ns
        await p.save(b"f", b"second", parent=top)
        await p.save(b"later", b"later", parent=top)
        p.unlink(b"gone", inner)
        p.unlink(b"large", inner)
        p.store.namespace.rmdir(top, b"inner")
        before = blobs(tmp_path)
        restored = await p.store.tree_recall.restore(b"/d", then, to=b"/again")
        assert await tree(p, restored.inode) == expected
        assert restored.inode == inode_of(p, b"again").id
        assert (restored.files, restored.directories, restored.links, restored.failed) == (4, 2, 1, [])
        assert blobs(tmp_path) == before
        assert inode_of(p, b"again/inner/large").mtime_ns == mtime_ns
        # What there is now is as it was.
        assert await p.store.files.read(inode_of(p, b"d/f"), 0, 100) == b"second"
        assert names(p) == [b"again", b"d"]
    async with program(tmp_path) as p:
        assert await tree(p, inode_of(p, b"again").id) == expected


async def test_a_removed_directory_takes_its_name_again(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        top = make_directory(p, b"d", mode=0o700)
        await p.save(b"f", b"inside", parent=top)
        p.store.namespace.set_attributes(p.store.namespace.get(top), CALLER, uid=12, gid=34)
        then = instant()
        p.unlink(b"f", top)
        p.store.namespace.rmdir(ROOT, b"d")
        await p.store.tree_recall.restore(b"/d", then)
        assert await tree(p, inode_of(p, b"d").id) == {b"f": b"inside"}
        found = inode_of(p, b"d")
        assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o700, 12, 34)
        # The root, too, under another name: it does not hold its own copy.
        await p.store.tree_recall.restore(b"/", instant(), to=b"all")
        assert await tree(p, inode_of(p, b"all").id) == {b"d": found.mode, b"d/f": b"inside"}


async def test_what_cannot_be_restored_changes_nothing(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        long_ago = instant()
        top = make_directory(p, b"d")
        await p.save(b"f", b"inside", parent=top)
        await p.save(b"g", b"a file")
        then = instant()
        restore = p.store.tree_recall.restore
        for path, when, to, error in (
            (b"/d", long_ago, b"x", AbsentError),
            (b"/none", then, b"x", AbsentError),
            (b"/g", then, b"x", WantsDirectoryError),
            (b"/g/d", then, b"x", WantsDirectoryError),
            (b"/d", then, None, ExistsError),
            (b"/d", then, b"g", ExistsError),
            (b"/d", then, b"g/x", WantsDirectoryError),
            (b"/d", then, b"none/x", AbsentError),
            (b"/d", then, b"d/x", MisuseError),
            (b"/d", then, b"/", MisuseError),
        ):
            with pytest.raises(error):
                await restore(path, when, to=to)
        assert names(p) == [b"d", b"g"]


@pytest.mark.parametrize("how", ["full", "cancelled"])
async def test_a_restore_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with program(tmp_path) as p:
        top = make_directory(p, b"d")
        inner = make_directory(p, b"inner", top)
        for number in range(300):
            await p.save(b"%d" % number, b"content %d" % number, parent=inner if number % 2 else top)
        then = instant()
        made = 0
        scope = trio.CancelScope()
        create = p.store.namespace.create

        def counted(*arguments: object, **more: object) -> Inode:
            nonlocal made
            made += 1
            if made == 200:
                if how == "full":
                    raise NoSpaceError("no room")
                scope.cancel()
            return create(*arguments, **more)  # type: ignore[arg-type]  # as they came

        monkeypatch.setattr(p.store.namespace, "create", counted)
        if how == "full":
            with pytest.raises(NoSpaceError):
                await p.store.tree_recall.restore(b"d", then, to=b"x")
        else:
            with scope:
                await p.store.tree_recall.restore(b"d", then, to=b"x")
            assert scope.cancelled_caught
        assert made >= 200
        assert names(p) == [b"d"]
        (left,) = p.store.catalog.ask("SELECT count(*) FROM name_history").fetchone()
        assert left == 0


async def test_a_lost_content_is_told_and_the_rest_comes_back(tmp_path: Path) -> None:
    async with program(tmp_path) as p:
        top = make_directory(p, b"d")
        data = random.Random(2).randbytes(9_000_000)
        await p.save(b"log", data, parent=top)
        await p.save(b"other", b"other", parent=top)
        then = instant()
        # A manifest that is lost: how much of the content are holes cannot be said.
        await p.save(b"log", data + b"more", parent=top)
        await p.store.commits.hard_sync()
        line = p.store.timeline.line(top, b"log")
        content = p.store.timeline.get(line, 1).content
        assert content is not None and content.digest is not None
        path = p.store.tree.find(content.digest)
        assert path is not None
        os.unlink(path)
    async with program(tmp_path) as p:
        restored = await p.store.tree_recall.restore(b"d", then, to=b"x")
        assert [path for path, _ in restored.failed] == [b"log"]
        assert await tree(p, restored.inode) == {b"other": b"other"}


async def test_what_is_restored_is_not_collected_meanwhile(tmp_path: Path) -> None:
    """A collection that has dropped the version by then may take its blob between the look and the new file."""
    async with program(tmp_path) as p:
        top = make_directory(p, b"d")
        await p.save(b"f", b"one", parent=top)
        then = instant()
        await p.save(b"f", b"two", parent=top)
        digest = Digest.of(b"one")
        p.store.tree.watch()
        assert not p.store.tree.is_wanted(digest)
        await p.store.tree_recall.restore(b"d", then, to=b"e")
        assert p.store.tree.is_wanted(digest)
        assert not p.store.tree.retire(digest, str(tmp_path / "gone"))
        p.store.tree.unwatch()
        assert await tree(p, p.find(b"e").id) == {b"f": b"one"}
