"""Connections to the database of a catalog, and what SQLite's errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mountstore.blobs.flush import is_quota, room_refused, takes_no_writes
from mountstore.errors import CorruptError, NoSpaceError, QuotaError, StoreError
from mountstore.namespace.wal import AHEAD_BYTES

REBUILD_HINT: Final = "fsck.cas --rebuild makes a new one from the blobs"

# 24 MiB keeps the upper levels of every B-tree of a store with a million files in memory.
_CACHE_KIB: Final = 24 * 1024


def connect(path: str, *, read_only: bool) -> sqlite3.Connection:
    """A connection to the database of a catalog, with the settings all of them share."""
    uri = "file:" + uri_path(path) + ("?mode=ro" if read_only else "?mode=rwc")
    if read_only and _is_frozen(path):
        uri += "&immutable=1"
    # Threads take turns by construction: the owner's thread, or one worker at a time.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=200)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA cache_spill = OFF")
    db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("PRAGMA busy_timeout = 10000")
    return db


def _is_frozen(path: str) -> bool:
    """Whether nobody can change the database: on a file system that takes no writes, where SQLite could not
    make its shared memory. What a WAL holds cannot be read there, so then it is not."""
    try:
        if not takes_no_writes(os.path.dirname(os.path.abspath(path))):
            return False
        return os.stat(path + "-wal").st_size == 0
    except FileNotFoundError:
        return os.path.exists(path)


def sum_of(sizes: str) -> str:
    """SQL for the sum of sizes of files, 0 for none: sparse ones may say that they are 2**63 bytes, two of which
    are an error to sum(). It is exact to 2**53, and 2**63 - 1 at most."""
    return f"CAST(total({sizes}) AS INTEGER)"


def uri_path(path: str) -> str:
    """`path` for an SQLite URI, any bytes."""
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in b"/._-" else f"%{byte:02X}"
        for byte in os.fsencode(os.path.abspath(path))
    )


def translated(path: str, exc: sqlite3.Error) -> Exception:
    code = getattr(exc, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL:
        return NoSpaceError(f"{path}: no room for the catalog")
    # A quota is an I/O error to SQLite, and so is a full disk when its shared memory is to grow.
    if code & 0xFF == sqlite3.SQLITE_IOERR and (refusal := room_refused(os.path.dirname(path), AHEAD_BYTES)):
        kind = QuotaError if is_quota(refusal) else NoSpaceError
        return kind(f"{path}: no room for the catalog: {refusal.strerror}")
    return CorruptError(f"{path}: {exc}")


_REFUSED: Final = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR)


def damage_told_by(exc: BaseException) -> CorruptError | None:
    """What SQLite says of a catalog that was sound when it was opened: that it is damaged, or the disk does not
    give it. None if that is not what `exc` is about."""
    if not isinstance(exc, sqlite3.Error) or getattr(exc, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
        return None
    return CorruptError(f"the catalog cannot be read: {exc}; unmount, and see what fsck.cas says")


@contextmanager
def reading_catalog(path: str) -> Iterator[None]:
    """The context of using a catalog of which nobody knows yet whether it can be read.

    Raises: CorruptError, NoSpaceError, QuotaError, StoreError (no damage) instead of what SQLite raises.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        # SQLite's message may quote a damaged schema.
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _REFUSED:
            raise StoreError(f"{path}: the catalog cannot be written: {exc} (see its mode, and lsattr)") from exc
        failure = translated(path, exc) if isinstance(exc, sqlite3.Error) else None
        if failure is None or isinstance(failure, CorruptError):
            failure = CorruptError(f"{path}: the catalog cannot be read: {exc}; {REBUILD_HINT}")
        raise failure from exc
