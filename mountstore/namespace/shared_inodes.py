"""Inodes of a read-only mount: somebody else may change them at any time.

The row is the truth, and is read anew whenever an inode is asked for. The object stays the same while it is in
memory, since an open file counts its handles in it; it takes over what the row says.

Invariant: an inode that is open here and was removed by the writer keeps its content until it is closed, as far
as nobody collects its blobs.
"""

from __future__ import annotations

from mountstore.errors import StaleError
from mountstore.namespace.catalog import Catalog, InodeRow
from mountstore.namespace.inodes import Inode, InodeTable, from_row


class SharedInodeTable(InodeTable):
    """The inodes of a store that another process may be writing."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, views=0)
        self._rows: dict[int, InodeRow] = {}

    def get(self, inode_id: int, row: InodeRow | None = None) -> Inode:
        row = row or self._catalog.get_inode(inode_id)
        if row is not None:
            return self._updated(inode_id, row)
        known = self._young.get(inode_id) or self._old.get(inode_id)
        if known is None or known.handles == 0:
            raise StaleError(f"inode {inode_id} does not exist")
        return known

    def view_of(self, inode_id: int) -> None:
        """None: it may have changed."""

    def peek(self, inode_id: int, row: InodeRow | None) -> Inode:
        if row is None:
            return self.get(inode_id)
        if inode_id in self._young or inode_id in self._old:
            return self._updated(inode_id, row)
        return from_row(row)

    def _updated(self, inode_id: int, row: InodeRow) -> Inode:
        inode = self._young.get(inode_id) or self._old.pop(inode_id, None)
        if inode is None:
            inode = from_row(row)
        elif self._rows.get(inode_id) != row:
            content = inode.content
            inode.take_over(from_row(row))
            if inode.content != content and inode.reader is not None:
                inode.reader.close()
                inode.reader = None
        if len(self._rows) > 2 * self.in_memory() + 1024:
            self._rows = {key: value for key, value in self._rows.items() if key in self._young}
        self._rows[inode_id] = row
        self._keep(inode)
        return inode
