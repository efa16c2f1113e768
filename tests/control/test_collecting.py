"""gc and what belongs to it, as commands."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
import trio.testing
from care.garbage import KEEP_NONE, Work, bytes_like

from control.conftest import Desk, answers
from mountstore.blobs.digest import Digest
from mountstore.control.conversation import CommandFailedError

pytestmark = pytest.mark.trio


async def ask(desk: Desk, line: str) -> dict[str, Any]:
    """The result of a line, which comes last."""
    found = (await desk.ask(line))[-1]
    assert found["type"] == "result"
    return found


async def refused(desk: Desk, line: str) -> str:
    """The name of the error a line ends with."""
    with pytest.raises(CommandFailedError) as failure:
        await desk.ask(line)
    return failure.value.error


@pytest.fixture
def work(desk: Desk) -> Work:
    return Work(desk.store)


async def test_gc_tells_and_does(desk: Desk, work: Work) -> None:
    await work.save(b"f", b"here")
    await work.forget(b"gone")
    gone = Digest.of(b"gone")
    told = await ask(desk, "gc --dry-run --grace 0")
    assert told["dry_run"] is True
    assert told["reclaimable"] == {"blobs": 1, "bytes": 4}
    assert desk.store.tree.find(gone) is not None
    assert desk.services.statistics.collections == 0
    assert desk.services.last_collection is not None
    assert desk.services.last_collection.reclaimable_bytes == 4
    # An hour of grace by default.
    assert (await ask(desk, "gc"))["reclaimable"]["blobs"] == 0
    done = await ask(desk, "gc --grace 0")
    assert done["live"] == {"blobs": 1, "bytes": 4}
    assert done["trash"] == {"blobs": 1, "bytes": 4}
    assert desk.store.tree.find(gone) is None
    assert desk.services.statistics.collected_blobs == 1
    assert (await ask(desk, "gc --purge --older-than 0"))["purged"] == {"blobs": 1, "bytes": 4}
    assert desk.store.trash.find(gone) is None


async def test_gc_keeps_what_a_list_says(desk: Desk, work: Work, tmp_path: os.PathLike[str]) -> None:
    await work.forget(b"kept")
    await work.forget(b"lost")
    lists = [os.path.join(tmp_path, "list"), os.path.join(tmp_path, "other list")]
    for path, data in zip(lists, (b"kept", b"nothing"), strict=True):
        with open(path, "w") as file:
            file.write(Digest.of(data).name + "\n")
    await ask(desk, f"gc --grace 0 --keep {lists[0]} --keep '{lists[1]}'")
    assert desk.store.tree.find(Digest.of(b"kept")) is not None
    assert desk.store.tree.find(Digest.of(b"lost")) is None
    assert await refused(desk, "gc --keep relative") == "MisuseError"
    assert await refused(desk, "gc --keep /nowhere/at/all") == "FileNotFoundError"
    assert await refused(desk, "gc --older-than 3") == "MisuseError"


async def test_one_collection_at_a_time(
    desk: Desk, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await work.forget(b"gone")
    go = trio.Event()
    saved = desk.services.pins.wait_saved

    async def wait() -> None:
        await go.wait()
        await saved()

    monkeypatch.setattr(desk.services.pins, "wait_saved", wait)
    conversation = desk.open()
    await conversation.write(b"gc --grace 0 &\n")
    await trio.testing.wait_all_tasks_blocked()
    for line in ("gc", "gc --dry-run", "purge", "gc hold", "prune --all /"):
        assert await refused(desk, line) == "BusyError"
    go.set()
    while desk.jobs.get(1).ended_s is None:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert answers(conversation)[-1]["reclaimable"]["blobs"] == 1
    await ask(desk, "gc")


async def test_a_cancelled_collection_can_be_repeated(desk: Desk, work: Work) -> None:
    for number in range(50):
        await work.forget(b"%d" % number)
    conversation = desk.open()
    await conversation.write(b"gc --grace 0 &\ncancel 1\n")
    while desk.jobs.get(1).ended_s is None:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert desk.jobs.get(1).state == "cancelled"
    assert (await ask(desk, "gc --grace 0"))["trash"]["blobs"] == 50


async def test_a_hold_keeps_collections_off(desk: Desk, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    await work.forget(b"gone")
    first = await ask(desk, "gc hold")
    second = await ask(desk, "gc hold --timeout 10")
    assert (first["hold"], second["hold"]) == (1, 2)
    assert await refused(desk, "gc --grace 0") == "BusyError"
    assert await refused(desk, "purge --older-than 0") == "BusyError"
    # Who only wants to know disturbs nobody.
    assert (await ask(desk, "gc --grace 0 --dry-run"))["reclaimable"]["blobs"] == 1
    assert (await ask(desk, "gc release 1"))["released"] == 1
    assert await refused(desk, "gc") == "BusyError"
    assert await refused(desk, "gc release 1") == "AbsentError"
    assert (await ask(desk, "gc hold --again 2 --timeout 5"))["hold"] == 2
    status = await ask(desk, "status")
    assert [hold["hold"] for hold in status["collection_held"]] == [2]
    # Time passes, and nobody came back.
    import time

    later = time.monotonic() + 6
    monkeypatch.setattr("mountstore.control.holds.time.monotonic", lambda: later)
    assert await refused(desk, "gc hold --again 2") == "AbsentError"
    assert (await ask(desk, "gc --grace 0"))["trash"]["blobs"] == 1
    for timeout in ("0", "99999999"):
        assert await refused(desk, f"gc hold --timeout {timeout}") == "MisuseError"
    assert (await ask(desk, "gc release"))["released"] == 0


async def test_the_trash_gives_back(desk: Desk, work: Work) -> None:
    await work.forget(b"gone")
    await work.forget(b"gone too")
    await ask(desk, "gc --grace 0")
    name, other = Digest.of(b"gone").name, Digest.of(b"gone too").name
    assert (await ask(desk, f"untrash {name} {other[:64]}"))["rows"] == [
        {"blob": name, "bytes": 4},
        {"blob": other, "bytes": 8},
    ]
    assert (await ask(desk, f"untrash {name}"))["rows"] == []
    assert await refused(desk, f"untrash {Digest.of(b'never').name}") == "AbsentError"
    assert await refused(desk, "untrash abc") == "MisuseError"
    await ask(desk, "gc --grace 0")
    assert (await ask(desk, "purge"))["blobs"] == 0
    assert await ask(desk, "purge --older-than 0") == {"type": "result", "blobs": 2, "bytes": 12}
    assert await refused(desk, f"untrash {name}") == "AbsentError"


async def test_pins_keep_blobs(desk: Desk, work: Work) -> None:
    await work.forget(b"one")
    await work.forget(b"two")
    one, two = Digest.of(b"one").name, Digest.of(b"two").name
    assert (await ask(desk, f"pin {one}"))["list"] == "pinned"
    assert (await ask(desk, f"pin --list mine blobs/x/{two} {one}"))["pinned"] == 2
    assert (await ask(desk, f"pin --list mine {two}"))["pinned"] == 0
    assert (await ask(desk, "gc --grace 0"))["kept"]["listed"] == {"blobs": 2, "bytes": 6}
    assert (await ask(desk, f"unpin {two}"))["unpinned"] == 1
    assert (await ask(desk, f"unpin --list pinned {one}"))["unpinned"] == 1
    assert desk.services.pins.names() == [b"mine"]
    await ask(desk, "gc --grace 0")
    assert desk.store.tree.find(Digest.of(b"one")) is not None
    assert desk.store.tree.find(Digest.of(b"two")) is None
    assert await refused(desk, f"unpin {two}") == "AbsentError"
    assert await refused(desk, f"unpin --list no {one}") == "AbsentError"
    assert await refused(desk, f"pin {'0' * 64}_5") == "AbsentError"
    assert await refused(desk, f"pin --list a/b {one}") == "MisuseError"
    # What is in the trash comes back.
    assert (await ask(desk, f"pin {two[:64]}"))["returned"] == 1
    await ask(desk, "gc --grace 0")
    assert desk.store.tree.find(Digest.of(b"two")) is not None


async def test_what_is_pinned_while_garbage_is_collected_stays(desk: Desk, work: Work) -> None:
    """A list is in place before every blob on it is asked for: at whatever point of a collection."""
    from mountstore.care.gc import collect
    from mountstore.care.gc_report import Options

    for point in ("watched", "synced", "marked", "moved", "swept"):
        data = bytes_like(hash(point) & 0xFFFF, 100)
        await work.forget(data)
        await work.forget(b"something to move" + data)
        name = Digest.of(data).name
        pinned = False

        async def step(done: str, point: str = point, name: str = name) -> None:
            nonlocal pinned
            if done == point and not pinned:
                pinned = True
                await desk.services.pins.add(b"mine", [name])

        await collect(desk.store, Options(grace_s=0.0), step=step)
        assert pinned, point
        assert desk.store.tree.find(Digest.of(data)) is not None, point
        await collect(desk.store, Options(grace_s=0.0))
        assert desk.store.tree.find(Digest.of(data)) is not None, point


async def test_a_pinned_manifest_keeps_its_pieces(desk: Desk, work: Work) -> None:
    data = bytes_like(1, 10 << 20)
    inode = await work.save(b"large", data)
    digest = inode.content.digest
    assert digest is not None
    needed = work.blobs()
    assert len(needed) > 3
    work.keep(KEEP_NONE)
    await ask(desk, f"pin {digest.name}")
    await work.unlink(b"large")
    await ask(desk, "gc --grace 0")
    assert work.blobs() == needed
    await ask(desk, f"unpin {digest.name}")
    await ask(desk, "gc --grace 0")
    assert work.blobs() == set()
    # And back from the trash, with all of them.
    assert (await ask(desk, f"pin {digest.name}"))["returned"] == len(needed)
    assert work.blobs() == needed


async def test_prune(desk: Desk, work: Work) -> None:
    below = work.directory(b"d")
    for number in range(6):
        await work.save(b"f", b"f%d" % number)
        await work.save(b"g", b"g%d" % number, below.id)
        await work.save(b"h", b"h%d" % number, below.id)
    assert await refused(desk, "prune /f") == "MisuseError"
    assert await refused(desk, "prune --all /nothing") == "AbsentError"

    async def count(path: str) -> int:
        return len((await ask(desk, f"versions {path}"))["rows"])

    assert (await ask(desk, "prune --keep-last 3 --dry-run /f"))["versions_dropped"] == 2
    assert await count("f") == 6
    assert (await ask(desk, "prune --keep-last 3 /f"))["versions_dropped"] == 2
    assert [await count(path) for path in ("f", "d/g", "d/h")] == [4, 6, 6]
    assert (await ask(desk, "prune --all /d/g"))["versions_dropped"] == 5
    assert [await count(path) for path in ("f", "d/g", "d/h")] == [4, 1, 6]
    assert (await ask(desk, "prune --keep-days 1 /"))["versions_dropped"] == 0
    assert (await ask(desk, "prune --keep-last 0 /d"))["versions_dropped"] == 5
    assert [await count(path) for path in ("f", "d/g", "d/h")] == [4, 1, 1]
    assert (await ask(desk, "gc --grace 0"))["reclaimable"]["blobs"] == 12


async def test_prune_of_what_was_removed(desk: Desk, work: Work) -> None:
    below = work.directory(b"d")
    await work.save(b"f", b"1", below.id)
    await work.save(b"f", b"2", below.id)
    await work.unlink(b"f", below.id)
    desk.store.namespace.rmdir(1, b"d")
    assert len((await ask(desk, "versions /d/f"))["rows"]) == 2
    assert (await ask(desk, "prune --all /d/f"))["versions_dropped"] == 2
    assert await refused(desk, "versions /d/f") == "AbsentError"
