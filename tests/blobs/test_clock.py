"""The clock of files' times."""

from __future__ import annotations

import os
from pathlib import Path

from mountstore.blobs.clock import now_ns


def test_no_file_is_older_than_the_time_before_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for number in range(2000):
        before_ns = now_ns()
        path.write_bytes(b"%d" % number)
        assert os.stat(path).st_ctime_ns >= before_ns
        before_ns = now_ns()
        os.rename(path, tmp_path / "renamed")
        assert os.stat(tmp_path / "renamed").st_ctime_ns >= before_ns
