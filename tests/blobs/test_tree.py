"""The tree's edges: what is not ours, damage, modes, paths that lead elsewhere, long streams, obstruction."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree, TreeStatistics
from mountstore.errors import BlobMissingError, CorruptError, MisuseError, StoreError

CONTENT = b"some content"
DIGEST = Digest.of(CONTENT)


@pytest.fixture(params=[True, False], ids=["exclusive", "shared"])
def exclusive(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def tree(exclusive: bool, tmp_path: Path) -> BalancedTree:
    return BalancedTree(f"{tmp_path}/blobs", exclusive=exclusive)


def place(tree: BalancedTree, digest: Digest, level: int = 1) -> str:
    return "/".join([tree.root, *digest.name[:level], digest.name])


def entries(tree: BalancedTree) -> list[str]:
    """What is in the root besides the tree's own files."""
    return sorted(set(os.listdir(tree.root)) - {".lock", ".staging"})


def read(path: str) -> bytes:
    return Path(path).read_bytes()


# --- modes and owners ---


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_blobs_are_readable_by_all_and_writable_by_nobody(tmp_path: Path, exclusive: bool, umask: int) -> None:
    root = f"{tmp_path}/blobs"
    BalancedTree(root, exclusive=exclusive).add_bytes(b"0")  # makes the staging directory
    outside = f"{tmp_path}/outside"
    Path(outside).write_bytes(b"2")
    os.chmod(outside, 0o600)
    old = os.umask(umask)
    try:
        tree = BalancedTree(root, exclusive=exclusive)
        with tree.create_staging() as staged:
            staged.write(b"3")
            added = [tree.add_bytes(b"1"), tree.publish(outside, Digest.of(b"2")), tree.publish(staged)]
    finally:
        os.umask(old)
    assert [stat.S_IMODE(os.stat(one.path).st_mode) for one in added] == [0o444] * 3


def test_directories_take_the_mode_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    root.mkdir()
    root.chmod(0o2751)
    old = os.umask(0o077)
    try:
        path = BalancedTree(str(root)).add_bytes(CONTENT).path
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o2751


def test_blobs_and_directories_take_the_group(tmp_path: Path) -> None:
    gid = 4711 if os.geteuid() == 0 else os.getgroups()[-1]  # only root may give files to any group
    tree = BalancedTree(str(tmp_path / "blobs"), gid=gid)
    outside = tmp_path / "outside"
    outside.write_bytes(b"2")
    for added in (tree.add_bytes(b"1"), tree.publish(str(outside), Digest.of(b"2"))):
        assert os.stat(added.path).st_gid == gid
        assert os.stat(os.path.dirname(added.path)).st_gid == gid


def test_a_blob_that_exists_is_not_written_again(tree: BalancedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    long = bytes(5 << 20)
    first = [tree.add_bytes(CONTENT), tree.add_bytes(long)]

    def refuse(*_: object) -> int:
        raise AssertionError("written")

    monkeypatch.setattr(os, "write", refuse)
    again = [tree.add_bytes(CONTENT), tree.add_stream(io.BytesIO(long))]
    assert again == [one._replace(new=False) for one in first]


def test_an_empty_blob_is_a_blob(tree: BalancedTree) -> None:
    added = tree.add_bytes(b"")
    assert os.path.basename(added.path).endswith("_0")
    assert list(tree.walk()) == [(Digest.of(b""), added.path)]


def test_the_root_may_be_given_by_a_relative_path_or_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    os.symlink("real", "link")
    tree = BalancedTree("link")
    added = tree.add_bytes(CONTENT)
    monkeypatch.chdir("/")
    assert added.path == f"{os.path.realpath(tmp_path)}/real/{DIGEST.name[0]}/{DIGEST.name}"
    assert tree.find(DIGEST) == added.path
    assert tree.delete_path(f"{tmp_path}/link/{DIGEST.name[0]}/{DIGEST.name}") == DIGEST


def test_staging_elsewhere_is_used_and_left_empty(tmp_path: Path) -> None:
    tree = BalancedTree(f"{tmp_path}/blobs", staging=f"{tmp_path}/staging")
    with tree.create_staging() as staged:
        assert os.path.dirname(staged.path) == os.path.realpath(tmp_path / "staging")
    tree.add_bytes(CONTENT)
    assert os.listdir(tmp_path / "staging") == []
    assert entries(tree) == [DIGEST.name[0]]


def test_staging_may_be_removed_at_any_time(tree: BalancedTree) -> None:
    tree.add_bytes(b"1")
    os.rmdir(f"{tree.root}/.staging")
    assert tree.add_bytes(b"2").new


def test_nonsense_is_refused(tree: BalancedTree, tmp_path: Path) -> None:
    with pytest.raises(MisuseError):
        BalancedTree(str(tmp_path / "other"), dir_limit=0)
    with pytest.raises(MisuseError):
        tree.add_bytes(b"longer than it was", DIGEST)
    with pytest.raises(MisuseError):
        tree.publish(str(tmp_path))
    assert list(tree.walk()) == []


# --- streams and staging files ---


@pytest.mark.parametrize("size_bytes", [(4 << 20) - 1, 4 << 20, (4 << 20) + 1, (9 << 20) + 5])
def test_long_streams(tree: BalancedTree, tmp_path: Path, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    stream = io.BytesIO(b"before" + content)
    stream.seek(6)
    added = tree.add_stream(stream)
    assert added.digest == Digest.of(content)
    assert added.new
    assert read(added.path) == content
    source, sink = os.pipe()
    if os.fork() == 0:
        with open(sink, "wb") as out:
            out.write(content)
        os._exit(0)
    os.close(sink)
    with open(source, "rb", buffering=0) as piped:
        assert tree.add_stream(piped) == added._replace(new=False)
    assert os.wait()[1] == 0
    tree.delete(added.digest)
    path = tmp_path / "file"
    path.write_bytes(content)
    assert tree.add_file(str(path)) == added
    assert tree.delete_content(io.BytesIO(content)) == added.digest
    assert os.listdir(f"{tree.root}/.staging") == []


def test_a_stream_that_changes_between_the_readings_is_stored_under_its_true_name(tree: BalancedTree) -> None:
    class Changing(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            self.getbuffer()[0] = 1
            return super().seek(offset, whence)

    added = tree.add_stream(Changing(bytes(5 << 20)))
    assert read(added.path)[0] == 1
    assert added.digest == Digest.of(read(added.path))


def test_a_stream_without_data_for_the_moment_is_refused(tree: BalancedTree) -> None:
    source, sink = os.pipe2(os.O_NONBLOCK)
    with open(source, "rb", buffering=0) as stream, pytest.raises(MisuseError):
        tree.add_stream(stream)
    os.close(sink)
    assert list(tree.walk()) == []


def test_a_staging_file_counts_what_is_written_through_it(tree: BalancedTree) -> None:
    with tree.create_staging() as staged:
        staged.write(b"some ")
        staged.write(memoryview(b"content"))
        assert staged.digest() == DIGEST
        assert os.pread(staged.fd, 100, 0) == CONTENT
        added = tree.publish(staged)
    assert added.new
    assert read(added.path) == CONTENT


def test_a_staging_file_written_by_descriptor_is_published_under_the_given_digest(tree: BalancedTree) -> None:
    with tree.create_staging() as staged:
        os.pwrite(staged.fd, CONTENT[5:], 5)
        os.pwrite(staged.fd, CONTENT[:5], 0)
        with pytest.raises(MisuseError):
            tree.publish(staged)
        assert tree.publish(staged, DIGEST).new
    assert tree.find(DIGEST) is not None


def test_what_is_not_published_is_discarded(tree: BalancedTree) -> None:
    staged = tree.create_staging()
    staged.write(b"1")
    staged.discard()
    staged.discard()
    with pytest.raises(ZeroDivisionError), tree.create_staging() as staged:
        raise ZeroDivisionError
    assert os.listdir(f"{tree.root}/.staging") == []


def test_publishing_what_is_there_drops_the_staged_file(tree: BalancedTree, tmp_path: Path) -> None:
    added = tree.add_bytes(CONTENT)
    inode = os.stat(added.path).st_ino
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENT)
    assert tree.publish(str(outside), DIGEST) == added._replace(new=False)
    assert not outside.exists()
    assert os.stat(added.path).st_ino == inode


def test_a_file_that_cannot_be_the_blob_is_not_published(tree: BalancedTree, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(CONTENT + b"!")
    os.symlink(wrong, tmp_path / "link")
    for path in (wrong, tmp_path / "link", tmp_path):
        with pytest.raises(MisuseError):
            tree.publish(str(path), DIGEST)
    with pytest.raises(FileNotFoundError):
        tree.publish(str(tmp_path / "absent"), DIGEST)
    assert wrong.read_bytes() == CONTENT + b"!"
    assert list(tree.walk()) == []


# --- damage, and what is not ours ---


@pytest.mark.parametrize("wrong", [b"", b"some conten", b"some content!"])
def test_a_file_of_the_wrong_size_is_not_the_blob_and_is_replaced(tree: BalancedTree, wrong: bytes) -> None:
    path = place(tree, DIGEST)
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(wrong)
    assert tree.find(DIGEST) is None
    with pytest.raises(CorruptError):
        tree.open(DIGEST)
    assert tree.add_bytes(CONTENT) == (DIGEST, path, True)
    assert read(path) == CONTENT
    assert os.listdir(os.path.dirname(path)) == [DIGEST.name]


def test_replacing_damage_does_not_count_as_an_entry(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=2, exclusive=True)
    alike = [b"%d" % number for number in range(200) if Digest.of(b"%d" % number).name[0] == "0"]
    path = tree.add_bytes(alike[0]).path
    os.chmod(path, 0o644)
    Path(path).write_bytes(b"damage")
    tree.add_bytes(alike[0])
    assert os.path.dirname(tree.add_bytes(alike[1]).path) == f"{tree.root}/0"
    assert os.path.dirname(tree.add_bytes(alike[2]).path) != f"{tree.root}/0"


def test_a_damaged_blob_can_be_deleted(tree: BalancedTree) -> None:
    path = tree.add_bytes(CONTENT).path
    os.chmod(path, 0o644)
    Path(path).write_bytes(b"")
    tree.delete(DIGEST)
    assert entries(tree) == []


@pytest.mark.parametrize("kind", ["directory", "link to a whole copy", "dangling link", "fifo"])
def test_something_foreign_under_the_name_stays(tree: BalancedTree, tmp_path: Path, kind: str) -> None:
    """BalancedDiscStorage keeps an unpacked archive in a directory named like the blob."""
    path = place(tree, DIGEST)
    os.makedirs(os.path.dirname(path))
    copy = tmp_path / "copy"
    copy.write_bytes(CONTENT)
    match kind:
        case "directory":
            os.mkdir(path)
            Path(path, DIGEST.name).write_bytes(b"within")
        case "fifo":
            os.mkfifo(path)
        case _:
            os.symlink(copy if "whole" in kind else "nowhere", path)
    before = os.lstat(path)
    assert tree.find(DIGEST) is None
    for missing in (lambda: tree.open(DIGEST), lambda: tree.delete(DIGEST), lambda: tree.delete_path(path)):
        with pytest.raises(BlobMissingError):
            missing()
    assert list(tree.walk()) == []
    # The name is taken here, so the blob goes one deeper.
    deeper = place(tree, DIGEST, 2)
    assert tree.add_bytes(CONTENT) == (DIGEST, deeper, True)
    assert tree.find(DIGEST) == deeper
    os.close(tree.open(DIGEST))
    assert list(tree.walk()) == [(DIGEST, deeper)]
    assert tree.statistics() == TreeStatistics(1, len(CONTENT), 2, 2, 1)
    tree.delete(DIGEST)
    assert os.listdir(os.path.dirname(path)) == [DIGEST.name]
    assert os.lstat(path) == before
    assert copy.read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["delete", "move_out", "delete_path"])
def test_a_digest_that_an_adopted_directory_holds_twice(tree: BalancedTree, tmp_path: Path, way: str) -> None:
    upper, lower = place(tree, DIGEST), place(tree, DIGEST, 2)
    os.makedirs(os.path.dirname(lower))
    for path in (upper, lower):
        Path(path).write_bytes(CONTENT)
    assert tree.find(DIGEST) == upper
    assert tree.add_bytes(CONTENT) == (DIGEST, upper, False)
    assert sorted(tree.walk()) == sorted([(DIGEST, upper), (DIGEST, lower)])
    match way:
        case "delete":
            tree.delete(DIGEST)
        case "move_out":
            tree.move_out(DIGEST, f"{tmp_path}/moved")
            assert read(f"{tmp_path}/moved") == CONTENT
        case _:
            tree.delete_path(upper)
            assert tree.find(DIGEST) == lower
            tree.delete_path(lower)
    assert tree.find(DIGEST) is None
    assert entries(tree) == []


def test_walk_ignores_what_is_not_a_blob_in_its_place(tree: BalancedTree) -> None:
    added = tree.add_bytes(CONTENT)
    h0, h1 = DIGEST.name[0], DIGEST.name[1]
    other = "0" if h0 != "0" else "1"
    os.makedirs(f"{tree.root}/refs/a")
    foreign = [
        f"{tree.root}/{DIGEST.name}",  # in the root
        f"{tree.root}/README",
        f"{tree.root}/{h0}/.hidden",
        f"{tree.root}/{h0}/{DIGEST.name}.tmp",
        f"{tree.root}/{h0}/{DIGEST.name.upper()}",
        f"{tree.root}/{h0}/{h1}",  # a file where a directory would be
    ]
    os.mkdir(f"{tree.root}/{other}")
    foreign.append(f"{tree.root}/{other}/{DIGEST.name}")  # not on its way
    for path in foreign:
        Path(path).write_bytes(CONTENT)
    os.makedirs(f"{tree.root}/{h0.upper()}x/{h0}")
    os.symlink(f"{tree.root}/{h0}", f"{tree.root}/g")
    assert list(tree.walk()) == [(DIGEST, added.path)]
    assert tree.statistics() == TreeStatistics(1, len(CONTENT), 2, 1, len(foreign) + 2)


def test_walk_bears_deletion_of_what_it_yields(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=2, exclusive=True)
    expected = {tree.add_bytes(b"%d" % number).digest for number in range(300)}
    seen = []
    for digest, path in tree.walk():
        seen.append(digest)
        assert tree.delete_path(path) == digest
    assert len(seen) == len(expected)
    assert set(seen) == expected
    assert entries(tree) == []


# --- paths that lead elsewhere ---


def test_delete_path_refuses_what_is_not_in_the_tree(tree: BalancedTree, tmp_path: Path) -> None:
    h0, h1 = DIGEST.name[0], DIGEST.name[1]
    outside = tmp_path / "outside" / h0
    outside.mkdir(parents=True)
    sibling = tmp_path / "blobs2" / h0
    sibling.mkdir(parents=True)
    for directory in (outside, sibling, tmp_path):
        (directory / DIGEST.name).write_bytes(CONTENT)
    inside = tree.add_bytes(CONTENT).path
    (Path(tree.root) / DIGEST.name).write_bytes(CONTENT)
    os.symlink(outside, f"{tree.root}/{h0}/{h1}")
    os.makedirs(f"{tree.root}/{h0}/x")
    Path(f"{tree.root}/{h0}/x/{DIGEST.name}").write_bytes(CONTENT)
    for path in (
        f"{outside}/{DIGEST.name}",
        f"{sibling}/{DIGEST.name}",
        f"{tree.root}/../outside/{h0}/{DIGEST.name}",
        f"{tree.root}/{h0}/{h1}/{DIGEST.name}",  # a link to a directory outside
        f"{tree.root}/{h0}/{h1}/../{DIGEST.name}",  # lexically inside, really in outside/
        f"{tree.root}/{DIGEST.name}",
        f"{tree.root}/{h0}/x/{DIGEST.name}",
        f"{tree.root}/{h0}",
        f"{tree.root}/{h0}/",
        tree.root,
        "",
        DIGEST.name,
        "/",
    ):
        with pytest.raises(MisuseError):
            tree.delete_path(path)
        with pytest.raises(MisuseError):
            tree.delete_path(os.path.relpath(tree.root) + path.removeprefix(tree.root))
    assert (outside / DIGEST.name).exists()
    assert read(inside) == CONTENT


def test_delete_path_takes_any_way_into_the_tree(tree: BalancedTree, tmp_path: Path) -> None:
    tree.add_bytes(CONTENT)
    os.symlink(f"{tree.root}/{DIGEST.name[0]}", tmp_path / "link")
    assert tree.delete_path(f"{tmp_path}/link/../../blobs/{DIGEST.name[0]}/../{DIGEST.name[0]}/{DIGEST.name}")
    assert tree.find(DIGEST) is None
    assert entries(tree) == []


def test_a_link_in_place_of_a_directory_is_not_followed(tree: BalancedTree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / DIGEST.name).write_bytes(CONTENT)
    os.symlink(outside, f"{tree.root}/{DIGEST.name[0]}")
    assert tree.find(DIGEST) is None
    assert list(tree.walk()) == []
    assert tree.statistics() == TreeStatistics(0, 0, 0, 0, 1)
    for missing in (lambda: tree.open(DIGEST), lambda: tree.delete(DIGEST)):
        with pytest.raises(BlobMissingError):
            missing()
    with pytest.raises(StoreError):
        tree.add_bytes(CONTENT)
    assert os.listdir(outside) == [DIGEST.name]
    assert os.listdir(f"{tree.root}/.staging") == []


def test_a_file_in_place_of_a_directory_is_an_error_and_stays(tree: BalancedTree) -> None:
    Path(f"{tree.root}/{DIGEST.name[0]}").write_bytes(b"in the way")
    assert tree.find(DIGEST) is None
    with pytest.raises(StoreError):
        tree.add_bytes(CONTENT)
    assert read(f"{tree.root}/{DIGEST.name[0]}") == b"in the way"
    assert os.listdir(f"{tree.root}/.staging") == []


# --- full directories ---


def test_a_blob_goes_to_the_last_level_if_need_be_and_no_further(tmp_path: Path) -> None:
    directory = str(tmp_path)
    for letter in DIGEST.name[:63]:
        directory += f"/{letter}"
        os.mkdir(directory)
        Path(f"{directory}/foreign").touch()
    tree = BalancedTree(str(tmp_path), dir_limit=1, exclusive=True)
    path = place(tree, DIGEST, 64)
    assert tree.add_bytes(CONTENT) == (DIGEST, path, True)
    assert tree.find(DIGEST) == path
    assert list(tree.walk()) == [(DIGEST, path)]
    tree.delete(DIGEST)
    assert not os.path.exists(os.path.dirname(path))
    os.mkdir(os.path.dirname(path))
    Path(f"{os.path.dirname(path)}/foreign").touch()
    with pytest.raises(StoreError):
        BalancedTree(str(tmp_path), dir_limit=1, exclusive=True).add_bytes(CONTENT)
    assert os.listdir(f"{tree.root}/.staging") == []


def test_counts_of_a_shared_tree_end_when_somebody_takes_it_for_himself(tmp_path: Path) -> None:
    alike = [b"%d" % number for number in range(2000) if Digest.of(b"%d" % number).name[0] == "0"]
    shared = BalancedTree(str(tmp_path), dir_limit=3)
    shared.add_bytes(alike[0])
    alone = BalancedTree(str(tmp_path), dir_limit=3, exclusive=True)
    for content in alike[1:3]:
        alone.add_bytes(content)
    assert shared.add_bytes(alike[3]).path.count("/") == shared.root.count("/") + 3
    alone = BalancedTree(str(tmp_path), dir_limit=3, exclusive=True)
    for content in alike[:2]:
        alone.delete_content(content)
    assert shared.add_bytes(alike[4]).path.count("/") == shared.root.count("/") + 2


def test_adding_does_not_list_directories(
    tree: BalancedTree, exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    real = os.listdir

    def count(path: str) -> list[str]:
        listed.append(path)
        return real(path)

    other = tree if exclusive else BalancedTree(tree.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", count)
        for number in range(200):
            (tree if number % 2 else other).add_bytes(b"%d" % number)
    assert len(listed) <= 32


def test_the_directory_of_an_exclusive_tree_may_be_emptied_by_others(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=1, exclusive=True)
    alike = [b"%d" % number for number in range(2000) if Digest.of(b"%d" % number).name[:2] == "00"]
    for content in alike[:3]:
        tree.add_bytes(content)
    for content in reversed(alike[:3]):
        BalancedTree(str(tmp_path)).delete(Digest.of(content))
    assert entries(tree) == []
    path = tree.add_bytes(alike[0]).path
    assert read(path) == alike[0]
    assert tree.find(Digest.of(alike[0])) == path


def test_what_one_did_oneself_keeps_the_counts_exact(
    exclusive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> list[str]:
        raise AssertionError(f"{path} listed")

    monkeypatch.setattr(os, "listdir", refuse)
    tree = BalancedTree(str(tmp_path), dir_limit=20, exclusive=exclusive)
    alike = [b"%d" % number for number in range(1000) if Digest.of(b"%d" % number).name[0] == "0"]
    for content in alike[:19]:
        tree.add_bytes(content)
    for content in alike[19:40]:
        path = tree.add_bytes(content).path
        assert os.path.dirname(path) == f"{tree.root}/0"
        tree.delete_path(path)
    assert os.path.dirname(tree.add_bytes(alike[40]).path) == f"{tree.root}/0"
    assert os.path.dirname(tree.add_bytes(alike[41]).path) != f"{tree.root}/0"


def test_what_failed_is_not_counted(
    exclusive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = BalancedTree(str(tmp_path), dir_limit=2, exclusive=exclusive)
    alike = [b"%d" % number for number in range(200) if Digest.of(b"%d" % number).name[0] == "0"]

    def fail(*_: object) -> None:
        raise PermissionError

    tree.add_bytes(alike[0])
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(os, "rename", fail)
        tree.add_bytes(alike[1])
    assert os.path.dirname(tree.add_bytes(alike[1]).path) == f"{tree.root}/0"
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(os, "mkdir", fail)
        tree.add_bytes(alike[2])
    tree.delete_content(alike[0])
    assert os.path.dirname(tree.add_bytes(alike[2]).path) == f"{tree.root}/0"


def test_damage_that_is_deleted_while_it_is_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = BalancedTree(str(tmp_path), exclusive=True)
    path = place(tree, DIGEST)
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(b"damage")
    real = os.rename

    def delete_first(source: str, target: str) -> None:
        monkeypatch.setattr(os, "rename", real)
        BalancedTree(str(tmp_path)).delete(DIGEST)
        os.rename(source, target)

    monkeypatch.setattr(os, "rename", delete_first)
    assert tree.add_bytes(CONTENT) == (DIGEST, path, True)
    assert read(path) == CONTENT


# --- durability ---


def test_fsync_covers_the_file_and_the_directories_that_may_be_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    alike = [b"%d" % number for number in range(2000) if Digest.of(b"%d" % number).name[:2] == "00"]

    def steps(tree: BalancedTree, content: bytes) -> list[str]:
        synced.clear()
        tree.fsync(tree.add_bytes(content).path)
        return [path.removeprefix(tree.root) for path in synced]

    names = ["/" + Digest.of(content).name for content in alike]
    tree = BalancedTree(str(tmp_path), dir_limit=1, exclusive=True)
    assert steps(tree, alike[0]) == ["/0" + names[0], "/0", ""]
    assert steps(tree, alike[1]) == ["/0/0" + names[1], "/0/0", "/0"]
    assert steps(tree, alike[1]) == ["/0/0" + names[1], "/0/0"]
    tree.delete(Digest.of(alike[1]))
    assert steps(tree, alike[1]) == ["/0/0" + names[1], "/0/0", "/0"]
    # Others may have made the directories: nothing is known of them.
    shared = BalancedTree(str(tmp_path), dir_limit=1)
    for _ in range(2):
        assert steps(shared, alike[1]) == ["/0/0" + names[1], "/0/0", "/0", ""]
    with pytest.raises(MisuseError):
        tree.fsync(str(tmp_path.parent))


def test_blobs_that_somebody_brings_back_into_new_directories_are_found(tmp_path: Path) -> None:
    """An administrator may, while the store is mounted: rsync of a backup into blobs/."""
    tree = BalancedTree(str(tmp_path / "blobs"), exclusive=True)
    path = tree.add_bytes(CONTENT, DIGEST).path
    name = DIGEST.name
    deeper = f"{tree.root}/{name[0]}/{name[1]}"
    os.unlink(path)
    assert tree.add_bytes(CONTENT, DIGEST).new
    os.mkdir(deeper)
    os.rename(path, f"{deeper}/{name}")
    assert tree.find(DIGEST) == f"{deeper}/{name}"
    os.close(tree.open(DIGEST))


def test_a_directory_that_is_made_is_known_to_who_adds(tmp_path: Path) -> None:
    tree = BalancedTree(str(tmp_path / "blobs"), exclusive=True, dir_limit=2)
    contents = [b"%d" % number for number in range(200)]
    paths = {content: tree.add_bytes(content).path for content in contents}
    assert max(path.count("/") for path in paths.values()) > min(path.count("/") for path in paths.values())
    for content, path in paths.items():
        assert tree.add_bytes(content)[1:] == (path, False)
