"""Markdown tables, the raw data as JSON, and the marked part of a document. Pure, but for the files named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmark.figures import Sample

__all__ = ["header", "load_json", "markdown_table", "replace_marked", "save_json", "write_marked"]

JSON_FORMAT = 1


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are figures, padded to be read as it is."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "| " + " | ".join([first, *others]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])


def header(facts: Mapping[str, str], command: str) -> str:
    """Machine, date and command, as they stand above a table."""
    listed = "; ".join(f"{key}: {value}" for key, value in facts.items() if value)
    return f"`{command}`\n\n{listed}."


def _markers(section: str) -> tuple[str, str]:
    return f"<!-- bench:{section} begin -->", f"<!-- bench:{section} end -->"


def replace_marked(document: str, section: str, text: str) -> str:
    """The document with `text` between the two marks of a section.

    Raises:
      ValueError: The marks are not there, once each and in order.
    """
    begin, end = _markers(section)
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"the document needs one line {begin} and one line {end} below it")
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def write_marked(path: str, section: str, text: str) -> None:
    """Put `text` into the section of the file; a failure leaves the file as it was.

    Raises:
      OSError, ValueError: See `replace_marked`.
    """
    changed = replace_marked(Path(path).read_text(), section, text)
    beside = f"{path}.new"
    Path(beside).write_text(changed)
    os.replace(beside, path)


def save_json(
    path: str, facts: Mapping[str, str], command: str, samples: Iterable[Sample], extra: Mapping[str, object]
) -> None:
    """Store all that was measured, one object a run."""
    raw = [
        {
            "workload": sample.workload,
            "system": sample.system,
            "round": sample.round,
            "amount": sample.amount,
            "elapsed_s": sample.elapsed_s,
        }
        for sample in samples
    ]
    content = {"format": JSON_FORMAT, "command": command, "facts": dict(facts), "samples": raw, **extra}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def load_json(path: str) -> list[Sample]:
    """The samples of `save_json`.

    Raises:
      ValueError: The file is something else.
    """
    content = json.loads(Path(path).read_text())
    if not isinstance(content, dict) or content.get("format") != JSON_FORMAT:
        raise ValueError(f"{path} was not stored by scripts/bench --json")
    return [
        Sample(
            str(raw["workload"]),
            str(raw["system"]),
            int(raw["round"]),
            float(raw["amount"]),
            float(raw["elapsed_s"]),
        )
        for raw in content["samples"]
    ]
