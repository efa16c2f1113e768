"""What the checker asks about contents: inodes, old versions and records of blobs against the tree.

What is in the tree, and what manifests say, is told by the caller and kept in temporary tables, which SQLite
keeps on disk when they are large; comparing is then a join.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from mountstore.blobs.digest import Digest
from mountstore.namespace.audit_names import TYPE, AuditedNames

_BATCH: Final = 20_000


class ContentRow(NamedTuple):
    """What an inode says of its content."""

    inode: int
    mode: int
    kind: int
    sha256: bytes | None
    blob_size: int | None
    size: int


class LostVersions(NamedTuple):
    """Old versions that cannot be read for want of the same content."""

    digest: Digest
    number: int
    history: int
    """That has one of them."""
    histories: int
    """How many have them."""
    broken: str | None
    """The flaw of a manifest."""


class DraftFacts(NamedTuple):
    """A row of `draft`, and the mode of its inode (None if there is none)."""

    inode: int
    staging: str
    size: int
    base_limit: int
    dirty: bytes
    mode: int | None


class AuditedContents(AuditedNames):
    """The catalog, asked about contents as well."""

    # --- the tree ---

    def begin_survey(self) -> None:
        """Forget what is known of the tree."""
        for table in ("file", "reference", "manifest", "unusable", "snapshot"):
            self._run(f"DROP TABLE IF EXISTS temp.{table}")
        key = "sha256 BLOB, size INTEGER"
        self._run(
            f"CREATE TEMP TABLE file ({key}, level INTEGER, whole INTEGER, checksum BLOB,"
            " PRIMARY KEY (sha256, size, level)) WITHOUT ROWID"
        )
        self._run(f"CREATE TEMP TABLE reference ({key}, PRIMARY KEY (sha256, size)) WITHOUT ROWID")
        # file_size is NULL for a blob that is no manifest; `broken` says what is wrong with its pieces.
        self._run(
            f"CREATE TEMP TABLE manifest ({key}, file_size INTEGER, broken TEXT,"
            " PRIMARY KEY (sha256, size)) WITHOUT ROWID"
        )
        # What snapshots consist of, and the contents they need.
        self._run(
            "CREATE TEMP TABLE snapshot (kind INTEGER, sha256 BLOB, blob_size INTEGER,"
            " PRIMARY KEY (sha256, blob_size, kind)) WITHOUT ROWID"
        )

    def add_snapshot_contents(self, contents: Iterable[tuple[int, Digest]]) -> None:
        """What snapshots need, with the kind of content."""
        self._run_many(
            "INSERT OR IGNORE INTO temp.snapshot VALUES (?, ?, ?)", ((kind, *digest) for kind, digest in contents)
        )

    def lost_snapshot_contents(self) -> set[Digest]:
        """What snapshots need and the tree does not have whole."""
        return {
            Digest(*row)
            for row in self._rows(
                "SELECT s.sha256, s.blob_size FROM temp.snapshot AS s LEFT JOIN temp.manifest AS m"
                "   ON s.kind = 2 AND m.sha256 = s.sha256 AND m.size = s.blob_size"
                " WHERE m.broken IS NOT NULL OR NOT EXISTS (SELECT 1 FROM temp.file AS f"
                "   WHERE f.sha256 = s.sha256 AND f.size = s.blob_size AND f.whole)"
            )
        }

    def add_files(self, rows: Iterable[tuple[bytes, int, int, bool]]) -> None:
        """Blobs in the tree: (sha256, size in the name, level, whether the file has that size)."""
        self._run_many("INSERT OR REPLACE INTO temp.file VALUES (?, ?, ?, ?, NULL)", rows)

    def mark_damaged(self, digest: Digest, level: int) -> None:
        self._run(
            "UPDATE temp.file SET whole = 0 WHERE sha256 = ? AND size = ? AND level = ?", (*digest, level)
        )

    def note_checksums(self, rows: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Checksums of blobs whose digest was verified: (checksum, sha256, size)."""
        self._run_many("UPDATE temp.file SET checksum = ? WHERE sha256 = ? AND size = ?", rows)

    def levels_of(self, digest: Digest) -> list[int]:
        """Where in the tree whole files of this name are."""
        return [
            row[0]
            for row in self._rows(
                "SELECT level FROM temp.file WHERE sha256 = ? AND size = ? AND whole ORDER BY level", digest
            )
        ]

    def files(self) -> Iterator[tuple[Digest, int, bytes | None]]:
        """Whole files in the order of the tree: digest, level, and the checksum in the catalog.

        What is found meanwhile may be noted only after the iteration, or between batches.
        """
        last: tuple[Any, ...] = (b"", -1, -1)
        while True:
            batch = list(
                self._rows(
                    "SELECT f.sha256, f.size, f.level, b.checksum FROM temp.file AS f"
                    " LEFT JOIN main.blob AS b ON b.sha256 = f.sha256 AND b.size = f.size"
                    " WHERE (f.sha256, f.size, f.level) > (?, ?, ?) AND f.whole"
                    f" ORDER BY f.sha256, f.size, f.level LIMIT {_BATCH}",
                    last,
                )
            )
            if not batch:
                return
            for sha256, size, level, checksum in batch:
                yield Digest(sha256, size), level, checksum
            last = batch[-1][:3]

    def tree_totals(self) -> tuple[int, int]:
        """Number and bytes of the whole files in the tree."""
        row = next(self._rows("SELECT count(*), coalesce(sum(size), 0) FROM temp.file WHERE whole"))
        return row[0], row[1]

    def garbage_totals(self) -> tuple[int, int]:
        """The same of those that no content needs."""
        row = next(
            self._rows(
                "SELECT count(*), coalesce(sum(f.size), 0) FROM temp.file AS f WHERE f.whole AND NOT EXISTS"
                " (SELECT 1 FROM temp.reference AS r WHERE r.sha256 = f.sha256 AND r.size = f.size)"
            )
        )
        return row[0], row[1]

    # --- contents ---

    def checksum_of(self, digest: Digest) -> bytes | None:
        checksum: bytes | None = self._value(
            "SELECT checksum FROM main.blob WHERE sha256 = ? AND size = ?", digest
        )
        return checksum

    def unread_manifests(self) -> list[Digest]:
        """Manifests that contents name and that were not looked at yet, some thousands at a time."""
        contents = " UNION ".join(
            f"SELECT sha256, blob_size FROM {table} AS t WHERE kind = 2 AND length(sha256) = 32"
            " AND blob_size > 0 AND NOT EXISTS (SELECT 1 FROM temp.manifest AS m"
            " WHERE m.sha256 = t.sha256 AND m.size = t.blob_size)"
            for table in (*(f"main.{table}" for table in self._contents), "temp.snapshot")
        )
        return [Digest(*row) for row in self._rows(f"{contents} LIMIT {_BATCH}")]

    def add_manifest(self, digest: Digest, file_size: int | None, broken: str | None) -> None:
        self._run("INSERT OR REPLACE INTO temp.manifest VALUES (?, ?, ?, ?)", (*digest, file_size, broken))

    def add_references(self, digests: Iterable[Digest]) -> None:
        self._run_many("INSERT OR IGNORE INTO temp.reference VALUES (?, ?)", digests)

    def refer_contents(self) -> None:
        """Note what contents name as needed."""
        for table in (*(f"main.{table}" for table in self._contents), "temp.snapshot"):
            self._run(
                f"INSERT OR IGNORE INTO temp.reference SELECT DISTINCT sha256, blob_size FROM {table}"
                " WHERE kind IN (1, 2) AND sha256 IS NOT NULL AND blob_size IS NOT NULL"
            )

    def lost_contents(self) -> Iterator[tuple[ContentRow, int | None, str | None]]:
        """Contents that cannot be read as their inode says: with the manifest's file size, and its flaw."""
        for row in self._rows(
            "SELECT i.id, i.mode, i.kind, i.sha256, i.blob_size, i.size, m.file_size, m.broken"
            " FROM main.inode AS i LEFT JOIN temp.manifest AS m"
            "   ON i.kind = 2 AND m.sha256 = i.sha256 AND m.size = i.blob_size"
            " WHERE i.kind IN (1, 2) AND length(i.sha256) = 32 AND i.blob_size >= 0"
            " AND (NOT EXISTS (SELECT 1 FROM temp.file AS f"
            "   WHERE f.sha256 = i.sha256 AND f.size = i.blob_size AND f.whole)"
            "   OR (i.kind = 2 AND (m.broken IS NOT NULL OR m.file_size IS NOT i.size)))"
        ):
            yield ContentRow(*row[:6]), row[6], row[7]

    def lost_versions(self) -> Iterator[LostVersions]:
        """Old versions that cannot be read, by what they need."""
        if "version" not in self._contents:
            return
        for row in self._rows(
            "SELECT v.sha256, v.blob_size, count(*), min(v.history), count(DISTINCT v.history), max(m.broken)"
            " FROM main.version AS v"
            " LEFT JOIN temp.manifest AS m"
            "   ON v.kind = 2 AND m.sha256 = v.sha256 AND m.size = v.blob_size"
            " WHERE v.kind IN (1, 2) AND length(v.sha256) = 32 AND v.blob_size >= 0"
            " AND (m.broken IS NOT NULL OR NOT EXISTS (SELECT 1 FROM temp.file AS f"
            "   WHERE f.sha256 = v.sha256 AND f.size = v.blob_size AND f.whole))"
            " GROUP BY v.sha256, v.blob_size"
        ):
            yield LostVersions(Digest(row[0], row[1]), *row[2:])

    def invalid_blob_rows(self) -> Iterator[tuple[bytes, int]]:
        yield from self._rows(
            "SELECT sha256, size FROM main.blob"
            " WHERE (length(sha256) = 32 AND size >= 0 AND length(checksum) = 16) IS NOT TRUE"
        )

    def invalid_unsynced_rows(self) -> Iterator[tuple[bytes, int]]:
        yield from self._rows(
            "SELECT sha256, size FROM main.unsynced WHERE (length(sha256) = 32 AND size >= 0) IS NOT TRUE"
        )

    def unsynced(self) -> list[Digest]:
        return [
            Digest(*row)
            for row in self._rows("SELECT sha256, size FROM unsynced WHERE length(sha256) = 32 AND size >= 0")
        ]

    def stale_blob_rows(self) -> Iterator[Digest]:
        """Rows of blobs that the tree does not have and nothing needs."""
        for row in self._rows(
            "SELECT b.sha256, b.size FROM main.blob AS b WHERE length(b.sha256) = 32 AND b.size >= 0"
            " AND NOT EXISTS (SELECT 1 FROM temp.file AS f WHERE f.sha256 = b.sha256 AND f.size = b.size)"
            " AND NOT EXISTS"
            "   (SELECT 1 FROM temp.reference AS r WHERE r.sha256 = b.sha256 AND r.size = b.size)"
        ):
            yield Digest(*row)

    def unrecorded_blobs(self) -> Iterator[tuple[Digest, bytes | None]]:
        """Whole files without a row, with their checksum if they were read."""
        for row in self._rows(
            "SELECT f.sha256, f.size, max(f.checksum) FROM temp.file AS f WHERE f.whole AND NOT EXISTS"
            " (SELECT 1 FROM main.blob AS b WHERE b.sha256 = f.sha256 AND b.size = f.size)"
            " GROUP BY f.sha256, f.size"
        ):
            yield Digest(row[0], row[1]), row[2]

    def unnamed_contents(self) -> list[ContentRow]:
        """Regular files whose kind does not go with the digest they have."""
        return [
            ContentRow(*row)
            for row in self._rows(
                "SELECT id, mode, kind, sha256, blob_size, size FROM main.inode AS i"
                f" WHERE {TYPE} = {stat.S_IFREG} AND (CASE kind WHEN 0 THEN sha256 IS NULL"
                " AND blob_size IS NULL AND size = 0"
                " WHEN 1 THEN length(sha256) = 32 AND blob_size = size"
                " WHEN 2 THEN length(sha256) = 32 AND blob_size > 0 AND size > 0 ELSE 0 END) IS NOT TRUE"
            )
        ]

    def drafts(self) -> list[DraftFacts]:
        return [
            DraftFacts(*row)
            for row in self._rows(
                "SELECT d.inode, d.staging, d.size, d.base_limit, d.dirty, i.mode FROM main.draft AS d"
                " LEFT JOIN main.inode AS i ON i.id = d.inode"
            )
        ]

    def staging_with_changes(self) -> set[str]:
        """The staging files that the next mount makes, if they are not there, from what the catalog has."""
        if not self._value("SELECT count(*) FROM main.sqlite_master WHERE name = 'draft_change'"):
            return set()
        return {row[0] for row in self._rows("SELECT DISTINCT staging FROM main.draft_change")}

    def was_removed(self, inode: int) -> bool:
        """As `Catalog.was_removed`."""
        row = self._run("SELECT nlink FROM main.inode WHERE id = ?", (inode,)).fetchone()
        if row is not None:
            return bool(row[0] == 0)
        following = self.meta("next_inode")
        known = isinstance(following, int) and 0 < inode < following
        return known and self.meta("boot_id") is not None

    def staging_names(self) -> set[str]:
        """Every file in staging that some row speaks of."""
        return {
            row[0]
            for table in self._staging
            for row in self._rows(f"SELECT staging FROM main.{table} WHERE staging IS NOT NULL")
        }
