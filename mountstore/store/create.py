"""Making a store."""

from __future__ import annotations

import os
import uuid

from mountstore.blobs.chunking import DEFAULT_PARAMETERS
from mountstore.blobs.flush import syncfs
from mountstore.blobs.refs import has_refs
from mountstore.blobs.tree import DIR_LIMIT, BalancedTree
from mountstore.errors import ExistsError, StoreError
from mountstore.namespace.catalog import Catalog
from mountstore.namespace.inodes import InodeTable
from mountstore.namespace.stale import SNAPSHOT_KEY, UUID_KEY
from mountstore.store.config import STORE_FORMAT, StoreConfig, config_text, write_config
from mountstore.store.layout import BLOBS_NAME, CATALOG_NAME, CONFIG_NAME, LOST_FOUND_NAME, STAGING_NAME

__all__ = ["create_store"]


def create_store(
    path: str,
    *,
    dir_limit: int = DIR_LIMIT,
    piece_max: int = DEFAULT_PARAMETERS.max_size,
    uid: int | None = None,
    gid: int | None = None,
) -> StoreConfig:
    """Make a store in an absent or empty directory.

    A directory that holds nothing but `blobs/` is made a store too: the blobs are adopted as they are. With
    snapshots among them it was a store, and `mountstore.care.rebuild` makes it one again. Others than the owner
    and the group of the directory lose all access to it.

    Args:
      dir_limit: Most entries of a directory in the balanced tree.
      piece_max: Largest file, in bytes, that is kept as one blob; larger ones are cut into pieces of
        a 32nd of it at least, an eighth on average; zeros become a hole from a 64th of it on.
      uid, gid: Owner of the root directory in the mount; default: of this process.

    Raises:
      ExistsError: There is a store already.
      StoreError: The directory holds something else.
      MisuseError: A limit is out of range.
    """
    config = StoreConfig(
        format=STORE_FORMAT,
        uuid=str(uuid.uuid4()),
        dir_limit=dir_limit,
        piece_min=max(piece_max // 32, 64),
        piece_avg=max(piece_max // 8, 256),
        piece_max=piece_max,
        hole_min=max(piece_max // 64, 64),
    )
    config.chunking()
    os.makedirs(path, 0o700, exist_ok=True)
    found = set(os.listdir(path))
    if CONFIG_NAME in found:
        raise ExistsError(f"{path}: is a store already")
    if found - {BLOBS_NAME, LOST_FOUND_NAME}:
        raise StoreError(
            f"{path}: is neither a store nor empty (found {sorted(found)[0]!r});"
            " give an empty or absent directory"
        )
    blobs = os.path.join(path, BLOBS_NAME)
    adopted = BLOBS_NAME in found and bool(os.listdir(blobs))
    if adopted and has_refs(blobs):
        raise StoreError(
            f"{blobs}: has snapshots, so an empty store is not made of it; mount {path}, or use"
            " fsck.cas --rebuild, to have back what they show"
        )
    # Blobs can be read by whoever gets to them, whatever the modes of the files they belong to.
    os.chmod(path, os.stat(path).st_mode & 0o7770)
    BalancedTree(os.path.join(path, BLOBS_NAME), dir_limit=dir_limit)
    os.makedirs(os.path.join(path, STAGING_NAME), 0o700, exist_ok=True)
    catalog = Catalog(os.path.join(path, CATALOG_NAME))
    # The group may be let in for the sake of the blobs (docs/serving.md), not for this.
    os.chmod(catalog.path, 0o600)
    inodes = InodeTable(catalog)
    inodes.create_root(os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid)
    inodes.flush()
    catalog.set_meta("clean", 1)
    catalog.set_meta(UUID_KEY, config.uuid)
    catalog.set_meta(SNAPSHOT_KEY, 0)
    if adopted:
        # Others may need what lies there: garbage collection leaves alone what was never used here.
        catalog.set_meta("adopted", 1)
    catalog.commit()
    catalog.close()
    # The configuration makes it a store: last, and whole.
    write_config(path, config_text(config))
    syncfs(path)
    return config
