"""What is timed in the main table, each a function of a Site: one system in one round.

A workload makes what it needs, brings the machine to rest, and times the rest. What one round's `create` left is
used by the workloads behind it. Nothing is deleted before the workloads that delete, and those come last:
after thousands of deletions ext4 creates slowly for a while (it avoids inodes freed a moment ago), and the
next figure would be one of that. For the same reason every run makes a directory of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmark.client import Client
from benchmark.figures import MIB, Timing, Unit
from benchmark.machine import Quiet
from benchmark.systems import System

__all__ = [
    "WORKLOADS",
    "Counts",
    "Site",
    "Sources",
    "Workload",
    "run_timed",
    "stage_repository",
    "stage_tree",
]


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of everything."""

    files: int = 3000
    file_bytes: int = 2048
    listed: int = 10_000
    synced: int = 200
    stream_bytes: int = 256 * MIB
    random_bytes: int = 64 * MIB
    random_reads: int = 2000
    random_writes: int = 2000
    fsync_every: int = 100
    clients: int = 4

    @classmethod
    def quick(cls) -> Counts:
        return cls(
            files=400,
            listed=1000,
            synced=30,
            stream_bytes=24 * MIB,
            random_bytes=8 * MIB,
            random_reads=200,
            random_writes=200,
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """What cp, tar and git work on; both on the disk."""

    tree: str
    repository: str | None
    """A git repository, or None where there is none."""


@dataclass(slots=True)
class Site:
    """One system in one round."""

    system: System
    round: int
    counts: Counts
    sources: Sources
    client: Client
    quiet: Quiet
    kept: dict[str, str] = field(default_factory=dict)
    """Directories that later workloads of the round use, by what is in them."""
    kept_for_all: dict[str, str] = field(default_factory=dict)
    """The same, shared by all rounds of a system; nobody changes what is in these."""
    _made: int = 0

    def fresh(self, name: str) -> str:
        """A new, empty directory."""
        self._made += 1
        path = os.path.join(self.system.root, f"r{self.round}", f"{self._made:02d}-{name}")
        os.makedirs(path)
        return path

    def seed(self, number: int) -> int:
        """A seed that no other round has; `number` tells the contents of one round apart."""
        return self.round * 100 + number

    def files(self) -> str:
        """A directory with `counts.files` small files."""
        if "files" not in self.kept:
            create(self)
        return self.kept["files"]

    def doomed_files(self, name: str, number: int) -> str:
        """The same, for a workload that changes them."""
        directory = self.fresh(name)
        self.client("create", directory, **self._small(number))
        return directory

    def _small(self, number: int) -> dict[str, int]:
        return {"count": self.counts.files, "size": self.counts.file_bytes, "seed": self.seed(number)}

    def timed_create(self, name: str, number: int) -> tuple[str, Timing]:
        directory = self.fresh(name)
        self.quiet.settle()
        return directory, self.client("create", directory, **self._small(number))

    def back_memory(self) -> None:
        """Room for a stream in the page cache, of the mount and of the disk below, and for who handles it; and as
        much again, since what is free goes back to the host at some 200 MiB a second, from a second later on."""
        self.quiet.back_memory(8 * self.counts.stream_bytes)

    def listing(self) -> str:
        """A directory with `counts.listed` small files."""
        if "listing" not in self.kept_for_all:
            directory = self.fresh("listing")
            self.client("create", directory, count=self.counts.listed, size=100, seed=self.seed(90))
            self.kept_for_all["listing"] = directory
        return self.kept_for_all["listing"]

    def stream(self) -> str:
        """A directory with the file "stream" of `counts.stream_bytes`."""
        if "stream" not in self.kept_for_all:
            directory = self.fresh("stream")
            self.client("seqwrite", directory, size=self.counts.stream_bytes, seed=self.seed(91))
            self.kept_for_all["stream"] = directory
        return self.kept_for_all["stream"]

    def tree(self) -> str:
        """A directory that holds the copy "tree"."""
        if "tree" not in self.kept:
            copy_tree(self)
        return self.kept["tree"]

    def clone(self) -> str:
        """A directory that holds the clone "clone"."""
        if "clone" not in self.kept:
            git_clone(self)
        return self.kept["clone"]


def run_timed(command: list[str], directory: str) -> Timing:
    """A program, from its start to its end.

    Raises:
      subprocess.CalledProcessError: It failed.
    """
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    took = time.monotonic() - begun
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    return Timing(1, took)


# --- names ---


def create(site: Site) -> Timing:
    site.kept["files"], timing = site.timed_create("files", 0)
    return timing


def create_again(site: Site) -> Timing:
    site.files()
    return site.timed_create("again", 0)[1]


def create_synced(site: Site) -> Timing:
    directory = site.fresh("synced")
    counts = site.counts
    site.quiet.settle()
    return site.client(
        "create", directory, count=counts.synced, size=counts.file_bytes, seed=site.seed(1), fsync_each=1
    )


def create_at_once(site: Site) -> Timing:
    directory = site.fresh("at-once")
    counts = site.counts
    site.quiet.settle()
    return site.client(
        "create",
        directory,
        count=counts.files // counts.clients,
        size=counts.file_bytes,
        seed=site.seed(2),
        workers=counts.clients,
    )


def mkdir(site: Site) -> Timing:
    site.kept["directories"] = directory = site.fresh("directories")
    site.quiet.settle()
    return site.client("mkdir", directory, count=site.counts.files)


def stat(site: Site) -> Timing:
    directory = site.files()
    site.quiet.settle()
    site.quiet.drop_names()
    return site.client("stat", directory, count=site.counts.files)


def read_warm(site: Site) -> Timing:
    directory = site.files()
    site.client("read", directory, count=site.counts.files)
    site.quiet.settle()
    return site.client("read", directory, count=site.counts.files)


def read_cold(site: Site) -> Timing:
    directory = site.files()
    site.quiet.settle()
    site.quiet.drop_everything()
    return site.client("read", directory, count=site.counts.files)


def read_remounted(site: Site) -> Timing:
    directory = site.files()
    site.system.stop()
    site.quiet.drop_everything()
    site.system.start()
    site.quiet.settle()
    return site.client("read", directory, count=site.counts.files)


def list_long(site: Site) -> Timing:
    directory = site.listing()
    site.quiet.settle()
    site.quiet.drop_names()
    return run_timed(["ls", "-l"], directory)


def rename(site: Site) -> Timing:
    directory = site.doomed_files("renamed", 3)
    site.quiet.settle()
    return site.client("rename", directory, count=site.counts.files)


def unlink(site: Site) -> Timing:
    directory = site.doomed_files("unlinked", 4)
    site.quiet.settle()
    return site.client("unlink", directory, count=site.counts.files)


def rmdir(site: Site) -> Timing:
    if "directories" not in site.kept:
        mkdir(site)
    site.quiet.settle()
    return site.client("rmdir", site.kept.pop("directories"), count=site.counts.files)


# --- bytes ---


def _write_stream(site: Site, call_bytes: int, number: int) -> Timing:
    directory = site.fresh("stream")
    size = site.counts.stream_bytes
    site.quiet.settle()
    site.back_memory()
    timing = site.client("seqwrite", directory, size=size, call=call_bytes, seed=site.seed(number))
    # What is kept in memory must go at once. On a disk it must not: freeing blocks (and trimming them) goes on
    # behind the next run's back.
    if not site.system.keeps:
        os.unlink(os.path.join(directory, "stream"))
    return Timing(size, timing.elapsed_s)


def write_4k(site: Site) -> Timing:
    return _write_stream(site, 4096, 10)


def write_128k(site: Site) -> Timing:
    return _write_stream(site, 128 * 1024, 11)


def write_1m(site: Site) -> Timing:
    return _write_stream(site, MIB, 12)


def _read_stream(site: Site, directory: str) -> Timing:
    size = site.counts.stream_bytes
    return Timing(size, site.client("seqread", directory, size=size).elapsed_s)


def stream_cold(site: Site) -> Timing:
    directory = site.stream()
    site.quiet.settle()
    site.quiet.drop_everything()
    site.back_memory()
    return _read_stream(site, directory)


def stream_warm(site: Site) -> Timing:
    directory = site.stream()
    _read_stream(site, directory)
    site.quiet.settle()
    return _read_stream(site, directory)


def random_read(site: Site) -> Timing:
    directory = site.stream()
    counts = site.counts
    site.quiet.settle()
    site.quiet.drop_everything()
    site.back_memory()
    return site.client(
        "randread", directory, size=counts.stream_bytes, count=counts.random_reads, seed=site.seed(13)
    )


def random_write(site: Site) -> Timing:
    return _write_at_random(site, site.counts.random_writes, site.counts.fsync_every)


def random_write_synced(site: Site) -> Timing:
    return _write_at_random(site, site.counts.synced, 1)


def _write_at_random(site: Site, count: int, fsync_every: int) -> Timing:
    directory = site.fresh("random")
    counts = site.counts
    site.client("seqwrite", directory, size=counts.random_bytes, seed=site.seed(14), fsync_each=1)
    site.quiet.settle()
    return site.client(
        "randwrite",
        directory,
        size=counts.random_bytes,
        count=count,
        fsync_every=fsync_every,
        seed=site.seed(15),
    )


# --- programs ---


def copy_tree(site: Site) -> Timing:
    directory = site.fresh("tree")
    run_timed(["sh", "-c", 'tar cf - "$1" | cat', "sh", site.sources.tree], "/")  # the source is in memory
    site.quiet.settle()
    timing = run_timed(["cp", "-a", site.sources.tree, os.path.join(directory, "tree")], directory)
    site.kept["tree"] = directory
    return timing


def tar_tree(site: Site) -> Timing:
    directory = site.tree()
    site.quiet.settle()
    site.quiet.drop_names()
    # Through a pipe: GNU tar does not read the files when its output is /dev/null.
    return run_timed(["sh", "-c", "tar cf - tree | cat"], directory)


def git_clone(site: Site) -> Timing:
    directory = site.fresh("clone")
    assert site.sources.repository is not None
    site.quiet.settle()
    timing = run_timed(["git", "clone", "-q", f"file://{site.sources.repository}", "clone"], directory)
    site.kept["clone"] = directory
    return timing


def git_status(site: Site) -> Timing:
    directory = os.path.join(site.clone(), "clone")
    # The first one refreshes what git could not trust yet: files as young as its index.
    run_timed(["git", "status"], directory)
    site.quiet.settle()
    site.quiet.drop_names()
    return run_timed(["git", "status"], directory)


def remove_tree(site: Site) -> Timing:
    directory = site.tree()
    site.quiet.settle()
    del site.kept["tree"]
    return run_timed(["rm", "-rf", "tree"], directory)


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of the table.

    Attributes:
      name: Its word on the command line and in JSON.
      title: Its words in the table.
      needs_keeping: Only for systems that keep what was written when they are unmounted.
      needs_repository: Only with a git repository to work on.
    """

    name: str
    title: str
    unit: Unit
    run: Callable[[Site], Timing]
    needs_keeping: bool = False
    needs_repository: bool = False


_OPS, _MIBS, _TIME = Unit.PER_SECOND, Unit.MIB_PER_SECOND, Unit.SECONDS

WORKLOADS: tuple[Workload, ...] = (
    Workload("create", "create+write+close, 2 KB", _OPS, create),
    Workload("create-again", "the same contents again", _OPS, create_again),
    Workload("create-at-once", "create+write+close, 4 clients", _OPS, create_at_once),
    Workload("create-fsync", "create+write+fsync+close", _OPS, create_synced),
    Workload("mkdir", "mkdir", _OPS, mkdir),
    Workload("stat", "stat, names forgotten", _OPS, stat),
    Workload("read-warm", "open+read+close, warm", _OPS, read_warm),
    Workload("read-cold", "open+read+close, caches dropped", _OPS, read_cold),
    Workload("read-remounted", "open+read+close, remounted", _OPS, read_remounted, needs_keeping=True),
    Workload("ls", "ls -l of a large directory, names forgotten", _TIME, list_long),
    Workload("write-4k", "sequential write, calls of 4 KiB", _MIBS, write_4k),
    Workload("write-128k", "sequential write, calls of 128 KiB", _MIBS, write_128k),
    Workload("write-1m", "sequential write, calls of 1 MiB", _MIBS, write_1m),
    Workload("stream-cold", "sequential read, caches dropped", _MIBS, stream_cold),
    Workload("stream-warm", "sequential read, warm", _MIBS, stream_warm),
    Workload("random-read", "random read of 4 KiB, caches dropped", _OPS, random_read),
    Workload("random-write", "random write of 4 KiB, fsync every 100", _OPS, random_write),
    Workload("random-write-fsync", "random write of 4 KiB, fsync of each", _OPS, random_write_synced),
    Workload("cp", "cp -a of a tree", _TIME, copy_tree),
    Workload("tar", "tar of it, names forgotten", _TIME, tar_tree),
    Workload("git-clone", "git clone", _TIME, git_clone, needs_repository=True),
    Workload("git-status", "git status, names forgotten", _TIME, git_status, needs_repository=True),
    Workload("rename", "rename", _OPS, rename),
    Workload("rm", "rm -rf of the tree", _TIME, remove_tree),
    Workload("unlink", "unlink", _OPS, unlink),
    Workload("rmdir", "rmdir", _OPS, rmdir),
)
"""All of them, in the order they run; those that delete are last."""


def stage_tree(source: str, target: str) -> None:
    """Copy what of `source` is worth copying to `target`: no caches, no build products, no tests."""
    skipped = shutil.ignore_patterns(
        "__pycache__", "site-packages", "dist-packages", "test", "tests", "config-*", ".git", ".venv", "*.so"
    )
    shutil.copytree(source, target, symlinks=True, ignore=skipped)


def stage_repository(source: str, target: str) -> None:
    """Make `target` a bare git repository with what `source` has now.

    Raises:
      subprocess.CalledProcessError: It is no git repository, or there is no git; stderr says which.
    """
    bundle = f"{target}.bundle"
    # By way of a bundle, since git refuses to clone from a checkout that belongs to somebody else.
    pack = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        source,
        "bundle",
        "create",
        "-q",
        bundle,
        "HEAD",
        "--branches",
    ]
    run_timed(pack, "/")
    run_timed(["git", "clone", "-q", "--bare", bundle, target], "/")
    os.unlink(bundle)
