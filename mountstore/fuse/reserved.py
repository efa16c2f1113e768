"""Names in directories of the store that stand for something virtual, or for nothing at all."""

from __future__ import annotations

import errno
import logging
import os

from pyfuse3 import FUSEError

from mountstore.fuse.virtual import VIRTUAL
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.limbo import LIMBO

__all__ = ["ReservedNames"]

log = logging.getLogger(__name__)


class ReservedNames:
    """The names of one mount that no entry can be reached by.

    Args:
      versions: Of the version directory in every directory; None for none.
      control: Of the control directory in the root; None for none.

    Attributes, for handlers that cannot spare a call:
      versions: As given; empty, as no name is, for none.
      everywhere: What no directory lists.
      in_root: What the root directory does not list.
      shadowed_reported: Whether it was said that an entry has such a name.
    """

    def __init__(self, versions: bytes | None, control: bytes | None) -> None:
        self.versions = versions or b""
        self.everywhere = frozenset({self.versions})
        self.in_root = self.everywhere | {LIMBO} | ({control} if control is not None else set())
        self.shadowed_reported = False

    def is_reserved(self, parent: int, name: bytes) -> bool:
        """Whether a name in a directory of the store stands for something virtual, or hidden."""
        return name in self.in_root and (parent == ROOT or name == self.versions)

    def require_real(self, parent: int, name: bytes, *, made: bool = False) -> None:
        """Whatever is virtual is read-only, also for root, and its name is taken.

        Raises:
          FUSEError: EROFS, or EEXIST for a reserved name of what is to be `made`.
        """
        if parent >= VIRTUAL:
            raise FUSEError(errno.EROFS)
        if self.is_reserved(parent, name):
            raise FUSEError(errno.EEXIST if made else errno.EROFS)

    def report_shadowed(self, parent: int, name: bytes) -> None:
        """Say once that something in the store has the name of a virtual directory."""
        if not self.shadowed_reported:
            self.shadowed_reported = True
            what = "versions" if name == self.versions else "control"
            log.warning(
                "inode %d has an entry %s, which the %s directory of that name hides;"
                " mount with %s=OTHERNAME to get at it",
                parent,
                os.fsdecode(name),
                what.removesuffix("s"),
                what,
            )
