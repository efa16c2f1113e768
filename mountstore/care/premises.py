"""The parts of a store that is looked after as a whole: files, lock, and configuration if it can be read.

`Premises` reads and moves files; what stands in the catalog is `mountstore.namespace.audit`. A file of the
store is never deleted here, except half-written blobs in staging: what is wrong is moved to `bad/`, a draft
that nobody claims to `staging/kept/`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from mountstore.blobs.digest import Digest
from mountstore.blobs.staging import BLOB_MODE
from mountstore.blobs.tree import DIR_LIMIT, BalancedTree
from mountstore.errors import StoreError
from mountstore.namespace.drafts import inode_of_draft
from mountstore.store.config import StoreConfig, read_config
from mountstore.store.layout import (
    BAD_NAME,
    BLOBS_NAME,
    CATALOG_NAME,
    CONFIG_NAME,
    KEPT_NAME,
    NOTES_NAME,
    PARTS,
    STAGING_NAME,
)
from mountstore.store.lock import StoreLock


class Premises:
    """The store at `path`; use `enter`, which holds its lock.

    Raises:
      StoreError: There is no store.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.blobs = os.path.join(self.path, BLOBS_NAME)
        self.catalog = os.path.join(self.path, CATALOG_NAME)
        self.staging = os.path.join(self.path, STAGING_NAME)
        self.bad = os.path.join(self.path, BAD_NAME)
        self.notes = os.path.join(self.path, NOTES_NAME)
        self.configuration: StoreConfig | None = None
        self.configuration_flaw: str | None = None
        self._tree: BalancedTree | None = None
        self._read_configuration()

    def _read_configuration(self) -> None:
        file = os.path.join(self.path, CONFIG_NAME)
        try:
            regular = stat.S_ISREG(os.stat(file).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{self.path}: is not a store (no {CONFIG_NAME} in it)") from None
        if not regular:
            raise StoreError(f"{self.path}: is not a store ({CONFIG_NAME} is no file)")
        try:
            self.configuration = read_config(self.path)
        except OSError:
            raise
        except Exception as exc:  # any parser may stumble over any bytes
            text = str(exc) or type(exc).__name__
            self.configuration_flaw = text.removeprefix(f"{file}: ")

    @classmethod
    @contextmanager
    def enter(cls, path: str) -> Iterator[Premises]:
        """The store, locked.

        A store on a file system that takes no writes is not locked, as nobody can change it.

        Raises:
          StoreError: There is no store.
          BusyError: Somebody has it open for writing; the message names the process.
        """
        premises = cls(path)
        if not os.access(premises.path, os.W_OK):
            yield premises
            return
        lock = StoreLock(premises.path)
        try:
            yield premises
        finally:
            lock.release()

    # --- looking ---

    def unknown_names(self) -> list[str]:
        """What lies in the store's directory and is none of its parts."""
        return sorted(set(os.listdir(self.path)) - PARTS)

    def catalog_flaw(self) -> str | None:
        """Why there is nothing to open, or None."""
        try:
            status = os.stat(self.catalog)
        except FileNotFoundError:
            return "there is no catalog"
        return None if stat.S_ISREG(status.st_mode) else "the catalog is not a file"

    def tree(self) -> BalancedTree:
        """The blobs, for reading and for placing what was misplaced; the directory exists."""
        if self._tree is None:
            limit = DIR_LIMIT if self.configuration is None else self.configuration.dir_limit
            self._tree = BalancedTree(self.blobs, staging=self.staging, dir_limit=limit)
        return self._tree

    def blob_path(self, digest: Digest, level: int) -> str:
        """Where a blob of that level lies."""
        name = digest.name
        return "/".join((self.blobs, *name[:level], name))

    def staging_names(self) -> list[str]:
        """The files in staging, without those kept aside."""
        try:
            with os.scandir(self.staging) as entries:
                return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    # --- moving ---

    def set_aside(self, path: str) -> str:
        """Move a file out of the tree into `bad/`; returns its new path. Nothing happens if it is gone."""
        target = _move_into(path, self.bad)
        self._prune(os.path.dirname(path))
        return target

    def place(self, path: str, digest: Digest) -> None:
        """Move a misplaced file to where it belongs if it is what its name says, otherwise to `bad/`."""
        tree = self.tree()
        if _digest_of(path) != digest or tree.find(digest) is not None:
            self.set_aside(path)
        else:
            tree.publish(path, digest)
            self._prune(os.path.dirname(path))

    def protect(self, path: str) -> None:
        """Give a blob the mode of one."""
        os.chmod(path, BLOB_MODE)

    def clear_staged(self, name: str) -> None:
        """Keep a draft aside; anything else in staging is a half-written blob, and goes."""
        if inode_of_draft(name) is not None:
            _move_into(os.path.join(self.staging, name), os.path.join(self.staging, KEPT_NAME))
        else:
            self.delete_staged(name)

    def delete_staged(self, name: str) -> None:
        _ignoring_absence(os.unlink, os.path.join(self.staging, name))

    def _prune(self, directory: str) -> None:
        """Remove the directories of the tree that were emptied."""
        while directory.startswith(self.blobs + "/"):
            try:
                os.rmdir(directory)
            except OSError:
                return
            directory = os.path.dirname(directory)


def _move_into(path: str, directory: str) -> str:
    os.makedirs(directory, 0o700, exist_ok=True)
    target = base = os.path.join(directory, os.path.basename(path))
    number = 0
    while os.path.lexists(target):
        number += 1
        target = f"{base}.{number}"
    try:
        os.rename(path, target)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
    return target


def _ignoring_absence(operation: object, path: str) -> None:
    assert callable(operation)
    try:
        operation(path)
    except FileNotFoundError:
        pass


def _digest_of(path: str) -> Digest:
    from mountstore.care.rehash import read_hashes

    return read_hashes(path).digest
