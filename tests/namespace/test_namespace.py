"""Names against a tree of dictionaries, and what a listing promises."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from mount.consistency import check_store

from mountstore.errors import (
    AbsentError,
    ExistsError,
    FoundDirectoryError,
    MisuseError,
    MountstoreError,
    NameTooLongError,
    NotEmptyError,
    NotPermittedError,
    ReadOnlyError,
    StaleError,
    WantsDirectoryError,
)
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.namespace import Caller, Namespace
from mountstore.store import Store

pytestmark = pytest.mark.trio

USER = Caller(1000, 1001)
FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755

Tree = dict[bytes, "Tree | int"]
"""Names to directories, or to the number of something else."""


def seen(namespace: Namespace, directory: Inode) -> Tree:
    """A directory and all below it as a listing shows them."""
    found: Tree = {}
    for _, name, inode in list(namespace.listing(directory, 2)):
        assert name not in found
        found[name] = seen(namespace, inode) if inode.is_directory else inode.id
    return found


def numbers_in(tree: Tree) -> list[int]:
    return [
        number
        for child in tree.values()
        for number in (numbers_in(child) if isinstance(child, dict) else [child])
    ]


class Model:
    """The same names in dictionaries, with what is done to them said in the simplest way."""

    def __init__(self, store: Store, choice: random.Random) -> None:
        self.namespace = store.namespace
        self.choice = choice
        self.tree: Tree = {}

    def somewhere(self) -> tuple[int, Tree, bytes]:
        """The number and tree of a directory that exists, and a name."""
        number, tree = ROOT, self.tree
        while self.choice.random() < 0.6:
            inner = [(name, child) for name, child in tree.items() if isinstance(child, dict)]
            if not inner:
                break
            name, tree = self.choice.choice(inner)
            found = self.namespace.find(number, name)
            assert found is not None
            number = found.id
        name = self.choice.choice([b"a", b"b", b"c", b"\xff", *list(tree)[:3]])
        return number, tree, name

    def step(self) -> None:
        parent, tree, name = self.somewhere()
        other_parent, other_tree, other = self.somewhere()
        try:
            match self.choice.randrange(8):
                case 0:
                    tree[name] = self.namespace.create(parent, name, FILE, USER).id
                case 1:
                    self.namespace.create(parent, name, DIRECTORY, USER)
                    tree[name] = {}
                case 2:
                    self.namespace.unlink(parent, name)
                    del tree[name]
                case 3:
                    self.namespace.rmdir(parent, name)
                    del tree[name]
                case 4:
                    found = self.namespace.find(parent, name)
                    if found is not None:
                        self.namespace.link(found.id, other_parent, other)
                        other_tree[other] = tree[name]
                case 5 | 6:
                    noreplace = self.choice.random() < 0.3
                    self.namespace.rename(parent, name, other_parent, other, noreplace=noreplace)
                    if tree[name] is not other_tree.get(other):
                        other_tree[other] = tree.pop(name)
                case 7:
                    self.namespace.exchange(parent, name, other_parent, other)
                    tree[name], other_tree[other] = other_tree[other], tree[name]
        except MountstoreError:
            pass

    def check(self, namespace: Namespace) -> None:
        root = namespace.get(ROOT)
        assert seen(namespace, root) == self.tree
        self._check_directory(namespace, root, self.tree)
        counts = numbers_in(self.tree)
        assert {number: namespace.get(number).nlink for number in counts} == {
            number: counts.count(number) for number in counts
        }

    def _check_directory(self, namespace: Namespace, inode: Inode, tree: Tree) -> None:
        below = {name: child for name, child in tree.items() if isinstance(child, dict)}
        assert inode.nlink == 2 + len(below)
        for name, child in below.items():
            found = namespace.find(inode.id, name)
            assert found is not None
            assert namespace.find(found.id, b"..") is inode
            self._check_directory(namespace, found, child)


@pytest.mark.parametrize("seed", range(12))
async def test_names_are_as_in_dictionaries_also_when_opened_again(store_path: str, seed: int) -> None:
    choice = random.Random(seed)
    async with Store.open(store_path).running() as store:
        model = Model(store, choice)
        for _ in range(200):
            model.step()
            if choice.random() < 0.1:
                store.commits.commit()
            if choice.random() < 0.1:
                model.check(store.namespace)
        for inode in store.namespace.forget_all():
            await store.files.drop(inode)
    check_store(Path(store_path))
    async with Store.open(store_path).running() as store:
        model.check(store.namespace)
    check_store(Path(store_path))


async def test_a_removed_directory_that_was_open_to_the_end_is_gone(store_path: str) -> None:
    """The kernel drops the requests that close directories when a mount ends."""
    async with Store.open(store_path).running() as store:
        directory = store.namespace.create(ROOT, b"d", stat.S_IFDIR | 0o755, Caller(0, 0))
        directory.handles += 1
        store.namespace.rmdir(ROOT, b"d")
    check_store(Path(store_path))


async def test_what_was_committed_survives_and_what_was_not_is_gone_whole(store_path: str) -> None:
    with pytest.raises(ZeroDivisionError):
        await _die_after_a_commit(store_path)
    async with Store.open(store_path).running() as store:
        assert set(seen(store.namespace, store.namespace.get(ROOT))) == {b"before"}
    check_store(Path(store_path))


async def _die_after_a_commit(store_path: str) -> None:
    store = Store.open(store_path)
    store.namespace.create(ROOT, b"before", FILE, USER)
    store.commits.commit()
    store.namespace.create(ROOT, b"after", FILE, USER)
    # As the kernel does for a killed process: descriptors go, nothing else is done.
    database = store.catalog._db
    database.rollback()
    database.close()
    store._lock.release()  # type: ignore[union-attr]  # it is open for writing
    raise ZeroDivisionError


async def test_a_listing_continues_where_it_was_whatever_changed(store: Store) -> None:
    namespace = store.namespace
    root = namespace.get(ROOT)
    for number in range(300):
        namespace.create(ROOT, b"%03d" % number, FILE, USER)
    choice = random.Random(1)
    stay = {b"%03d" % number for number in range(0, 300, 3)}
    for _ in range(20):
        position, got = 0, []
        while True:
            part = []
            listing = namespace.listing(root, position)
            for entry in listing:
                part.append(entry)
                if len(part) == choice.randrange(1, 40):
                    break
            listing.close()
            if not part:
                break
            position = part[-1][0]
            got += [name for _, name, _ in part]
            for _ in range(5):
                name = b"%03d" % choice.choice([n for n in range(300) if n % 3])
                try:
                    match choice.randrange(4):
                        case 0:
                            namespace.unlink(ROOT, name)
                        case 1:
                            namespace.create(ROOT, name, FILE, USER)
                        case 2:
                            namespace.rename(ROOT, name, ROOT, b"%03d" % (3 * choice.randrange(100)))
                        case 3:
                            store.commits.commit()
                except (AbsentError, ExistsError):
                    pass
        assert got[:2] == [b".", b".."]
        assert sorted(name for name in got if name in stay) == sorted(stay)


async def test_refusals_have_their_kind_and_change_nothing(store: Store) -> None:
    namespace = store.namespace
    directory = namespace.create(ROOT, b"d", DIRECTORY, USER)
    inner = namespace.create(directory.id, b"inner", DIRECTORY, USER)
    file = namespace.create(ROOT, b"f", FILE, USER)
    gone = namespace.create(ROOT, b"gone", DIRECTORY, USER)
    namespace.rmdir(ROOT, b"gone")
    before = seen(namespace, namespace.get(ROOT))
    times = {inode.id: (inode.ctime_ns, inode.nlink) for inode in (directory, inner, file)}
    long = b"n" * 256
    calls: list[tuple[type[MountstoreError], Callable[[], object]]] = [
        (ExistsError, lambda: namespace.create(ROOT, b"f", FILE, USER)),
        (ExistsError, lambda: namespace.create(ROOT, b".", FILE, USER)),
        (ExistsError, lambda: namespace.create(ROOT, b"..", DIRECTORY, USER)),
        (NameTooLongError, lambda: namespace.create(ROOT, long, FILE, USER)),
        (NameTooLongError, lambda: namespace.create(ROOT, b"s", stat.S_IFLNK, USER, target=b"x" * 4096)),
        (NameTooLongError, lambda: namespace.find(ROOT, long)),
        (WantsDirectoryError, lambda: namespace.create(file.id, b"x", FILE, USER)),
        (AbsentError, lambda: namespace.create(gone.id, b"x", FILE, USER)),
        (StaleError, lambda: namespace.create(99_999_999, b"x", FILE, USER)),
        (NotPermittedError, lambda: namespace.link(directory.id, ROOT, b"x")),
        (ExistsError, lambda: namespace.link(file.id, ROOT, b"d")),
        (AbsentError, lambda: namespace.unlink(ROOT, b"x")),
        (FoundDirectoryError, lambda: namespace.unlink(ROOT, b"d")),
        (WantsDirectoryError, lambda: namespace.rmdir(ROOT, b"f")),
        (NotEmptyError, lambda: namespace.rmdir(ROOT, b"d")),
        (NotEmptyError, lambda: namespace.rmdir(ROOT, b"..")),
        (MisuseError, lambda: namespace.rmdir(ROOT, b".")),
        (MisuseError, lambda: namespace.rename(ROOT, b"d", inner.id, b"x")),
        (MisuseError, lambda: namespace.rename(ROOT, b"d", directory.id, b"x")),
        (NotEmptyError, lambda: namespace.rename(directory.id, b"inner", ROOT, b"d")),
        (FoundDirectoryError, lambda: namespace.rename(ROOT, b"f", directory.id, b"inner")),
        (WantsDirectoryError, lambda: namespace.rename(directory.id, b"inner", ROOT, b"f")),
        (ExistsError, lambda: namespace.rename(ROOT, b"f", ROOT, b"d", noreplace=True)),
        (ExistsError, lambda: namespace.rename(ROOT, b"f", ROOT, b"f", noreplace=True)),
        (AbsentError, lambda: namespace.exchange(ROOT, b"f", ROOT, b"x")),
        (MisuseError, lambda: namespace.exchange(ROOT, b"d", directory.id, b"inner")),
    ]
    for expected, call in calls:
        with pytest.raises(expected):
            call()
    assert seen(namespace, namespace.get(ROOT)) == before
    assert {inode.id: (inode.ctime_ns, inode.nlink) for inode in (directory, inner, file)} == times


async def test_a_read_only_store_refuses_every_change_and_shows_all(store_path: str) -> None:
    async with Store.open(store_path).running() as store:
        file = store.namespace.create(ROOT, b"f", FILE, USER)
        before = seen(store.namespace, store.namespace.get(ROOT))
    async with Store.open(store_path, read_only=True).running() as store:
        namespace = store.namespace
        for call in (
            lambda: namespace.create(ROOT, b"x", FILE, USER),
            lambda: namespace.unlink(ROOT, b"f"),
            lambda: namespace.rename(ROOT, b"f", ROOT, b"x"),
            lambda: namespace.link(file.id, ROOT, b"x"),
            lambda: namespace.set_attributes(namespace.get(file.id), USER, mode=0),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        assert seen(namespace, namespace.get(ROOT)) == before


async def test_new_inodes_take_owner_group_and_setgid_as_posix_says(store: Store) -> None:
    namespace = store.namespace
    plain = namespace.create(ROOT, b"plain", DIRECTORY, USER)
    shared = namespace.create(ROOT, b"shared", DIRECTORY, USER)
    namespace.set_attributes(shared, Caller(0, 0), mode=0o2775, gid=77)
    assert (plain.uid, plain.gid) == (1000, 1001)
    inner = namespace.create(shared.id, b"d", DIRECTORY, USER)
    file = namespace.create(shared.id, b"f", FILE, USER)
    assert (inner.gid, inner.mode) == (77, stat.S_IFDIR | 0o2755)
    assert (file.gid, file.mode) == (77, FILE)


async def test_an_inode_is_one_object_as_long_as_it_is_used(store: Store) -> None:
    namespace = store.namespace
    inodes = [namespace.create(ROOT, b"%d" % number, FILE, USER) for number in range(50)]
    handle = store.files.open(inodes[7], writable=False, privileged=False)
    store.commits.commit()
    table = store.inodes
    table._generation = table._threshold = 5
    for inode in inodes:
        table.get(inode.id)
    for number in range(50, 100):
        namespace.create(ROOT, b"%d" % number, FILE, USER)
        store.commits.commit()
    assert table.get(inodes[7].id) is inodes[7]
    assert table.in_memory() < 60
    await store.files.release(handle)
    assert [table.get(inode.id).ctime_ns for inode in inodes] == [inode.ctime_ns for inode in inodes]


async def test_numbers_are_never_used_twice(store_path: str) -> None:
    numbers = []
    for _ in range(3):
        async with Store.open(store_path).running() as store:
            inode = store.namespace.create(ROOT, b"f", FILE, USER)
            numbers.append(inode.id)
            store.namespace.unlink(ROOT, b"f")
            await trio.lowlevel.checkpoint()
    assert numbers == sorted(set(numbers))
