"""What the checker asks about histories: whether their rows can be what they say, and what has them.

See `mountstore.namespace.history`. A directory whose names have histories may be gone, and so may a name; an inode
may not. A history that nothing has is not an error: garbage collection removes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mountstore.namespace.audit_contents import AuditedContents
from mountstore.namespace.history import FLEETING, RowKind

_MODE_MAX: Final = FLEETING | 0xFFFF

_SPAN: Final = f"CASE WHEN v.kind IN ({RowKind.SPLICE:d}, {RowKind.DROPPED:d}) THEN v.blob_size ELSE 1 END"

# How many versions the history has of which a splice shows some.
_SHOWN: Final = (
    f"SELECT max(w.number + CASE WHEN w.kind IN ({RowKind.SPLICE:d}, {RowKind.DROPPED:d}) THEN w.blob_size"
    " ELSE 1 END - 1) FROM main.version AS w WHERE w.history = v.size"
)

_SOUND_ROW: Final = f"""
    v.history > 0 AND v.number > 0 AND v.size >= 0 AND v.mode BETWEEN 0 AND {_MODE_MAX}
    AND v.uid BETWEEN 0 AND 4294967294 AND v.gid BETWEEN 0 AND 4294967294
    AND (v.next IS NULL OR v.next >= v.number + {_SPAN})
    AND CASE v.kind
        WHEN {RowKind.BLOB:d} THEN length(v.sha256) = 32 AND v.blob_size = v.size AND v.size > 0
        WHEN {RowKind.MANIFEST:d} THEN length(v.sha256) = 32 AND v.blob_size > 0 AND v.size > 0
        WHEN {RowKind.PREFIX:d} THEN v.sha256 IS NULL AND v.blob_size = 0 AND v.size > 0
        WHEN {RowKind.SPLICE:d} THEN v.sha256 IS NULL AND v.blob_size > 0 AND ({_SHOWN}) >= v.blob_size
        WHEN {RowKind.DIRECTORY:d} THEN v.sha256 IS NULL AND v.blob_size = 0 AND v.size > 0
        WHEN {RowKind.DROPPED:d} THEN v.sha256 IS NULL AND v.blob_size > 0
        ELSE 0 END
"""

_Row = tuple[int, int]
"""History and number of a row."""


class AuditedVersions(AuditedContents):
    """The catalog, asked about histories as well."""

    def invalid_version_rows(self) -> Iterator[tuple[int, int, int]]:
        """History, number and kind of rows that cannot be what they say."""
        for row in self._rows(
            "SELECT v.history, v.number, v.kind FROM (SELECT *, lead(number) OVER"
            " (PARTITION BY history ORDER BY number) AS next FROM main.version) AS v"
            f" WHERE ({_SOUND_ROW}) IS NOT TRUE"
        ):
            yield row[0], row[1], row[2]

    def endless_splices(self) -> list[_Row]:
        """One splice of each circle of rows that show each other, so that there would be no end to them."""
        splices: dict[int, list[tuple[int, int, int]]] = {}
        for history, number, other, count in self._rows(
            "SELECT history, number, size, blob_size FROM main.version WHERE kind = ? ORDER BY history, number",
            (RowKind.SPLICE,),
        ):
            splices.setdefault(history, []).append((number, other, count))

        def below(other: int, count: int) -> Iterator[tuple[_Row, int, int]]:
            for number, next_, next_count in splices.get(other, ()):
                if number <= count:
                    yield (other, number), next_, next_count

        found: list[_Row] = []
        done: set[_Row] = set()
        for history, rows in splices.items():
            for number, other, count in rows:
                start = (history, number)
                if start in done:
                    continue
                trail = {start}
                stack = [(start, below(other, count))]
                while stack:
                    row, rest = stack[-1]
                    following = next(rest, None)
                    if following is None:
                        stack.pop()
                        trail.discard(row)
                        done.add(row)
                    elif following[0] in trail:
                        found.append(row)
                    elif following[0] not in done:
                        trail.add(following[0])
                        stack.append((following[0], below(following[1], following[2])))
        return found

    def names_of_histories(self, histories: Iterable[int]) -> Iterator[tuple[int, int, bytes]]:
        """(history, directory, name) of what these are the histories of; reads all names and entries once."""
        self._run("DROP TABLE IF EXISTS temp.wanted_history")
        self._run("CREATE TEMP TABLE wanted_history (history INTEGER PRIMARY KEY)")
        self._run_many(
            "INSERT OR IGNORE INTO temp.wanted_history VALUES (?)", ((number,) for number in histories)
        )
        yield from self._rows(
            "SELECT n.history, n.parent, n.name FROM main.name_history AS n"
            " JOIN temp.wanted_history AS w ON w.history = n.history"
        )
        yield from self._rows(
            "SELECT h.history, e.parent, e.name FROM main.entry AS e"
            " JOIN main.inode_history AS h ON h.inode = e.inode"
            " JOIN temp.wanted_history AS w ON w.history = h.history"
        )

    def stray_inode_histories(self) -> Iterator[int]:
        """Inodes that do not exist, or have a history without rows."""
        for row in self._rows(
            "SELECT h.inode FROM main.inode_history AS h"
            " WHERE NOT EXISTS (SELECT 1 FROM main.inode AS i WHERE i.id = h.inode)"
            " OR NOT EXISTS (SELECT 1 FROM main.version AS v WHERE v.history = h.history)"
        ):
            yield row[0]

    def stray_name_histories(self) -> Iterator[tuple[int, bytes]]:
        """Names (directory, name) that have a history without rows, or cannot be names."""
        for row in self._rows(
            "SELECT n.parent, n.name FROM main.name_history AS n"
            " WHERE NOT EXISTS (SELECT 1 FROM main.version AS v WHERE v.history = n.history)"
            " OR (n.parent > 0 AND length(n.name) BETWEEN 1 AND 255) IS NOT TRUE"
        ):
            yield row[0], row[1]

    # --- changes ---

    def drop_version(self, history: int, number: int) -> None:
        """As `Histories.drop`: the others keep their numbers."""
        if history > 0 and number > 0:
            later = self._value(
                "SELECT 1 FROM main.version WHERE history = ? AND number > ? LIMIT 1", (history, number)
            )
            if later is None:
                self._run(
                    "UPDATE main.version SET sha256 = NULL, size = 0, mode = 0, uid = 0, gid = 0,"
                    f" blob_size = CASE WHEN kind IN ({RowKind.SPLICE:d}, {RowKind.DROPPED:d})"
                    f" THEN max(blob_size, 1) ELSE 1 END, kind = {RowKind.DROPPED:d}"
                    " WHERE history = ? AND number = ?",
                    (history, number),
                )
                return
        self._run("DELETE FROM main.version WHERE history = ? AND number = ?", (history, number))

    def remove_inode_history(self, inode: int) -> None:
        self._run("DELETE FROM main.inode_history WHERE inode = ?", (inode,))

    def remove_name_history(self, parent: int, name: bytes) -> None:
        self._run("DELETE FROM main.name_history WHERE parent = ? AND name = ?", (parent, name))
