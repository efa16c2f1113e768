"""What must hold in a store that was unmounted well: the catalog agrees with itself and with the tree."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from care.pictures import of_catalog, of_snapshot

from mountstore.blobs.content import Content, ContentKind
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.reader import ContentReader, DescriptorCache, VerifiedBlobs
from mountstore.blobs.tree import BalancedTree
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.namespace.stale import BASE_KEY

_READ_BYTES = 1 << 20


def check_store(store: Path) -> None:
    """Assert that nothing in the store is amiss; it is not mounted."""
    database = sqlite3.connect(store / "catalog.db")
    try:
        problems = [*_problems_of_catalog(database), *_problems_of_contents(database, store)]
        problems += _problems_of_snapshots(database, store)
    finally:
        database.close()
    left = sorted(os.listdir(store / "staging"))
    if left:
        problems.append(f"left in staging: {left[:5]}")
    assert not problems, "\n".join(problems)


def _problems_of_catalog(database: sqlite3.Connection) -> list[str]:
    problems = []
    (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        problems.append(f"SQLite: {verdict}")
    meta = dict(database.execute("SELECT key, value FROM meta"))
    if meta.get("clean") != 1:
        problems.append("not marked as clean")
    rows = database.execute("SELECT id, mode, nlink, parent, xattrs FROM inode").fetchall()
    inodes = {row[0]: row[1:] for row in rows}
    names: Counter[int] = Counter()
    subdirectories: Counter[int] = Counter()
    largest_cookie = 0
    for parent, name, number, cookie in database.execute("SELECT parent, name, inode, cookie FROM entry"):
        names[number] += 1
        largest_cookie = max(largest_cookie, cookie)
        if number not in inodes:
            problems.append(f"{name!r} in {parent} names inode {number}, which does not exist")
            continue
        if parent not in inodes or not stat.S_ISDIR(inodes[parent][0]):
            problems.append(f"{name!r} lies in {parent}, which is no directory")
        if stat.S_ISDIR(inodes[number][0]):
            subdirectories[parent] += 1
            if inodes[number][2] != parent:
                problems.append(f"directory {number} lies in {parent}, but says {inodes[number][2]}")
    attributes = Counter(row[0] for row in database.execute("SELECT inode FROM xattr"))
    for number, (mode, nlink, _, xattrs) in inodes.items():
        expected = 2 + subdirectories[number] if stat.S_ISDIR(mode) else names[number]
        if nlink != expected:
            problems.append(f"inode {number} ({mode:o}) has link count {nlink}, not {expected}")
        if number != 1 and names[number] == 0:
            problems.append(f"inode {number} ({mode:o}) has no name")
        if xattrs != attributes[number]:
            problems.append(f"inode {number} has {attributes[number]} attributes, not {xattrs}")
    if meta.get("next_inode", 2) <= max(inodes) or meta.get("next_cookie", 3) <= largest_cookie:
        problems.append("numbers in use would be given out again")
    problems += [f"draft of inode {row[0]} is left" for row in database.execute("SELECT inode FROM draft")]
    problems += [f"attribute of {number}, which is gone" for number in attributes if number not in inodes]
    return problems


def _problems_of_snapshots(database: sqlite3.Connection, store: Path) -> list[str]:
    """The last snapshot shows what the catalog has, if nothing is noted to have changed since."""
    meta = dict(database.execute("SELECT key, value FROM meta"))
    changed = database.execute("SELECT count(*) FROM stale").fetchone()[0]
    if BASE_KEY not in meta or changed:
        return []
    tree = BalancedTree(str(store / "blobs"), staging=str(store / "staging"))
    shown = of_snapshot(SnapshotTree(tree, Digest.parse(meta[BASE_KEY])))
    found = of_catalog(str(store / "catalog.db"))
    # A catalog that was made from a snapshot goes on with higher numbers.
    pairs = [*zip(shown[:3], found[:3], strict=True), (shown[3][2:], found[3][2:])]
    return [
        f"the last snapshot is not what the catalog has: {_difference(here, there)}"
        for here, there in pairs
        if here != there
    ]


def _difference(shown: Any, found: Any) -> str:
    """What differs between two collections, in short."""
    if isinstance(shown, dict) and isinstance(found, dict):
        shown, found = shown.items(), found.items()
    lost = [each for each in shown if each not in found]
    extra = [each for each in found if each not in shown]
    return f"only in the snapshot {lost[:3]!r}, only in the catalog {extra[:3]!r}"


def _problems_of_contents(database: sqlite3.Connection, store: Path) -> list[str]:
    problems = []
    tree = BalancedTree(str(store / "blobs"), staging=str(store / "staging"))
    checksums = {
        Digest(sha256, size): value for sha256, size, value in database.execute("SELECT * FROM blob")
    }
    stored = {}
    for digest, path in tree.walk():
        stored[digest] = path
        data = Path(path).read_bytes()
        if Digest.of(data) != digest:
            problems.append(f"blob {digest} has other bytes")
        if digest in checksums and checksum(data) != checksums[digest]:
            problems.append(f"blob {digest} has another checksum")
    problems += [f"blob {digest} is recorded, but missing" for digest in checksums.keys() - stored.keys()]
    verified, descriptors = VerifiedBlobs(), DescriptorCache()
    seen = set()
    query = "SELECT id, size, kind, sha256, blob_size, mode FROM inode WHERE kind != 0"
    for number, size, kind, sha256, blob_size, mode in database.execute(query):
        content = Content(ContentKind(kind), Digest(sha256, blob_size), size)
        if not stat.S_ISREG(mode):
            problems.append(f"inode {number} ({mode:o}) has a content")
        if content in seen:
            continue
        seen.add(content)
        if content.digest not in checksums:
            problems.append(f"inode {number}: no checksum of {content}")
        reader = ContentReader(tree, content, checksums.get(Digest(sha256, blob_size)), verified, descriptors)
        try:
            for start, end in reader.data_ranges():
                for offset in range(start, end, _READ_BYTES):
                    length = min(_READ_BYTES, end - offset)
                    if len(reader.pread(offset, length)) != length:
                        problems.append(f"inode {number}: {content} ends before {offset + length}")
        except Exception as exc:
            problems.append(f"inode {number}: {content}: {exc}")
        finally:
            reader.close()
    descriptors.close_idle()
    return problems
