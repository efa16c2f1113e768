"""The arguments of mount.cas: mount(8)'s helper interface, and the options behind `-o`.

mount(8) calls `mount.cas SPEC DIR [-s] [-f] [-n] [-v] -o OPTIONS [-t TYPE] [-N NAMESPACE]` (libmount's
exec_helper); people write options first, last or glued together. Both are read here. Nothing in this
module touches a disk, and nothing heavy is imported: a wrong option is answered at once.

Every option has one line in one of the tables below. `loop=` is not among them on purpose: mount(8)
keeps it for loop devices and a helper never sees it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mountstore import __version__
from mountstore.cli.exits import Exit, Failure
from mountstore.fuse.mount_options import MountOptions

# Handed to the kernel as they are. The later of two opposites wins.
KERNEL_FLAGS = frozenset({"nosuid", "nodev", "noexec", "sync", "dirsync", "noatime"})
# Each takes these flags back.
KERNEL_OPPOSITES: dict[str, frozenset[str]] = {
    "suid": frozenset({"nosuid"}),
    "dev": frozenset({"nodev"}),
    "exec": frozenset({"noexec"}),
    "async": frozenset({"sync", "dirsync"}),
    "atime": frozenset({"noatime"}),
}
# Accepted and without effect here: words for mount(8), systemd or fusermount3, what is always so, and ways
# to keep access times, which the kernel does not do for FUSE.
IGNORED = frozenset(
    {"defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "nousers"}
    | {"owner", "noowner", "group", "nogroup", "uhelper", "helper", "comment", "silent", "loud"}
    | {"iversion", "noiversion", "mand", "nomand", "default_permissions", "subtype", "fsname"}
    | {"relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"}
    | {"diratime", "nodiratime", "symfollow"}
)
# Known elsewhere, refused here, each with what to do instead.
REFUSED: dict[str, str] = {
    "remount": "remount is not supported: unmount with umount.cas and mount again",
    "loop": "loop belongs to mount(8); the request loop is chosen with fastloop or nofastloop",
    "allow_root": "allow_root is not supported: use allow_other; permissions are always checked",
    "auto_unmount": "auto_unmount is not supported: it would make a crash look like an empty directory; "
    "a dead mount is cleaned up by the next mount",
    "bind": "bind is done by mount(8): mount --bind",
}
# The words that turn an option of our own on or off.
SWITCHES: dict[str, tuple[str, bool]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "noallow_other": ("allow_other", False),
    "acl": ("acl", True),
    "noacl": ("acl", False),
    "xattr": ("xattr", True),
    "noxattr": ("xattr", False),
    "handshake": ("handshake", True),
    "nohandshake": ("handshake", False),
    "fastloop": ("fast_loop", True),
    "nofastloop": ("fast_loop", False),
    "quickwake": ("quick_wake", True),
    "noquickwake": ("quick_wake", False),
    "noversions": ("versions", False),
    "show_versions": ("show_versions", True),
    "noshow_versions": ("show_versions", False),
    "nosnapshots": ("snapshots", False),
    "nocontrol": ("control", False),
}
VALUED = ("commit", "busy_poll", "control", "dir_limit", "log", "snapshot", "snapshots", "versions")

DIR_LIMIT_MIN = 16
"""A directory of the balanced tree must at least hold its sixteen children."""
DIR_LIMIT_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Choices:
    """What `-o` chose: how to mount, and what this program needs to know beside that."""

    mount: MountOptions = field(default_factory=MountOptions)
    """But for `allow_other`, which is decided when it is known who mounts."""
    allow_other: bool | None = None
    """None: nothing was said, and the default depends on who mounts."""
    dir_limit: int | None = None
    log: str | None = None
    unknown: tuple[str, ...] = ()
    """Options that were accepted because of -s; they have no effect."""


_OWN = frozenset({"allow_other", "dir_limit", "log"})
"""Fields of `Choices` that an option sets; every other option sets a field of its `mount`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of mount.cas."""

    store: str
    mountpoint: str
    choices: Choices = field(default_factory=Choices)
    f_flag: bool = False
    """`-f` was given: fake if mount(8) is calling, foreground if a person is."""
    foreground: bool = False
    fake: bool = False
    verbose: bool = False


class Parser(argparse.ArgumentParser):
    """argparse with mount(8)'s exit code for wrong usage, and no guessing of shortened options."""

    def __init__(self, prog: str, description: str, usage: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--version", "-V", action="version", version=f"{prog} {__version__}")

    def error(self, message: str) -> NoReturn:
        raise Failure(Exit.USAGE, f"{message} (see {self.prog} --help)")


def split_options(text: str) -> list[str]:
    r"""Split an `-o` argument at its commas.

    A comma inside double quotes (`log="/var/log/a,b"`, as mount(8) writes it) or behind a backslash
    (as FUSE writes it) belongs to the value. Empty parts are dropped, since `-o ,ro` is common.
    """
    parts: list[str] = []
    part: list[str] = []
    quoted = False
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            part.append(following if following in (",", "\\", '"') else character + following)
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append("".join(part))
            part = []
        else:
            part.append(character)
    if quoted:
        raise Failure(Exit.USAGE, f"a double quote is not closed in -o {text}")
    parts.append("".join(part))
    return [part for part in parts if part]


def parse_options(texts: Sequence[str], *, sloppy: bool = False) -> Choices:
    """Read the arguments of all `-o`, in order; what comes later wins.

    Raises:
      Failure: An option is unknown (unless `sloppy`), refused, or has an unusable value.
    """
    # What the tables say: fields of `MountOptions`, or those in `_OWN`.
    values: dict[str, Any] = {}
    kernel: set[str] = set()
    unknown: list[str] = []
    for option in (part for text in texts for part in split_options(text)):
        name, equals, value = option.partition("=")
        if name in REFUSED:
            raise Failure(Exit.USAGE, REFUSED[name])
        if name in IGNORED or name.startswith(("x-", "X-")):
            continue
        if name in VALUED:
            if not value:
                raise Failure(Exit.USAGE, f"option {name} needs a value: {name}=…")
            key, parsed = _parse_value(name, value)
            values[key] = parsed
        elif equals and (name in SWITCHES or name in KERNEL_FLAGS or name in KERNEL_OPPOSITES):
            raise Failure(Exit.USAGE, f"option {name} takes no value: {option}")
        elif name in SWITCHES:
            key, state = SWITCHES[name]
            values[key] = state
        elif name in KERNEL_FLAGS or name in KERNEL_OPPOSITES:
            kernel -= KERNEL_OPPOSITES.get(name, frozenset())
            kernel |= {name} & KERNEL_FLAGS
        elif sloppy:
            unknown.append(option)
        else:
            raise Failure(Exit.USAGE, f"unknown option {option}{_suggestion(name)}")
    own = {key: values.pop(key) for key in _OWN & values.keys()}
    mount = MountOptions(**values, kernel=frozenset(kernel))
    if mount.control and mount.versions and mount.control_name == mount.versions_name:
        raise Failure(Exit.USAGE, f"control and versions are both called {mount.control_name}")
    if mount.snapshot is not None and not mount.read_only:
        raise Failure(Exit.USAGE, f"snapshot={mount.snapshot}: a snapshot is mounted read-only; say ro as well")
    return Choices(mount, **own, unknown=tuple(unknown))


def _parse_value(name: str, value: str) -> tuple[str, object]:
    match name:
        case "commit":
            return "commit_s", _number(name, value, 0.1, 3600, "seconds")
        case "busy_poll":
            return "busy_poll_us", int(_number(name, value, 0, 100_000, "microseconds", whole=True))
        case "dir_limit":
            limits = (DIR_LIMIT_MIN, DIR_LIMIT_MAX)
            return "dir_limit", int(_number(name, value, *limits, "entries", whole=True))
        case "snapshots":
            return "snapshot_s", _number(name, value, 1, 366 * 86400, "seconds")
        case "snapshot":
            return "snapshot", value
        case "versions" | "control":
            if "/" in value or value in (".", "..") or len(os.fsencode(value)) > 255:
                raise Failure(Exit.USAGE, f"{name}={value}: must be a name that a directory may have")
            return f"{name}_name", value
        case _:
            if value in ("stderr", "syslog", "journal"):
                return "log", value
            if not os.path.isabs(value):
                raise Failure(Exit.USAGE, f"log={value}: give an absolute path, or stderr, syslog or journal")
            return "log", value


def _number(name: str, value: str, low: float, high: float, unit: str, *, whole: bool = False) -> float:
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        number = -1  # outside every range
    if not low <= number <= high:
        kind = "a whole number" if whole else "a number"
        raise Failure(Exit.USAGE, f"{name}={value}: must be {kind} of {unit} from {low} to {high}")
    return number


def _suggestion(name: str) -> str:
    import difflib

    known = sorted({*SWITCHES, *VALUED, *KERNEL_FLAGS, *KERNEL_OPPOSITES, *IGNORED})
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


USAGE = "mount.cas STORE MOUNTPOINT [-fnsv] [-o OPTION[,OPTION…]] [-t TYPE] [--foreground | --fake]"

EPILOG = f"""\
options behind -o:
  ro, rw               read only; read and write (default)
  allow_other          let other users in; on for root, off for others (noallow_other)
  acl                  POSIX access control lists
  noxattr              no extended attributes
  commit=SECONDS       names and closed files are on disk after this time, without an fsync (5)
  versions=NAME        what the version directory in every directory is called (.versions)
  show_versions        list it, too; else it is only there when asked for by name
  noversions           keep no versions and show none
  snapshots=SECONDS    if anything changed, take a snapshot so often, and at unmount (3600)
  nosnapshots          take none but those asked for
  ro,snapshot=NAME     mount this snapshot alone, also beside a mount that writes
  control=NAME         what the control directory in the root is called (.cas)
  nocontrol            have none
  log=WHERE            an absolute path, journal, syslog, or (in the foreground) stderr
  dir_limit=N          entries in a directory of blobs, for a store that this mount creates
                       ({DIR_LIMIT_MIN}…; 32000); an existing store must have been made with the same
  noquickwake          let idle cores sleep as deeply as they like, also amid a burst of requests
  busy_poll=MICROSECONDS, nofastloop, nohandshake
                       for measuring and for trouble, see docs/mounting.md
  nosuid nodev noexec sync dirsync noatime relatime … and their opposites: as for every filesystem
  nofail _netdev user x-… and other options of mount(8) and systemd are accepted

-f means two things. mount(8) says -f for "fake": check everything, mount nothing. A person who
types mount.cas -f wants the foreground. So -f is fake exactly when the calling process is
mount(8), and foreground otherwise; --fake and --foreground say it outright.

exit codes: 0 mounted; 1 usage or permission; 2 system error; 4 a bug in mount.cas;
8 interrupted; 32 not mounted
"""


def parse_arguments(argv: Sequence[str]) -> Request:
    """Read the command line of mount.cas; `--help` and `--version` end the program."""
    parser = Parser("mount.cas", "Mount the store in STORE on the directory MOUNTPOINT.", USAGE, EPILOG)
    parser.add_argument("store", metavar="STORE", help="the store's directory; made if absent or empty")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("-f", dest="f_flag", action="store_true", help="foreground, or fake: see below")
    parser.add_argument("--foreground", action="store_true", help="serve until unmounted, log to stderr")
    parser.add_argument("--fake", action="store_true", help="check everything, mount nothing")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore options nobody knows")
    parser.add_argument("-n", action="store_true", help="no effect (there is no mtab to write)")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is done")
    parser.add_argument("-t", dest="type", default="cas", metavar="TYPE", help="cas or fuse.cas")
    parser.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="refused: use nsenter --mount")
    got = parser.parse_intermixed_args(list(argv))
    if got.type.removeprefix("fuse.").partition(".")[0] != "cas":
        raise Failure(Exit.USAGE, f"-t {got.type}: this program mounts the types cas and fuse.cas only")
    if got.namespace is not None:
        raise Failure(
            Exit.USAGE,
            f"-N {got.namespace}: other mount namespaces are entered with nsenter --mount=… mount.cas …",
        )
    if got.foreground and got.fake:
        raise Failure(Exit.USAGE, "--foreground and --fake exclude each other")
    for path, what in ((got.store, "store"), (got.mountpoint, "mount point")):
        if not path:
            raise Failure(Exit.USAGE, f"the {what} is an empty string")
    return Request(
        store=got.store,
        mountpoint=got.mountpoint,
        choices=parse_options(got.options, sloppy=got.sloppy),
        f_flag=got.f_flag,
        foreground=got.foreground,
        fake=got.fake,
        verbose=got.verbose,
    )
