"""What a store needs besides what its catalog says: contents held in memory, seals in progress, lists of digests.

All but the reading of lists and manifests runs on the thread that owns the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

from mountstore.blobs.completeness import blobs_below
from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.describe import references
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import MAGIC
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import BlobMissingError, CorruptError, MisuseError
from mountstore.namespace.streamed_draft import StreamedDraft
from mountstore.store import Store

_HASH_CHARACTERS = 64
_LINE_BYTES_MAX = 1 << 16
_SHOWN = 200


async def await_seals(store: Store) -> set[Digest]:
    """Return when every seal that is in progress now has ended; what began later, the watched tree notes.

    Returns: Blobs of files that are being written now, which nothing refers to before these are closed.
    """
    drafts = [(inode, inode.draft, inode.busy) for inode in store.drafts.inodes]
    stored: set[Digest] = set()
    for _, draft, busy in drafts:
        if busy is not None:
            # The result is taken over in the same breath in which this is set.
            await busy.wait()
        if type(draft) is StreamedDraft:
            async with draft.turn:
                stored.update(draft.stored())
    await store.contents.wait_added()
    return stored


def in_memory(store: Store) -> set[Content]:
    """Contents that something in memory refers to, beside those of inodes, which were just committed."""
    contents = store.versions.moved() | store.contents.being_read() | store.replaced.contents()
    for inode in store.inodes.in_use():
        if inode.pinned:
            contents.add(inode.content)
        if inode.change is not None:
            contents.add(inode.change.origin)
        if inode.draft is not None:
            contents.add(inode.draft.base)
    return contents


def hashes_of(tree: BalancedTree, content: Content) -> Iterator[bytes]:
    """SHA-256 of every blob that a content needs; blocks.

    Raises:
      BlobMissingError, CorruptError, OSError: A manifest cannot be read, so nobody knows.
    """
    if content.kind is ContentKind.BLOB and content.digest is not None:
        yield content.digest.sha256
        return
    for digest in references(tree, content):
        yield digest.sha256


class Listed(NamedTuple):
    """A line of a list of blobs to keep. `size_bytes` is None if only the hash was given."""

    sha256: bytes
    size_bytes: int | None

    @property
    def digest(self) -> Digest | None:
        return None if self.size_bytes is None else Digest(self.sha256, self.size_bytes)

    @property
    def name(self) -> str:
        return self.sha256.hex() if self.digest is None else self.digest.name

    def means(self, other: Listed) -> bool:
        """Whether both may stand for the same blob."""
        return self.sha256 == other.sha256 and (
            self.size_bytes == other.size_bytes or None in (self.size_bytes, other.size_bytes)
        )


def read_lists(files: Iterable[str], directory: str) -> list[Listed]:
    """Every line of the given files and of all files in a directory, which need not exist.

    A line is the name of a blob, a path that ends in one, or the 64 hex characters of its SHA-256. Empty lines and
    those that begin with `#` do not count.

    Raises:
      MisuseError: A line is something else, or a file no list: nothing is collected while it is not known what it
        means.
      OSError: A list cannot be read.
    """
    paths = list(files)
    try:
        with os.scandir(directory) as entries:
            paths += sorted(entry.path for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        pass
    listed = []
    for path in paths:
        for number, line in _numbered_lines(path):
            text = line.strip()
            if text and not text.startswith("#"):
                listed.append(parse_listed(text, f"{path}:{number}"))
    return listed


def _numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    # A FIFO would be waited for, and a device has no end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise MisuseError(f"{path}: is no regular file, so no list of blobs")
    with open(fd, "rb") as lines:
        for number in count(1):
            line = lines.readline(_LINE_BYTES_MAX + 1)
            if not line:
                return
            if len(line) > _LINE_BYTES_MAX:
                raise MisuseError(f"{path}:{number}: is too long for a line of a list of blobs")
            yield number, line.decode("utf-8", "surrogateescape")


def parse_listed(text: str, where: str) -> Listed:
    name = text.rpartition("/")[2]
    try:
        if len(name) == _HASH_CHARACTERS and name == name.lower():
            return Listed(bytes.fromhex(name), None)
        return Listed(*Digest.parse(name))
    except (ValueError, MisuseError):
        raise MisuseError(f"{where}: {text[:_SHOWN]!r} is neither the name of a blob nor a SHA-256") from None


def hashes_below(tree: BalancedTree, digest: Digest) -> list[bytes]:
    """SHA-256 of a blob and, if it is a manifest, of all it lists; blocks.

    A blob that is not there, or begins like a manifest and is none, stands for itself.
    """
    found = [digest.sha256]
    try:
        if _is_manifest(tree, digest):
            for blob in blobs_below(tree, digest):
                found.append(blob.sha256)
    except (BlobMissingError, CorruptError):
        pass
    return found


def _is_manifest(tree: BalancedTree, digest: Digest) -> bool:
    """Whether a blob begins like a manifest: whoever keeps a large blob need not read all of it.

    Raises: BlobMissingError, CorruptError
    """
    fd = tree.open(digest)
    try:
        return os.pread(fd, len(MAGIC), 0) == MAGIC
    finally:
        os.close(fd)
