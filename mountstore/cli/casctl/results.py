"""Results as people read them, each command's in its own words where the fields alone would not do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from mountstore.cli.casctl.exits import Exit
from mountstore.cli.casctl.rendering import (
    exact_size,
    fields,
    label,
    lines,
    number,
    sentence,
    table,
    value,
    without,
)
from mountstore.cli.exits import printable
from mountstore.cli.sizes import size

Result = Mapping[str, Any]


def render(command: str, result: Result, got: argparse.Namespace) -> str:
    """What to print for a result; empty for nothing."""
    shown = without(result, "type", "job") if command != "cancel" else without(result, "type")
    special = _SPECIAL.get(command)
    if special is not None:
        return special(shown)
    rows = shown.get("rows")
    if isinstance(rows, list):
        rest = without(shown, "rows")
        return "\n".join(part for part in (table(rows) or "none", fields(rest)) if part)
    return fields(shown)


def verdict(command: str, result: Result) -> Exit:
    """The exit code of a command that ran through."""
    bad = {
        "scrub": result.get("damaged_blobs") or result.get("unreadable_blobs"),
        # Of many images; a single one that fails is an error.
        "resize": result.get("failed"),
        # Of a directory as it was: the others are there.
        "restore": result.get("failed"),
    }
    return Exit.FAILED if bad.get(command) else Exit.OK


def _info(result: Result) -> str:
    what = {key: item for key, item in result.items() if item is not None and item is not False}
    content, sharing = what.pop("content", None), what.pop("sharing", None)
    text = [f"{printable(what.pop('path'))}: {what.pop('kind')}"]
    older = what.pop("older_versions", 0)
    if "version" in what:
        what["version"] = f"{what['version']} ({number(older)} before it)" if older else str(what["version"])
    if what.pop("changing", False):
        what["state"] = "being changed; the content is what the last close left"
    what["size_bytes"] = exact_size(what["size_bytes"])
    text.append(fields(what, "  "))
    if content is not None:
        pieces = content.pop("entries", None)
        kept = {key: item for key, item in content.items() if item or key == "blob_path"}
        if kept.get("kind") == "blob":
            for redundant in ("pieces", "unique_pieces", "stored_bytes"):
                kept.pop(redundant, None)
        elif kept.get("kind") == "empty":
            kept.pop("blob_path", None)
        # The path to serve from is what is looked for most; the same without the store is in the way.
        kept.pop("blob", None)
        text += ["content:", fields(kept, "  ")]
        if pieces:
            text += [table(pieces, ("offset", "size_bytes", "digest", "blob"))]
    if sharing is not None:
        text += ["sharing:", fields(sharing, "  ")]
    return "\n".join(text)


def _df(result: Result) -> str:
    stored, trash = result["stored"], result["trash"]
    ratio = "-" if result["ratio"] is None else f"{result['ratio']:.2f}"
    holes = result["logical_bytes"] - result["data_bytes"]
    rows = [
        ["files", number(result["files"]), size(result["logical_bytes"])],
        ["  of these in holes", "", size(holes)],
        ["old versions", number(result["versions"]), size(result["version_bytes"])],
        ["stored blobs", number(stored["blobs"]), size(stored["bytes"])],
        ["in the trash", number(trash["blobs"]), size(trash["bytes"])],
        ["disk", "", size(result["disk_bytes"])],
        ["  available", "", size(result["available_bytes"])],
    ]
    if not holes:
        del rows[1]
    head = [["", "NUMBER", "BYTES"]]
    return f"{lines([*head, *rows], [False, True, True])}\ndeduplication: {ratio} bytes shown for each byte stored"


def _du(result: Result) -> str:
    shown = table(
        [
            {
                "logical_bytes": row["logical_bytes"],
                "stored_bytes": row["stored_bytes"],
                "exclusive_bytes": row["unique_bytes"],
                "shared_bytes": row["shared_bytes"],
                "files": row["files"],
                "path": row["path"],
            }
            for row in result["rows"]
        ]
    )
    damaged = max((row["unreadable_files"] for row in result["rows"]), default=0)
    if not damaged:
        return shown
    note = f"note: {damaged} contents are damaged; what they take and share is not counted (fsck.cas names them)"
    return f"{shown}\n{note}"


def _gc(result: Result) -> str:
    would = "would be " if result.get("dry_run") else ""
    tallies: list[tuple[str, Mapping[str, int]]] = [
        ("live", result["live"]),
        ("old versions", result["versions"]),
        *((("snapshots", result["snapshots"]),) if "snapshots" in result else ()),
        *((reason, tally) for reason, tally in result["kept"].items() if tally["blobs"]),
        *((f"{would}collected: {reason}", t) for reason, t in result["collected"].items() if t["blobs"]),
    ]
    if result["purged"]["blobs"]:
        tallies.append(("purged", result["purged"]))
    tallies.append(("in the trash", result["trash"]))
    cells = [[what, f"{number(tally['blobs'])} blobs", size(tally["bytes"])] for what, tally in tallies]
    collected = result["collected"].values()
    dropped = result["versions_dropped"]
    text = [f"note: {printable(flaw)}" for flaw in result["flaws"]]
    text.append(lines(cells, [False, True, True]))
    text += [f"{would}dropped versions: {reason}: {number(n)}" for reason, n in sorted(dropped.items())]
    text.append(
        sentence(
            (
                f"{number(sum(t['blobs'] for t in collected))} blobs {would}collected",
                size(sum(t["bytes"] for t in collected)),
                f"{number(result['versions_kept'])} old versions kept",
                f"{number(sum(dropped.values()))} {would}dropped",
                value("elapsed_s", result["elapsed_s"]),
            )
        )
    )
    return "\n".join(text)


def _versions(result: Result) -> str:
    rows = []
    for row in result["rows"]:
        rows.append(
            {
                "version": row["version"],
                "bytes": row["bytes"],
                "mode": row["mode"],
                "modified": row["modified"],
                "until": "now" if row["current"] else row["superseded"],
                "blob": "(a directory)" if row["directory"] else (row["blob"] or "")[:_DIGEST_SHOWN],
            }
        )
    return table(rows) or "no versions"


_DIGEST_SHOWN = 16
"""Characters of a blob's name; 64 bits tell any two apart. info and --json have all of it."""


def _diff(result: Result) -> str:
    old, new = result["rows"]
    path = printable(result["path"])
    if result["same_bytes"]:
        text = f"{path}: versions {old['version']} and {new['version']} have the same bytes"
    else:
        first = number(result["first_difference"])
        text = f"{path}: versions {old['version']} and {new['version']} differ from byte {first} on"
    changes = (
        f"  {label(key)}: {value(key, old[key])} -> {value(key, new[key])}" for key in result["changed"]
    )
    return "\n".join([text, *changes])


def _put_back(result: Result) -> str:
    text = f"{printable(result['path'])}: brought back, {_amount(result)}"
    if not result.get("failed"):
        return text
    return "\n".join([table(result["rows"]), f"{text}; {number(result['failed'])} files are lost"])


def _clone(result: Result) -> str:
    return f"{printable(result['path'])}: {_amount(result)}"


def _amount(result: Result) -> str:
    """Of a file, or of a tree."""
    if not result.get("directories") and "failed" not in result:
        return size(result["bytes"])
    return f"{number(result['directories'])} directories, {number(result['files'])} files, {size(result['bytes'])}"


def _rmtree(result: Result) -> str:
    return f"{printable(result['path'])}: removed"


def _hold(result: Result) -> str:
    return (
        f"hold {result['hold']}: nothing is collected for {number(round(result['left_s']))} seconds;"
        f" casctl gc release {result['hold']} ends it"
    )


def _release(result: Result) -> str:
    return f"{result['released']} holds ended"


def _purge(result: Result) -> str:
    return f"{number(result['blobs'])} blobs deleted, {size(result['bytes'])}"


def _prune(result: Result) -> str:
    would = "would be " if result["dry_run"] else ""
    return f"{number(result['versions_dropped'])} old versions {would}dropped; gc takes what only they had"


def _pin(result: Result) -> str:
    back = f", {number(result['returned'])} of them from the trash" if result["returned"] else ""
    return f"{number(result['pinned'])} blobs pinned in .cas/pins/{printable(result['list'])}{back}"


def _sync(result: Result) -> str:
    return "everything written so far is safe on disk"


def _snapshot(result: Result) -> str:
    if result.get("name") is None:
        return "nothing has changed since the last snapshot"
    return (
        f"{printable(result['name'])}: {number(result['inodes'])} inodes, {size(result['bytes'])} of files;"
        f" {number(result['new_blobs'])} new blobs for it, {size(result['new_bytes'])};"
        f" {value('elapsed_s', result['elapsed_s'])}"
    )


def _snapshots(result: Result) -> str:
    return table([without(row, "root") for row in result["rows"]]) or "no snapshots"


def _snapshot_diff(result: Result) -> str:
    lines_of = [f"{row['difference']:8} {printable(row['path'])}" for row in result["rows"]]
    more = result["more"]
    return (
        "\n".join([*lines_of, *([f"and {number(more)} more; --all tells up to 64 MiB of them"] if more else [])])
        or "no differences"
    )


def _resize(result: Result) -> str:
    if "images" not in result:
        how = "remembered, " if result["remembered"] else ""
        kept = "" if result["changed"] else ", was so already"
        return (
            f"{printable(result['path'])}: {result['width']}x{result['height']}, {how}"
            f"{size(result['size_bytes'])}{kept}"
        )
    counts = (
        f"{number(result[key])} {key}" for key in ("made", "remembered", "unchanged", "failed") if result[key]
    )
    text = f"{number(result['images'])} images: {sentence(counts)}"
    return "\n".join(part for part in (table(result["rows"]), text) if part)


def _jobs(result: Result) -> str:
    rows = []
    for row in result["rows"]:
        done = row.get("done")
        how_far = ""
        if done is not None:
            total = row.get("total")
            how_far = (
                f"{value(row['unit'], done)}{'' if total is None else ' of ' + value(row['unit'], total)}"
            )
            how_far += "" if row["unit"].endswith("bytes") else f" {row['unit']}"
        rows.append(
            {
                "job": row["job"],
                "state": row["state"],
                "started_s": row["started_s"],
                "elapsed_s": row["elapsed_s"],
                "done": row.get("message") or how_far,
                "command": row["command"],
            }
        )
    return table(rows) or "no jobs"


_SPECIAL: dict[str, Callable[[Result], str]] = {
    "info": _info,
    "df": _df,
    "du": _du,
    "gc": _gc,
    "jobs": _jobs,
    "versions": _versions,
    "diff": _diff,
    "restore": _put_back,
    "undelete": _put_back,
    "clone": _clone,
    "rmtree": _rmtree,
    "gc hold": _hold,
    "gc release": _release,
    "purge": _purge,
    "prune": _prune,
    "pin": _pin,
    "sync": _sync,
    "resize": _resize,
    "snapshot": _snapshot,
    "snapshots": _snapshots,
    "snapshot-diff": _snapshot_diff,
}
