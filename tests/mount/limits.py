"""Daemons with tiny limits: what happens to large files only happens to small ones as well."""

from __future__ import annotations

_PRELUDE = """
from mountstore.namespace import drafts, files, sealing, streamed_draft
for module, name, value in [
    (drafts, "MEMORY_MAX", {memory_max}), (drafts, "MEMORY_TOTAL", {memory_total}),
    (drafts, "STREAM_BYTES", {memory_max} // 2),
    (streamed_draft, "PARKED_MAX", {parked_max}), (files, "_FEED_BYTES", {feed_bytes}),
    (files, "INLINE_WRITE_MAX", {inline_max}), (sealing, "INLINE_WRITE_MAX", {inline_max}),
]:
    assert isinstance(getattr(module, name), int)
    setattr(module, name, value)
"""
# Set where they are used: a module that imports a name has one of its own.


def small_limits(
    *, memory_max: int, memory_total: int, parked_max: int, feed_bytes: int, inline_max: int
) -> str:
    """What a daemon runs first (`LiveMount`'s prelude) to stream, stage and use threads from so few bytes on.

    Args:
      memory_max: Of a draft in memory.
      memory_total: Of all drafts in memory.
      parked_max: That arrive too early for a stream.
      feed_bytes: That wait for a stream before it is fed.
      inline_max: That the owner's thread handles itself.
    """
    return _PRELUDE.format(
        memory_max=memory_max,
        memory_total=memory_total,
        parked_max=parked_max,
        feed_bytes=feed_bytes,
        inline_max=inline_max,
    )


SMALL_LIMITS = small_limits(
    memory_max=16_384, memory_total=100_000, parked_max=65_536, feed_bytes=8192, inline_max=4096
)
"""Makes a daemon stream, stage and use threads for files of some KiB."""
