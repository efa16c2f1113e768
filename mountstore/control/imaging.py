"""Images of a store, resized: remembered, or made by a worker and put into the tree.

What was made of what is known by a key: the digest of the source, the job, and what renders it. So a second
request for the same costs two look-ups, whatever the file is called by then, and adds no blob.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import IO, Final, NamedTuple, TypeVar

import msgspec

from mountstore.blobs.content import Content, ContentKind, Sealed
from mountstore.blobs.describe import references
from mountstore.blobs.seal import seal
from mountstore.errors import BlobMissingError, CorruptError, ImageError, TooLargeError
from mountstore.images.job import Job, encoder_version
from mountstore.images.workers import Workers
from mountstore.namespace.history import Version
from mountstore.namespace.renditions import Rendition
from mountstore.store import Store

__all__ = ["Found", "resize"]

_T = TypeVar("_T")

_COPIED_BYTES: Final = 4 << 20


class Found(NamedTuple):
    """A rendition, and whether it was known before."""

    rendition: Rendition
    remembered: bool


async def resize(store: Store, workers: Workers, version: Version, job: Job, use: Callable[[Found], _T]) -> _T:
    """Make an image of another one, or remember it, and have it used.

    Args:
      version: The source; not a directory's.
      use: Called once, and has to make something refer to the content without awaiting; until then, and no
        longer, its blobs are safe from garbage collection. What it returns is returned.

    Raises:
      ImageError: The source is empty, no image, or a damaged one.
      TooLargeError: The image, or the work, is beyond the limits.
      CorruptError, BlobMissingError: The source's bytes are not those that were written.
      NoSpaceError, OSError: There is no room for the result. Nothing was changed in all these cases.
    """
    key = _key(version, job)
    known = store.renditions.find(key)
    if known is not None:
        with store.contents.adding():
            if await _is_there(store, known.content):
                return use(Found(known, True))
    result = os.memfd_create("resized", os.MFD_CLOEXEC)
    try:
        outcome = await _render(store, workers, version, job, result)
        with store.contents.adding():
            try:
                sealed = await store.contents.in_thread(_seal, store, result)
            except BaseException:
                store.ledger.suspect = True
                raise
            store.ledger.record(sealed.blobs)
            content = sealed.content
            allocated = content.size_bytes - sealed.hole_bytes
            rendition = Rendition(content, allocated, outcome.width, outcome.height, outcome.frames)
            store.renditions.record(key, rendition)
            return use(Found(rendition, False))
    finally:
        os.close(result)


def _key(version: Version, job: Job) -> bytes:
    content = version.content
    if content is None or content.digest is None or version.size_bytes == 0:
        raise ImageError("it is empty, so it is no image")
    asked = msgspec.json.encode((job, encoder_version(), content.kind, version.size_bytes))
    return hashlib.sha256(content.digest.name.encode() + asked).digest()


async def _is_there(store: Store, content: Content) -> bool:
    """Whether all blobs of a content are in the tree; from now on they count as just added."""
    assert content.digest is not None
    if content.kind is ContentKind.BLOB:
        return store.tree.want(content.digest)
    return await store.contents.in_thread(_want_all, store, content)


def _want_all(store: Store, content: Content) -> bool:
    try:
        return all(store.tree.want(digest) for digest in references(store.tree, content))
    except (BlobMissingError, CorruptError):
        return False


class _Size(NamedTuple):
    width: int
    height: int
    frames: int


async def _render(store: Store, workers: Workers, version: Version, job: Job, result: int) -> _Size:
    if version.size_bytes > workers.limits.source_bytes:
        raise TooLargeError(f"it has {version.size_bytes:,} bytes; the limit is {workers.limits.source_bytes:,}")
    source = await _open(store, version)
    try:
        outcome = await workers.render(job, source, result)
    finally:
        os.close(source)
    return _Size(outcome.width, outcome.height, outcome.frames)


async def _open(store: Store, version: Version) -> int:
    """A descriptor of a file with the version's bytes, verified, that can be read only; to be closed."""
    content = version.content
    assert content is not None
    if content.kind is ContentKind.BLOB and content.size_bytes == version.size_bytes:
        return await store.contents.in_thread(_open_blob, store, content)
    with await store.contents.in_thread(store.open_scratch) as scratch:
        reader = store.timeline.open(version)
        try:
            offset = 0
            while offset < version.size_bytes:
                # In parts, so that whoever gives up need not wait for long.
                data = await reader.read(offset, _COPIED_BYTES)
                await store.contents.in_thread(_write, scratch, data)
                offset += len(data)
        finally:
            reader.close()
        return os.open(f"/proc/self/fd/{scratch.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def _open_blob(store: Store, content: Content) -> int:
    assert content.digest is not None
    reader = store.contents.open_reader(content)
    assert reader is not None
    try:
        reader.pread(0, 1)  # verifies all of it, if that was not done before
    finally:
        reader.close()
    return store.tree.open(content.digest)


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class _File:
    """A file as a source of a seal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size

    def pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length and (more := os.pread(self._fd, length - len(data), offset + len(data))):
            data += more
        return data


def _seal(store: Store, result: int) -> Sealed:
    file = _File(result)
    if not file.size_bytes:
        raise ImageError("nothing came of it")
    return seal(store.tree, store.config.chunking(), file)
