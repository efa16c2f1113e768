"""The tables of the catalog."""

from __future__ import annotations

from typing import Final

CATALOG_FORMAT: Final = 1
"""`PRAGMA user_version` of the schema below; raised by every change to it after the first release."""

APPLICATION_ID: Final = 0x6D636173  # "mcas"

DRAFT_CHANGE: Final = """
CREATE TABLE IF NOT EXISTS draft_change (    -- what fsyncs promised of staging files since those were flushed
    staging TEXT NOT NULL,
    change  BLOB NOT NULL            -- see mountstore.namespace.draft_changes
) STRICT;
"""
"""Stores made before it existed get it when they are opened for writing."""

SCHEMA: Final = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) WITHOUT ROWID, STRICT;

CREATE TABLE inode (
    id        INTEGER PRIMARY KEY,
    mode      INTEGER NOT NULL,
    uid       INTEGER NOT NULL,
    gid       INTEGER NOT NULL,
    nlink     INTEGER NOT NULL,
    rdev      INTEGER NOT NULL,
    size      INTEGER NOT NULL,      -- logical bytes of the content
    allocated INTEGER NOT NULL,      -- of these, bytes that are not holes
    atime_ns  INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    btime_ns  INTEGER NOT NULL,
    parent    INTEGER NOT NULL,      -- a directory's own directory; 0 for everything else
    kind      INTEGER NOT NULL,      -- ContentKind
    sha256    BLOB,                  -- digest of the blob or manifest
    blob_size INTEGER,
    target    BLOB,                  -- of a symbolic link
    xattrs    INTEGER NOT NULL       -- how many rows in xattr
) STRICT;
CREATE INDEX orphan ON inode (id) WHERE nlink = 0;

CREATE TABLE entry (
    parent INTEGER NOT NULL,
    name   BLOB NOT NULL,
    inode  INTEGER NOT NULL,
    cookie INTEGER NOT NULL,         -- increasing over all entries ever made: the readdir position
    PRIMARY KEY (parent, name)
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX listing ON entry (parent, cookie);

CREATE TABLE xattr (
    inode INTEGER NOT NULL,
    name  BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (inode, name)
) WITHOUT ROWID, STRICT;

CREATE TABLE blob (
    sha256   BLOB NOT NULL,
    size     INTEGER NOT NULL,
    checksum BLOB NOT NULL,          -- XXH3-128
    PRIMARY KEY (sha256, size)
) WITHOUT ROWID, STRICT;

CREATE TABLE unsynced (              -- blobs placed since the last hard sync, some perhaps twice
    sha256 BLOB NOT NULL,
    size   INTEGER NOT NULL
) STRICT;

CREATE TABLE journal (               -- bytes of small blobs that an fsync promised, until their files are flushed
    sha256 BLOB NOT NULL,
    size   INTEGER NOT NULL,
    data   BLOB NOT NULL
) STRICT;

CREATE TABLE version (               -- see mountstore.namespace.history
    history   INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    kind      INTEGER NOT NULL,      -- RowKind
    sha256    BLOB,
    blob_size INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    mode      INTEGER NOT NULL,
    uid       INTEGER NOT NULL,
    gid       INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    until_ns  INTEGER NOT NULL,
    PRIMARY KEY (history, number)
) WITHOUT ROWID, STRICT;

CREATE TABLE name_history (
    parent  INTEGER NOT NULL,
    name    BLOB NOT NULL,
    history INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) WITHOUT ROWID, STRICT;

CREATE TABLE inode_history (
    inode   INTEGER PRIMARY KEY,
    history INTEGER NOT NULL
) STRICT;

CREATE TABLE previous (              -- what an inode stood for at the last hard sync, if it changed since
    inode      INTEGER PRIMARY KEY,
    kind       INTEGER NOT NULL,     -- its content, as in inode
    sha256     BLOB,
    blob_size  INTEGER,
    size       INTEGER NOT NULL,
    allocated  INTEGER NOT NULL,
    staging    TEXT,                 -- and the draft over it, as in draft
    draft_size INTEGER,
    base_limit INTEGER,
    dirty      BLOB,
    open       INTEGER NOT NULL      -- the newer content is not whole before its writer closes the file
) STRICT;

CREATE TABLE draft (                 -- staging files whose content an fsync or a close has promised
    inode      INTEGER PRIMARY KEY,
    staging    TEXT NOT NULL,
    size       INTEGER NOT NULL,
    base_limit INTEGER NOT NULL,
    dirty      BLOB NOT NULL         -- see mountstore.namespace.draft_record
) STRICT;

CREATE TABLE stale (                 -- what changed since the last snapshot: see mountstore.namespace.stale
    kind   INTEGER NOT NULL,         -- StaleKind
    number INTEGER NOT NULL,
    PRIMARY KEY (kind, number)
) WITHOUT ROWID, STRICT;
{DRAFT_CHANGE}"""
