"""Power loss after every system call of small scenarios, with what was not flushed lost, kept, or kept in part
(promises 1 and 2); `scripts/powersteps` is more thorough."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from mount.live import SCALE

from durability.power_steps import Repairs, Verdict, run_scenario, verdicts
from durability.scenarios import SCENARIOS
from durability.seam import Model


def _count(found: Iterable[Verdict]) -> tuple[int, list[tuple[int, str, list[str]]]]:
    """How many states were looked at, and where a promise was broken; no state is kept, they are gigabytes."""
    looked_at, broken = 0, []
    for verdict in found:
        looked_at += 1
        if verdict.problems:
            broken.append((verdict.step, verdict.survived, verdict.problems))
    return looked_at, broken


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_after_every_step_every_promise_is_kept(in_memory: Path, scenario: str) -> None:
    recording = run_scenario(scenario, in_memory)
    looked_at, broken = _count(verdicts(recording, seed=1, thorough=SCALE > 1))
    assert looked_at > 50
    assert broken == []


@pytest.mark.parametrize("repair", [Repairs.AUTOMATIC, Repairs.ALL])
@pytest.mark.parametrize("scenario", ["rename-over", "stay-open"])
def test_a_check_before_the_mount_takes_nothing_from_recovery(
    in_memory: Path, scenario: str, repair: Repairs
) -> None:
    """The other way round, the mount and then the checker, is part of the test above."""
    recording = run_scenario(scenario, in_memory)
    every = 1 if SCALE > 1 else 8
    looked_at, broken = _count(verdicts(recording, seed=1, thorough=False, repair=repair, every=every))
    assert looked_at > 10
    assert broken == []


def test_the_model_ends_with_what_the_program_left(in_memory: Path) -> None:
    """The harness itself: without it, nothing here would mean anything."""
    recording = run_scenario("stream", in_memory)
    model = Model(recording.store, recording.before, recording.marks)
    for call in recording.calls:
        model.apply(call)
    after: dict[bytes, bytes | None] = {}
    for path in recording.after.rglob("*"):
        if not path.name.endswith("-shm"):
            name = os.fsencode(path.relative_to(recording.after))
            after[name] = None if path.is_dir() else path.read_bytes()
    assert model.remains(model.pending) == after
    assert model.remains([]) != after


@pytest.mark.parametrize(
    ("fault", "scenario"),
    [
        ("forget-the-log", "overwrite"),
        ("forget-the-blobs", "unlink"),
        ("forget-what-was-there", "rename-over"),
        ("forget-the-changes", "stay-open"),
        ("forget-the-sums", "close-large"),
        ("delete-too-early", "stay-open"),
    ],
)
def test_a_store_that_does_it_wrong_is_found_out(in_memory: Path, fault: str, scenario: str) -> None:
    recording = run_scenario(scenario, in_memory, fault)
    assert any(verdict.problems for verdict in verdicts(recording, seed=1, thorough=False))
