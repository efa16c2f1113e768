"""Making stores: what mkfs.cas does on request, and mount.cas for an absent or empty directory, or a backup."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mountstore.cli.exits import Exit, Failure, printable

if TYPE_CHECKING:
    from mountstore.care.rebuild import Rebuilt

log = logging.getLogger(__name__)


def is_vacant(path: str) -> bool:
    """Whether a store may be made at `path` without asking: nothing is there, or an empty directory.

    A file system of its own often has a `lost+found`; that does not count.
    """
    try:
        return all(name == "lost+found" for name in os.listdir(path))
    except FileNotFoundError:
        return True


def prepare_store(path: str, *, dir_limit: int | None, read_only: bool) -> None:
    """Make a store at `path` if that is vacant; otherwise see that `dir_limit` agrees with what is there.

    Blobs without a catalog are a store that was lost, or a backup of one: it is made again from its snapshots.

    Raises:
      Failure: A store would have to be made for a read-only mount, or has another `dir_limit`.
      MountstoreError: The store cannot be made.
    """
    from mountstore.store.config import read_config
    from mountstore.store.create import create_store
    from mountstore.store.layout import CATALOG_NAME

    if os.path.lexists(path) and not os.path.isdir(path):
        raise Failure(Exit.FAILED, f"{printable(path)} is not a directory, so it cannot be a store")
    if is_vacant(path):
        if read_only:
            raise Failure(
                Exit.FAILED, f"{printable(path)} is no store yet: make one with mkfs.cas, or mount without ro"
            )
        create_store(path, **({} if dir_limit is None else {"dir_limit": dir_limit}))
        return
    if not os.path.lexists(os.path.join(path, CATALOG_NAME)):
        rebuild_missing_catalog(path, read_only=read_only)
    if dir_limit is not None and (actual := read_config(path).dir_limit) != dir_limit:
        raise Failure(
            Exit.USAGE, f"dir_limit={dir_limit}: the store {printable(path)} was made with dir_limit={actual}"
        )


def rebuild_missing_catalog(path: str, *, read_only: bool) -> None:
    """Make the catalog of the store at `path` from its newest complete snapshot, if there are snapshots.

    Raises:
      Failure: It would have to be made for a read-only mount.
      MountstoreError: It cannot be made.
    """
    from mountstore.care.rebuild import can_rebuild, rebuild_store

    if not can_rebuild(path):
        return
    if read_only:
        raise Failure(
            Exit.FAILED,
            f"{printable(path)} has no catalog: mount it without ro, or use fsck.cas --rebuild, to have one made"
            " from its snapshots",
        )
    log.warning("%s: has no catalog; one is made from the blobs", path)
    rebuilt = rebuild_store(path)
    for line in told_of(rebuilt):
        log.warning("%s: %s", path, line)


def told_of(rebuilt: Rebuilt) -> list[str]:
    """What to tell of a rebuild, a line each."""
    damaged = rebuilt.survey.damaged
    lines = [f"{len(damaged)} blobs are damaged, such as {path}" for path in damaged[:1]]
    lines += [f"{bad.error}" for bad in rebuilt.survey.bad_refs]
    for candidate in rebuilt.survey.candidates:
        if not candidate.complete:
            flaw = candidate.flaws[0].what
            lines.append(
                f"snapshot {candidate.ref.name} ({time_text(candidate.ref.time_ns)}) lacks"
                f" {candidate.flaw_count} things, such as {flaw}"
            )
    newest = rebuilt.survey.candidates[0]
    if newest.ref != rebuilt.taken.ref and newest.flaws:
        lines.append(
            "to have what is there of a newer one, and not all of an older one:"
            f" fsck.cas --rebuild --partial --snapshot {newest.ref.name}"
        )
    ref = rebuilt.taken.ref
    lines.append(
        f"the catalog was made from snapshot {ref.name} ({time_text(ref.time_ns)}): {rebuilt.inodes} inodes,"
        f" {rebuilt.names} names, {rebuilt.versions} old versions, in {rebuilt.elapsed_s:.1f} s"
    )
    if rebuilt.aside is not None:
        lines.append(f"the old catalog is in {rebuilt.aside}")
    if rebuilt.made_settings:
        lines.append("store.toml was made again from the same snapshot")
    return lines


def time_text(time_ns: int) -> str:
    """An instant, to the second, in UTC."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
