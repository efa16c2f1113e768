"""POSIX access control lists with `-o acl`: every command does what it does beside the mount."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from images.pictures import encoded, quarters

from mount.conftest import MountMaker
from mount.live import LiveMount, let_everybody_reach, run
from mount.side_by_side import compare, state_of, twins

SCENARIOS = {
    "an access list and the mode": """
        touch f; chmod 640 f
        setfacl -m u:41001:r f
        setfacl -m g:42000:rw f
        setfacl -m u:41002:rwx,m::rx f
        chmod 600 f
        chmod g+rw,o+r f
        chmod 000 f
        chmod 7777 f
        setfacl -m u::r,g::w,o::x f
        setfacl -x u:41001 f
        setfacl -x m f
        setfacl -n -m u:41001:rwx f
        setfacl -b f
        setfacl -m m::r f
        setfacl -b f
        setfacl --set u::rw,u:41001:rw,g::r,m::rw,o::- f
        chown 41001:42000 f
        chgrp 41001 f
        getfacl f > acl; setfacl -b f; setfacl --restore=acl; rm acl
        setfacl -m d:u:41001:r f
        setfacl -x u:41007 f
        setfacl -m u:41001:rwq f
        ln -s f l; setfacl -m u:41001:r l
        ln f h; setfacl -m u:41003:r h
        rm f; cat h
    """,
    "a default list is inherited": """
        mkdir d; setfacl -d -m u:41001:rwx,g:42000:rx d
        umask 077; touch d/file
        umask 077; mkdir d/dir
        umask 000; touch d/open; mkdir d/opendir
        mkfifo d/fifo; mknod d/null c 1 3; mknod d/block b 7 0
        mkfifo -m 600 d/fifo600; mkdir -m 700 d/dir700
        ln -s file d/link
        mkdir -p d/dir/a/b; touch d/dir/a/b/c
        touch plain; mv plain d/moved; ln d/moved d/hard
        setfacl -k d/dir; touch d/dir/after; mkdir d/dir/sub
        setfacl -d -m m::r d; touch d/masked; mkdir d/maskeddir
        setfacl -d -m u::---,g::---,o::--- d; umask 0; touch d/none; mkdir d/nonedir
        setfacl -k d; setfacl -d -m u::rwx,g::rx,o::- d; umask 0; touch d/minimal; mkdir d/minimaldir
        setfacl -d -m o::rwx d; umask 022; install -m 751 /dev/null d/installed
        umask 027; echo x > d/written; cp d/written d/copied; sed -i s/x/y/ d/copied; cat d/copied
        chmod g+s d; chgrp 42000 d; umask 077; touch d/setgid; mkdir d/setgiddir
        setfacl -d -m u:41001:rwx d; touch d/setgidacl; mkdir d/setgidacldir
        rm -r d/dir
        setfacl -R -b d
        setfacl -R -m u:41002:rX,d:u:41002:rX d
    """,
    "without a list the umask applies": """
        umask 000; touch a; mkdir b; mkfifo c; mknod d c 1 3
        umask 022; touch e; mkdir f; mkfifo g; mknod h c 1 3
        umask 077; touch i; mkdir j; mkfifo k; mknod l c 1 3
        umask 777; touch m; mkdir n; ln -s a o
        umask 027; python3 -c 'import os; os.open("p", os.O_CREAT, 0o6777); os.mkdir("q", 0o1777)'
        chmod 2775 b; umask 002; touch b/r; mkdir b/s
    """,
    "lists are enforced": """
        chmod 755 .; mkdir d; echo secret > d/f; chmod 700 d; chmod 600 d/f
        bob: cat d/f
        setfacl -m u:41002:x d; setfacl -m u:41002:r d/f
        bob: cat d/f
        bob: ls d
        bob: echo more >> d/f
        setfacl -m u:41002:rw d/f
        bob: echo more >> d/f; cat d/f
        chmod g-w d/f
        bob: echo more >> d/f
        chmod g+w d/f
        bob: echo more >> d/f
        bob: setfacl -m u:41002:rwx d/f
        bob: setfacl -b d/f
        bob: chmod 777 d/f
        ann: cat d/f
        setfacl -m g:42000:rx d; setfacl -m g:42000:r d/f
        ann: cat d/f; ls d
        eve: cat d/f
        nobody: cat d/f
        setfacl -m u:41001:- d/f
        ann: cat d/f
        setfacl -m m::- d/f
        eve: cat d/f
        chmod 666 d/f; setfacl -m o::r d/f; setfacl -m o::x d
        nobody: cat d/f
        nobody: echo more >> d/f
        setfacl -m d:u:41002:rwx,u:41002:rwx d
        bob: umask 077; mkdir d/bobs; echo hers > d/bobs/f; getfacl d/bobs/f
        ann: cat d/bobs/f
        bob: setfacl -m g:42000:r d/bobs/f; setfacl -m g:42000:x d/bobs
        ann: cat d/bobs/f
        bob: mv d/bobs/f d/g; rm d/g; rmdir d/bobs
    """,
    "setgid stays with members of the group only": """
        chmod 777 .; touch f; chown 41002:42000 f; chmod 2755 f; mkdir d; chown 41002:42000 d; chmod 2775 d
        bob: setfacl -m u:41001:rx f
        chmod 2755 f
        setfacl -m u:41003:rx f
        bob: setfacl -b f
        bob: setfacl -m u:41001:rx d
        bob: setfacl -d -m u:41001:rx d
        chmod 2755 d; bob: chmod 2777 d
        touch g; chown 41001:42000 g; chmod 6755 g
        ann: setfacl -m u:41002:rx g
        ann: chmod 2711 g; setfacl -b g
        eve: setfacl -m u:41002:rx g
        touch h; chown 41001:42000 h; chmod 6640 h
        ann: chgrp 41001 h
        chown 41001:42000 h; chmod 6640 h
        ann: chown 41001:42000 h
        chown 41002:42000 h; chmod 6640 h
        bob: chgrp 41002 h
    """,
    "copies": """
        mkdir s; echo one > s/f; echo two > s/g; mkdir s/d; echo three > s/d/h; ln -s f s/l; chmod 640 s/f
        setfacl -m u:41001:rw,g:42000:r s/f; setfacl -m d:u:41002:rwx,u:41002:rx s/d; chown 41001:42000 s/g
        setfacl -m u:41002:rwx s/d/h; setfattr -n user.note -v hello s/f
        cp -a s a
        cp -p s/f p; cp s/f q; cp --preserve=mode s/g r; cp --preserve=all s/g t
        rsync -aAX s/ b/
        rsync -a s/ c/
        setfacl -m u:41003:r s/f; touch -d '2001-01-01' s/f; rsync -aAX --delete s/ b/
        tar --acls --xattrs -C s -cf - . | (mkdir x; cd x; tar --acls --xattrs -xpf -)
        mv s/d moved; mv -T moved s/e
        mkdir i; setfacl -d -m u:41001:rwx i; cp -a s/. i; cp s/f i/plain; rsync -rA s/ i/r/; rsync -r s/ i/n/
        umask 077; mkdir j; setfacl -d -m g:42000:rwx j; tar -C s -cf - . | tar -C j -xf -
        getfacl -R -p s > acls; setfacl -R -b -k s; setfacl --restore=acls; rm acls
        chmod -R go-rwx b; chmod -R u=rwX,g=rX,o= a
        rm -r s a b
    """,
    "other users copy": """
        chmod 777 .
        ann: umask 027; mkdir s; echo one > s/f; setfacl -m u:41002:rwx s; setfacl -m u:41002:r s/f
        bob: cp -a s b; cp -r s c
        bob: rsync -aA s/ d/
        bob: rsync -a s/ s/mine/
        ann: cp -p s/mine/f g; getfacl g
        ann: setfacl -d -m u:41002:rwx s; touch s/new; mkdir s/newdir
        bob: touch s/newdir/bobs; setfacl -m u:41001:r s/newdir/bobs
        bob: rm -r s/newdir; mv s/new s/renamed
        nobody: ls s
        nobody: mkdir n; setfacl -m d:u:65534:r,u:0:rwx n; touch n/f
        ann: setfacl -m u:41001:rwx n
    """,
}


ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"


@pytest.fixture(scope="module")
def acl_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMount]:
    base = tmp_path_factory.mktemp("acl")
    let_everybody_reach(base)
    mount = LiveMount(base, "acl")
    yield mount
    mount.finish()


@pytest.fixture
def pair(acl_mount: LiveMount, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """An empty directory in the mount and its twin beside."""
    yield twins(acl_mount, request.node.name)
    acl_mount.check_log()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_command_does_as_beside_the_mount(name: str, pair: tuple[Path, Path]) -> None:
    compare(SCENARIOS[name], *pair)


def test_lists_are_on_disk(make_mount: MountMaker) -> None:
    mount = make_mount("acl")
    directory, beside = twins(mount, "d")
    compare(SCENARIOS["a default list is inherited"], directory, beside)
    mount.remount()
    assert state_of(directory) == state_of(beside)
    # What the kernel knows of them now, it knows from us.
    compare(
        """
        chmod -R g=rX d; umask 077; touch d/again
        bob: cat d/written; cat d/copied; ls d/setgidacldir
        rm -r d
        """,
        directory,
        beside,
    )


def entries(*rows: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *row) for row in rows)


NOBODY = 0xFFFFFFFF
USER_OBJ, GROUP_OBJ, OTHER = (1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)
MANY = [(2, 4, number) for number in range(400)]

VALUES = {
    "empty value": b"",
    "no entries": entries(),
    "minimal": entries(USER_OBJ, GROUP_OBJ, OTHER),
    "extended": entries(USER_OBJ, (2, 7, 41001), GROUP_OBJ, (16, 5, NOBODY), OTHER),
    "many": entries(USER_OBJ, *MANY, GROUP_OBJ, (16, 5, NOBODY), OTHER),
    "twice the same user": entries(USER_OBJ, (2, 7, 1), (2, 5, 1), GROUP_OBJ, (16, 5, NOBODY), OTHER),
    "mask alone": entries(USER_OBJ, GROUP_OBJ, (16, 1, NOBODY), OTHER),
    "no mask": entries(USER_OBJ, (2, 7, 41001), GROUP_OBJ, OTHER),
    "out of order": entries(GROUP_OBJ, USER_OBJ, OTHER),
    "no other": entries(USER_OBJ, GROUP_OBJ),
    "permissions of 8": entries((1, 8, NOBODY), GROUP_OBJ, OTHER),
    "user without id": entries(USER_OBJ, (2, 7, NOBODY), GROUP_OBJ, (16, 5, NOBODY), OTHER),
    "unknown tag": entries(USER_OBJ, GROUP_OBJ, (64, 5, NOBODY), OTHER),
    "version 1": entries(USER_OBJ, GROUP_OBJ, OTHER, version=1),
    "half an entry": entries(USER_OBJ, GROUP_OBJ, OTHER)[:-1],
    "half a version": b"\2\0",
}


def outcome(operation: Callable[[], object]) -> object:
    """What it returns, or the name of the error."""
    try:
        return operation()
    except OSError as exc:
        assert exc.errno is not None
        return errno.errorcode[exc.errno]


@pytest.mark.parametrize("what", VALUES)
def test_values_set_by_hand_are_taken_as_beside_the_mount(what: str, pair: tuple[Path, Path]) -> None:
    answers: list[list[object]] = []
    for directory in pair:
        file = directory / "f"
        file.touch(mode=0o640)
        seen: list[object] = []
        for path, name in (file, ACCESS), (directory, ACCESS), (directory, DEFAULT), (file, DEFAULT):
            seen.append(outcome(lambda p=path, n=name: os.setxattr(p, n, VALUES[what])))  # type: ignore[misc]
            seen.append(outcome(lambda p=path, n=name: os.getxattr(p, n)))  # type: ignore[misc]
            seen.append(outcome(lambda p=path, n=name: os.removexattr(p, n)))  # type: ignore[misc]
            seen.append(outcome(lambda p=path, n=name: os.removexattr(p, n)))  # type: ignore[misc]
            seen.append(oct(path.stat().st_mode))
        answers.append(seen)
    assert answers[0] == answers[1]


def test_without_the_option_there_are_no_lists(make_mount: MountMaker) -> None:
    mount = make_mount()
    directory = mount.path / "d"
    directory.mkdir()
    value = VALUES["extended"]
    for name in ACCESS, DEFAULT:
        assert outcome(lambda n=name: os.setxattr(directory, n, value)) == "ENOTSUP"  # type: ignore[misc]
        assert outcome(lambda n=name: os.getxattr(directory, n)) == "ENOTSUP"  # type: ignore[misc]
        assert outcome(lambda n=name: os.removexattr(directory, n)) == "ENOTSUP"  # type: ignore[misc]
    run("cp", "-a", "--", str(directory), str(mount.path / "e"))
    assert run("getfacl", "-c", "-p", str(directory)).split() == ["user::rwx", "group::r-x", "other::r-x"]


def require_agreement(path: Path) -> None:
    """The mode's bits for group and others are those of the mask (the owning group without one) and of others."""
    try:
        value = os.getxattr(path, ACCESS)
    except OSError as exc:
        assert exc.errno == errno.ENODATA
        return
    rights = {tag: bits for tag, bits, _ in struct.iter_unpack("<HHI", value[4:])}
    assert oct(path.stat().st_mode & 0o77) == oct(rights.get(16, rights[4]) << 3 | rights[32])


def command(mount: LiveMount, line: str) -> None:
    (mount.path / ".cas" / "control").write_text(line + "\n")


# A user of his own may read, the owning group may not, and the mode's bits for the group are the mask.
KEEPS_THE_GROUP_OUT = entries(USER_OBJ, (2, 6, 41001), (4, 0, NOBODY), (16, 6, NOBODY), OTHER)
LEAVES_READING = entries((1, 7, NOBODY), (2, 4, 41001), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))


def test_what_comes_back_has_the_default_list_and_the_mode_that_goes_with_it(acl_mount: LiveMount) -> None:
    root = acl_mount.path / "back"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "g").write_text("in it")
    file = root / "f"
    for text in "one", "two22":
        file.write_text(text)
        file.chmod(0o664)
    (root / "sub").chmod(0o2775)
    os.setxattr(root, DEFAULT, LEAVES_READING)
    command(acl_mount, "restore /back/f@1")
    assert file.read_text() == "one"
    assert os.getxattr(file, ACCESS) == entries(USER_OBJ, (2, 4, 41001), (4, 4, NOBODY), (16, 4, NOBODY), OTHER)
    assert oct(file.stat().st_mode) == oct(0o100640)
    command(acl_mount, "restore /back/sub@2100-01-01 --to /back/copy")
    assert (root / "copy" / "g").read_text() == "in it"
    assert oct((root / "copy").stat().st_mode) == oct(0o042740)
    for path in file, root / "copy", root / "copy" / "g":
        require_agreement(path)


def test_what_takes_the_place_of_something_lets_nobody_in_whom_its_list_kept_out(acl_mount: LiveMount) -> None:
    root = acl_mount.path / "kept out"
    root.mkdir()
    directory, image, target = root / "d", root / "a.png", root / "t.png"
    directory.mkdir()
    os.setxattr(directory, ACCESS, entries((1, 7, NOBODY), (2, 7, 41001), (4, 0, NOBODY), (16, 7, NOBODY), OTHER))
    assert oct(directory.stat().st_mode) == oct(0o040770)
    command(acl_mount, "restore '/kept out/d@2100-01-01' --to '/kept out/e'")
    assert oct((root / "e").stat().st_mode) == oct(0o040700)
    image.write_bytes(encoded(quarters(), "PNG"))
    shutil.copy(image, target)
    target.chmod(0o4640)
    os.setxattr(target, ACCESS, KEEPS_THE_GROUP_OUT)
    assert oct(target.stat().st_mode) == oct(0o104660)
    command(acl_mount, "resize '/kept out/a.png' 10x10 '/kept out/t.png'")
    assert oct(target.stat().st_mode) == oct(0o100600)
    command(acl_mount, "resize '/kept out/d' 10x10 '/kept out/d/small'")
    for path in target, root / "e", directory / "small":
        require_agreement(path)
    assert oct((directory / "small").stat().st_mode) == oct(0o040700)
