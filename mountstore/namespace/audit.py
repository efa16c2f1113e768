"""The checker's view of the catalog: what does not agree with itself, and the changes that mend it.

The questions are asked by the classes below this one, a module each: `audit_connection` (one transaction,
SQLite's own integrity), `audit_names`, `audit_contents`, `audit_versions`. The changes stand here. None is
durable before `commit`.

The caller holds the store's lock. One thread. For errors see `audit_connection`.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Final

from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError
from mountstore.namespace.audit_contents import ContentRow, DraftFacts
from mountstore.namespace.audit_names import (
    IS_DIRECTORY,
    NUMBER_MAX,
    AuditedDirectory,
    AuditedEntry,
    AuditedInode,
)
from mountstore.namespace.audit_versions import AuditedVersions
from mountstore.namespace.inodes import FIRST_COOKIE, ROOT, TYPE_BITS

__all__ = [
    "NUMBER_MAX",
    "Audit",
    "AuditedDirectory",
    "AuditedEntry",
    "AuditedInode",
    "ContentRow",
    "DraftFacts",
]

LOST_FOUND: Final = b"lost+found"


class Audit(AuditedVersions):
    """The catalog of one store, opened for checking and mending; for the arguments see `AuditConnection`."""

    # --- changes: names ---

    def set_field(self, inode: int, field: str, value: object) -> None:
        """Set one column of an inode's row."""
        assert field in (
            "mode", "uid", "gid", "nlink", "rdev", "size", "allocated", "parent", "xattrs", "target"
        ), field  # fmt: skip
        self._run(f"UPDATE inode SET {field} = ? WHERE id = ?", (value, inode))

    def set_content(self, inode: int, kind: int, digest: Digest | None, size: int) -> None:
        sha256, blob_size = digest or (None, None)
        self._run(
            "UPDATE inode SET kind = ?, sha256 = ?, blob_size = ?, size = ?, allocated = min(allocated, ?)"
            " WHERE id = ?",
            (kind, sha256, blob_size, size, size, inode),
        )

    def renumber(self, inode: int) -> int:
        """Give an inode a number that was never used, everywhere."""
        number = self._next("next_inode", self.highest_inode())
        self._run("UPDATE inode SET id = ? WHERE id = ?", (number, inode))
        self._run("UPDATE inode SET parent = ? WHERE parent = ?", (number, inode))
        self._run("UPDATE entry SET inode = ? WHERE inode = ?", (number, inode))
        self._run("UPDATE entry SET parent = ? WHERE parent = ?", (number, inode))
        self._run("UPDATE OR IGNORE xattr SET inode = ? WHERE inode = ?", (number, inode))
        self._run("UPDATE OR IGNORE name_history SET parent = ? WHERE parent = ?", (number, inode))
        for table in ("draft", *self._of_inodes):
            self._run(f"UPDATE OR IGNORE main.{table} SET inode = ? WHERE inode = ?", (number, inode))
        return number

    def _next(self, key: str, highest: int) -> int:
        recorded = self.meta(key)
        number = max(highest + 1, recorded if isinstance(recorded, int) and recorded <= NUMBER_MAX else 0)
        self.set_meta(key, number + 1)
        return number

    def next_cookie(self) -> int:
        return max(FIRST_COOKIE, self._next("next_cookie", max(self.highest_cookie(), FIRST_COOKIE - 1)))

    def remove_inode(self, inode: int) -> None:
        """With its attributes, draft record and the like."""
        for table in ("xattr", "draft", *self._of_inodes):
            self._run(f"DELETE FROM main.{table} WHERE inode = ?", (inode,))
        self._run("DELETE FROM main.inode WHERE id = ?", (inode,))

    def make_directory(self, inode: int, parent: int, mode: int = 0o700) -> None:
        """The row of an empty directory, owned as the root is."""
        owner = next(self._rows("SELECT uid, gid FROM inode WHERE id = ?", (ROOT,)), None)
        uid, gid = owner or (os.geteuid(), os.getegid())
        now = time.time_ns()
        self._run(
            "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, 2, 0, 4096, 0, ?, ?, ?, ?, ?, 0, NULL, NULL,"
            " NULL, 0)",
            (inode, stat.S_IFDIR | mode, uid, gid, now, now, now, now, parent),
        )

    def exists(self, inode: int) -> bool:
        return self._value("SELECT 1 FROM inode WHERE id = ?", (inode,)) is not None

    def is_bare(self, inode: int) -> bool:
        """Whether its row holds nothing that a directory's does not."""
        sql = "SELECT 1 FROM inode WHERE id = ? AND kind = 0 AND sha256 IS NULL AND target IS NULL"
        return self._value(sql, (inode,)) is not None

    def has_entries(self, directory: int) -> bool:
        return self._value("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (directory,)) is not None

    def move_entries(self, directory: int, new_directory: int) -> None:
        """All entries of one directory into another, which is empty."""
        self._run("UPDATE entry SET parent = ? WHERE parent = ?", (new_directory, directory))
        self._run(
            f"UPDATE inode AS i SET parent = ? WHERE parent = ? AND {IS_DIRECTORY}",
            (new_directory, directory),
        )

    def remove_names(self, inode: int) -> None:
        """Every entry that stands for it; reads all entries."""
        self._run("DELETE FROM entry WHERE inode = ?", (inode,))

    def remove_entry(self, parent: int, name: bytes) -> None:
        self._run("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))

    def rename_entry(self, parent: int, name: bytes, wanted: bytes) -> bytes:
        """Give an entry another name, `wanted` or like it; returns the one it got."""
        free = self._free_name(parent, wanted)
        self._run("UPDATE entry SET name = ? WHERE parent = ? AND name = ?", (free, parent, name))
        return free

    def replace_cookie(self, parent: int, name: bytes) -> None:
        """Put an entry at the end of its directory's listing."""
        self._run(
            "UPDATE entry SET cookie = ? WHERE parent = ? AND name = ?", (self.next_cookie(), parent, name)
        )

    def attach(self, inode: int) -> bytes:
        """Name an inode `#<number>` in `/lost+found`, which is made if needed; returns the name."""
        directory = self._lost_found()
        name = self._free_name(directory, b"#%d" % inode)
        self._add_entry(directory, name, inode)
        self._run(
            f"UPDATE inode AS i SET parent = ?, nlink = max(nlink, 2) WHERE id = ? AND {IS_DIRECTORY}",
            (directory, inode),
        )
        return name

    def _lost_found(self) -> int:
        for suffix in (b"", *(b".%d" % number for number in range(1, 1000))):
            name = LOST_FOUND + suffix
            row = next(
                self._rows(
                    "SELECT i.id, i.mode, i.parent FROM entry AS e LEFT JOIN inode AS i ON i.id = e.inode"
                    " WHERE e.parent = ? AND e.name = ?",
                    (ROOT, name),
                ),
                None,
            )
            if row is None:
                number = self._next("next_inode", self.highest_inode())
                self.make_directory(number, ROOT)
                self._add_entry(ROOT, name, number)
                return number
            if row[1] is not None and row[1] & TYPE_BITS == stat.S_IFDIR and row[2] == ROOT and row[0] != ROOT:
                return int(row[0])
        raise CorruptError(f"{self.path}: every name for lost+found is taken")

    def _add_entry(self, parent: int, name: bytes, inode: int) -> None:
        self._run("INSERT INTO entry VALUES (?, ?, ?, ?)", (parent, name, inode, self.next_cookie()))

    def _free_name(self, parent: int, wanted: bytes) -> bytes:
        name, number = wanted, 0
        while self._value("SELECT 1 FROM entry WHERE parent = ? AND name = ?", (parent, name)):
            number += 1
            name = b"%b.%d" % (wanted, number)
        return name

    def remove_attribute(self, inode: int, name: bytes) -> None:
        self._run("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name))

    # --- changes: blobs ---

    def remove_blob_row(self, sha256: bytes, size: int) -> None:
        """Forget a blob: written again, it is recorded anew."""
        self._run("DELETE FROM main.blob WHERE sha256 = ? AND size = ?", (sha256, size))

    def remove_unsynced_row(self, sha256: bytes, size: int) -> None:
        self._run("DELETE FROM main.unsynced WHERE sha256 = ? AND size = ?", (sha256, size))

    def record_blob(self, digest: Digest, checksum: bytes) -> None:
        self._run("INSERT OR REPLACE INTO main.blob VALUES (?, ?, ?)", (*digest, checksum))

    def remove_draft(self, inode: int) -> None:
        self._run("DELETE FROM draft WHERE inode = ?", (inode,))
