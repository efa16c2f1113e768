"""Making stores: what mkfs.cas does on request, and mount.cas for an absent or empty directory."""

from __future__ import annotations

import os

from mountstore.cli.exits import Exit, Failure, printable


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

    Raises:
      Failure: A store would have to be made for a read-only mount, or has another `dir_limit`.
      MountstoreError: The store cannot be made.
    """
    from mountstore.store import create_store, read_config

    if os.path.lexists(path) and not os.path.isdir(path):
        raise Failure(Exit.FAILED, f"{printable(path)} is not a directory, so it cannot be a store")
    if is_vacant(path):
        if read_only:
            raise Failure(
                Exit.FAILED, f"{printable(path)} is no store yet: make one with mkfs.cas, or mount without ro"
            )
        create_store(path, **({} if dir_limit is None else {"dir_limit": dir_limit}))
    elif dir_limit is not None and (actual := read_config(path).dir_limit) != dir_limit:
        raise Failure(
            Exit.USAGE, f"dir_limit={dir_limit}: the store {printable(path)} was made with dir_limit={actual}"
        )
