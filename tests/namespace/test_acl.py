"""Access control lists by the rules: against acl(5), against the kernel's own, and on the namespace."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mountstore.errors import ExistsError, MisuseError, MountstoreError, NoAttributeError, NotSupportedError
from mountstore.namespace import acl as acls
from mountstore.namespace.acl import NO_ID, Acl, AclEntry, Tag
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import ROOT, Inode, InodeTable
from mountstore.namespace.namespace import Caller, Namespace
from mountstore.namespace.versions import Versions
from mountstore.namespace.xattrs import Attributes

ERRNOS = {MisuseError: errno.EINVAL, NotSupportedError: errno.EOPNOTSUPP}

permissions = st.integers(0, 7)
ids = st.sampled_from([0, 1, 1001, 1002, 65534, NO_ID - 1])


@st.composite
def valid_acls(draw: st.DrawFn) -> Acl:
    users = [AclEntry(Tag.USER, draw(permissions), i) for i in draw(st.lists(ids, max_size=3, unique=True))]
    groups = [AclEntry(Tag.GROUP, draw(permissions), i) for i in draw(st.lists(ids, max_size=3, unique=True))]
    masked = bool(users or groups) or draw(st.booleans())
    return (
        AclEntry(Tag.USER_OBJ, draw(permissions)),
        *users,
        AclEntry(Tag.GROUP_OBJ, draw(permissions)),
        *groups,
        *([AclEntry(Tag.MASK, draw(permissions))] if masked else []),
        AclEntry(Tag.OTHER, draw(permissions)),
    )


any_acls = st.lists(
    st.builds(
        AclEntry,
        st.sampled_from([0, 1, 2, 4, 8, 16, 32, 33]),
        st.sampled_from([0, 4, 7, 8]),
        st.sampled_from([0, 1001, NO_ID]),
    ),
    max_size=6,
).map(tuple)

modes = st.integers(0, 0o777)

with_files = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def acl_of(text: str) -> Acl:
    """`u::rwx,u:1001:r-x,g::r--,m::rwx,o::---` as a list."""
    tags = {("u", False): Tag.USER_OBJ, ("u", True): Tag.USER, ("g", False): Tag.GROUP_OBJ}
    tags |= {("g", True): Tag.GROUP, ("m", False): Tag.MASK, ("o", False): Tag.OTHER}
    entries = []
    for word in text.split(","):
        letter, number, bits = word.split(":")
        value = sum(bit for bit, one in zip((4, 2, 1), bits, strict=True) if one != "-")
        entries.append(AclEntry(tags[letter, bool(number)], value, int(number) if number else NO_ID))
    return tuple(entries)


# --- the form ---


def test_the_example_of_the_form() -> None:
    value = bytes.fromhex(
        "02000000 01000600ffffffff 02000400e9030000 04000000ffffffff 10000400ffffffff 20000000ffffffff"
    )
    acl = acl_of("u::rw-,u:1001:r--,g::---,m::r--,o::---")
    assert acls.decode(value) == acl
    assert acls.encode(acl) == value


@given(valid_acls())
def test_what_was_encoded_decodes_to_the_same(acl: Acl) -> None:
    assert acls.decode(acls.encode(acl)) == acl


def test_a_list_without_entries_is_none() -> None:
    assert acls.decode(struct.pack("<I", 2)) == ()


@given(st.binary(max_size=60))
@example(b"")
@example(b"\2\0\0")
@example(b"\2\0\0\0\1")
def test_decode_accepts_or_raises_one_of_its_errors(value: bytes) -> None:
    try:
        acl = acls.decode(value)
    except (MisuseError, NotSupportedError):
        return
    assert acls.decode(acls.encode(acl)) == acl


# --- the rules, as the kernel has them on a file system of its own ---


def stored(path: str, name: bytes) -> Acl | None:
    try:
        return acls.decode(os.getxattr(path, name))
    except OSError as exc:
        assert exc.errno == errno.ENODATA
        return None


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@with_files
@given(acl=any_acls | valid_acls(), version=st.sampled_from([2, 2, 2, 1]), tail=st.sampled_from([b"", b"", b"x"]))
def test_the_kernel_finds_valid_what_decode_does(tmp_path: Path, acl: Acl, version: int, tail: bytes) -> None:
    value = struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in acl) + tail
    directory = tmp_path / "d"
    directory.mkdir(exist_ok=True)
    expected = None
    try:
        os.setxattr(directory, acls.DEFAULT, value)
    except OSError as exc:
        expected = exc.errno
    answer = None
    try:
        acls.decode(value)
    except MountstoreError as exc:
        answer = ERRNOS[type(exc)]
    assert answer == expected


@with_files
@given(acl=valid_acls(), mode=modes)
def test_an_access_list_sets_the_mode_as_in_the_kernel(tmp_path: Path, acl: Acl, mode: int) -> None:
    path = str(tmp_path / "f")
    Path(path).touch()
    os.chmod(path, mode)
    os.setxattr(path, acls.ACCESS, acls.encode(acl))
    assert stat.S_IMODE(os.stat(path).st_mode) == acls.mode_of(acl, mode)
    assert stored(path, acls.ACCESS) == (None if acls.is_minimal(acl) else acl)
    os.unlink(path)


@with_files
@given(acl=valid_acls().filter(lambda acl: not acls.is_minimal(acl)), mode=modes)
def test_chmod_changes_an_access_list_as_in_the_kernel(tmp_path: Path, acl: Acl, mode: int) -> None:
    path = str(tmp_path / "f")
    Path(path).touch()
    os.setxattr(path, acls.ACCESS, acls.encode(acl))
    os.chmod(path, mode)
    changed = acls.chmod(acl, mode)
    assert stored(path, acls.ACCESS) == changed
    assert acls.mode_of(changed, 0) == mode


@with_files
@given(default=valid_acls(), mode=modes, directory=st.booleans())
def test_a_default_list_is_inherited_as_in_the_kernel(
    tmp_path: Path, default: Acl, mode: int, directory: bool
) -> None:
    parent = tmp_path / "d"
    parent.mkdir(exist_ok=True)
    os.setxattr(parent, acls.DEFAULT, acls.encode(default))
    path = str(parent / "new")
    with umask(0o077):
        if directory:
            os.mkdir(path, mode)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, mode))
    inherited = acls.inherit(default, stat.S_IFREG | mode, directory=directory)
    assert stat.S_IFREG | stat.S_IMODE(os.stat(path).st_mode) == inherited.mode
    assert stored(path, acls.ACCESS) == inherited.access
    assert stored(path, acls.DEFAULT) == inherited.default
    (os.rmdir if directory else os.unlink)(path)


# --- the rules in the namespace ---


class Names(NamedTuple):
    """A namespace without contents."""

    inodes: InodeTable
    namespace: Namespace
    attributes: Attributes

    def make(self, parent: int, name: bytes, mode: int, umask: int = 0) -> Inode:
        return self.namespace.create(parent, name, mode, SOMEBODY, umask=umask)

    def set(self, inode: Inode, name: bytes, text: str, *, keep_setgid: bool = True) -> None:
        self.attributes.set_acl(inode, name, acls.encode(acl_of(text)), keep_setgid=keep_setgid)

    def get(self, inode: Inode, name: bytes) -> Acl | None:
        try:
            return acls.decode(self.attributes.get(inode, name))
        except NoAttributeError:
            return None


@contextmanager
def names_in(directory: Path, *, acl: bool) -> Iterator[Names]:
    catalog = Catalog(str(directory / "catalog.db"))
    inodes = InodeTable(catalog)
    if not catalog.get_meta("rooted", 0):
        inodes.create_root(0, 0)
        catalog.set_meta("rooted", 1)
    namespace = Namespace(catalog, inodes, Versions(catalog, inodes), acl=acl)
    yield Names(inodes, namespace, Attributes(catalog, inodes, namespace, acl=acl))
    inodes.flush()
    catalog.commit()
    catalog.close()


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    with names_in(tmp_path, acl=True) as names:
        yield names


SOMEBODY = Caller(1000, 1000)
FILE = stat.S_IFREG | 0o666
DIRECTORY = stat.S_IFDIR | 0o777
DEFAULT_TEXT = "u::rwx,u:1001:rwx,g::r-x,m::rwx,o::---"


def test_without_a_default_list_the_umask_applies(names: Names) -> None:
    inode = names.make(ROOT, b"f", FILE, 0o027)
    assert (inode.mode, inode.xattrs) == (stat.S_IFREG | 0o640, 0)


def test_a_default_list_stands_in_for_the_umask(names: Names) -> None:
    parent = names.make(ROOT, b"d", DIRECTORY)
    names.set(parent, acls.DEFAULT, DEFAULT_TEXT)
    inode = names.make(parent.id, b"f", FILE, 0o777)
    assert inode.mode == stat.S_IFREG | 0o660
    assert names.get(inode, acls.ACCESS) == acl_of("u::rw-,u:1001:rwx,g::r-x,m::rw-,o::---")
    assert names.get(inode, acls.DEFAULT) is None
    assert inode.xattrs == 1


def test_a_directory_passes_its_default_list_on(names: Names) -> None:
    parent = names.make(ROOT, b"d", DIRECTORY)
    names.set(parent, acls.DEFAULT, DEFAULT_TEXT)
    child = names.make(parent.id, b"e", DIRECTORY)
    assert names.get(child, acls.DEFAULT) == acl_of(DEFAULT_TEXT)
    assert names.get(child, acls.ACCESS) == acl_of(DEFAULT_TEXT)
    assert child.xattrs == 2


def test_a_symbolic_link_inherits_nothing(names: Names) -> None:
    parent = names.make(ROOT, b"d", DIRECTORY)
    names.set(parent, acls.DEFAULT, DEFAULT_TEXT)
    link = names.namespace.create(parent.id, b"l", stat.S_IFLNK | 0o777, SOMEBODY, umask=0o77, target=b"f")
    assert (link.mode, link.xattrs) == (stat.S_IFLNK | 0o777, 0)


def test_a_name_that_is_taken_leaves_no_list_behind(names: Names, tmp_path: Path) -> None:
    parent = names.make(ROOT, b"d", DIRECTORY)
    names.set(parent, acls.DEFAULT, DEFAULT_TEXT)
    names.make(parent.id, b"f", FILE)
    with pytest.raises(ExistsError):
        names.make(parent.id, b"f", FILE)
    rows = sum(inode.xattrs for inode in (parent, names.make(parent.id, b"g", FILE))) + 1
    catalog = names.inodes._catalog
    assert sum(len(catalog.list_xattrs(number)) for number in range(20)) == rows


def test_a_minimal_access_list_becomes_the_mode(names: Names) -> None:
    inode = names.make(ROOT, b"f", FILE)
    names.set(inode, acls.ACCESS, "u::rw-,u:1001:r--,g::---,m::r--,o::---")
    assert (inode.mode & 0o777, inode.xattrs) == (0o640, 1)
    names.set(inode, acls.ACCESS, "u::r--,g::r--,o::---")
    assert (inode.mode & 0o777, inode.xattrs) == (0o440, 0)
    assert names.get(inode, acls.ACCESS) is None


def test_setgid_goes_when_a_stranger_to_the_group_sets_a_list(names: Names) -> None:
    inode = names.make(ROOT, b"f", FILE)
    inode.mode = stat.S_IFREG | 0o6755
    names.set(inode, acls.ACCESS, "u::rwx,g::r-x,o::r-x")
    assert inode.mode & 0o7777 == 0o6755
    names.set(inode, acls.ACCESS, "u::rwx,g::r-x,o::r-x", keep_setgid=False)
    assert inode.mode & 0o7777 == 0o4755


def test_chmod_changes_the_list_and_only_that_of_access(names: Names) -> None:
    inode = names.make(ROOT, b"d", DIRECTORY)
    names.set(inode, acls.DEFAULT, DEFAULT_TEXT)
    names.set(inode, acls.ACCESS, DEFAULT_TEXT)
    names.namespace.set_attributes(inode, SOMEBODY, mode=0o1740)
    assert inode.mode == stat.S_IFDIR | 0o1740
    assert names.get(inode, acls.ACCESS) == acl_of("u::rwx,u:1001:rwx,g::r-x,m::r--,o::---")
    assert names.get(inode, acls.DEFAULT) == acl_of(DEFAULT_TEXT)


def test_a_list_that_is_refused_changes_nothing(names: Names) -> None:
    inode = names.make(ROOT, b"f", FILE)
    before = inode.mode, inode.ctime_ns
    for name, value in [
        (acls.ACCESS, b"\2\0\0"),
        (acls.ACCESS, acls.encode(acl_of("u::rwx,u:1001:r--,g::r--,o::---"))),
        (acls.DEFAULT, acls.encode(acl_of(DEFAULT_TEXT))),
    ]:
        with pytest.raises(MisuseError):
            names.attributes.set(inode, name, value)
    assert (inode.mode, inode.ctime_ns, inode.xattrs) == (*before, 0)


def test_without_acl_there_are_no_lists_but_those_stored_stay(tmp_path: Path) -> None:
    with names_in(tmp_path, acl=True) as names:
        parent = names.make(ROOT, b"d", DIRECTORY)
        names.set(parent, acls.DEFAULT, DEFAULT_TEXT)
    with names_in(tmp_path, acl=False) as names:
        parent = names.namespace.get(parent.id)
        assert names.attributes.names(parent, trusted=True) == []
        for operation in (
            lambda: names.attributes.get(parent, acls.DEFAULT),
            lambda: names.set(parent, acls.DEFAULT, DEFAULT_TEXT),
            lambda: names.attributes.remove(parent, acls.DEFAULT),
        ):
            with pytest.raises(NotSupportedError):
                operation()
        # The kernel has applied the umask.
        assert names.make(parent.id, b"f", FILE, 0o77).mode == FILE
    with names_in(tmp_path, acl=True) as names:
        assert names.get(names.namespace.get(parent.id), acls.DEFAULT) == acl_of(DEFAULT_TEXT)
