"""The catalog: the SQLite database that indexes what the blobs mean, table by table.

Used by the thread that owns the namespace. When what is said becomes safe: `transactions`. The tables of histories
are spoken for by `history`.

The catalog can be rebuilt from the blobs; see docs/architecture.md.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from mountstore.blobs.content import ContentKind
from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError, ExistsError, MisuseError
from mountstore.namespace.connection import connect
from mountstore.namespace.known_names import KnownNames
from mountstore.namespace.stale import BASE_KEY, SNAPSHOT_KEY, Stale
from mountstore.namespace.transactions import Transactions

_ENTRIES_MAX = 65_000
"""Names kept in memory: about 16 MiB, and a look-up in a tenth of the time."""

INODE_COLUMNS = (
    "id, mode, uid, gid, nlink, rdev, size, allocated, atime_ns, mtime_ns, ctime_ns, btime_ns, "
    "parent, kind, sha256, blob_size, target, xattrs"
)
_LISTED_COLUMNS = ", ".join(f"i.{column}" for column in INODE_COLUMNS.split(", "))
# Statements that are said for every file are put together once.
_GET_INODE = f"SELECT {INODE_COLUMNS} FROM inode WHERE id = ?"
_GET_ENTRY_AND_INODE = (
    f"SELECT e.inode, {_LISTED_COLUMNS} FROM entry AS e LEFT JOIN inode AS i ON i.id = e.inode"
    " WHERE e.parent = ? AND e.name = ?"
)
_SMALL_CONTENTS = (
    f"SELECT id, sha256, blob_size FROM inode WHERE id > ? AND id <= ? AND kind = {ContentKind.BLOB:d}"
    " AND blob_size <= ? ORDER BY id LIMIT ?"
)
_PUT_INODE = f"INSERT OR REPLACE INTO inode VALUES ({', '.join('?' * 18)})"

_ADD_BLOB = (
    "INSERT INTO blob VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET checksum = excluded.checksum"
    " WHERE checksum <> excluded.checksum"
)

_ADD_STALE = "INSERT OR IGNORE INTO stale VALUES (?, ?)"

InodeRow = tuple[Any, ...]
"""The columns of `inode` in the order of the schema."""


class ListingRow(NamedTuple):
    """One entry of a directory, with its inode's row if the catalog has one yet."""

    cookie: int
    name: bytes
    inode: int
    row: InodeRow | None


class ContentRow(NamedTuple):
    """The content of one inode, as columns."""

    inode: int
    kind: int
    sha256: bytes
    blob_size: int
    size: int


PreviousRow = tuple[
    int, int, bytes | None, int | None, int, int, str | None, int | None, int | None, bytes | None, int
]
"""The columns of `previous` in the order of the schema."""


class DraftRow(NamedTuple):
    """A recorded draft: see `mountstore.namespace.staged_draft`."""

    inode: int
    staging: str
    size: int
    base_limit: int
    dirty: bytes


def lies_in_staging(name: str) -> bool:
    """Whether that can be a file in staging: a catalog may be made to lead elsewhere."""
    return os.path.basename(name) == name and name not in {"", ".", ".."}


def draft_row(inode: int, staging: str, size: int, base_limit: int, dirty: bytes) -> DraftRow:
    """Raises: CorruptError: Its file does not lie in staging."""
    if not lies_in_staging(staging):
        raise CorruptError(f"the draft of inode {inode} has its bytes in {staging!r}, which is no file in staging")
    return DraftRow(inode, staging, size, base_limit, dirty)


class Catalog(Transactions):
    """The tables of the open database; arguments and errors as of `Transactions`."""

    def __init__(self, path: str, *, read_only: bool = False, must_exist: bool = False) -> None:
        super().__init__(path, read_only=read_only, must_exist=must_exist)
        self._names = KnownNames(0 if read_only else _ENTRIES_MAX)
        self.on_undone.append(lambda: self._names.clear())
        self.stale = Stale()
        if not read_only:
            self._load_stale()

    def _say_last(self) -> None:
        if fresh := self.stale.take_unlisted():
            self._say_all(_ADD_STALE, fresh)

    # --- snapshots ---

    def _load_stale(self) -> None:
        name = self.get_meta(BASE_KEY)
        try:
            base = None if name is None else Digest.parse(name)
            self.stale.load(base, self._execute("SELECT kind, number FROM stale"))
        except (MisuseError, sqlite3.Error) as exc:
            raise CorruptError(f"{self.path}: what changed since the last snapshot cannot be read: {exc}") from exc

    def announce_snapshot(self, time_ns: int) -> None:
        """A snapshot of this instant, later than all others, is about to be safe; to be committed, durably, before
        it is."""
        self.set_meta(SNAPSHOT_KEY, time_ns)

    def settle_snapshot(self, base: Digest) -> None:
        """The snapshot with this root is safe: the next one builds on it (`stale.begin` was called)."""
        rows = self.stale.settle(base)
        self.say("DELETE FROM stale")
        self._say_all(_ADD_STALE, rows)
        self.set_meta(BASE_KEY, base.name)

    def forget_snapshot(self) -> None:
        """There is no snapshot to build on: the next one reads everything."""
        self.stale.base = None
        self.say("DELETE FROM meta WHERE key = ?", (BASE_KEY,))

    # --- meta ---

    def get_meta(self, key: str, default: Any = None) -> Any:
        row = self._execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def set_meta(self, key: str, value: Any) -> None:
        self.say("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # --- inodes ---

    def get_inode(self, inode: int) -> InodeRow | None:
        row: InodeRow | None = self._execute(_GET_INODE, (inode,)).fetchone()
        return row

    def put_inodes(self, rows: Iterable[InodeRow]) -> None:
        rows = list(rows)
        self._say_all(_PUT_INODE, rows)
        self.stale.inodes(rows)

    def delete_inodes(self, inodes: Iterable[int]) -> None:
        rows = [(inode,) for inode in inodes]
        self._say_all("DELETE FROM inode WHERE id = ?", rows)
        self.stale.inodes(rows)

    def was_removed(self, inode: int) -> bool:
        """Whether an inode once existed, and was removed; asked at start, before anything is committed.

        False if that cannot be said: a catalog that was made from the blobs does not know what there was since.
        """
        row = self._execute("SELECT nlink FROM inode WHERE id = ?", (inode,)).fetchone()
        if row is not None:
            return bool(row[0] == 0)
        return bool(0 < inode < self.get_meta("next_inode", 0)) and self.get_meta("boot_id") is not None

    def orphans(self) -> list[int]:
        """Inodes without a name, left by a crash while they were still open."""
        return [row[0] for row in self._execute("SELECT id FROM inode WHERE nlink = 0")]

    # --- entries ---

    def get_entry(self, parent: int, name: bytes) -> int | None:
        """The inode that `name` stands for, or None."""
        found = self._names.get(parent, name)
        if found is None:
            row = self._execute(
                "SELECT inode FROM entry WHERE parent = ? AND name = ?", (parent, name)
            ).fetchone()
            found = 0 if row is None else row[0]
            self._names.keep(parent, name, found)
        return found or None

    def known_entry(self, parent: int, name: bytes) -> int | None:
        """As `get_entry`, if that is in memory; None also if it is not."""
        return self._names.get(parent, name) or None

    def get_entry_and_inode(self, parent: int, name: bytes) -> tuple[int, InodeRow | None] | None:
        """The inode that `name` stands for, and its row, if the catalog has one yet and it had to be read."""
        found = self._names.get(parent, name)
        if found is not None:
            return (found, None) if found else None
        row = self._execute(_GET_ENTRY_AND_INODE, (parent, name)).fetchone()
        self._names.keep(parent, name, 0 if row is None else row[0])
        return None if row is None else (row[0], None if row[1] is None else row[1:])

    def begin_directory(self, inode: int) -> None:
        """The caller makes this directory: nothing is in it yet."""
        self._names.begin(inode)

    def add_entry(self, parent: int, name: bytes, inode: int, cookie: int) -> None:
        """Raises: ExistsError if the name is taken."""
        try:
            self.say("INSERT INTO entry VALUES (?, ?, ?, ?)", (parent, name, inode, cookie))
        except sqlite3.IntegrityError:
            raise ExistsError(os.fsdecode(name)) from None
        self._names.keep(parent, name, inode)
        self.stale.entry((parent, name))

    def add_entries(self, rows: Iterable[tuple[int, bytes, int, int]]) -> None:
        """Rows of (parent, name, inode, cookie), of names that are free."""
        rows = list(rows)
        self._say_all("INSERT INTO entry VALUES (?, ?, ?, ?)", rows)
        for parent, name, _, _ in rows:
            self._names.doubt(parent, name)
            self.stale.entry((parent, name))

    def add_links(self, links: Mapping[int, int]) -> None:
        """Raise the link counts of inodes that are not in memory by so much."""
        self._say_all(
            "UPDATE inode SET nlink = nlink + ? WHERE id = ?", [(count, inode) for inode, count in links.items()]
        )
        for inode in links:
            self.stale.inode(inode)

    def point_entry(self, parent: int, name: bytes, inode: int) -> None:
        """Let an existing name stand for another inode; its place in the listing stays."""
        self.stale.entry((parent, name))
        self.say("UPDATE entry SET inode = ? WHERE parent = ? AND name = ?", (inode, parent, name))
        self._names.keep(parent, name, inode)

    def move_entry(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, cookie: int | None
    ) -> None:
        """Rename an entry to a name that is free; `cookie` is its new place, None to keep the old."""
        self.stale.entry((parent, name))
        self.stale.entry((new_parent, new_name))
        self.say(
            "UPDATE entry SET parent = ?, name = ?, cookie = coalesce(?, cookie)"
            " WHERE parent = ? AND name = ?",
            (new_parent, new_name, cookie, parent, name),
        )
        inode = self._names.remove(parent, name)
        if inode:
            self._names.keep(new_parent, new_name, inode)
        else:
            self._names.doubt(new_parent, new_name)

    def delete_entry(self, parent: int, name: bytes) -> None:
        self.stale.entry((parent, name))
        self.say("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))
        self._names.remove(parent, name)

    def has_entries(self, parent: int) -> bool:
        return (
            self._execute("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (parent,)).fetchone() is not None
        )

    def listing(self, parent: int, after: int) -> Iterator[ListingRow]:
        """Entries of a directory in the order of their cookies, from the first one beyond `after`.

        Rows are fetched as they are asked for; the caller closes the iterator or exhausts it before
        the next commit.
        """
        cursor = self._execute(
            f"SELECT e.cookie, e.name, e.inode, {_LISTED_COLUMNS} FROM entry AS e INDEXED BY listing"
            " LEFT JOIN inode AS i ON i.id = e.inode WHERE e.parent = ? AND e.cookie > ? ORDER BY e.cookie",
            (parent, after),
        )
        try:
            for row in cursor:
                yield ListingRow(row[0], row[1], row[2], None if row[3] is None else row[3:])
        finally:
            cursor.close()

    # --- extended attributes ---

    def get_xattr(self, inode: int, name: bytes) -> bytes | None:
        row = self._execute(
            "SELECT value FROM xattr WHERE inode = ? AND name = ?", (inode, name)
        ).fetchone()
        return None if row is None else row[0]

    def list_xattrs(self, inode: int) -> list[tuple[bytes, int]]:
        """Names and value lengths."""
        return self._execute(
            "SELECT name, length(value) FROM xattr WHERE inode = ? ORDER BY name", (inode,)
        ).fetchall()

    def put_xattr(self, inode: int, name: bytes, value: bytes) -> None:
        self.stale.inode(inode)
        self.say("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (inode, name, value))

    def delete_xattr(self, inode: int, name: bytes) -> bool:
        self.stale.inode(inode)
        return (
            self.say("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name)).rowcount > 0
        )

    def delete_xattrs(self, inode: int) -> None:
        self.stale.inode(inode)
        self.say("DELETE FROM xattr WHERE inode = ?", (inode,))

    # --- blobs ---

    def get_checksum(self, digest: Digest) -> bytes | None:
        row = self._execute(
            "SELECT checksum FROM blob WHERE sha256 = ? AND size = ?", digest
        ).fetchone()
        return None if row is None else row[0]

    def has_blobs(self) -> bool:
        return self._execute("SELECT 1 FROM blob LIMIT 1").fetchone() is not None

    def add_blobs(self, blobs: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Rows of (sha256, size in bytes, checksum), of bytes that were at hand: what is there and wrong is put
        right."""
        self._say_all(_ADD_BLOB, blobs)

    def add_unsynced(self, digests: Iterable[Digest]) -> None:
        self._say_all("INSERT INTO unsynced VALUES (?, ?)", digests)

    def clear_unsynced(self) -> None:
        self.say("DELETE FROM unsynced")

    def add_journal(self, blobs: Sequence[tuple[bytes, int, bytes]]) -> None:
        """Rows of (sha256, size in bytes, the bytes themselves)."""
        self._contents_bytes += sum(len(data) for _, _, data in blobs)
        self._say_all("INSERT INTO journal VALUES (?, ?, ?)", blobs)

    def clear_journal(self) -> None:
        self.say("DELETE FROM journal")

    def journal(self) -> dict[Digest, bytes]:
        rows = self._execute("SELECT sha256, size, data FROM journal")
        return {Digest(sha256, size): data for sha256, size, data in rows}

    def delete_blob(self, digest: Digest) -> None:
        self.say("DELETE FROM blob WHERE sha256 = ? AND size = ?", tuple(digest))

    def contents(self) -> Iterator[ContentRow]:
        """The contents of all inodes that have one; reads the whole table, half a second for a million."""
        for row in self._execute("SELECT id, kind, sha256, blob_size, size FROM inode WHERE kind <> 0"):
            yield ContentRow(*row)

    def small_contents(self, size_max: int, after: int, limit: int) -> list[tuple[int, Digest]]:
        """Numbers and blobs of the next inodes behind `after` with one of at most `size_max` bytes: up to `limit`
        of them, among four times as many numbers. Changes that are not written yet are not seen."""
        rows = self._execute(_SMALL_CONTENTS, (after, after + 4 * limit, size_max, limit))
        return [(number, Digest(sha256, size)) for number, sha256, size in rows]

    def set_content(
        self, inode: int, kind: int, digest: Digest | None, size: int, allocated: int
    ) -> None:
        """Recovery only: point an inode that is not in memory at another content."""
        sha256, blob_size = digest or (None, None)
        self.stale.inode(inode)
        self.say(
            "UPDATE inode SET kind = ?, sha256 = ?, blob_size = ?, size = ?, allocated = ? WHERE id = ?",
            (kind, sha256, blob_size, size, allocated, inode),
        )

    # --- what contents replaced ---

    def put_previous(self, rows: Iterable[PreviousRow]) -> None:
        self._say_all("INSERT OR REPLACE INTO previous VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def delete_previous(self, inode: int) -> None:
        self.say("DELETE FROM previous WHERE inode = ?", (inode,))

    def clear_previous(self) -> None:
        # Without a condition SQLite would write the table anew also when it is empty, as it is with most syncs.
        self.say("DELETE FROM previous WHERE true")

    def previous(self) -> list[PreviousRow]:
        return self._execute("SELECT * FROM previous").fetchall()

    def unsynced(self) -> list[Digest]:
        rows = self._execute("SELECT DISTINCT sha256, size FROM unsynced")
        return [Digest(sha256, size) for sha256, size in rows]

    # --- drafts ---

    def put_draft(self, draft: DraftRow) -> None:
        self.say("INSERT OR REPLACE INTO draft VALUES (?, ?, ?, ?, ?)", draft)

    def delete_draft(self, inode: int) -> None:
        self.say("DELETE FROM draft WHERE inode = ?", (inode,))

    def get_draft(self, inode: int) -> DraftRow | None:
        row = self._execute("SELECT * FROM draft WHERE inode = ?", (inode,)).fetchone()
        return None if row is None else draft_row(*row)

    def drafts(self) -> list[DraftRow]:
        return [draft_row(*row) for row in self._execute("SELECT * FROM draft ORDER BY inode")]

    def add_draft_change(self, staging: str, change: bytes) -> None:
        """See `mountstore.namespace.draft_changes`."""
        self._contents_bytes += len(change)
        self.say("INSERT INTO draft_change VALUES (?, ?)", (staging, change))

    def draft_changes_of(self, staging: str) -> list[bytes]:
        """Of one staging file, in the order in which they were added."""
        rows = self._execute("SELECT change FROM draft_change WHERE staging = ? ORDER BY rowid", (staging,))
        return [change for (change,) in rows]

    def draft_changes(self) -> dict[str, list[bytes]]:
        """Of each staging file, in the order in which they were added."""
        changes: dict[str, list[bytes]] = {}
        for staging, change in self._execute("SELECT staging, change FROM draft_change ORDER BY rowid"):
            changes.setdefault(staging, []).append(change)
        return changes

    def delete_draft_changes(self, staging: Iterable[str]) -> None:
        """Forget those of these staging files."""
        if names := list(staging):
            # One pass, however many there are: a database retires some hundred files a second.
            self.say(
                "DELETE FROM draft_change WHERE staging IN (SELECT value FROM json_each(?))", (json.dumps(names),)
            )


class BlobIndex:
    """Which blobs the catalog had recorded at the last commit, on a connection of its own; any thread."""

    def __init__(self, path: str) -> None:
        self._db = connect(path, read_only=True)
        self._lock = threading.Lock()

    def __contains__(self, digest: object) -> bool:
        with self._lock:
            found = self._db.execute(
                "SELECT 1 FROM blob WHERE sha256 = ? AND size = ?", cast(Digest, digest)
            ).fetchone()
        return found is not None

    def close(self) -> None:
        with self._lock:
            self._db.close()
