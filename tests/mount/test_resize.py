"""`resize` through the control file of a real mount: what programs see of it, and what hostile images do to it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from images.pictures import corners, decoded, encoded, quarters
from images.processes import workers_of
from images.test_workers import png
from PIL import Image

from mount.conftest import MountMaker
from mount.live import LiveMount


class Refused(Exception):
    """The command failed; `number` is the errno of the write."""

    def __init__(self, number: int | None, message: str) -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def control_of(mount: LiveMount) -> Iterator[int]:
    fd = os.open(mount.path / ".cas" / "control", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def resize(fd: int, *words: str) -> dict[str, Any]:
    """Run the command; returns its result."""
    number = None
    try:
        os.write(fd, f"resize {' '.join(words)}\n".encode())
    except OSError as exc:
        number = exc.errno
    data = b""
    while part := os.read(fd, 1 << 16):
        data += part
    answer: dict[str, Any] = [json.loads(line) for line in data.splitlines()][-1]
    if number is not None or answer["type"] == "error":
        assert number == getattr(errno, answer["error"])
        raise Refused(number, answer["message"])
    return answer


def test_programs_see_the_result_at_once(mount: LiveMount) -> None:
    root = mount.path
    (root / "a.jpg").write_bytes(encoded(quarters(), "JPEG"))
    (root / "b.jpg").write_bytes(b"what was there")
    # The kernel now knows that one is absent, and what the other has.
    assert not (root / "absent.png").exists()
    before = (root / "b.jpg").stat()
    with (root / "b.jpg").open("rb") as held, control_of(mount) as control:
        assert resize(control, "a.jpg", "40x40", "/absent.png")["changed"]
        assert resize(control, "a.jpg", "'20x20>'", "b.jpg")["changed"]
        assert held.read() == b"what was there"
    assert decoded((root / "absent.png").read_bytes()).size == (40, 30)
    assert decoded((root / "b.jpg").read_bytes()).size == (20, 15)
    assert (root / "b.jpg").stat().st_ino != before.st_ino
    assert {"absent.png", "a.jpg", "b.jpg"} == set(os.listdir(root))
    assert (root / ".versions" / "b.jpg" / "1").read_bytes() == b"what was there"


def test_a_directory_is_made_and_seen(mount: LiveMount) -> None:
    root = mount.path
    (root / "photos").mkdir()
    for number in range(5):
        (root / "photos" / f"{number}.png").write_bytes(encoded(quarters(), "PNG"))
    (root / "photos" / "torn.png").write_bytes(b"\x89PNG")
    assert not (root / "small").exists()
    with control_of(mount) as control:
        answer = resize(control, "photos", "40x40", "small", "--format", "webp")
    assert (answer["made"] + answer["remembered"], answer["failed"]) == (5, 1)
    assert answer["rows"][0]["path"] == "photos/torn.png"
    assert sorted(os.listdir(root / "small")) == [f"{number}.webp" for number in range(5)]
    for file in (root / "small").iterdir():
        assert corners(decoded(file.read_bytes())) == corners(quarters())


CASCTL = "import sys; from mountstore.cli.casctl.main import main; sys.exit(main())"


def test_casctl_resizes_by_the_users_paths(mount: LiveMount) -> None:
    photos = mount.path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(encoded(quarters(), "PNG"))
    (photos / "b.png").write_bytes(b"no image")

    def casctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CASCTL, "resize", *words]
        return subprocess.run(command, cwd=photos, capture_output=True, text=True)

    assert casctl("a.png", "40x40>", "../one.png").returncode == 0
    assert decoded((mount.path / "one.png").read_bytes()).size == (40, 30)
    many = casctl("*.png", "20x20!", "../many")
    assert many.returncode == 1
    assert "/photos/b.png" in many.stdout
    assert os.listdir(mount.path / "many") == ["a.png"]
    one = casctl("b.png", "20x20!", "../many")
    assert one.returncode != 0
    assert "not an image" in one.stderr


def test_hostile_images_are_errors_and_the_mount_goes_on(mount: LiveMount) -> None:
    root = mount.path
    (root / "good.png").write_bytes(encoded(quarters(), "PNG"))
    (root / "bomb.png").write_bytes(png(60_000, 60_000, b""))
    (root / "torn.jpg").write_bytes(encoded(Image.effect_noise((500, 500), 90), "JPEG")[:5000])
    (root / "text.jpg").write_text("no image")
    (root / "target.png").write_bytes(b"as it was")
    with control_of(mount) as control:
        for name, number in (("bomb.png", errno.EFBIG), ("torn.jpg", errno.EINVAL), ("text.jpg", errno.EINVAL)):
            with pytest.raises(Refused) as refused:
                resize(control, name, "40x40", "target.png")
            assert refused.value.number == number
            assert name in str(refused.value)
        with pytest.raises(Refused) as refused:
            resize(control, "good.png", "40x40", "good.png")
        assert refused.value.number == errno.EINVAL
        assert (root / "target.png").read_bytes() == b"as it was"
        resize(control, "good.png", "40x40", "target.png")
    assert decoded((root / "target.png").read_bytes()).size == (40, 30)


def test_the_daemon_decodes_nothing_and_leaves_nobody_behind(make_mount: MountMaker) -> None:
    mount = make_mount()
    (mount.path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    assert not workers_of(mount.pid)
    with control_of(mount) as control:
        resize(control, "a.png", "40x40", "b.png")
        (worker,) = workers_of(mount.pid)
        assert "/PIL/" not in Path(f"/proc/{mount.pid}/maps").read_text()
        # Whoever kills a worker costs nobody anything but a new one.
        os.kill(worker, signal.SIGKILL)
        resize(control, "a.png", "41x40", "c.png")
    (worker,) = workers_of(mount.pid)
    mount.unmount()
    assert not Path(f"/proc/{worker}").exists()


def test_a_killed_daemon_takes_its_workers_along(make_mount: MountMaker) -> None:
    mount = make_mount()
    (mount.path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    with control_of(mount) as control:
        resize(control, "a.png", "40x40", "b.png")
    (worker,) = workers_of(mount.pid)
    with control_of(mount) as control:
        os.write(control, b"sync\n")
    mount.kill()
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        os.sched_yield()
    assert not Path(f"/proc/{worker}").exists()
    mount.start()
    assert (mount.path / "a.png").exists()
