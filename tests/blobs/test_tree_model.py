"""The tree against a simple model, step by step, also taking over a directory of the older software.

The layout is stated a second time here (`older_place`), from the published algorithm of BalancedDiscStorage:
the first directory on the way that does not exist, holds the name, or has fewer than `dir_limit` entries.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree, TreeStatistics
from mountstore.errors import BlobMissingError


def crowded_contents() -> list[bytes]:
    """Contents whose digests begin alike, so that a few of them make a deep tree."""
    contents: list[bytes] = []
    wanted = {"000": 8, "00": 8, "0": 8, "": 6}
    for number in range(100_000):
        content = b"content %d" % number
        digits = hashlib.sha256(content).hexdigest()
        for prefix, missing in wanted.items():
            if missing and digits.startswith(prefix):
                wanted[prefix] -= 1
                contents.append(content)
                break
    assert not any(wanted.values())
    return contents


CONTENTS = crowded_contents()
contents = st.sampled_from(CONTENTS)


def name_of(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}_{len(content):x}"


def older_place(root: str, name: str, dir_limit: int) -> str:
    directory = root
    for letter in name:
        directory += "/" + letter
        if not os.path.exists(directory):
            return directory
        entries = os.listdir(directory)
        if name in entries or len(entries) < dir_limit:
            return directory
    raise AssertionError("too full")


def older_add(root: str, content: bytes, dir_limit: int) -> str:
    """As BalancedDiscStorage adds; returns the path."""
    name = name_of(content)
    directory = older_place(root, name, dir_limit)
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/{name}", "wb") as out:
        out.write(content)
    return f"{directory}/{name}"


def test_the_worked_example_of_the_specification(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/format.md").read_text()
    places = re.findall(r"^    ((?:[0-9a-f]/)+[0-9a-f]{64}_[0-9a-f]+)$", text, re.MULTILINE)
    tree = BalancedTree(str(tmp_path / "ours"), dir_limit=2)
    (tmp_path / "theirs").mkdir()
    for content, place in zip([b"39", b"49", b"109", b"125", b"156"], places, strict=True):
        assert tree.add_bytes(content).path == f"{tree.root}/{place}"
        assert older_add(str(tmp_path / "theirs"), content, 2) == f"{tmp_path}/theirs/{place}"


class Pipe(io.RawIOBase):
    """A stream that cannot seek and yields little at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, 5))


class TreeMachine(RuleBasedStateMachine):
    tree: BalancedTree
    other: BalancedTree
    dir_limit: int

    def __init__(self) -> None:
        super().__init__()
        self.root = os.path.realpath(tempfile.mkdtemp())
        self.model: dict[str, bytes] = {}  # path -> content
        self.foreign: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def paths_of(self, content: bytes) -> list[str]:
        return sorted((path for path, other in self.model.items() if other == content), key=len)

    @initialize(dir_limit=st.integers(2, 4), exclusive=st.booleans())
    def begin(self, dir_limit: int, exclusive: bool) -> None:
        self.dir_limit = dir_limit
        self.tree = BalancedTree(self.root, dir_limit=dir_limit, exclusive=exclusive)
        self.other = self.tree if exclusive else BalancedTree(self.root, dir_limit=dir_limit)

    @rule()
    def let_another_process_go_on(self) -> None:
        """A second object knows nothing of the first but what is on disk, as in another process."""
        self.tree, self.other = self.other, self.tree

    @rule(dir_limit=st.integers(1, 4), exclusive=st.booleans())
    def reopen(self, dir_limit: int, exclusive: bool) -> None:
        self.begin(dir_limit, exclusive)

    @rule(
        some=st.lists(contents, min_size=1, max_size=12), dir_limit=st.integers(1, 4), exclusive=st.booleans()
    )
    def adopt(self, some: list[bytes], dir_limit: int, exclusive: bool) -> None:
        for content in some:
            self.model[older_add(self.root, content, dir_limit)] = content
        self.begin(dir_limit, exclusive)

    @rule(
        content=contents,
        way=st.sampled_from(["bytes", "digest", "view", "stream", "pipe", "file", "staged"]),
    )
    def add(self, content: bytes, way: str) -> None:
        name = name_of(content)
        known = self.paths_of(content)
        expected = known[0] if known else f"{older_place(self.root, name, self.dir_limit)}/{name}"
        match way:
            case "bytes":
                added = self.tree.add_bytes(content)
            case "digest":
                added = self.tree.add_bytes(content, Digest.parse(name))
            case "view":
                added = self.tree.add_bytes(memoryview(b"x" + content)[1:])
            case "stream":
                added = self.tree.add_stream(io.BytesIO(content))
            case "pipe":
                added = self.tree.add_stream(Pipe(content))  # type: ignore[arg-type] # has all that is used
            case "file":
                with tempfile.NamedTemporaryFile() as file:
                    file.write(content)
                    file.flush()
                    added = self.tree.add_file(file.name)
            case _:
                with self.tree.create_staging() as staged:
                    staged.write(content[:3])
                    staged.write(content[3:])
                    added = self.tree.publish(staged)
        assert added == (Digest.parse(name), expected, not known)
        self.model[added.path] = content

    @rule(some=st.lists(contents, min_size=4, max_size=16))
    def add_many(self, some: list[bytes]) -> None:
        for content in some:
            self.add(content, "bytes")

    @rule(content=contents)
    def look(self, content: bytes) -> None:
        digest = Digest.of(content)
        known = self.paths_of(content)
        if not known:
            assert self.tree.find(digest) is None
            with pytest.raises(BlobMissingError):
                self.tree.open(digest)
            return
        assert self.tree.find(digest) == known[0]
        with open(self.tree.open(digest), "rb") as file:
            assert file.read() == content

    @rule(content=contents, way=st.sampled_from(["digest", "path", "content", "stream", "move"]))
    def remove(self, content: bytes, way: str) -> None:
        digest = Digest.of(content)
        known = self.paths_of(content)
        if not known:
            with pytest.raises(BlobMissingError):
                self.tree.delete(digest)
            with pytest.raises(BlobMissingError):
                self.tree.delete_path(f"{self.root}/{digest.name[0]}/{digest.name}")
            with pytest.raises(BlobMissingError):
                self.tree.delete_content(content)
            return
        match way:
            case "digest":
                self.tree.delete(digest)
            case "path":
                assert self.tree.delete_path(known[-1]) == digest
                known = known[-1:]
            case "content":
                assert self.tree.delete_content(content) == digest
            case "stream":
                assert self.tree.delete_content(io.BytesIO(content)) == digest
            case _:
                with tempfile.TemporaryDirectory() as elsewhere:
                    self.tree.move_out(digest, f"{elsewhere}/moved")
                    with open(f"{elsewhere}/moved", "rb") as file:
                        assert file.read() == content
        for path in known:
            del self.model[path]

    @rule(some=st.lists(contents, min_size=4, max_size=16, unique=True))
    def remove_many(self, some: list[bytes]) -> None:
        for content in some:
            self.remove(content, "digest")

    @rule(content=contents, kind=st.sampled_from(["file", "archive", "link"]))
    def put_something_foreign(self, content: bytes, kind: str) -> None:
        """Into a directory that a blob is in; counted by everybody, touched by nobody."""
        for path in self.paths_of(content)[:1]:
            foreign = f"{os.path.dirname(path)}/{'notes' if kind == 'file' else name_of(path.encode())}"
            if not os.path.lexists(foreign):
                self.foreign.add(foreign)
                if kind == "file":
                    open(foreign, "w").close()
                elif kind == "archive":
                    os.mkdir(foreign)
                    open(f"{foreign}/{os.path.basename(path)}", "w").close()
                else:
                    os.symlink(path, foreign)
                self.begin(self.dir_limit, exclusive=False)

    @invariant()
    def walk_yields_the_model(self) -> None:
        if not hasattr(self, "tree"):
            return
        found = list(self.tree.walk())
        assert len(found) == len(self.model)
        assert {path: digest for digest, path in found} == {
            path: Digest.of(content) for path, content in self.model.items()
        }
        for path, content in self.model.items():
            with open(path, "rb") as file:
                assert file.read() == content

    @invariant()
    def directories_are_the_ways_to_what_is_there_and_no_others(self) -> None:
        if not hasattr(self, "tree"):
            return
        expected = set()
        for path in [*self.model, *self.foreign]:
            while (path := os.path.dirname(path)) != self.root:
                expected.add(path)
        assert set(self.levels()) == expected
        assert os.listdir(f"{self.root}/.staging") == [] if os.path.exists(f"{self.root}/.staging") else True
        assert self.tree.statistics() == TreeStatistics(
            blobs=len(self.model),
            bytes=sum(map(len, self.model.values())),
            directories=len(expected),
            deepest_level=max((path.count("/") - self.root.count("/") for path in expected), default=0),
            foreign=len(self.foreign),
        )
        assert all(map(os.path.lexists, self.foreign))

    def levels(self) -> Iterator[str]:
        for directory, _, _ in os.walk(self.root):
            below = directory.removeprefix(self.root)
            if all(len(part) == 1 for part in below.split("/")[1:]) and below:
                yield directory


TreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTreeAgainstModel = TreeMachine.TestCase
