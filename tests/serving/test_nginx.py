"""A real nginx serves what is in a store: from the blobs, by X-Accel-Redirect, and from the mount itself."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.live import LiveMount, let_everybody_reach

from serving.server import USER, Nginx, ask

pytestmark = pytest.mark.mount

SMALL = random.Random(1).randbytes(300_000)
LARGE = random.Random(2).randbytes(9_000_000)
"""More than one blob holds."""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    """A mount whose blobs the group of the web server may read, as docs/serving.md says."""
    base = tmp_path_factory.mktemp("serving")
    let_everybody_reach(base)
    mount = LiveMount(base)
    for directory, mode in ((mount.store, 0o710), (mount.store / "blobs", 0o2710)):
        shutil.chown(directory, group=USER)
        directory.chmod(mode)
    (mount.path / "small.jpg").write_bytes(SMALL)
    (mount.path / "large.jpg").write_bytes(LARGE)
    (mount.path / "private.jpg").write_bytes(SMALL[1:])
    (mount.path / "private.jpg").chmod(0o600)
    yield mount
    mount.finish()


@pytest.fixture(scope="module")
def nginx(mount: LiveMount, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    base = tmp_path_factory.mktemp("nginx")
    let_everybody_reach(base)
    trace = ("strace", "-f", "-qq", "-e", "trace=sendfile,openat", "-o", str(base / "trace"))
    nginx = Nginx(base / "nginx", mount.path, mount.store, prelude=trace)
    yield nginx
    nginx.stop()


def sent_by_kernel(nginx: Nginx) -> int:
    """Bytes that went from files to the network without passing through nginx."""
    trace = (nginx.base.parent / "trace").read_text()
    return sum(int(count) for count in re.findall(r"sendfile\(.*\) = (\d+)", trace))


def await_sent(nginx: Nginx, before: int, size: int) -> None:
    """Wait until so many more were sent: strace writes a line after the bytes have arrived here."""
    end = time.monotonic() + 60
    while sent_by_kernel(nginx) - before != size:
        assert time.monotonic() < end
        os.sched_yield()


def opened(nginx: Nginx, directory: Path) -> set[str]:
    trace = (nginx.base.parent / "trace").read_text()
    return set(re.findall(rf'openat\([^"]*"({re.escape(str(directory))}/[^"]*)"', trace))


def test_a_blob_is_sent_without_the_mount(nginx: Nginx, mount: LiveMount) -> None:
    before = sent_by_kernel(nginx)
    response, data = nginx.get("/app/small.jpg")
    assert (response.status, data) == (200, SMALL)
    assert response.headers["Content-Type"] == "image/x-of-the-application"
    assert response.headers["Content-Length"] == str(len(SMALL))
    assert "X-Accel-Redirect" not in response.headers
    await_sent(nginx, before, len(SMALL))
    blob = ask(mount.path / ".cas" / "control", "info small.jpg")["content"]["blob_path"]
    assert blob in opened(nginx, mount.store / "blobs")
    assert not opened(nginx, mount.path)
    # The application decides, not the mode in the mount.
    assert nginx.get("/app/private.jpg")[1] == SMALL[1:]


@pytest.mark.parametrize("path", ["/app/small.jpg", "/files/small.jpg", "/app/large.jpg", "/files/large.jpg"])
def test_ranges_are_served(nginx: Nginx, path: str) -> None:
    whole = SMALL if "small" in path else LARGE
    size = len(whole)
    for range_, expected in (
        ("bytes=0-0", whole[:1]),
        ("bytes=1000-99999", whole[1000:100_000]),
        (f"bytes={size - 5}-", whole[-5:]),
        ("bytes=-777", whole[-777:]),
        (f"bytes=4-{size * 2}", whole[4:]),
        (f"bytes={size // 2 - 10}-{size // 2 + 10}", whole[size // 2 - 10 : size // 2 + 11]),
    ):
        response, data = nginx.get(path, Range=range_)
        assert response.status == 206, range_
        assert data == expected
        assert response.headers["Content-Range"].endswith(f"/{size}")
    response, _ = nginx.get(path, Range=f"bytes={size}-")
    assert response.status == 416
    response, data = nginx.get(path, Range="bytes=0-1,5-6")
    assert (response.status, data.count(whole[:2]) > 0, data.count(whole[5:7]) > 0) == (206, True, True)


def test_a_file_in_pieces_is_sent_from_the_mount(nginx: Nginx, mount: LiveMount) -> None:
    before = sent_by_kernel(nginx)
    response, data = nginx.get("/app/large.jpg")
    assert (response.status, data) == (200, LARGE)
    await_sent(nginx, before, len(LARGE))
    assert str(mount.path / "large.jpg") in opened(nginx, mount.path)


def test_the_mount_is_served_with_sendfile(nginx: Nginx) -> None:
    for path, content in (("/files/small.jpg", SMALL), ("/files/large.jpg", LARGE)):
        before = sent_by_kernel(nginx)
        response, data = nginx.get(path)
        assert (response.status, data) == (200, content)
        assert response.headers["Content-Type"] == "image/jpeg"
        await_sent(nginx, before, len(content))
        unchanged, _ = nginx.get(path, If_None_Match=response.headers["ETag"])
        assert unchanged.status == 304
    # Here the modes in the mount count.
    assert nginx.get("/files/private.jpg")[0].status == 403
    assert nginx.get("/files/absent.jpg")[0].status == 404


def test_what_changes_is_served_anew(nginx: Nginx, mount: LiveMount) -> None:
    file = mount.path / "changing.jpg"
    for text in (b"first", b"the second one"):
        file.write_bytes(text)
        assert nginx.get("/files/changing.jpg")[1] == text
        assert nginx.get("/app/changing.jpg")[1] == text
    first, _ = nginx.get("/app/changing.jpg")
    file.write_bytes(b"the second onE")
    second, _ = nginx.get("/app/changing.jpg")
    # Equal length within a second: only the digest tells.
    assert first.headers["ETag"] != second.headers["ETag"]
    assert "Last-Modified" not in second.headers
    assert nginx.get("/app/changing.jpg", If_None_Match=second.headers["ETag"])[0].status == 304
    assert nginx.get("/app/changing.jpg", If_None_Match=first.headers["ETag"])[0].status == 200
    os.replace(file, mount.path / "moved.jpg")
    assert nginx.get("/files/changing.jpg")[0].status == 404


def test_nobody_but_the_application_hands_out_blobs(nginx: Nginx, mount: LiveMount) -> None:
    blob = ask(mount.path / ".cas" / "control", "info small.jpg")["content"]["blob"]
    assert nginx.get(f"/{blob}")[0].status == 404
    assert nginx.get("/mount/small.jpg")[0].status == 404
    for path in (".cas/control", ".cas/", ".cas/status", ".versions/", ".versions/small.jpg/1", ".versions"):
        assert nginx.get(f"/files/{path}")[0].status == 404, path


def test_others_cannot_read_blobs_past_the_modes_of_the_mount(mount: LiveMount) -> None:
    blob = Path(ask(mount.path / ".cas" / "control", "info private.jpg")["content"]["blob_path"])
    # What was made after the directory got its group has it too.
    assert blob.parent.group() == USER
    assert blob.parent.stat().st_mode & 0o7777 == 0o2710
    assert blob.stat().st_mode & 0o777 == 0o444

    def may_open(user: str) -> bool:
        import pwd

        entry = pwd.getpwnam(user)
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
            os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
            try:
                os.close(os.open(blob, os.O_RDONLY))
            except PermissionError:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert may_open(USER)
    assert not may_open("nobody")
