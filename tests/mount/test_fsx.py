"""One file under random operations, in each configuration; `scripts/fsx` does the same for longer."""

from __future__ import annotations

import os
import random

import pytest

from mount.conftest import MountMaker
from mount.fsx import LIMITS, ORDINARY, SMALL, Exerciser, Sizes
from mount.live import SCALE

_SECONDS = int(os.environ.get("MOUNTSTORE_FSX_SECONDS") or 5 * SCALE)


@pytest.mark.timeout(300 + 10 * _SECONDS)
@pytest.mark.parametrize(
    ("piece_max", "prelude", "sizes", "remount_every"),
    [
        pytest.param(None, "", ORDINARY, 300, id="ordinary"),
        pytest.param(16_384, "", SMALL, 900, id="tiny pieces"),
        pytest.param(16_384, LIMITS, SMALL, 900, id="tiny pieces, small limits"),
    ],
)
def test_a_file_under_random_operations_holds_what_was_written(
    make_mount: MountMaker, piece_max: int | None, prelude: str, sizes: Sizes, remount_every: int
) -> None:
    seed = int(os.environ.get("MOUNTSTORE_TEST_SEED") or random.randrange(1 << 32))
    print(f"MOUNTSTORE_TEST_SEED={seed}")
    mount = make_mount(piece_max=piece_max, prelude=prelude)
    exerciser = Exerciser(mount.path / "f", sizes, seed, mount.remount)
    exerciser.run(_SECONDS, remount_every=remount_every)
    print(f"{exerciser.steps} steps, {exerciser.remounts} remounts")
