"""Answers as people read them: tables for rows, a list of fields for everything else.

The keys tell what values are: `..._bytes` a size, `..._s` and `..._ns` times (of day, if the number is large
enough for that, else how long).
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mountstore.cli.exits import printable
from mountstore.cli.sizes import size

_LONG_AGO_S = 1e8
"""Seconds: more than this is a time of day, since nothing lasts for three years."""

_GAP = "  "


def exact_size(size_bytes: int) -> str:
    """A size, also in bytes."""
    return size(size_bytes) if size_bytes < 1024 else f"{size(size_bytes)} ({size_bytes:,} bytes)"


def number(value: int) -> str:
    """With separators, for people."""
    return f"{value:,}"


def value(key: str, what: Any) -> str:
    """One value as text on one line."""
    match what:
        case None:
            return "-"
        case bool():
            return "yes" if what else "no"
        case {"blobs": int(blobs), "bytes": int(size_bytes), **rest} if not rest:
            return f"{number(blobs)} blobs, {size(size_bytes)}"
        case int() | float() if key.endswith("bytes"):
            return size(what)
        case int() | float() if key.endswith("_ns"):
            return _moment(what / 1e9)
        case int() | float() if key.endswith("_s"):
            return _moment(what)
        case int():
            return str(what) if key in _PLAIN else number(what)
        case float():
            return f"{what:,.2f}"
        case str():
            return printable(what)
        case list() if not what:
            return "-"
        case list() if all(isinstance(item, str) for item in what):
            return ", ".join(map(printable, what))
        case dict():
            parts = (f"{label(inner)} {value(inner, item)}" for inner, item in what.items())
            return ", ".join(parts) or "-"
        case list():
            return ", ".join(value(key, item) for item in what)
        case _:
            return printable(what)


_PLAIN = frozenset({"uid", "gid", "pid", "inode", "job", "version", "number", "format", "year"})
"""Numbers that are names rather than amounts."""


def _moment(seconds: float) -> str:
    if abs(seconds) < _LONG_AGO_S:
        return f"{seconds:.3g} s" if abs(seconds) < 100 else f"{seconds:,.0f} s"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return f"{seconds:.0f} s"


def label(key: str) -> str:
    """A key as words."""
    for ending in ("_bytes", "_ns", "_s"):
        if key.endswith(ending) and len(key) > len(ending):
            key = key.removesuffix(ending)
            break
    return key.replace("_", " ")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows with a heading, in columns; numbers to the right. Empty for no rows.

    Args:
      columns: Keys, in order; without them those of the rows as they come.
    """
    if not rows:
        return ""
    keys = list(columns or dict.fromkeys(key for row in rows for key in row))
    cells = [[value(key, row.get(key)) if key in row else "" for key in keys] for row in rows]
    right = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys]
    headings = [label(key).upper() for key in keys]
    return lines([headings, *cells], right)


def lines(cells: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Cells in columns, each line without blanks at its end."""
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    text = []
    for row in cells:
        parts = []
        for place, cell in enumerate(row):
            blank = " " * (widths[place] - _width(cell))
            parts.append(blank + cell if place < len(right) and right[place] else cell + blank)
        text.append(_GAP.join(parts).rstrip())
    return "\n".join(text)


def _width(text: str) -> int:
    """Columns on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def fields(answer: Mapping[str, Any], indent: str = "") -> str:
    """Names and values, one a line; what has fields or rows of its own is indented below its name."""
    simple: list[list[str]] = []
    text: list[str] = []

    def flush() -> None:
        if simple:
            text.extend(indent + line for line in lines(simple).splitlines())
            simple.clear()

    for key, what in answer.items():
        if isinstance(what, dict) and what and not _is_tally(what):
            flush()
            text += [f"{indent}{label(key)}:", fields(what, indent + "  ")]
        elif isinstance(what, list) and what and all(isinstance(item, dict) for item in what):
            flush()
            text.append(f"{indent}{label(key)}:")
            text += [f"{indent}  {line}" for line in table(what).splitlines()]
        else:
            simple.append([label(key), value(key, what)])
    flush()
    return "\n".join(text)


def _is_tally(what: Mapping[str, Any]) -> bool:
    return what.keys() == {"blobs", "bytes"}


def without(answer: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: what for key, what in answer.items() if key not in keys}


def sentence(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)
