"""The clock of files' times."""

from __future__ import annotations

import os
from pathlib import Path

from mountstore.blobs.clock import next_tick_ns


def test_files_made_before_a_tick_are_older_and_those_after_are_not(tmp_path: Path) -> None:
    for number in range(50):
        before, after = tmp_path / f"{number}a", tmp_path / f"{number}b"
        before.write_bytes(b"")
        os.rename(before, tmp_path / f"{number}c")
        tick_ns = next_tick_ns()
        after.write_bytes(b"")
        assert os.stat(tmp_path / f"{number}c").st_ctime_ns < tick_ns <= os.stat(after).st_ctime_ns
