"""Drafts: the changed, not yet sealed content of an open file.

A small file's draft is its whole content in memory. A file that grows beyond that because data is appended in
order becomes a stream (`streamed_draft.py`): it is cut, hashed and placed while it arrives, so that it is written
once and its close has little left to do. Everything else large is a sparse staging file that holds the dirty
extents at their own offsets, over the sealed base (`staged_draft.py`).

A draft is changed by the thread that owns the namespace (the bytes of a large write by a worker on its
behalf); while it is being sealed nobody changes it, and `pread` may be called from any thread.
"""

from __future__ import annotations

from mountstore.blobs.content import Content
from mountstore.namespace.staged_draft import StagedDraft
from mountstore.namespace.streamed_draft import StreamedDraft

MEMORY_MAX = 8 << 20
"""A file up to this size is drafted in memory (docs/architecture.md, "Life of a write")."""


class MemoryDraft:
    """The whole content of a small file."""

    __slots__ = ("base", "claimed", "data", "file_claimed")

    def __init__(self, base: Content, data: bytearray) -> None:
        self.base = base
        self.data = data
        self.claimed = 0
        self.file_claimed = False

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @property
    def allocated_bytes(self) -> int:
        return len(self.data)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at `offset`; a gap before it is filled with zeros."""
        buffer = self.data
        size = len(buffer)
        if offset == size:
            buffer += data
            return
        if offset > size:
            buffer.extend(bytes(offset - size))
        buffer[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        buffer = self.data
        if size < len(buffer):
            del buffer[size:]
        else:
            buffer.extend(bytes(size - len(buffer)))

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(memoryview(self.data)[offset : offset + length])


Draft = MemoryDraft | StreamedDraft | StagedDraft
