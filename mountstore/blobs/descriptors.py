"""Open descriptors of blobs, kept so that a read does not look a blob up again.

1. A descriptor in use is never closed.
2. At most `limit` idle ones are kept, the least recently used go first.
3. Running out of descriptors, here or in the whole process, costs the idle ones and then a second attempt.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mountstore.blobs.digest import Digest
from mountstore.blobs.tree import BalancedTree
from mountstore.errors import MountstoreError

__all__ = ["Descriptor", "DescriptorCache"]

_IDLE_MAX: Final = 1024


class Descriptor:
    """A blob open for reading, from `DescriptorCache.acquire` until `release`."""

    __slots__ = ("digest", "fd", "users")

    def __init__(self, digest: Digest, fd: int) -> None:
        self.digest = digest
        self.fd = fd
        self.users = 1


class DescriptorCache:
    """Open blobs by digest. Any thread.

    Args:
        limit: How many to keep open while nobody uses them; by default 1024, which is a GiB of usual pieces, or a
            quarter of what the process may have open.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            limit = _IDLE_MAX if allowed == resource.RLIM_INFINITY else min(_IDLE_MAX, allowed // 4)
        self._limit = limit
        self._lock = threading.Lock()
        self._used: dict[Digest, Descriptor] = {}
        self._idle: OrderedDict[Digest, Descriptor] = OrderedDict()
        # How often something was forgotten.
        self._forgotten = 0

    def __del__(self) -> None:
        self.close_idle()

    def __len__(self) -> int:
        """How many descriptors are open."""
        return len(self._used) + len(self._idle)

    def acquire(self, tree: BalancedTree, digest: Digest) -> Descriptor:
        """The open blob, to be given back with `release`. May block for a look-up of its name.

        Raises:
            BlobMissingError, CorruptError, OSError: As `BalancedTree.open`.
        """
        while True:
            with self._lock:
                found = self._find(digest)
                forgotten = self._forgotten
            if found is not None:
                return found
            fd = self._open(tree, digest)
            with self._lock:
                found = self._find(digest)
                # If the file was replaced meanwhile, this may still be the old one.
                if found is None and forgotten == self._forgotten:
                    found = self._used[digest] = Descriptor(digest, fd)
                    return found
            os.close(fd)
            if found is not None:
                return found

    def _open(self, tree: BalancedTree, digest: Digest) -> int:
        try:
            return tree.open(digest)
        except MountstoreError:
            raise
        except OSError:
            # Most likely EMFILE or ENFILE; whatever it was, the second attempt tells.
            if not self.close_idle():
                raise
            return tree.open(digest)

    def release(self, descriptor: Descriptor) -> None:
        with self._lock:
            descriptor.users -= 1
            if descriptor.users:
                return
            if self._used.get(descriptor.digest) is descriptor:
                del self._used[descriptor.digest]
                self._idle[descriptor.digest] = descriptor
                if len(self._idle) <= self._limit:
                    return
                _, descriptor = self._idle.popitem(last=False)
        os.close(descriptor.fd)

    def fetch(self, tree: BalancedTree, digest: Digest) -> None:
        """Have the kernel read the blob, which is going to be asked for. Only an advice: what is wrong is left for
        the one who asks."""
        self._advise(tree, digest, _fetch)

    def fetch_cold(self, tree: BalancedTree, digest: Digest) -> bool:
        """`fetch` it unless the kernel has it; return whether it had not, as far as its beginning tells."""
        return self._advise(tree, digest, _fetch_cold)

    def _advise(self, tree: BalancedTree, digest: Digest, advise: Callable[[int], bool]) -> bool:
        try:
            descriptor = self.acquire(tree, digest)
            try:
                return advise(descriptor.fd)
            finally:
                self.release(descriptor)
        except (MountstoreError, OSError):
            return True

    def forget(self, digest: Digest) -> None:
        """Open the blob anew next time: the file of that name was replaced."""
        with self._lock:
            self._forgotten += 1
            self._used.pop(digest, None)
            descriptor = self._idle.pop(digest, None)
        if descriptor is not None:
            os.close(descriptor.fd)

    def close_idle(self) -> int:
        """Close what nobody uses; how many that were. At the end of a mount that is all."""
        with self._lock:
            idle = list(self._idle.values())
            self._idle.clear()
        for descriptor in idle:
            os.close(descriptor.fd)
        return len(idle)

    def _find(self, digest: Digest) -> Descriptor | None:
        found = self._used.get(digest)
        if found is None:
            found = self._idle.pop(digest, None)
            if found is None:
                return None
            self._used[digest] = found
        found.users += 1
        return found


def _fetch(fd: int) -> bool:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    return True


def _fetch_cold(fd: int) -> bool:
    return not _begins_in_cache(fd) and _fetch(fd)


def _begins_in_cache(fd: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT) == 1
    except OSError:
        # Not there, or not supported by this file system.
        return False
