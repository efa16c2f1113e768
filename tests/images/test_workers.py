"""The processes that decode: whatever an image does to one, it is an error for that image and nothing more."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from PIL import Image

from images.pictures import animation, corners, decoded, encoded, quarters
from images.processes import children_of, workers_of
from mountstore.errors import ImageError, TooLargeError
from mountstore.images.job import Format, Job, Limits, Outcome, new_job
from mountstore.images.workers import Workers

pytestmark = pytest.mark.trio

MakeWorkers = Callable[..., Workers]


@pytest.fixture
async def make_workers() -> AsyncIterator[MakeWorkers]:
    made: list[Workers] = []

    def make(limits: Limits | None = None, **choices: float) -> Workers:
        made.append(Workers(limits, **choices))  # type: ignore[arg-type]  # as Workers takes them
        return made[-1]

    yield make
    for workers in made:
        await workers.aclose()


@pytest.fixture
async def workers(make_workers: MakeWorkers) -> Workers:
    return make_workers()


async def work(workers: Workers, data: bytes, job: Job) -> tuple[Outcome, bytes]:
    source, result = os.memfd_create("source"), os.memfd_create("result")
    try:
        os.write(source, data)
        outcome = await workers.render(job, source, result)
        return outcome, os.pread(result, 1 << 24, 0)
    finally:
        os.close(source)
        os.close(result)


PNG = new_job("40x40", Format.PNG)


async def assert_well(workers: Workers) -> None:
    outcome, data = await work(workers, encoded(quarters(), "JPEG"), PNG)
    assert outcome == Outcome(40, 30, 1, len(data))
    assert corners(decoded(data)) == corners(quarters())


async def test_one_process_serves_job_after_job(workers: Workers) -> None:
    assert not workers_of(os.getpid())
    for _ in range(5):
        await assert_well(workers)
    assert workers.started == 1
    assert len(workers_of(os.getpid())) == 1
    await workers.aclose()
    assert not workers_of(os.getpid())


async def test_every_format_and_option_works_without_names_and_rights(workers: Workers) -> None:
    sources = [encoded(quarters(), name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP")]
    sources += [animation("GIF", clear=True), animation("WEBP", clear=False)]
    sources.append(encoded(quarters().convert("CMYK"), "TIFF"))
    for source in sources:
        for format in Format:
            job = new_job("40x40", format, fill=True, strip=True, quality=50, background="navy")
            outcome, data = await work(workers, source, job)
            assert (outcome.width, outcome.height) == (40, 40)
            assert decoded(data).size == (40, 40)
    assert workers.started == 1


async def test_jobs_run_side_by_side_on_a_bounded_number_of_processes(make_workers: MakeWorkers) -> None:
    workers = make_workers(count=2)
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(assert_well, workers)
    assert workers.started == 2


async def test_idle_processes_end(make_workers: MakeWorkers) -> None:
    workers = make_workers(idle_s=0.05)
    await assert_well(workers)
    with trio.fail_after(20):
        while workers_of(os.getpid()):
            await trio.sleep(0.02)
    await assert_well(workers)
    assert workers.started == 2


# --- confinement ---


async def test_a_worker_has_no_descriptors_of_ours_and_no_rights(workers: Workers, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    inheritable = os.open(secret, os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    try:
        await assert_well(workers)
        (pid,) = workers_of(os.getpid())
        # Of the daemon it has the socket; 0 to 2 are /dev/null.
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        (own,) = [link for link in links if link != "/dev/null"]
        assert own.startswith("socket:")
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["NoNewPrivs"] == "1"
        assert status["Threads"] == "1"
        # When memory runs out, it goes before the daemon.
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
        if os.geteuid() == 0:
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert not status["Groups"].strip()
            assert int(status["CapEff"], 16) == 0
    finally:
        os.close(inheritable)


# --- hostile images ---


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG of 8-bit grey whose header says what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def test_a_bomb_is_refused_by_its_header(workers: Workers) -> None:
    for width, height in ((50_000, 50_000), (0x7FFFFFFF, 0x7FFFFFFF), (0x7FFFFFFF, 1)):
        with pytest.raises((TooLargeError, ImageError)):
            await work(workers, png(width, height, b""), PNG)
    await assert_well(workers)
    assert workers.started == 1


async def test_what_needs_too_much_memory_is_refused(make_workers: MakeWorkers) -> None:
    workers = make_workers(Limits(memory_bytes=64 << 20))
    with pytest.raises(TooLargeError, match="64 MiB of memory"):
        await work(workers, png(12_000, 12_000, zlib.compress(bytes(12_001 * 12_000))), PNG)
    await assert_well(workers)
    assert workers.started == 1


async def test_what_takes_too_long_is_ended(make_workers: MakeWorkers) -> None:
    slow = encoded(Image.effect_noise((1000, 1000), 90), "PNG")
    workers = make_workers(Limits(wall_s=0.05))
    with pytest.raises(TooLargeError, match="longer"):
        await work(workers, slow, new_job("3000x3000", Format.AVIF))
    workers = make_workers(Limits(cpu_s=1))
    with pytest.raises(TooLargeError, match="longer"):
        await work(workers, slow, new_job("6000x6000", Format.AVIF))
    await assert_well(workers)
    assert workers.started == 1


async def test_a_result_that_is_too_long_is_refused(make_workers: MakeWorkers) -> None:
    workers = make_workers(Limits(result_bytes=1000))
    with pytest.raises(TooLargeError, match="1,000"):
        await work(workers, encoded(Image.effect_noise((300, 300), 90), "PNG"), new_job("300", Format.PNG))
    await assert_well(workers)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"])
async def test_damaged_images_are_errors_or_pictures(workers: Workers, name: str) -> None:
    whole = encoded(Image.effect_noise((60, 60), 90).convert("RGB"), name)
    for number in range(12):
        damaged = bytearray(whole)
        for place in range(number, len(damaged), 61 + number):
            damaged[place] ^= 1 << (number % 8)
        try:
            await work(workers, bytes(damaged), PNG)
        except (ImageError, TooLargeError) as exc:
            assert str(exc)
    await assert_well(workers)
    assert workers.started == 1


@pytest.mark.parametrize("used", [False, True])
async def test_a_worker_that_is_killed_fails_its_job_at_most(workers: Workers, used: bool) -> None:
    if used:
        await assert_well(workers)
    slow = encoded(Image.effect_noise((1000, 1000), 90), "PNG")

    async def kill_when_at_work() -> None:
        while not (pids := workers_of(os.getpid())) or not children_of(pids[0]):
            await trio.sleep(0.001)
        os.kill(pids[0], signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_when_at_work)
        if used:
            # It is done by another.
            outcome, _ = await work(workers, slow, new_job("500", Format.AVIF))
            assert outcome.width == 500
        else:
            with pytest.raises(ImageError, match="signal 9"):
                await work(workers, slow, new_job("2000", Format.AVIF))
    await assert_well(workers)
    assert workers.started == 2


async def test_a_decoder_ends_with_its_worker(workers: Workers) -> None:
    slow = encoded(Image.effect_noise((1000, 1000), 90), "PNG")
    decoders = []

    async def kill_when_at_work() -> None:
        while not (pids := workers_of(os.getpid())) or not (children := children_of(pids[0])):
            await trio.sleep(0.001)
        decoders.extend(children)
        await trio.sleep(0.05)
        os.kill(pids[0], signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_when_at_work)
        with pytest.raises(ImageError, match="signal 9"):
            await work(workers, slow, new_job("6000", Format.AVIF))
    with trio.fail_after(5):
        while Path(f"/proc/{decoders[0]}/cmdline").exists():
            if not Path(f"/proc/{decoders[0]}/cmdline").read_bytes():
                break  # dead, and nobody has taken notice
            await trio.sleep(0.01)


async def test_a_decoder_that_is_killed_fails_its_job_only(workers: Workers) -> None:
    await assert_well(workers)
    (pid,) = workers_of(os.getpid())
    slow = encoded(Image.effect_noise((1000, 1000), 90), "PNG")

    async def kill_when_at_work() -> None:
        while not (children := children_of(pid)):
            await trio.sleep(0.001)
        os.kill(children[0], signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_when_at_work)
        with pytest.raises(ImageError, match="SIGKILL"):
            await work(workers, slow, new_job("2000", Format.AVIF))
    await assert_well(workers)
    assert workers.started == 1


async def test_a_worker_that_died_while_idle_is_replaced_unnoticed(workers: Workers) -> None:
    await assert_well(workers)
    (pid,) = workers_of(os.getpid())
    os.kill(pid, signal.SIGKILL)
    with trio.fail_after(20):
        while Path(f"/proc/{pid}/cmdline").read_bytes():
            await trio.sleep(0.005)
    await assert_well(workers)
    assert workers.started == 2


async def test_whoever_gives_up_takes_the_worker_along(workers: Workers) -> None:
    slow = encoded(Image.effect_noise((1000, 1000), 90), "PNG")
    await assert_well(workers)
    with trio.move_on_after(0.2) as scope:
        await work(workers, slow, new_job("6000", Format.AVIF))
    assert scope.cancelled_caught
    assert not workers_of(os.getpid())
    await assert_well(workers)


async def test_without_pillow_it_is_said_what_is_missing(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImageError, match="Pillow"):
        await work(workers, b"", PNG)
    monkeypatch.undo()
    await assert_well(workers)
