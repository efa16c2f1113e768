"""What the caller of a daemonising program sees: its output, its code, and when it ends.

Each case runs in a process of its own, since it forks and replaces signal handlers.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.programs import has_ended

PRELUDE = """
import os, signal, sys, time
from mountstore.cli.daemon import *
from mountstore.cli.exits import *
from mountstore.errors import *

def report(serve):
    code, message = serve_detached(serve)
    print(int(code), message)
"""


def run(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + body],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_the_parent_ends_when_the_child_is_ready_and_its_output_is_not_held_open(tmp_path: Path) -> None:
    fifo = tmp_path / "end"
    os.mkfifo(fifo)
    done = run(f"""
def serve(on_ready):
    on_ready()
    open({str(fifo)!r}).read()  # goes on until the test says so
report(serve)
""")
    # Reading to the end of the output worked, though the child is still there.
    assert (done.returncode, done.stdout) == (0, "0 \n")
    with fifo.open("w"):
        pass


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("StoreError('no store at /x')", 32),
        ("BusyError('in use by pid 7')", 32),
        ("MountError('fusermount3 refused')", 32),
        ("MisuseError('bad')", 1),
        ("NotPermittedError('no')", 1),
        ("Failure(Exit.SYSTEM, 'no fuse')", 2),
        ("OSError(28, 'No space left on device', '/data')", 2),
        ("KeyboardInterrupt()", 8),
        ("ZeroDivisionError('oops')", 4),
    ],
)
def test_what_ends_the_child_before_it_is_ready_reaches_the_caller(raised: str, code: int) -> None:
    done = run(f"def serve(on_ready): raise {raised}\nreport(serve)")
    exception = eval(raised, vars(__import__("mountstore.errors", fromlist=["*"])) | failures())
    assert done.stdout.startswith(f"{code} ")
    assert all(word in done.stdout for word in str(exception.args[-1] if exception.args else "").split())


def failures() -> dict[str, object]:
    from mountstore.cli.exits import Exit, Failure

    return {"Exit": Exit, "Failure": Failure}


def test_what_libraries_print_before_ready_is_told_with_the_failure() -> None:
    done = run("""
def serve(on_ready):
    os.write(2, b"fuse: failed to\\nopen the moon\\n")
    raise MountError("mount failed")
report(serve)
""")
    assert done.stdout == "32 mount failed (fuse: failed to open the moon)\n"


def test_a_child_that_is_killed_is_a_bug_with_a_name() -> None:
    done = run("def serve(on_ready): os.kill(os.getpid(), signal.SIGKILL)\nreport(serve)")
    assert done.stdout == "4 the serving process ended unexpectedly (signal 9)\n"


def test_the_child_keeps_nothing_of_its_caller(tmp_path: Path) -> None:
    done = run(f"""
os.chdir({str(tmp_path)!r})
held = os.open("held", os.O_CREAT | os.O_RDWR)
os.set_inheritable(held, True)
def serve(on_ready):
    on_ready()
    with open({str(tmp_path / "seen")!r}, "w") as out:
        print(os.getcwd(), os.getsid(0) == os.getpid(), file=out)
        links = {{os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)}}
        print(links, file=out)
        names = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{fd}}")]
        print(sorted(names), file=out)
    os.rename({str(tmp_path / "seen")!r}, {str(tmp_path / "done")!r})
report(serve)
# The caller reads what the child saw; the pidless wait is on its only child.
os.wait()
print(open({str(tmp_path / "done")!r}).read())
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["0 ", "/ True", "{'/dev/null'}"]
    # Standard streams, the file written to, and nothing that was the caller's.
    assert done.stdout.splitlines()[3] == "['0', '1', '2', '3']"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_parent_takes_the_child_with_it(tmp_path: Path, number: signal.Signals) -> None:
    fifo = tmp_path / "child"
    os.mkfifo(fifo)
    body = f"""
def serve(on_ready):
    with open({str(fifo)!r}, "w") as out:
        print(os.getpid(), file=out)
    signal.pause()
report(serve)
"""
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + body], stdout=subprocess.PIPE, text=True)
    child = os.pidfd_open(int(fifo.read_text()))
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert said == "8 interrupted\n"
    assert has_ended(child, within_s=60)
    os.close(child)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    address = f"@mountstore-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + address[1:] if abstract else address)
        channel.settimeout(60)
        run("serve_here(lambda on_ready: on_ready())", NOTIFY_SOCKET=address)
        assert channel.recv(100) == b"READY=1"
        done = run("report(lambda on_ready: on_ready())", NOTIFY_SOCKET=address)
        told = channel.recv(100).decode()
    assert told.startswith("READY=1\nMAINPID=")
    assert done.stdout == "0 \n"


def test_nobody_to_tell_is_no_error() -> None:
    for address in ("/does/not/exist", "relative", ""):
        done = run("notify_service_manager('READY=1'); print('ok')", NOTIFY_SOCKET=address)
        assert done.stdout == "ok\n"


FAKE_RULE = "import sys; from mountstore.cli.daemon import called_by_mount8 as c; print(c())"


def test_a_person_or_a_script_called_mount_is_not_mount8(tmp_path: Path) -> None:
    direct = subprocess.run([sys.executable, "-c", FAKE_RULE], capture_output=True, text=True, check=True)
    assert direct.stdout == "False\n"
    script = tmp_path / "mount"
    script.write_text(f"#!/bin/sh\n{sys.executable} -c '{FAKE_RULE}'\nexit 0\n")
    script.chmod(0o755)
    by_script = subprocess.run([script], capture_output=True, text=True, check=True)
    assert by_script.stdout == "False\n"
