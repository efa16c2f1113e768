"""`resize`: which files come of it, under which names, what is remembered, and what a failure leaves."""

from __future__ import annotations

import stat
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from images.pictures import animation, corners, decoded, encoded, quarters
from PIL import Image

from control.conftest import Desk, answers, desk_of
from mountstore.care.gc import collect
from mountstore.care.gc_report import Options
from mountstore.control.conversation import CommandFailedError
from mountstore.control.imaging import resize
from mountstore.images.job import Format, new_job
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller
from mountstore.store import Store
from mountstore.store.create import create_store

pytestmark = pytest.mark.trio

CALLER = Caller(1000, 1000)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    # So that a photograph is a manifest.
    create_store(str(tmp_path / "store"), piece_max=16 << 10)
    async with desk_of(tmp_path / "store") as made:
        yield made
        await made.services.images.aclose()


def find(store: Store, path: str) -> Inode:
    inode = store.namespace.get(ROOT)
    for part in path.strip("/").split("/"):
        found = store.namespace.find(inode.id, part.encode("utf-8", "surrogateescape"))
        assert found is not None, path
        inode = found
    return inode


def names(store: Store, path: str = "") -> set[str]:
    directory = find(store, path) if path else store.namespace.get(ROOT)
    return {name.decode("utf-8", "surrogateescape") for name, _ in store.timeline.entries(directory.id)}


async def remove(store: Store, name: str) -> None:
    inode = store.namespace.unlink(ROOT, name.encode())
    for unused in store.namespace.forget([inode.id]):
        await store.files.drop(unused)


async def write(store: Store, path: str, data: bytes, mode: int = 0o640) -> Inode:
    above, _, name = path.rpartition("/")
    directory = find(store, above).id if above else ROOT
    encoded_name = name.encode("utf-8", "surrogateescape")
    inode = store.namespace.find(directory, encoded_name)
    if inode is None:
        inode = store.namespace.create(directory, encoded_name, stat.S_IFREG | mode, CALLER)
    else:
        await store.files.truncate(inode, 0, privileged=True)
    handle = store.files.open(inode, writable=True, privileged=True)
    await store.files.write(handle, 0, data)
    await store.files.release(handle)
    return inode


async def read(store: Store, path: str) -> bytes:
    inode = find(store, path)
    return await store.files.read(inode, 0, inode.size)


def mkdir(store: Store, path: str) -> None:
    above, _, name = path.rpartition("/")
    directory = find(store, above).id if above else ROOT
    store.namespace.create(directory, name.encode(), stat.S_IFDIR | 0o750, CALLER)


async def result(desk: Desk, line: str) -> dict[str, Any]:
    found = await desk.ask(line)
    assert found[-1]["type"] == "result"
    return found[-1]


async def refused(desk: Desk, line: str) -> str:
    conversation = desk.open()
    with suppress(CommandFailedError):
        await conversation.write(line.encode() + b"\n")
    answer = answers(conversation)[-1]
    assert answer["type"] == "error", line
    conversation.close()
    message = answer["message"]
    assert isinstance(message, str)
    return message


def blobs(store: Store) -> int:
    return sum(1 for _ in store.tree.walk())


async def versions(store: Store, path: str) -> int:
    return len(await store.recall.list_versions(path.encode()))


# --- one image ---


async def test_an_image_is_made_of_another(desk: Desk) -> None:
    await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
    answer = await result(desk, "resize /a.jpg 40x40 /b.png")
    data = await read(desk.store, "b.png")
    image = decoded(data)
    assert (image.format, image.size) == ("PNG", (40, 30))
    assert corners(image) == corners(quarters())
    made = find(desk.store, "b.png")
    assert made.content.digest is not None
    assert answer == {
        "type": "result",
        "path": "/b.png",
        "width": 40,
        "height": 30,
        "frames": 1,
        "size_bytes": len(data),
        "digest": made.content.digest.name,
        "remembered": False,
        "changed": True,
    }
    # As visible to others as what it was made of.
    assert (made.mode, made.uid, made.gid) == (stat.S_IFREG | 0o640, 1000, 1000)
    assert abs(made.mtime_ns - time.time_ns()) < 60e9


async def test_a_large_image_and_a_large_result_are_manifests(desk: Desk) -> None:
    noise = Image.effect_noise((400, 300), 90).convert("RGB")
    await write(desk.store, "a.png", encoded(noise, "PNG"))
    await result(desk, "resize a.png 300x300 b.png")
    assert decoded(await read(desk.store, "b.png")).size == (300, 225)
    before = blobs(desk.store)
    again = await result(desk, "resize a.png 300x300 c.png")
    assert again["remembered"]
    assert blobs(desk.store) == before
    assert find(desk.store, "c.png").content == find(desk.store, "b.png").content


async def test_a_second_request_adds_nothing_and_starts_nobody(desk: Desk) -> None:
    await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
    await result(desk, "resize a.jpg 40x40 b.png")
    await desk.services.images.aclose()
    before, started = blobs(desk.store), desk.services.images.started
    again = await result(desk, "resize a.jpg 40x40 b.png")
    assert (again["remembered"], again["changed"]) == (True, False)
    assert await versions(desk.store, "b.png") == 1
    other = await result(desk, "resize a.jpg '40X40' c.png")
    assert (other["remembered"], other["changed"]) == (True, True)
    assert (blobs(desk.store), desk.services.images.started) == (before, started)


async def test_what_was_asked_for_differently_is_made_anew(desk: Desk) -> None:
    await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
    seen = set()
    for options in ("40x40", "40x40!", "40x40 --fill", "41x40", "40x40 --strip", "40x40 --quality 5"):
        answer = await result(desk, f"resize a.jpg {options} b.jpg")
        assert not answer["remembered"]
        seen.add((answer["digest"], answer["width"], answer["height"]))
    await result(desk, "resize a.jpg 40x40 b.webp")
    assert len(seen) >= 4
    # The content counts, not the name.
    await write(desk.store, "same.jpg", encoded(quarters(), "JPEG"))
    assert (await result(desk, "resize same.jpg 40x40 x.jpg"))["remembered"]
    await write(desk.store, "a.jpg", encoded(quarters(90, 60), "JPEG"))
    assert not (await result(desk, "resize a.jpg 40x40 x.jpg"))["remembered"]


async def test_what_is_remembered_outlives_the_mount(tmp_path: Path) -> None:
    async with desk_of(tmp_path / "store") as desk:
        await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
        await result(desk, "resize a.jpg 40x40 b.png")
        await desk.services.images.aclose()
    async with desk_of(tmp_path / "store") as desk:
        assert (await result(desk, "resize a.jpg 40x40 c.png"))["remembered"]
        assert not desk.services.images.started


async def test_the_target_becomes_a_version(desk: Desk) -> None:
    store = desk.store
    await write(store, "a.jpg", encoded(quarters(), "JPEG"))
    old = await write(store, "b.jpg", b"what was there", mode=0o604)
    handle = store.files.open(old, writable=False, privileged=False)
    await result(desk, "resize a.jpg 40x40 b.jpg")
    made = find(store, "b.jpg")
    assert made.id != old.id
    assert made.mode & 0o777 == 0o604
    # Whoever has the old file open keeps it.
    assert await store.files.read(old, 0, 100) == b"what was there"
    await store.files.release(handle)
    reader = await store.recall.open_version(b"b.jpg", 1)
    assert await reader.read(0, 100) == b"what was there"
    reader.close()
    assert await versions(store, "b.jpg") == 2


async def test_an_old_version_is_a_source_also_for_its_own_name(desk: Desk) -> None:
    await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
    await write(desk.store, "a.jpg", encoded(Image.new("RGB", (10, 10)), "JPEG"))
    await result(desk, "resize a.jpg@1 40x40 a.jpg")
    assert decoded(await read(desk.store, "a.jpg")).size == (40, 30)
    assert await versions(desk.store, "a.jpg") == 3
    # A name with an @ is a name.
    await write(desk.store, "a.jpg@2", encoded(Image.new("RGB", (30, 10)), "PNG"))
    await result(desk, "resize a.jpg@2 50% c.png")
    assert decoded(await read(desk.store, "c.png")).size == (15, 5)


async def test_a_directory_as_target_takes_the_name(desk: Desk) -> None:
    await write(desk.store, "a.b.jpg", encoded(quarters(), "JPEG"))
    mkdir(desk.store, "small")
    await result(desk, "resize a.b.jpg 40x40 small")
    await result(desk, "resize a.b.jpg 40x40 small/ --format webp")
    await result(desk, "resize a.b.jpg@1 40x40 small/ --format png")
    assert names(desk.store, "small") == {"a.b.jpg", "a.b.webp", "a.b.png"}
    assert "directory" in await refused(desk, "resize a.b.jpg 40x40 absent/")
    assert "directory" in await refused(desk, "resize a.b.jpg 40x40 absent/a.jpg")


async def test_names_are_bytes(desk: Desk) -> None:
    await write(desk.store, "a \udcff.jpg", encoded(quarters(), "JPEG"))
    answer = await result(desk, "resize $'a \\xff.jpg' 40x40 $'b \\xfe.png'")
    assert answer["path"] == "b \udcfe.png"
    assert find(desk.store, "b \udcfe.png")


async def test_requests_that_make_no_sense_are_refused(desk: Desk) -> None:
    store = desk.store
    await write(store, "a.jpg", encoded(quarters(), "JPEG"))
    await write(store, "empty.jpg", b"")
    await write(store, "text.jpg", b"no image")
    store.namespace.create(ROOT, b"link.jpg", stat.S_IFLNK | 0o777, CALLER, target=b"a.jpg")
    mkdir(store, "dir.jpg")
    before = names(store)
    for line, word in (
        ("resize a.jpg 40x40 a.jpg", "source"),
        ("resize a.jpg 40x40 ./a.jpg", "source"),
        ("resize a.jpg 40x40 dir.jpg/../a.jpg", ".."),
        ("resize a.jpg 40x40 .", "source"),
        ("resize a.jpg 40x40 link.jpg", "link"),
        ("resize link.jpg 40x40 b.jpg", "link"),
        ("resize absent.jpg 40x40 b.jpg", "absent"),
        ("resize a.jpg@7 40x40 b.jpg", "7"),
        ("resize empty.jpg 40x40 b.jpg", "empty"),
        ("resize text.jpg 40x40 b.jpg", "text.jpg"),
        ("resize a.jpg huge b.jpg", "geometry"),
        ("resize a.jpg 40 b.jpg --fill", "both sides"),
        ("resize a.jpg 40x40 b.bmp", "suffix"),
        ("resize a.jpg 40x40 b", "suffix"),
        ("resize a.jpg 40x40 b.jpg --format bmp", "bmp"),
        ("resize a.jpg 40x40 b.jpg --quality 0", "quality"),
        ("resize a.jpg 40x40 b.jpg --background notacolour", "colour"),
        ("resize a.jpg 60000x60000! b.jpg", "limit"),
        ("resize a.jpg 40x40", "DEST"),
        ("resize no*such 40x40 dir.jpg", "no file"),
    ):
        assert word in await refused(desk, line), line
    assert names(store) == before
    assert decoded(await read(store, "a.jpg")).size == (80, 60)


async def test_a_read_only_store_is_left_alone(tmp_path: Path) -> None:
    async with desk_of(tmp_path / "store") as desk:
        await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
        desk.store.namespace.read_only = True
        assert "read-only" in await refused(desk, "resize a.jpg 40x40 b.jpg")
        desk.store.namespace.read_only = False


async def test_a_damaged_source_is_an_error(desk: Desk) -> None:
    data = encoded(quarters(), "JPEG")
    inode = await write(desk.store, "a.jpg", data)
    assert inode.content.digest is not None
    path = desk.store.tree.find(inode.content.digest)
    assert path is not None
    Path(path).chmod(0o644)
    Path(path).write_bytes(data[:-1] + b"?")
    await refused(desk, "resize a.jpg 40x40 b.jpg")
    assert "b.jpg" not in names(desk.store)


async def test_a_file_that_is_open_is_taken_as_its_last_close_left_it(desk: Desk) -> None:
    inode = await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
    handle = desk.store.files.open(inode, writable=True, privileged=True)
    await desk.store.files.write(handle, 0, b"changed now")
    await result(desk, "resize a.jpg 40x40 b.png")
    assert decoded(await read(desk.store, "b.png")).size == (40, 30)
    await desk.store.files.release(handle)
    await refused(desk, "resize a.jpg 40x40 b.png")


# --- many images ---


async def test_a_directory_becomes_a_directory(desk: Desk) -> None:
    store = desk.store
    mkdir(store, "photos")
    mkdir(store, "photos/below")
    for number in range(7):
        await write(store, f"photos/{number}.jpg", encoded(quarters(80 + number, 60), "JPEG"))
    await write(store, "photos/notes.txt", b"no image")
    await write(store, "photos/torn.png", encoded(quarters(), "PNG")[:100])
    await write(store, "photos/.hidden.png", encoded(quarters(), "PNG"))
    answer = await result(desk, "resize photos 40x40 small")
    assert [answer[key] for key in ("images", "made", "remembered", "unchanged", "failed")] == [9, 7, 0, 0, 2]
    assert [row["path"] for row in answer["rows"]] == ["photos/notes.txt", "photos/torn.png"]
    assert all(row["message"] and row["error"] for row in answer["rows"])
    assert names(store, "small") == {f"{number}.jpg" for number in range(7)}
    again = await result(desk, "resize photos 40x40 small")
    assert [again[key] for key in ("made", "remembered", "unchanged", "failed")] == [0, 7, 7, 2]


async def test_a_pattern_means_what_a_shell_means_by_it(desk: Desk) -> None:
    store = desk.store
    for directory in ("2025", "2026", "other"):
        mkdir(store, directory)
    for path in ("2025/a1.png", "2026/a2.png", "2026/b.png", "2026/.a3.png", "other/a4.png", "a5.png"):
        await write(store, path, encoded(quarters(), "PNG"))
    await result(desk, "resize '20*/a?.png' 40x40 made --format gif")
    assert names(store, "made") == {"a1.gif", "a2.gif"}
    await result(desk, "resize '/2026/[!a]*' 40x40 made")
    assert names(store, "made") == {"a1.gif", "a2.gif", "b.png"}
    await result(desk, "resize '2026/.*' 40x40 made")
    assert ".a3.png" in names(store, "made")
    await write(store, "what?.png", encoded(quarters(), "PNG"))
    await result(desk, "resize 'what?.png' 40x40 exact.png")
    await result(desk, "resize 'what?.png@1' 40x40 exact2.png")
    assert {"exact.png", "exact2.png"} <= names(store)


async def test_many_images_never_take_each_others_names(desk: Desk) -> None:
    store = desk.store
    mkdir(store, "photos")
    for name in ("a.jpg", "a.png", "b.png"):
        await write(store, f"photos/{name}", encoded(quarters(), "PNG"))
    before = names(store)
    assert "both" in await refused(desk, "resize photos 40x40 small --format webp")
    assert "source" in await refused(desk, "resize photos 40x40 photos")
    assert "source" in await refused(desk, "resize 'photos/b*' 40x40 photos --format png")
    assert "source" in await refused(desk, "resize /photos/ 40x40 ./photos")
    assert names(store) == before
    await write(store, "file", b"")
    assert "directory" in await refused(desk, "resize photos 40x40 file")
    # Beside their sources, under other names, they may lie.
    await result(desk, "resize 'photos/b*' 40x40 photos --format jpg")
    assert names(store, "photos") == {"a.jpg", "a.png", "b.png", "b.jpg"}


async def test_a_store_that_stops_taking_writes_stops_the_work(desk: Desk) -> None:
    store = desk.store
    mkdir(store, "photos")
    for number in range(20):
        await write(store, f"photos/{number:02}.png", encoded(quarters(80 + number, 60), "PNG"))
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            while "small" not in names(store) or not names(store, "small"):
                await trio.sleep(0.001)
            store.namespace.read_only = True

        nursery.start_soon(stop)
        assert "read-only" in await refused(desk, "resize photos 40x40 small")
    store.namespace.read_only = False
    assert 0 < len(names(store, "small")) < 20


async def test_an_empty_directory_is_no_work(desk: Desk) -> None:
    mkdir(desk.store, "photos")
    answer = await result(desk, "resize photos 40x40 small")
    assert answer["images"] == 0


async def test_work_on_many_can_be_cancelled_and_leaves_whole_files(desk: Desk) -> None:
    store = desk.store
    mkdir(store, "photos")
    noise = encoded(Image.effect_noise((600, 600), 90), "JPEG")
    for number in range(20):
        await write(store, f"photos/{number:02}.jpg", noise + bytes([number]))
    conversation = desk.open()
    await conversation.write(b"resize photos 800x800 small --format avif &\n")
    (job,) = answers(conversation)
    with trio.fail_after(60):
        while "small" not in names(store) or not names(store, "small"):
            await trio.sleep(0.005)
    row = desk.jobs.get(job["job"]).describe()
    assert (row["total"], row["unit"]) == (20, "images")
    await desk.ask(f"cancel {job['job']}")
    with trio.fail_after(60):
        while desk.jobs.get(job["job"]).ended_s is None:
            await trio.sleep(0.005)
    conversation.close()
    made = names(store, "small")
    assert 0 < len(made) < 20
    for name in made:
        assert decoded(await read(store, f"small/{name}")).size == (800, 800)


# --- what is remembered, and garbage collection ---


async def test_what_is_remembered_keeps_nothing_alive_and_comes_back_whole(desk: Desk) -> None:
    store = desk.store
    store.versions.enabled = False
    await write(store, "a.gif", animation("GIF", clear=False))
    first = await result(desk, "resize a.gif 32x24 b.gif")
    await remove(store, "b.gif")
    report = await collect(store, Options(grace_s=0))
    assert report.reclaimable.blobs == 1
    again = await result(desk, "resize a.gif 32x24 b.gif")
    assert not again["remembered"]
    assert again["digest"] == first["digest"]
    assert decoded(await read(store, "b.gif")).size == (32, 24)


async def test_a_collection_under_way_does_not_take_what_is_remembered_just_then(desk: Desk) -> None:
    store = desk.store
    store.versions.enabled = False
    await write(store, "a.jpg", encoded(quarters(), "JPEG"))
    noise = encoded(Image.effect_noise((300, 300), 90), "PNG")
    await write(store, "large.png", noise)
    for source in ("a.jpg", "large.png"):
        await result(desk, f"resize {source} 200x200 b.png")
        for step in ("watched", "synced", "marked", "swept"):
            await remove(store, "b.png")

            async def remember(done: str, step: str = step, source: str = source) -> None:
                if done == step:
                    await result(desk, f"resize {source} 200x200 b.png")

            await collect(store, Options(grace_s=0), step=remember)
            assert max(decoded(await read(store, "b.png")).size) == 200


async def test_a_result_found_damaged_is_made_anew(desk: Desk) -> None:
    store = desk.store
    await write(store, "a.jpg", encoded(quarters(), "JPEG"))
    await result(desk, "resize a.jpg 40x40 b.png")
    digest = find(store, "b.png").content.digest
    assert digest is not None
    path = store.tree.find(digest)
    assert path is not None
    Path(path).chmod(0o644)
    Path(path).write_bytes(bytes(digest.size_bytes - 1))
    again = await result(desk, "resize a.jpg 40x40 c.png")
    assert not again["remembered"]
    assert decoded(await read(store, "c.png")).size == (40, 30)


async def test_a_full_disk_is_an_error_and_leaves_the_target(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    store = desk.store
    await write(store, "a.jpg", encoded(quarters(), "JPEG"))
    await write(store, "b.png", b"as it was")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mountstore.control.imaging.seal", full)
        assert "space" in await refused(desk, "resize a.jpg 40x40 b.png")
    assert await read(store, "b.png") == b"as it was"
    await result(desk, "resize a.jpg 40x40 b.png")


async def test_equal_requests_at_once_are_one_content(desk: Desk) -> None:
    await write(desk.store, "a.jpg", encoded(quarters(), "JPEG"))
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(result, desk, f"resize a.jpg 40x40 {number}.png")
    assert len({find(desk.store, f"{number}.png").content for number in range(6)}) == 1


async def test_a_source_beyond_the_limit_is_not_copied(desk: Desk) -> None:
    import msgspec

    from mountstore.errors import TooLargeError
    from mountstore.images.workers import Workers

    await write(desk.store, "a.png", encoded(Image.effect_noise((200, 200), 90), "PNG"))
    limits = msgspec.structs.replace(desk.services.images.limits, source_bytes=1000)
    _, version = await desk.store.recall.find_version(b"a.png")
    with pytest.raises(TooLargeError, match="1,000"):
        await resize(desk.store, Workers(limits), version, new_job("10", Format.PNG), lambda found: found)
