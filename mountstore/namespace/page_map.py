"""Maps from page numbers to pages: radix trees of fan-out 256, of which a change rewrites one path.

A map that has one page, of number 0, is the page itself (level 0). Else its root is a node of the least level n
for which every page number is below 256**n; slot s of a node of level n leads to the pages whose number has the
digit s (in base 256) at place n - 1. So equal maps are equal blobs, however they came about.

Everything blocks on the `Source` and `Put` it is given, and raises what they raise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError
from mountstore.namespace.pages import (
    NODE_SHIFT,
    UNREADABLE,
    Node,
    OnBad,
    Put,
    Reference,
    Source,
    decode_node,
    encode_node,
)

_SLOT_MASK = (1 << NODE_SHIFT) - 1


class MapEntry(NamedTuple):
    """Of a walk: a node (`page` is None), or a page with its number."""

    page: int | None
    digest: Digest


def find_page(source: Source, root: Reference | None, page: int) -> Digest | None:
    """The page of that number, or None."""
    if root is None or page >> NODE_SHIFT * root.level:
        return None
    digest = root.digest
    for level in range(root.level, 0, -1):
        node = load_node(source, digest, level)
        i = node.slots.find(page >> NODE_SHIFT * (level - 1) & _SLOT_MASK)
        if i < 0:
            return None
        digest = node.child(i)
    return digest


def walk(
    source: Source,
    root: Reference | None,
    skip: set[bytes] | None = None,
    on_bad: OnBad | None = None,
) -> Iterator[MapEntry]:
    """Every node before what lies below it, and every page, in ascending order of the numbers.

    Args:
      skip: SHA-256 of nodes and pages that are left out, with all below; what is yielded is added.
      on_bad: Told of nodes that cannot be read, whose pages are left out; default: the error is raised.
    """
    # Reversed, so that the first one is taken next.
    below = [] if root is None else [(root.level, root.digest, 0)]
    # What a node leads to says its number, so no node has two places: a few that all lead to one had no end.
    nodes: set[bytes] = set()
    while below:
        level, digest, prefix = below.pop()
        if skip is not None:
            if digest.sha256 in skip:
                continue
            skip.add(digest.sha256)
        if not level:
            yield MapEntry(prefix, digest)
            continue
        yield MapEntry(None, digest)
        try:
            if digest.sha256 in nodes:
                raise CorruptError(f"{digest.name}: a node that has two places in its map")
            nodes.add(digest.sha256)
            node = load_node(source, digest, level)
        except UNREADABLE as exc:
            if on_bad is None:
                raise
            on_bad(exc)
            continue
        below += [
            (level - 1, node.child(i), prefix << NODE_SHIFT | node.slots[i])
            for i in reversed(range(len(node.slots)))
        ]


def update_map(
    source: Source, put: Put, root: Reference | None, changes: Mapping[int, Digest | None]
) -> Reference | None:
    """The map with the pages in `changes` put in, replaced, or (None) left out."""
    if not changes:
        return root
    level = 0 if root is None else root.level
    while max(changes) >> NODE_SHIFT * level:
        level += 1
    top = root
    if root is not None and level > root.level:
        # What is there becomes the first child of the first child ...
        digest = root.digest
        for above in range(root.level + 1, level + 1):
            digest = put(encode_node(above, [(0, digest)]))
        top = Reference.to(level, digest)
    new = _updated(source, put, level, None if top is None else top.digest, sorted(changes.items()))
    while new is not None and level:
        node = load_node(source, new, level)
        if node.slots != b"\0":
            break
        new = node.child(0)
        level -= 1
    return None if new is None else Reference.to(level, new)


def _updated(
    source: Source, put: Put, level: int, old: Digest | None, changes: list[tuple[int, Digest | None]]
) -> Digest | None:
    if not level:
        return changes[-1][1]
    children: dict[int, Digest | None] = {}
    if old is not None:
        node = load_node(source, old, level)
        children = {slot: node.child(i) for i, slot in enumerate(node.slots)}
    shift = NODE_SHIFT * (level - 1)
    start = 0
    while start < len(changes):
        slot = changes[start][0] >> shift & _SLOT_MASK
        end = start
        while end < len(changes) and changes[end][0] >> shift & _SLOT_MASK == slot:
            end += 1
        children[slot] = _updated(source, put, level - 1, children.get(slot), changes[start:end])
        start = end
    left = [(slot, digest) for slot, digest in sorted(children.items()) if digest is not None]
    return put(encode_node(level, left)) if left else None


def load_node(source: Source, digest: Digest, level: int) -> Node:
    """The node, which has to be of that level."""
    node = source.load(digest, decode_node)
    if node.level != level:
        raise CorruptError(f"{digest.name}: a map node of level {node.level} instead of {level}")
    return node
