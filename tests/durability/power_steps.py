"""Power loss after every single step of small scenarios (promises 1 and 2).

    python -m durability.power_steps [--thorough] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import trio
import xxhash

from durability.power_loss import findings_after_power_loss
from durability.scenarios import FAULTS, PIECE_MAX, SCENARIOS, content_of
from durability.seam import PYTHON, Call, Model, choices, record, write_out
from mountstore.care.repair import repair_store
from mountstore.errors import BlobMissingError, CorruptError
from mountstore.namespace.inodes import ROOT
from mountstore.store import Store
from mountstore.store.create import create_store

State = tuple[int, int] | None
"""Seed and length of a content; None for a name that does not exist."""


class Recording(NamedTuple):
    """A scenario that was run, with the store as it was before, and as it was left; `store` is where it was."""

    scenario: str
    before: Path
    after: Path
    store: Path
    marks: Path
    calls: list[Call]


def run_scenario(scenario: str, base: Path, *faults: str) -> Recording:
    """Run it under strace(1) in an empty directory, with `scenarios.FAULTS`."""
    store, before, marks = base / "store", base / "before", base / "marks"
    create_store(str(store), piece_max=PIECE_MAX)
    shutil.copytree(store, before)
    command = [PYTHON, "-m", "durability.scenarios", scenario, str(store), str(marks), *faults]
    calls = record(base / "trace", command, {"PYTHONPATH": os.pathsep.join(sys.path)})
    after = store.rename(base / "after")
    return Recording(scenario, before, after, store, marks, calls)


class Promises:
    """What may and what must be there, going by the marks."""

    def __init__(self) -> None:
        self._states: dict[str, list[State]] = {}
        self.opened = False

    def hear(self, line: bytes) -> None:
        word, *rest = json.loads(line)
        if word == "may":
            name, state = rest
            self._states.setdefault(name, [None]).append(None if state is None else (state[0], state[1]))
        else:
            for name in rest[0] or list(self._states):
                self._states[name] = self._states[name][-1:]

    def names(self) -> list[str]:
        return sorted(self._states)

    def broken(self, name: str, content: bytes | None) -> str | None:
        """What is wrong with a content that was found, if anything."""
        states = self._states[name]
        for state in states:
            if (None if state is None else content_of(*state)) == content:
                return None
        found = "does not exist" if content is None else f"has {len(content)} bytes"
        return f"{name} {found}; allowed are {states}"

    def may_be_lost(self, name: str) -> bool:
        """Whether it may be there and unreadable: new, and never flushed."""
        return None in self._states[name] or (0, 0) in self._states[name]


class Repairs(Enum):
    """What fsck.cas does to a store that was not unmounted."""

    NONE = "none"
    AUTOMATIC = "-p"
    ALL = "-y"


class Verdict(NamedTuple):
    step: int
    survived: str
    problems: list[str]
    files: dict[bytes, bytes | None]


def verdicts(
    recording: Recording, *, seed: int, thorough: bool, repair: Repairs = Repairs.NONE, every: int = 1
) -> Iterator[Verdict]:
    """Cut the power after each step, in each way; states that were seen before are not looked at again.

    Args:
      thorough: More ways, and the checker after each, not after every fourth.
      repair: What fsck.cas does before the store is mounted.
      every: Only so many states are looked at: one of `every`.
    """
    choice = random.Random(seed)
    recovered_root = recording.store
    model = Model(recording.store, recording.before, recording.marks)
    promises = Promises()
    seen: set[bytes] = set()
    heard = counted = 0
    for step, call in enumerate(recording.calls):
        if not model.apply(call):
            continue
        for line in model.marks[heard:]:
            promises.hear(line)
        if len(model.marks) > heard:
            # What is promised differs: the same state may be wrong now.
            heard = len(model.marks)
            seen.clear()
        for survived, changes in choices(model.pending, choice, thorough=thorough):
            files = model.remains(changes)
            key = _key(files)
            if key in seen:
                continue
            seen.add(key)
            counted += 1
            if counted % every:
                continue
            write_out(files, _empty(recovered_root))
            try:
                if repair is not Repairs.NONE:
                    automatic = repair is Repairs.AUTOMATIC
                    repair_store(str(recovered_root), approve=lambda report: True, automatic_only=automatic)
                problems = trio.run(_judge, str(recovered_root), promises)
                if thorough or counted % 4 == 0:
                    problems += findings_after_power_loss(str(recovered_root))
            except Exception as exc:
                problems = ["".join(traceback.format_exception(exc))]
            yield Verdict(step, survived, problems, files)


def _key(files: dict[bytes, bytes | None]) -> bytes:
    digest = xxhash.xxh3_128()
    for path, data in sorted(files.items()):
        digest.update(b"%d %s %d " % (len(path), path, -1 if data is None else len(data)))
        digest.update(data or b"")
    return digest.digest()


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


async def _judge(path: str, promises: Promises) -> list[str]:
    problems: list[str] = []
    async with Store.open(path).running() as store:
        for name in promises.names():
            inode = store.namespace.find(ROOT, name.encode())
            try:
                content = None if inode is None else await store.files.read(inode, 0, 1 << 30)
            except (CorruptError, BlobMissingError) as exc:
                if not promises.may_be_lost(name):
                    problems.append(f"{name}: {exc}")
                continue
            problem = promises.broken(name, content)
            if problem is not None:
                problems.append(problem)
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """The program: exit code 1 if a promise was broken; the store as the power loss left it is kept."""
    parser = argparse.ArgumentParser(
        prog="scripts/powersteps",
        description="Cut the power after every system call of small scenarios, and check every promise.",
    )
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="default: all of them")
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS, help="let the store do that wrong")
    parser.add_argument("--thorough", action="store_true", help="also each change alone, all but each, and parts")
    choices = [repair.value for repair in Repairs]
    parser.add_argument("--fsck", default="none", choices=choices, help="repair the store before it is mounted")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default: 1)")
    options = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    failed = 0
    for name in options.scenarios or SCENARIOS:
        for seed in range(options.seed, options.seed + options.seeds):
            base = Path(tempfile.mkdtemp(prefix="powersteps-", dir="/dev/shm"))
            recording = run_scenario(name, base, *options.fault)
            states = broken = 0
            repair = Repairs(options.fsck)
            for verdict in verdicts(recording, seed=seed, thorough=options.thorough, repair=repair):
                states += 1
                if verdict.problems:
                    broken += 1
                    kept = base / f"broken-{broken}"
                    write_out(verdict.files, _empty(kept))
                    print(f"{name}, seed {seed}, cut after step {verdict.step}; {verdict.survived} survived:")
                    print(*verdict.problems, f"kept: {kept}", sep="\n  ", flush=True)
            if not broken:
                shutil.rmtree(base)
            failed += broken
            steps = len(recording.calls)
            print(f"{name}, seed {seed}: {states} states after {steps} steps, {broken} broken", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
