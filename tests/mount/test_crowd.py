"""Many files, and many processes at once."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.limits import SMALL_LIMITS
from mount.live import PATIENCE_S, SCALE, LiveMount
from mount.picture import assert_same, picture
from mount.syscalls import write_back

MIB = 1 << 20

FILES = 10_000 * SCALE
MEMORY_MAX_BYTES = 100 * MIB


def crowd(code: str, count: int, *arguments: str | int | Path) -> list[str]:
    """Run `count` processes of Python at once, each with its number; returns what each printed."""
    head = "import os, random, sys\nnumber, count, *args = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]"
    program = f"{head}\n{code}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number), str(count), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate(timeout=2 * PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return said


_HAMMER = """
choice = random.Random(number)
root = args[0]
mine = {}
for step in range(int(args[1])):
    name = f"{number}-{choice.randrange(30)}"
    path = f"{root}/{name}"
    what = choice.randrange(9)
    if what < 3:
        data = b"%d %d " % (number, step) * choice.randrange(1, 2000)
        with open(path, "wb") as f: f.write(data)
        mine[name] = data
    elif what == 3 and name in mine:
        os.unlink(path); del mine[name]
    elif what == 4 and name in mine:
        other = f"{number}-{choice.randrange(30)}"
        os.rename(path, f"{root}/{other}")
        data = mine.pop(name); mine[other] = data
    elif what == 5 and name in mine:
        with open(path, "rb") as f: assert f.read() == mine[name], path
    elif what == 6:
        # A name that all want, and nobody keeps.
        try:
            os.close(os.open(f"{root}/shared", os.O_CREAT | os.O_EXCL)); os.unlink(f"{root}/shared")
        except (FileExistsError, FileNotFoundError): pass
    elif what == 7:
        # A name that is removed and made again meanwhile may come twice; one that stays may not.
        assert sorted(mine) == sorted(n for n in os.listdir(root) if n.startswith(f"{number}-"))
    else:
        try:
            os.mkdir(f"{root}/directory"); os.rmdir(f"{root}/directory")
        except (FileExistsError, FileNotFoundError): pass
print(" ".join(sorted(mine)))
"""


def test_sixteen_processes_in_one_directory(mount: LiveMount) -> None:
    said = crowd(_HAMMER, 16, mount.path, 250 * SCALE)
    expected = {name for line in said for name in line.split()}
    for again in (False, True):
        if again:
            mount.remount()
        assert set(os.listdir(mount.path)) == expected
        for name in expected:
            data = (mount.path / name).read_bytes()
            writer, step, _ = data.split(b" ", 2)
            word = b"%s %s " % (writer, step)
            assert data == word * (len(data) // len(word))


_CHURN = """
choice = random.Random(number)
while os.path.exists(args[1]):
    name = f"{args[0]}/churn{number}-{choice.randrange(300)}"
    what = choice.randrange(4)
    if what < 2: os.close(os.open(name, os.O_CREAT))
    elif what == 2:
        try: os.unlink(name)
        except FileNotFoundError: pass
    else:
        try: os.rename(name, name + "r")
        except FileNotFoundError: pass
"""

_LIST = """
stay = {f"stay{i}" for i in range(int(args[2]))}
for turn in range(int(args[3])):
    if number % 2:
        names = os.listdir(args[0])
    else:
        # Slowly, as many requests.
        fd = os.open(args[0], os.O_RDONLY)
        with os.scandir(fd) as listing:
            names = []
            for entry in listing:
                names.append(entry.name)
                if len(names) % 500 == 0: os.stat(f"{args[0]}/stay1")
        os.close(fd)
    there = [n for n in names if n.startswith("stay")]
    assert len(there) == len(set(there)), "repeated"
    assert set(there) == stay, "skipped"
os.path.exists(args[1]) and os.unlink(args[1])
"""


def test_a_listing_neither_repeats_nor_skips_while_others_create_and_delete(
    mount: LiveMount, tmp_path: Path
) -> None:
    directory, going = mount.path / "d", tmp_path / "going"
    directory.mkdir()
    count = 3000
    for number in range(count):
        (directory / f"stay{number}").touch()
    # What is not in the kernel's cache any more as well.
    mount.remount()
    going.touch()
    code = f"if number < 2:\n{_indented(_CHURN)}\nelse:\n{_indented(_LIST)}"
    crowd(code, 4, directory, going, count, 10 * SCALE)


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())


@pytest.mark.parametrize("spread", [1, 100], ids=["one directory", "a tree"])
def test_many_small_files(mount: LiveMount, spread: int) -> None:
    root = mount.path
    directories = [root] if spread == 1 else [root / f"{n // 10}" / f"{n % 10}" for n in range(spread)]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        with open(f"{directories[number % spread]}/{number:06d}", "wb", buffering=0) as file:
            file.write(b"file %d\n" % number)
    assert mount.memory_bytes() < MEMORY_MAX_BYTES
    before = picture(root, exact=True)
    assert sum(1 for sight in before.values() if sight.content) == FILES
    assert mount.memory_bytes() < MEMORY_MAX_BYTES
    mount.remount()
    assert_same(picture(root, exact=True), before)
    assert mount.memory_bytes() < MEMORY_MAX_BYTES
    for number in range(0, FILES, 2):
        os.unlink(f"{directories[number % spread]}/{number:06d}")
    left = {path.name for directory in directories for path in directory.iterdir() if not path.is_dir()}
    assert left == {f"{number:06d}" for number in range(1, FILES, 2)}


_REGIONS = """
# Every process owns every count-th block of one file; what it reads back of them is what it wrote last.
path, block, blocks, steps = args[0], int(args[1]), int(args[2]), int(args[3])
choice = random.Random(number)
mine = {}
fd = os.open(path, os.O_RDWR)
for step in range(steps):
    index = choice.randrange(blocks) * count + number
    what = choice.randrange(12)
    if what < 6:
        data = choice.randbytes(block)
        assert os.pwrite(fd, data, index * block) == block
        mine[index] = data
    elif what < 10 and mine:
        index = choice.choice(list(mine))
        if what == 9: os.posix_fadvise(fd, index * block, block, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, block, index * block)
        assert data == mine[index], (index, len(data), data.count(0))
    elif what == 10 and step % 5 == 0:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    elif step % 7 == 0:
        os.close(fd)
        fd = os.open(path, os.O_RDWR)
import hashlib
for index in sorted(mine):
    print(index, hashlib.sha256(mine[index]).hexdigest())
"""


@pytest.mark.parametrize(
    ("limits", "block", "blocks"),
    [("", 4096, 30), ("", 100_000, 60), (SMALL_LIMITS, 4096, 30), (SMALL_LIMITS, 10_000, 30)],
    ids=["small", "large", "small, small limits", "large, small limits"],
)
def test_processes_that_share_a_file_find_what_they_wrote(
    make_mount: MountMaker, limits: str, block: int, blocks: int
) -> None:
    mount = make_mount("commit=0.3", prelude=limits, piece_max=65536)
    path = mount.path / "shared"
    path.touch()
    said = crowd(_REGIONS, 4, path, block, blocks, 400 * SCALE)
    for again in (False, True):
        if again:
            mount.remount()
        with open(path, "rb", buffering=0) as file:
            for line in "".join(said).splitlines():
                index, digest = line.split()
                data = os.pread(file.fileno(), block, int(index) * block)
                assert hashlib.sha256(data).hexdigest() == digest, f"block {index}"


_SCRAMBLE = """
choice = random.Random(number)
paths = [f"{args[0]}/{name}" for name in "ab"]
for step in range(int(args[1])):
    path = choice.choice(paths)
    what = choice.randrange(12)
    data = choice.randbytes(choice.choice([1, 4096, 30_000, 150_000]))
    offset = choice.choice([0, 1, 4096, 10_000, 65_536, 100_001, 400_000])
    try:
        if what == 0:
            with open(path, "wb", buffering=0) as file: file.write(data)
        elif what == 1:
            with open(path, "ab", buffering=0) as file: file.write(data)
        elif what == 2:
            os.truncate(path, offset)
        elif what == 3:
            with open(f"{path}{number}", "wb", buffering=0) as file:
                file.write(data)
                if choice.random() < 0.5: os.fsync(file.fileno())
            os.rename(f"{path}{number}", path)
        elif what == 4:
            os.unlink(path)
        elif what == 5:
            os.link(path, choice.choice(paths))
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            for turn in range(choice.randrange(1, 6)):
                if what < 8: os.pwrite(fd, data, offset + turn * len(data))
                elif what == 8: os.pread(fd, len(data), offset)
                elif what == 9: os.ftruncate(fd, choice.choice([0, offset, offset + len(data)]))
                elif what == 10:
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    os.utime(fd, ns=(turn, offset))
                    os.fchmod(fd, 0o600 + turn)
            os.close(fd)
    except (FileNotFoundError, FileExistsError):
        pass
"""


@pytest.mark.parametrize("limits", ["", SMALL_LIMITS], ids=["ordinary", "small limits"])
def test_files_that_all_change_are_the_same_out_of_the_cache_and_after_a_remount(
    make_mount: MountMaker, limits: str
) -> None:
    mount = make_mount("commit=0.2", prelude=limits, piece_max=65536)
    for _ in range(3):
        crowd(_SCRAMBLE, 4, mount.path, 150 * SCALE)
        before = picture(mount.path, exact=True)
        for path in mount.path.iterdir():
            fd = os.open(path, os.O_RDONLY)
            write_back(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        assert_same(picture(mount.path, exact=True), before)
        mount.remount()
        assert_same(picture(mount.path, exact=True), before)


_COPIES = """
import hashlib
choice = random.Random(number)
for turn in range(int(args[1])):
    path = f"{args[0]}/{number}-{turn}"
    digest = hashlib.sha256()
    size = 0
    with open(path, "wb", buffering=0) as file:
        while size < choice.choice([100_000, 5_000_000, 20_000_000]):
            data = choice.randbytes(choice.choice([1, 5000, 131072, 1 << 20]))
            if choice.random() < 0.1: data = bytes(len(data))
            file.write(data)
            digest.update(data)
            size += len(data)
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == digest.digest()
    print(f"{number}-{turn}", size, digest.hexdigest())
"""


@pytest.mark.parametrize("limits", ["", SMALL_LIMITS], ids=["ordinary", "small limits"])
def test_large_files_written_at_once(make_mount: MountMaker, limits: str) -> None:
    mount = make_mount(prelude=limits)
    said = crowd(_COPIES, 3, mount.path, 3 * SCALE)
    assert mount.memory_bytes() < 4 * MEMORY_MAX_BYTES
    mount.remount()
    for line in "".join(said).splitlines():
        name, size, digest = line.split()
        assert (mount.path / name).stat().st_size == int(size)
        with open(mount.path / name, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest, name


_MOVES = """
choice = random.Random(number)
names = [f"{args[0]}/{d}" for d in ("a", "b", "a/c", "b/c", "a/c/d", "b/c/d")]
for step in range(int(args[1])):
    old, new = choice.sample(names, 2)
    try:
        [os.rename, lambda o, n: os.mkdir(o), lambda o, n: os.rmdir(o)][choice.randrange(3)](old, new)
    except OSError:
        pass
"""


def test_directories_moved_by_many_stay_a_tree(mount: LiveMount) -> None:
    crowd(_MOVES, 6, mount.path, 300 * SCALE)
    seen = picture(mount.path)
    for name, sight in seen.items():
        below = [other for other in seen if other and os.path.dirname(other) == name and other != name]
        assert sight.nlink == 2 + len(below), name
    mount.remount()
    assert_same(picture(mount.path), seen)


def test_memory_stays_bounded_when_files_come_and_go(mount: LiveMount) -> None:
    choice = random.Random(7)
    for _ in range(30 * SCALE):
        for number in range(100):
            with open(mount.path / f"{number}", "wb", buffering=0) as file:
                file.write(choice.randbytes(20_000))
        for number in range(0, 100, 3):
            os.unlink(mount.path / f"{number}")
    assert mount.memory_bytes() < MEMORY_MAX_BYTES
