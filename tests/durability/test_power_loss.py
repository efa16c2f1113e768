"""Power loss at random instants of a load (promises 1 and 2); `scripts/powerloss` goes on as long as wanted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mount.live import SCALE

from durability.power_loss import record_load, verdicts
from durability.recorder import FLUSH, read_log, recorded_disk


@pytest.mark.parametrize(("filesystem", "images", "seconds"), [("ext4", 24, 3), ("xfs", 6, 2), ("btrfs", 6, 2)])
def test_whenever_the_power_fails_every_promise_is_kept(
    in_memory: Path, filesystem: str, images: int, seconds: float
) -> None:
    seed = 1
    recorded = record_load(in_memory, filesystem, seconds=seconds, seed=seed)
    assert len(recorded.records) - recorded.start > 100
    broken = [
        (what, verdict.problems)
        for what, verdict in verdicts(recorded, in_memory, images=images * SCALE, seed=seed)
        if verdict.problems
    ]
    assert broken == []


def test_the_recorder_records_what_is_written_and_flushed(in_memory: Path) -> None:
    """The harness itself: without it, nothing above would mean anything."""
    with recorded_disk(in_memory, 1 << 20) as (device, log), open(device, "r+b", buffering=0) as disk:
        disk.seek(8192)
        disk.write(b"x" * 4096)
        os.fsync(disk.fileno())
        disk.seek(65536)
        disk.write(b"y" * 4096)
        os.fsync(disk.fileno())
    records = list(read_log(log))
    assert [record.time_ns for record in records] == sorted(record.time_ns for record in records)
    first = next(i for i, record in enumerate(records) if record.data == b"x" * 4096 and record.offset == 8192)
    second = next(i for i, record in enumerate(records) if record.data == b"y" * 4096)
    assert any(record.offset == FLUSH and record.data is None for record in records[first:second])
    assert any(record.data is None for record in records[second:])
