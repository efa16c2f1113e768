"""Writers, and every command that moves or drops things, at the same time."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mount.live import SCALE, LiveMount
from mount.test_control import Channel, opened
from mountstore.blobs.digest import Digest

DURATION_S = 4.0 * SCALE

CONTENTS = [os.urandom(size) for size in (1, 100, 5000, 5000, 40_000, 200_000)]
"""Few, so that what was just condemned is written again and again."""


class Crowd:
    """Threads that work until the time is up; the first failure ends all."""

    def __init__(self) -> None:
        self.end = time.monotonic() + DURATION_S
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def add(self, turn: Callable[[random.Random], None], seed: int) -> None:
        def work() -> None:
            chance = random.Random(seed)
            try:
                while time.monotonic() < self.end and not self.failures:
                    turn(chance)
            except BaseException as exc:
                self.failures.append(exc)

        self._threads.append(threading.Thread(target=work))

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


class Writer:
    """Has a directory of its own, and knows what is in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held: dict[str, bytes] = {}
        directory.mkdir()

    def turn(self, chance: random.Random) -> None:
        name = f"f{chance.randrange(6)}"
        path = self.directory / name
        match chance.randrange(6):
            case 0 if name in self.held:
                path.unlink()
                del self.held[name]
            case 1 if name in self.held:
                other = f"f{chance.randrange(6)}"
                os.rename(path, self.directory / other)
                self.held[other] = self.held.pop(name)
            case 2:
                new = chance.choice(CONTENTS)
                (self.directory / "new").write_bytes(new)
                os.rename(self.directory / "new", path)
                self.held[name] = new
            case 3:
                for known, data in self.held.items():
                    assert (self.directory / known).read_bytes() == data, known
            case 4:
                self._read_old(name)
            case _:
                self.held[name] = chance.choice(CONTENTS)
                path.write_bytes(self.held[name])

    def _read_old(self, name: str) -> None:
        versions = self.directory / ".versions" / name
        try:
            numbers = [number for number in os.listdir(versions) if number.isdigit()]
        except FileNotFoundError:
            return
        for number in numbers[:5]:
            try:
                data = (versions / number).read_bytes()
            except (FileNotFoundError, OSError) as exc:
                # Dropped since it was listed; but never damaged.
                assert exc.errno in (2, 116), exc
                continue
            assert data in CONTENTS


def test_nothing_that_is_needed_goes(mount: LiveMount) -> None:
    pinned = os.urandom(3000)
    (mount.path / "pinned").write_bytes(pinned)
    with opened(mount) as channel:
        channel.say("sync")
        channel.say(f"pin {Digest.of(pinned).name}")
        (mount.path / "pinned").unlink()
    writers = [Writer(mount.path / f"d{number}") for number in range(3)]
    crowd = Crowd()
    for number, writer in enumerate(writers):
        crowd.add(writer.turn, number)
    done: dict[str, int] = {}

    def command(*lines: str, allowed: tuple[int, ...] = ()) -> Callable[[random.Random], None]:
        def turn(chance: random.Random) -> None:
            line = chance.choice(lines)
            channel = Channel(mount)
            try:
                channel.say(line)
                done[line] = done.get(line, 0) + 1
                channel.read()
            except OSError as exc:
                assert exc.errno in allowed, line
            finally:
                channel.close()

        return turn

    busy = (16,)
    crowd.add(command("gc --grace 0", "gc --grace 0 --purge --older-than 0", allowed=busy), 10)
    crowd.add(command("prune --keep-last 1 /", "prune --all /d1", "gc --dry-run", allowed=busy), 11)
    crowd.add(command("scrub", "scrub --full", "sync", "status", "df", "snapshots", allowed=busy), 12)
    blob = mount.path / ".cas/blobs" / Digest.of(pinned).name

    def read_pinned(chance: random.Random) -> None:
        assert blob.read_bytes() == pinned
        (mount.path / ".cas/metrics").read_bytes()

    crowd.add(read_pinned, 13)
    crowd.run()
    assert done.get("gc --grace 0", 0) + done.get("gc --grace 0 --purge --older-than 0", 0) > 3, done
    for writer in writers:
        for name, data in writer.held.items():
            assert (writer.directory / name).read_bytes() == data
    # And after a mount that knows nothing but what is on the disk; the checker looks at every blob.
    mount.remount()
    for writer in writers:
        assert sorted(os.listdir(writer.directory)) == sorted(writer.held)
        for name, data in writer.held.items():
            assert (writer.directory / name).read_bytes() == data
