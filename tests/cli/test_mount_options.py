"""The arguments of mount.cas: what mount(8) passes, what people type, what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountstore.cli.exits import Exit, Failure
from mountstore.cli.options import SWITCHES, Choices, Request, parse_arguments, parse_options, split_options
from mountstore.fuse.mount_options import MountOptions

# What libmount really passes: `spec dir -s -f -n -v -o options -t type`, seen with util-linux 2.38.
MOUNT8_VECTORS = [
    (
        ["/data", "/mnt", "-o", "rw"],
        Request("/data", "/mnt"),
    ),
    (
        [
            *["/data", "/mnt", "-s", "-f", "-n", "-v"],
            *["-o", "rw,nosuid,noatime,limit=32,uid=5,nofail,_netdev,user=bob,exec,dev"],
        ],
        Request(
            "/data",
            "/mnt",
            Choices(MountOptions(kernel=frozenset({"nosuid", "noatime"})), unknown=("limit=32", "uid=5")),
            f_flag=True,
            verbose=True,
        ),
    ),
    (
        ["/data", "/mnt", "-o", "rw,noexec,nosuid,nodev,nofail,_netdev,users"],
        Request("/data", "/mnt", Choices(MountOptions(kernel=frozenset({"noexec", "nosuid", "nodev"})))),
    ),
    (
        ["/data", "/mnt", "-o", "ro"],
        Request("/data", "/mnt", Choices(MountOptions(read_only=True))),
    ),
    (
        ["/data", "/mnt", "-o", "rw", "-t", "cas.sub"],
        Request("/data", "/mnt"),
    ),
    (
        ["/data", "/mnt", "-o", "rw", "-t", "fuse.cas"],
        Request("/data", "/mnt"),
    ),
    (
        ["/da ta,é\n", "/m nt,ü", "-o", "rw"],
        Request("/da ta,é\n", "/m nt,ü"),
    ),
]


@pytest.mark.parametrize(("argv", "request_"), MOUNT8_VECTORS)
def test_argument_vectors_of_mount8(argv: list[str], request_: Request) -> None:
    assert parse_arguments(argv) == request_


@pytest.mark.parametrize(
    "argv",
    [
        ["-oro", "/data", "/mnt", "-v"],
        ["-v", "/data", "-o", "ro", "/mnt"],
        ["/data", "-vo", "ro", "/mnt"],
        ["-snvo", "ro", "/data", "/mnt"],
        ["-o", "rw", "-o", "ro", "-v", "--", "/data", "/mnt"],
        ["/data", "/mnt", "--verbose", "-o", ",ro,,"],
    ],
)
def test_options_may_stand_anywhere_and_be_glued_together(argv: list[str]) -> None:
    assert parse_arguments(argv) == Request("/data", "/mnt", Choices(MountOptions(read_only=True)), verbose=True)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("defaults", Choices()),
        ("allow_other", Choices(allow_other=True)),
        ("allow_other,noallow_other", Choices(allow_other=False)),
        ("acl,noxattr", Choices(MountOptions(acl=True, xattr=False))),
        (
            "nohandshake,nofastloop,noquickwake",
            Choices(MountOptions(handshake=False, fast_loop=False, quick_wake=False)),
        ),
        ("commit=0.5,busy_poll=0", Choices(MountOptions(commit_s=0.5, busy_poll_us=0))),
        ("commit=1,commit=30", Choices(MountOptions(commit_s=30.0))),
        ("dir_limit=1000", Choices(dir_limit=1000)),
        ("log=/var/log/x.log", Choices(log="/var/log/x.log")),
        ('log="/var/log/a,b",ro', Choices(MountOptions(read_only=True), log="/var/log/a,b")),
        (r"log=/var/log/a\,b,ro", Choices(MountOptions(read_only=True), log="/var/log/a,b")),
        ("log=syslog", Choices(log="syslog")),
        ("versions=~old,show_versions", Choices(MountOptions(versions_name="~old", show_versions=True))),
        ("show_versions,noshow_versions,noversions", Choices(MountOptions(versions=False))),
        ("snapshots=60", Choices(MountOptions(snapshot_s=60.0))),
        ("nosnapshots,nocontrol", Choices(MountOptions(snapshots=False, control=False))),
        ("ro,snapshot=one", Choices(MountOptions(read_only=True, snapshot="one"))),
        ("control=ctl", Choices(MountOptions(control_name="ctl"))),
        ("nosuid,nodev,suid", Choices(MountOptions(kernel=frozenset({"nodev"})))),
        ("sync,dirsync,async", Choices()),
        ("ro,x-systemd.requires-mounts-for=/data,X-foo,comment=hi,noauto", Choices(MountOptions(read_only=True))),
        ("nofail,_netdev,user,user=bob,users,owner,group,uhelper=cas,relatime,lazytime", Choices()),
        ("default_permissions,subtype=cas,fsname=/x", Choices()),
    ],
)
def test_option_table(text: str, choices: Choices) -> None:
    assert parse_options([text]) == choices


@pytest.mark.parametrize("word", SWITCHES)
def test_every_switch_sets_what_the_table_says(word: str) -> None:
    name, state = SWITCHES[word]
    choices = parse_options([word])
    assert getattr(choices if name == "allow_other" else choices.mount, name) is state


def test_what_is_mounted_needs_neither_pyfuse3_nor_the_catalog_to_be_described() -> None:
    heavy = "{'pyfuse3', 'trio', 'sqlite3'} & sys.modules.keys()"
    program = f"import sys, mountstore.cli.options; print({heavy})"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("nofial", "did you mean nofail?"),
        ("allow-other", "did you mean allow_other?"),
        ("uid=5", "unknown option uid=5"),
        ("remount,ro", "unmount with umount.cas and mount again"),
        ("loop=fast", "nofastloop"),
        ("allow_root", "allow_other"),
        ("auto_unmount", "crash"),
        ("commit", "needs a value"),
        ("commit=", "needs a value"),
        ("commit=soon", "from 0.1 to 3600"),
        ("commit=nan", "from 0.1 to 3600"),
        ("commit=0", "from 0.1 to 3600"),
        ("busy_poll=1.5", "a whole number of microseconds"),
        ("busy_poll=-1", "from 0 to 100000"),
        ("dir_limit=15", "a whole number of entries from 16 to 10000000"),
        ("snapshots=0.5", "a number of seconds from 1 to 31622400"),
        ("versions", "needs a value"),
        ("versions=a/b", "a name that a directory may have"),
        ("versions=..", "a name that a directory may have"),
        ("log=relative/path", "absolute path"),
        ("ro=1", "takes no value"),
        ("nosuid=yes", "takes no value"),
        ('log="/x', "double quote"),
    ],
)
def test_what_is_refused_says_what_to_do(text: str, hint: str) -> None:
    with pytest.raises(Failure) as failure:
        parse_options([text])
    assert hint in str(failure.value)
    assert failure.value.code is Exit.USAGE


def test_sloppy_keeps_what_nobody_knows_and_refuses_the_rest() -> None:
    assert parse_options(["zzz,ro"], sloppy=True) == Choices(MountOptions(read_only=True), unknown=("zzz",))
    with pytest.raises(Failure):
        parse_options(["commit=x"], sloppy=True)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ([], "STORE"),
        (["/data"], "MOUNTPOINT"),
        (["/data", "/mnt", "/more"], "/more"),
        (["/data", "/mnt", "-x"], "-x"),
        (["/data", "/mnt", "--foregroun"], "--foregroun"),
        (["/data", "/mnt", "-t", "ext4"], "ext4"),
        (["/data", "/mnt", "-N", "123"], "nsenter"),
        (["/data", "/mnt", "--fake", "--foreground"], "exclude each other"),
        (["", "/mnt"], "store is an empty string"),
        (["/data", ""], "mount point is an empty string"),
        (["/data", "/mnt", "-o"], "-o"),
    ],
)
def test_wrong_usage_is_code_1(argv: list[str], hint: str) -> None:
    with pytest.raises(Failure) as failure:
        parse_arguments(argv)
    assert hint in str(failure.value)
    assert failure.value.code is Exit.USAGE


OPTION_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\\",'), min_size=1)


@settings(max_examples=50)
@given(st.lists(OPTION_TEXT))
def test_splitting_undoes_both_ways_of_quoting(parts: list[str]) -> None:
    with_commas = [f"{part},{part}" for part in parts]
    assert split_options(",".join(f'"{part}"' for part in with_commas)) == with_commas
    assert split_options(",".join(part.replace(",", r"\,") for part in with_commas)) == with_commas
    assert split_options(",".join(parts)) == parts


@settings(max_examples=100)
@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_either_read_or_refused(texts: list[str]) -> None:
    try:
        parse_options(texts)
    except Failure as failure:
        assert failure.code is Exit.USAGE
