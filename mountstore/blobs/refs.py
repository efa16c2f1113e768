"""Refs: small text files in `refs/` beside the balanced tree, each the name of a snapshot's root.

`docs/format.md`, "Snapshots", specifies them. A ref is written when all it leads to survives power loss, and then
in one step; so one that is there is complete, unless it was copied before its blobs were.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from hashlib import sha256
from typing import Final, NamedTuple

from mountstore.blobs.digest import Digest
from mountstore.blobs.flush import fsync, fsync_path
from mountstore.blobs.opening import open_fresh, open_to_read
from mountstore.blobs.staging import write_all
from mountstore.errors import BlobMissingError, CorruptError, MisuseError

REFS_NAME: Final = "refs"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", re.ASCII)
_TEXT = re.compile(
    rb"mountstore snapshot 1\nroot ([0-9a-f_]{66,81})\nstore ([0-9a-f-]{36})\ntime_ns (-?[0-9]{1,19})\n"
    rb"sha256 ([0-9a-f]{64})\n",
    re.ASCII,
)
_SIZE_LIMIT: Final = 4096
_TIME_LIMIT_NS: Final = (1 << 63) - (1 << 50)
"""Some days before 64 bits end, in 2262: the time of the next snapshot is later."""


class Ref(NamedTuple):
    """A snapshot's name and root."""

    name: str
    root: Digest
    uuid: str
    """Of the store."""
    time_ns: int
    """The instant that the snapshot shows."""


class BadRef(NamedTuple):
    """A file that should be a ref and is none."""

    name: str
    error: str


def check_ref_name(name: str) -> None:
    """Raises: MisuseError if no snapshot may have that name."""
    if _NAME.fullmatch(name) is None:
        raise MisuseError(
            f"{name!r} is no name for a snapshot: 1 to 100 letters, digits, and _ . + -, beginning with a letter,"
            " a digit or _"
        )


def encode_ref(ref: Ref) -> bytes:
    text = b"mountstore snapshot 1\nroot %b\nstore %b\ntime_ns %d\n" % (
        ref.root.name.encode(),
        ref.uuid.encode(),
        ref.time_ns,
    )
    return text + b"sha256 %b\n" % sha256(text).hexdigest().encode()


def decode_ref(data: bytes, name: str) -> Ref:
    """The ref that a file of that name holds.

    Raises:
      CorruptError: It holds none; nothing else is raised whatever the bytes are.
    """
    if not data.startswith(b"mountstore snapshot 1\n"):
        raise CorruptError(f"ref {name}: is not a ref, or of a format that this release does not know")
    match = _TEXT.fullmatch(data)
    if match is None or sha256(data[: match.start(4) - len("sha256 ")]).hexdigest().encode() != match[4]:
        raise CorruptError(f"ref {name}: is damaged")
    time_ns = int(match[3])
    if not -(1 << 63) <= time_ns < _TIME_LIMIT_NS:
        raise CorruptError(f"ref {name}: its time is out of range")
    try:
        return Ref(name, Digest.parse(match[1].decode()), match[2].decode(), time_ns)
    except MisuseError as exc:
        raise CorruptError(f"ref {name}: {exc}") from exc


def read_ref(blobs: str, name: str) -> Ref:
    """The ref of that name beside the tree in `blobs`; blocks.

    Raises:
      BlobMissingError: There is none.
      CorruptError: The file is not a ref.
      MisuseError: No ref has such a name.
      OSError: It cannot be read.
    """
    check_ref_name(name)
    path = os.path.join(blobs, REFS_NAME, name)
    try:
        fd = open_to_read(path)
    except FileNotFoundError:
        raise BlobMissingError(f"there is no snapshot {name}") from None
    try:
        data = os.read(fd, _SIZE_LIMIT)
    finally:
        os.close(fd)
    return decode_ref(data, name)


def read_refs(blobs: str) -> tuple[list[Ref], list[BadRef]]:
    """All refs beside the tree in `blobs`, newest first, and the files that cannot be read as one; blocks.

    Files that are being written (their names begin with a dot) are left out, and refs that are deleted meanwhile.

    Raises: OSError if the directory cannot be read.
    """
    refs: list[Ref] = []
    bad: list[BadRef] = []
    try:
        names = sorted(os.listdir(os.path.join(blobs, REFS_NAME)))
    except FileNotFoundError:
        return refs, bad
    for name in names:
        if name.startswith("."):
            continue
        try:
            refs.append(read_ref(blobs, name))
        except BlobMissingError:
            # Deleted since the directory was read.
            continue
        except (CorruptError, MisuseError) as exc:
            bad.append(BadRef(name, str(exc)))
        except OSError as exc:
            bad.append(BadRef(name, f"ref {name}: {exc.strerror or exc}"))
    refs.sort(key=lambda ref: (ref.time_ns, ref.name), reverse=True)
    return refs, bad


def has_refs(blobs: str) -> bool:
    """Whether there are refs beside the tree in `blobs`, or files that should be some. Raises: OSError"""
    try:
        return any(not name.startswith(".") for name in os.listdir(os.path.join(blobs, REFS_NAME)))
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_ref(blobs: str, ref: Ref) -> None:
    """Put a ref in place, in one step, replacing one of that name; it survives power loss. Blocks.

    Everything it leads to must have been flushed before.

    Raises:
      MisuseError: A snapshot may not have that name.
      OSError, FlushFailedError: It was not written; what was there is as before.
    """
    check_ref_name(ref.name)
    directory = os.path.join(blobs, REFS_NAME)
    if not os.path.isdir(directory):
        # Whoever may go through `blobs/` to the blobs he can name is not to learn all names from here.
        os.makedirs(directory, 0o700, exist_ok=True)
        fsync_path(blobs, os.O_DIRECTORY)
    temporary = os.path.join(directory, f".{ref.name}.tmp")
    try:
        fd = open_fresh(temporary)
        try:
            write_all(fd, encode_ref(ref))
            fsync(fd, temporary)
        finally:
            os.close(fd)
        os.rename(temporary, os.path.join(directory, ref.name))
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_path(directory, os.O_DIRECTORY)
