"""The machine the figures are taken on: what it is, its caches, and what its processes use."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import mmap
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from mountstore.fuse.mounts import read_mounts

__all__ = [
    "Quiet",
    "bytes_written",
    "cpu_seconds",
    "describe",
    "file_system_type",
    "memory_bytes",
    "peak_memory_bytes",
    "reset_peak_memory",
    "revision",
    "spread",
]

PROJECT = Path(__file__).resolve().parent.parent.parent


class Quiet:
    """Brings the machine to the same state before every timed run.

    Args:
      settle_s: How long to leave it alone once everything is on the disk.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s

    def settle(self) -> None:
        """Leave nothing to be written by the time the clock runs."""
        os.sync()
        # The disk goes on for a while (trimming, its own cache) with nothing that could be waited for.
        time.sleep(self._settle_s)

    def drop_names(self) -> None:
        """Make the kernel forget names and attributes, but no contents."""
        self._drop("2")

    def drop_everything(self) -> None:
        """Make the kernel forget names, attributes and contents."""
        self._drop("3")

    def back_memory(self, size_bytes: int) -> None:
        """Have the host of a virtual machine give so much memory, which whoever runs next would else wait for.

        What is free may have been given back to it (free page reporting); then the first touch of a page takes
        10 us and more, several times what writing to it does. Huge pages, since they come from the same whole
        blocks that the page cache's large folios will: small ones would use up what is there, and those wait.
        """
        with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            with contextlib.suppress(OSError):  # A kernel without huge pages.
                memory.madvise(mmap.MADV_HUGEPAGE)
            memory[:: mmap.PAGESIZE] = b"\1" * len(range(0, size_bytes, mmap.PAGESIZE))

    def _drop(self, what: str) -> None:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text(what)


# --- processes ---


def _status_bytes(pid: int, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, key
    return int(found[1]) * 1024


def memory_bytes(pid: int) -> int:
    """Resident memory now."""
    return _status_bytes(pid, "VmRSS")


def peak_memory_bytes(pid: int) -> int:
    """The most resident memory since it was last reset."""
    return _status_bytes(pid, "VmHWM")


def reset_peak_memory(pid: int) -> None:
    """Let the peak begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def bytes_written(pid: int) -> int:
    """What a process has caused to be written to disks so far, without what it deleted before it came to that.

    See proc(5), io: write_bytes, cancelled_write_bytes.
    """
    figures = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(figures["write_bytes"]) - int(figures["cancelled_write_bytes"])


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- description ---


def file_system_type(path: str) -> str:
    """The type of the file system that holds `path`, such as ext4."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((m.filesystem_type for m in reversed(read_mounts()) if m.device == number), "unknown")


def revision() -> str:
    """The revision of the checkout, with a plus if it was changed; empty without git."""
    git = ["git", "-c", f"safe.directory={PROJECT}", "-C", str(PROJECT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "mountstore"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _package_version(name: str) -> str:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "?"


def describe(work: str, systems: list[str]) -> dict[str, str]:
    """What has to be known about the machine to make something of its figures, in words."""
    memory_kib = int(re.findall(r"\d+", Path("/proc/meminfo").read_text())[0])
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in ("pyfuse3", "trio")]
    versions += [f"{name} {_package_version(name)}" for name in ("bindfs", "gocryptfs") if name in systems]
    hypervisor = " (virtual machine)" if " hypervisor " in Path("/proc/cpuinfo").read_text() else ""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores{hypervisor}, {memory_kib / 2**20:.0f} GiB",
        "system": f"Linux {platform.release().partition('-')[0]}, disk {file_system_type(work)}",
        "versions": ", ".join(versions),
        "revision": revision(),
        "load at start": f"{os.getloadavg()[0]:.1f}",
    }


def spread(directory: str) -> None:
    """Have ext4 place what is made in `directory` in other block groups than the directory itself.

    Creating a file in a group in which thousands were lately deleted, by whatever used this disk before, takes
    several times as long for some minutes (`recently_deleted` in the kernel's fs/ext4/ialloc.c), and it would be
    chance which of the systems that meets. Other file systems know no such attribute (chattr(1), T).
    """
    subprocess.run(["chattr", "+T", directory], check=False, stderr=subprocess.DEVNULL)
