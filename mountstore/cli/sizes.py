"""Sizes as people read them."""

from __future__ import annotations

__all__ = ["size"]


def size(size_bytes: float) -> str:
    """A size with its unit, three or four digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
