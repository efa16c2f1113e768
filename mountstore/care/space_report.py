"""Where the space of a store goes: what its files show, what is stored for them, versions, trash, the disk."""

from __future__ import annotations

import logging
import os

import msgspec
import trio

from mountstore.blobs.trash import Trash
from mountstore.care.sweep import Tally
from mountstore.errors import MountstoreError
from mountstore.namespace.totals import CatalogTotals, read_totals
from mountstore.store import Store

__all__ = ["SpaceReport", "report_space", "settle"]

log = logging.getLogger(__name__)


class SpaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a store.

    Blobs that only old versions need, and those that nothing needs, cannot be told from the others without
    marking them all: a dry run of garbage collection does that.
    """

    files: int
    directories: int
    others: int
    logical_bytes: int
    """The sum of the sizes that the files show; hard links count once."""
    data_bytes: int
    """Of these, what is not in holes."""
    versions: int
    version_bytes: int
    """The sum of the sizes of old versions."""
    stored: Tally
    """Blobs in the tree, each once: current contents, versions, snapshots, and what is not yet collected."""
    trash: Tally
    ratio: float | None
    """How many bytes of files and versions there are for each byte stored; None if nothing is stored."""
    disk_bytes: int
    """Of the file system that the store lies on: size, and what is still to be had."""
    available_bytes: int


async def report_space(store: Store) -> SpaceReport:
    """Sum up an open store, as of now for what is sealed. A second or so for a million files.

    Raises:
      NoSpaceError: The disk is so full that the latest changes cannot be committed.
      CorruptError: The catalog cannot be read.

    Cancellation: Nothing was changed.
    """
    await settle(store)
    totals, trash = await trio.to_thread.run_sync(_read, store.catalog.path, store.trash)
    disk = store.statvfs()
    stored = Tally(totals.blobs, totals.blob_bytes)
    return SpaceReport(
        files=totals.files,
        directories=totals.directories,
        others=totals.others,
        logical_bytes=totals.logical_bytes,
        data_bytes=totals.data_bytes,
        versions=totals.versions,
        version_bytes=totals.version_bytes,
        stored=stored,
        trash=trash,
        ratio=_ratio(totals),
        disk_bytes=disk.f_blocks * disk.f_frsize,
        available_bytes=disk.f_bavail * disk.f_frsize,
    )


async def settle(store: Store) -> None:
    """Have what was closed by now in the catalog, as far as there is room to seal it.

    Raises: NoSpaceError if the catalog itself cannot be written.
    """
    if store.read_only:
        return
    try:
        await store.sealer.settle()
    except (MountstoreError, OSError) as exc:
        # The file is there as it was before, which is what the catalog says; the log tells more.
        log.info("a report leaves out a file that cannot be sealed: %s", exc)
    store.commits.commit()


def _read(catalog_path: str, trash: Trash) -> tuple[CatalogTotals, Tally]:
    discarded = Tally()
    for blob in trash.walk():
        discarded.count(blob.digest.size_bytes)
    return read_totals(os.fspath(catalog_path)), discarded


def _ratio(totals: CatalogTotals) -> float | None:
    if not totals.blob_bytes:
        return None
    return (totals.data_bytes + totals.version_bytes) / totals.blob_bytes
