"""The tree under several processes and threads, kill -9, and failure of every single system call."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import BlobMissingError

DIR_LIMIT = 3
CONTENTS = [b"content %d " % number * 50 for number in range(150)]
# Every call that changes something on the way of a blob into the tree or out of it.
CALLS = ("open", "fchmod", "chmod", "write", "pwrite", "close", "mkdir", "rename", "unlink", "rmdir")


def in_child(work: Callable[[], None]) -> int:
    """Fork; the child works and ends with 0, or 1 if that raised."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # the child must not return into pytest
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def assert_all_end_well(pids: list[int]) -> None:
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def check(tree: BalancedTree) -> set[Digest]:
    """What must hold at any moment when nobody works; returns what is there."""
    found: Counter[Digest] = Counter()
    for digest, path in tree.walk():
        assert hashlib.sha256(Path(path).read_bytes()).digest() == digest.sha256, "not whole"
        found[digest] += 1
    assert set(found.values()) <= {1}, "placed twice"
    assert tree.statistics().foreign == 0
    return set(found)


def check_fullness(tree: BalancedTree, *, only_added: bool) -> None:
    for directory, below, files in os.walk(tree.root):
        if directory != tree.root and ".staging" not in directory:
            assert len(files) <= tree.dir_limit
            assert below or files, "empty"
            if only_added and below:
                assert len(files) == tree.dir_limit, "went deeper although there was room"


def add_shuffled(tree: BalancedTree, seed: int, report: int) -> None:
    order = random.Random(seed).sample(CONTENTS, len(CONTENTS))
    new = sum(tree.add_bytes(content).new for content in order)
    os.write(report, bytes([new]))


@pytest.mark.parametrize("inherited", [False, True], ids=["own tree object", "inherited tree object"])
def test_processes_adding_the_same_place_each_content_once(tmp_path: Path, inherited: bool) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=DIR_LIMIT)
    tree.add_bytes(CONTENTS[0])
    source, report = os.pipe()

    def work(seed: int) -> None:
        own = tree if inherited else BalancedTree(str(tmp_path), dir_limit=DIR_LIMIT)
        add_shuffled(own, seed, report)

    assert_all_end_well([in_child(lambda seed=seed: work(seed)) for seed in range(4)])  # type: ignore[misc]
    assert check(tree) == set(map(Digest.of, CONTENTS))
    assert sum(os.read(source, 100)) == len(CONTENTS) - 1
    check_fullness(tree, only_added=True)
    assert os.listdir(f"{tree.root}/.staging") == []
    os.close(source)
    os.close(report)


def test_threads_adding_the_same_place_each_content_once(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=DIR_LIMIT, exclusive=True)
    source, report = os.pipe()
    threads = [threading.Thread(target=add_shuffled, args=(tree, seed, report)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert check(tree) == set(map(Digest.of, CONTENTS))
    assert sum(os.read(source, 100)) == len(CONTENTS)
    check_fullness(tree, only_added=True)
    os.close(source)
    os.close(report)


def add_and_delete(tree: BalancedTree, seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(300):
        content = choose.choice(CONTENTS[:60])
        if choose.random() < 0.5:
            added = tree.add_bytes(content)
            assert added.digest == Digest.of(content)
        else:
            try:
                tree.delete_content(content)
            except BlobMissingError:
                pass  # the others delete too


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_adding_and_deleting_at_once_leaves_a_sound_tree(tmp_path: Path, kind: str) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=DIR_LIMIT, exclusive=kind == "threads")
    if kind == "processes":
        assert_all_end_well(
            [in_child(lambda seed=seed: add_and_delete(tree, seed)) for seed in range(4)]  # type: ignore[misc]
        )
    else:
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            try:
                add_and_delete(tree, seed)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
    for digest in check(tree):
        tree.delete(digest)
    assert set(os.listdir(tree.root)) - {".lock", ".staging"} == set(), "an emptied directory was left"
    assert os.listdir(f"{tree.root}/.staging") == []


def test_kill_of_a_writer_leaves_whole_blobs_and_everything_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(7)
    contents = [rng.randbytes(60_000) for _ in range(60)]
    acknowledged: set[Digest] = set()
    for turn in range(6):
        source, sink = os.pipe()

        def work(sink: int = sink, turn: int = turn) -> None:
            tree = BalancedTree(str(tmp_path), dir_limit=2, exclusive=turn % 2 == 0)
            for number in range(turn * 8, len(contents)):
                added = tree.add_bytes(contents[number])
                os.write(sink, bytes([number]))
                if number % 5 == 4:
                    tree.delete(added.digest)
                    tree.add_bytes(contents[number])

        pid = in_child(work)
        os.close(sink)
        seen = [os.read(source, 1)[0] for _ in range(5 + turn)]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen += os.read(source, 100)
        os.close(source)
        acknowledged.update(Digest.of(contents[number]) for number in seen if number % 5 != 4)
        assert check(BalancedTree(str(tmp_path), dir_limit=2)) >= acknowledged
    tree = BalancedTree(str(tmp_path), dir_limit=2)
    for content in contents:
        tree.add_bytes(content)
    assert check(tree) == set(map(Digest.of, contents))


def strike(monkeypatch: pytest.MonkeyPatch, number: int, blow: Callable[[str], None]) -> Callable[[], bool]:
    """Call `blow` in place of the call with that number (from 0); returns whether it came to that."""
    left = number

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                blow(name)
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        wrap(name)
    return lambda: left < 0


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("deed", ["add", "stream", "delete"])
def test_death_before_any_system_call_leaves_whole_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str, exclusive: bool
) -> None:
    alike = [b"%d" % number for number in range(2000) if Digest.of(b"%d" % number).name[:2] == "00"]
    long = os.urandom(5 << 20)
    for number in range(100):
        root = str(tmp_path / str(number))
        tree = BalancedTree(root, dir_limit=1, exclusive=exclusive)
        before = {tree.add_bytes(content).digest for content in alike[:2]}

        def work(tree: BalancedTree = tree, number: int = number) -> None:
            reached = strike(monkeypatch, number, lambda _: os.kill(os.getpid(), signal.SIGKILL))
            match deed:
                case "add":
                    tree.add_bytes(alike[2])
                case "stream":
                    with open(os.memfd_create("stream"), "w+b") as stream:
                        stream.write(long)
                        stream.seek(0)
                        tree.add_stream(stream)
                case _:
                    tree.delete(Digest.of(alike[1]))
            assert not reached()

        status = os.waitpid(in_child(work), 0)[1]
        again = BalancedTree(root, dir_limit=1, exclusive=exclusive)
        found = check(again)
        subject = Digest.of({"add": alike[2], "stream": long, "delete": alike[1]}[deed])
        assert found - {subject} == before - {subject}
        if deed == "delete":
            if subject in found:
                again.delete(subject)
            assert again.find(subject) is None
        else:
            assert again.add_bytes(alike[2] if deed == "add" else long).new == (subject not in found)
        shutil.rmtree(root)
        if status == 0:
            assert number >= 2
            return
        assert status == signal.SIGKILL
    raise AssertionError("never came to the end")


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("way", ["bytes", "stream", "staged"])
def test_failure_of_any_system_call_changes_nothing(tmp_path: Path, exclusive: bool, way: str) -> None:
    alike = [b"%d" % number for number in range(2000) if Digest.of(b"%d" % number).name[:2] == "00"]
    content = alike[2] if way != "stream" else os.urandom(5 << 20)

    def fail(name: str) -> None:
        if name not in ("close", "unlink", "rmdir"):  # those are the cleaning up itself
            raise OSError(errno.ENOSPC, "No space left on device")

    failures = 0
    for number in range(100):
        root = str(tmp_path / str(number))
        tree = BalancedTree(root, dir_limit=1, exclusive=exclusive)
        os.chmod(root, 0o711)  # so that new directories need a chmod
        for other in alike[:2]:
            tree.add_bytes(other)
        before = sorted(path for path, _, _ in os.walk(root))
        found = check(tree)
        with pytest.MonkeyPatch.context() as patch:
            reached = strike(patch, number, fail)
            try:
                if way == "bytes":
                    tree.add_bytes(content)
                elif way == "stream":
                    with open(os.memfd_create("stream"), "w+b") as stream:
                        stream.write(content)
                        stream.seek(0)
                        tree.add_stream(stream)
                else:
                    with tree.create_staging() as staged:
                        staged.write(content)
                        tree.publish(staged)
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
                failures += 1
                assert os.listdir(f"{root}/.staging") == []
                assert sorted(path for path, _, _ in os.walk(root)) == before
                assert check(tree) == found
        # The same object goes on as if nothing had been.
        again = tree.add_bytes(content)
        assert check(tree) == found | {again.digest}
        assert again.path == BalancedTree(root, dir_limit=1).find(again.digest)
        shutil.rmtree(root)
        if not reached():
            assert failures >= 5
            return
    raise AssertionError("never came to the end")


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data).cast("B")[:7]))
    tree = BalancedTree(str(tmp_path))
    for content in (CONTENTS[0], memoryview(CONTENTS[1][:80]).cast("Q")):
        assert Path(tree.add_bytes(content).path).read_bytes() == bytes(content)


def test_a_write_that_the_system_cuts_off_leaves_nothing(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, hard))
    try:
        with pytest.raises(OSError):
            tree.add_bytes(bytes(4 << 20))
        with pytest.raises(OSError):
            tree.add_stream(io.BytesIO(bytes(5 << 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(os.listdir(tree.root)) <= {".lock", ".staging"}
    assert os.listdir(f"{tree.root}/.staging") == []
