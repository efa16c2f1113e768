"""Old versions, as commands."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from care.garbage import Work, bytes_like

from control.conftest import Desk
from control.test_collecting import ask, refused
from mountstore.blobs.digest import Digest
from mountstore.blobs.opening import open_to_read
from mountstore.care import scrub
from mountstore.care.notes import read_notes
from mountstore.namespace.inodes import ROOT

pytestmark = pytest.mark.trio


@pytest.fixture
def work(desk: Desk) -> Work:
    return Work(desk.store)


@pytest.fixture
def forgotten(desk: Desk) -> list[tuple[int, bytes]]:
    """What the kernel is told to forget."""
    told: list[tuple[int, bytes]] = []

    async def forget(parent: int, name: bytes) -> None:
        told.append((parent, name))

    desk.services.invalidate = forget
    return told


async def content_of(work: Work, name: bytes, parent: int = ROOT) -> bytes:
    inode = work.find(name, parent)
    return await work.store.files.read(inode, 0, 100)


async def test_versions(desk: Desk, work: Work) -> None:
    for text in (b"one", b"two", b"three"):
        await work.save(b"f\xff g", text)
    quoted = "'/f\udcff g'"
    rows: list[dict[str, Any]] = (await ask(desk, f"versions {quoted}"))["rows"]
    assert [(row["version"], row["bytes"], row["current"]) for row in rows] == [
        (1, 3, False),
        (2, 3, False),
        (3, 5, True),
    ]
    assert rows[0]["blob"] == Digest.of(b"one").name
    assert rows[0]["mode"] == "0644"
    assert rows[0]["superseded"].endswith("Z")
    assert rows[2]["superseded"] is None
    assert await refused(desk, "versions /absent") == "AbsentError"
    assert await refused(desk, "versions /") == "FoundDirectoryError"


async def test_restore(desk: Desk, work: Work, forgotten: list[tuple[int, bytes]]) -> None:
    for text in (b"one", b"two", b"three"):
        await work.save(b"f", text)
    old = work.find(b"f").id
    assert (await ask(desk, "restore /f@1"))["path"] == "/f"
    assert await content_of(work, b"f") == b"one"
    assert work.find(b"f").id != old
    assert forgotten == [(ROOT, b"f")]
    assert len((await ask(desk, "versions f"))["rows"]) == 4
    await ask(desk, "restore f@2")
    assert await content_of(work, b"f") == b"two"
    for already in ("f@5", "f@2100-01-01"):
        assert (await ask(desk, f"restore {already}"))["bytes"] == 3
    assert len((await ask(desk, "versions f"))["rows"]) == 5
    for unsaid in ("f", "/f", "f@"):
        assert await refused(desk, f"restore {unsaid}") == "MisuseError"
    assert await refused(desk, "restore f@1970-02-01") == "AbsentError"
    assert await refused(desk, "restore /f@99") == "AbsentError"
    assert await refused(desk, "restore /") == "FoundDirectoryError"


async def test_nothing_is_left_of_what_restore_replaces(desk: Desk, work: Work) -> None:
    """The kernel says that it forgets a file only if it knew it."""
    for text in (b"one", b"two"):
        await work.save(b"f", text)
    known = work.find(b"f").id
    desk.services.trees.kernel_knows = lambda inode: inode == known
    for number in range(1, 6):
        await ask(desk, f"restore f@{1 + number % 2}")
    assert desk.store.namespace.displaced == []
    assert [inode.id for inode in desk.store.namespace.forget_all()] == [known]


async def test_restore_to_another_path(desk: Desk, work: Work, forgotten: list[tuple[int, bytes]]) -> None:
    below = work.directory(b"d")
    await work.save(b"f", b"one")
    await work.save(b"f", b"two")
    await work.save(b"g", b"else", below.id)
    assert (await ask(desk, "restore /f@1 --to d/new"))["path"] == "d/new"
    assert await content_of(work, b"new", below.id) == b"one"
    await ask(desk, "restore /f@1 --to /d/g")
    assert await content_of(work, b"g", below.id) == b"one"
    assert await content_of(work, b"f") == b"two"
    assert forgotten == [(below.id, b"new"), (below.id, b"g")]
    assert len((await ask(desk, "versions /d/g"))["rows"]) == 2
    for path, error in (
        ("/", "MisuseError"),
        ("/d/..", "MisuseError"),
        ("/d", "FoundDirectoryError"),
        ("/no/where", "AbsentError"),
        ("/f/below", "WantsDirectoryError"),
        ("/" + "x" * 256, "NameTooLongError"),
    ):
        assert await refused(desk, f"restore /f@1 --to {path}") == error, path


@pytest.mark.parametrize("size", [3, 3 << 20], ids=["one blob", "pieces"])
async def test_what_is_lost_is_not_restored(desk: Desk, work: Work, size: int) -> None:
    below = work.directory(b"d")
    await work.save(b"f", bytes_like(1, size), below.id)
    await work.save(b"f", b"another", below.id)
    await work.save(b"kept", b"kept", below.id)
    blobs = [path for digest, path in desk.store.tree.walk() if digest.size_bytes > 10 or digest.size_bytes == 3]
    os.unlink(max(blobs, key=lambda path: os.stat(path).st_size))
    for line in ("restore d/f@1", "restore d/f@1 --to g"):
        assert await refused(desk, line) == "BlobMissingError"
    assert desk.store.namespace.find(ROOT, b"g") is None
    assert await content_of(work, b"f", below.id) == b"another"
    # Not even if it is what the file has.
    await work.save(b"now", bytes_like(2, size), below.id)
    os.unlink(max((path for _, path in desk.store.tree.walk()), key=lambda path: os.stat(path).st_mtime_ns))
    assert await refused(desk, "restore d/now@1") == "BlobMissingError"


async def test_restore_of_a_directory(desk: Desk, work: Work, forgotten: list[tuple[int, bytes]]) -> None:
    below = work.directory(b"d")
    await work.save(b"f", b"one", below.id)
    await work.save(b"g", b"two", below.id)
    found = await ask(desk, "restore d@2100-01-01T00:00:00Z --to then")
    assert (found["path"], found["files"], found["failed"]) == ("then", 2, 0)
    assert await content_of(work, b"f", work.find(b"then").id) == b"one"
    assert forgotten == [(ROOT, b"then")]
    assert await refused(desk, "restore d@2100-01-01 --to then") == "ExistsError"
    assert await refused(desk, "restore d@2100-01-01") == "ExistsError"
    assert await refused(desk, "restore d@1970-02-01 --to new") == "AbsentError"
    assert await refused(desk, "restore d") == "FoundDirectoryError"
    assert await refused(desk, "restore d@1") == "FoundDirectoryError"


async def test_a_name_with_an_at_sign(desk: Desk, work: Work, forgotten: list[tuple[int, bytes]]) -> None:
    await work.save(b"f@1", b"one")
    await work.save(b"f@1", b"two")
    await ask(desk, "restore /f@1@1")
    assert await content_of(work, b"f@1") == b"one"
    assert forgotten == [(ROOT, b"f@1")]


async def test_undelete(desk: Desk, work: Work, forgotten: list[tuple[int, bytes]]) -> None:
    await work.save(b"f", b"text")
    await work.unlink(b"f")
    await ask(desk, "undelete /f")
    assert await content_of(work, b"f") == b"text"
    assert forgotten == [(ROOT, b"f")]
    assert await refused(desk, "undelete /f") == "ExistsError"
    assert await refused(desk, "undelete /g") == "AbsentError"


async def test_diff(desk: Desk, work: Work) -> None:
    for text in (b"abcdef", b"abcXef", b"abcXef and more"):
        await work.save(b"f", text)
    found = await ask(desk, "diff /f 1 2")
    assert (found["same_bytes"], found["first_difference"]) == (False, 3)
    assert [row["version"] for row in found["rows"]] == [1, 2]
    found = await ask(desk, "diff f @2")
    assert found["first_difference"] == 6
    assert "bytes" in found["changed"]
    assert (await ask(desk, "diff f 3 3"))["same_bytes"] is True
    assert await refused(desk, "diff f 9") == "AbsentError"
    assert await refused(desk, "diff f yesterday") == "MisuseError"


async def test_policy(desk: Desk, work: Work) -> None:
    work.directory(b"d")
    inner = work.directory(b"e", work.find(b"d").id)
    await work.save(b"f", b"x")
    assert (await ask(desk, "policy /d"))["words"] is None
    found = await ask(desk, "policy /d keep_last=3 thin=none")
    assert found["words"] == "keep_last=3 thin=none"
    assert found["policy"]["keep_last"] == 3
    found = await ask(desk, "policy d/e 'off keep_days=inf'")
    assert (found["policy"]["enabled"], found["policy"]["keep_last"]) == (False, 3)
    assert found["policy"]["keep_days"] == "inf"
    assert desk.store.attributes.get(inner, b"user.mountstore.versions") == b"off keep_days=inf"
    assert (await ask(desk, "policy --clear d"))["words"] is None
    assert (await ask(desk, "policy d/e"))["policy"]["keep_last"] == 10
    assert (await ask(desk, "policy /"))["policy"]["keep_last"] == 10
    assert await refused(desk, "policy d nonsense") == "MisuseError"
    assert await refused(desk, "policy d on --clear") == "MisuseError"
    assert await refused(desk, "policy f") == "WantsDirectoryError"
    for line in ("policy ../d", "info d/../f", "versions ../f", "restore f@1 --to d/../g"):
        assert await refused(desk, line) == "MisuseError", line


async def test_scrub_finds_what_is_damaged(desk: Desk, work: Work, caplog: pytest.LogCaptureFixture) -> None:
    await work.save(b"good", b"good")
    await work.save(b"bad", b"bad!")
    assert (await ask(desk, "scrub"))["damaged_blobs"] == 0
    path = desk.store.tree.find(Digest.of(b"bad!"))
    assert path is not None
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"BAD!")
    for line in ("scrub", "scrub --full", "scrub --rate 100"):
        found = await ask(desk, line)
        assert (found["blobs"], found["bytes"]) == (2, 8)
        assert found["damaged"] == [Digest.of(b"bad!").name]
    assert "is damaged" in caplog.text
    notes = f"{desk.store.path}/fsck.json"
    assert [bad.name for bad in read_notes(notes).bad_blobs] == [Digest.of(b"bad!").name]
    assert read_notes(notes).errors == 1
    assert desk.services.statistics.scrub_damaged_blobs == 3
    assert await refused(desk, f"pin {Digest.of(b'bad!').name}") == "AbsentError"
    # The same content, written again, heals it.
    await work.save(b"bad", b"other")
    await work.save(b"bad", b"bad!")
    assert (await ask(desk, "scrub"))["damaged_blobs"] == 0
    assert await content_of(work, b"bad") == b"bad!"


async def test_scrub_counts_what_the_disk_does_not_give(
    desk: Desk, work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await work.save(b"good", b"good")
    await work.save(b"bad", b"bad!")

    def read(path: str) -> int:
        if path.endswith(Digest.of(b"bad!").name):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_to_read(path)

    monkeypatch.setattr(scrub, "open_to_read", read)
    found = await ask(desk, "scrub")
    assert (found["unreadable_blobs"], found["damaged_blobs"]) == (1, 0)
    assert "Input/output error" in caplog.text
    # It may be read another time, but a check before the next mount has to look.
    notes = read_notes(f"{desk.store.path}/fsck.json")
    assert (notes.errors, notes.bad_blobs) == (1, [])


async def test_sync_and_numbers(desk: Desk, work: Work) -> None:
    await work.save(b"f", b"x")
    await work.save(b"g", b"x")
    before = (await ask(desk, "stats"))["syncs"]
    await ask(desk, "sync")
    counted = await ask(desk, "stats")
    assert counted["syncs"] == before + 1
    assert (counted["new_blobs"], counted["deduplicated_blobs"]) == (1, 1)
    status = await ask(desk, "status")
    assert (status["store"], status["read_only"], status["in_doubt"]) == (desk.store.path, False, False)
    assert status["disk_bytes"] > status["disk_free_bytes"] > 0
