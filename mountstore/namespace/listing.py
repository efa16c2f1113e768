"""Listings: the names of a directory in byte order, cut into leaves at places that the names alone decide.

A name begins a new leaf if the lowest 8 bits of its hash (XXH3-64) are zero; the leaf that it begins also begins a
new index node of level n if the lowest 8 (n + 1) bits are. So equal listings are equal blobs, however they came
about; a name that comes or goes concerns one leaf (or two that it parts) and one index node of each level; and a
leaf has 256 names on average. A listing of one small leaf stands in the directory's record.

Everything blocks on the `Source` and `Put` it is given, and raises what they raise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from mountstore.blobs.digest import Digest
from mountstore.errors import CorruptError
from mountstore.namespace.pages import (
    INLINE_LISTING_MAX,
    LISTING_LEVELS_MAX,
    UNREADABLE,
    Index,
    ListingEntry,
    OnBad,
    Put,
    Reference,
    Source,
    decode_index,
    decode_leaf,
    encode_index,
    encode_leaf,
)

_LEVEL_BITS: Final = 8

Place = Reference | bytes | None
"""Where a listing stands: see `InodeRecord.listing`."""

_Below = tuple[int, Digest, bytes | None]
"""A node or leaf still to be read: level, digest, and its first name if that is known."""

ReadRange = Callable[[bytes, bytes | None], Iterable[ListingEntry]]
"""The entries as they are now from a name up to, not including, another (None: to the end), in order."""


def begins(name: bytes, level: int) -> bool:
    """Whether `name` begins a leaf (level 0) or an index node (above) wherever it stands."""
    return xxh3_64_intdigest(name) & ((1 << _LEVEL_BITS * (level + 1)) - 1) == 0


# --- writing ---


def write_listing(put: Put, entries: Iterable[ListingEntry]) -> Place:
    """Store a listing of entries in ascending order of the names."""
    leaves = [(leaf[0].name, encode_leaf(leaf)) for leaf in _leaves(entries)]
    if len(leaves) == 1 and len(leaves[0][1]) <= INLINE_LISTING_MAX:
        return leaves[0][1]
    return _with_indexes(put, [(name, put(data)) for name, data in leaves])


def update_listing(
    source: Source, put: Put, place: Place, changed: Sequence[bytes], read_range: ReadRange
) -> Place:
    """The listing with the entries of some names as they are now.

    Args:
      changed: Every name that came, went or changed since `place`, in ascending order; more do no harm.
      read_range: Is asked for the stretches between leaves that have none of these names.
    """
    old = _leaf_references(source, place)
    if not old:
        return write_listing(put, read_range(b"", None))
    firsts = [name for name, _ in old]
    touched: set[int] = set()
    for name in changed:
        i = max(bisect_right(firsts, name) - 1, 0)
        touched.add(i)
        # A leaf whose first name goes is joined to the one before.
        while i and firsts[i] == name:
            i -= 1
            touched.add(i)
    new: list[tuple[bytes, Digest | bytes]] = []
    i = 0
    while i < len(old):
        if i not in touched:
            new.append(old[i])
            i += 1
            continue
        low = firsts[i] if i else b""
        while i < len(old) and i in touched:
            i += 1
        high = firsts[i] if i < len(old) else None
        new += [(leaf[0].name, encode_leaf(leaf)) for leaf in _leaves(read_range(low, high))]
    if len(new) == 1 and isinstance(new[0][1], bytes) and len(new[0][1]) <= INLINE_LISTING_MAX:
        return new[0][1]
    return _with_indexes(put, [(name, put(leaf) if isinstance(leaf, bytes) else leaf) for name, leaf in new])


def _leaves(entries: Iterable[ListingEntry]) -> Iterator[list[ListingEntry]]:
    leaf: list[ListingEntry] = []
    for entry in entries:
        if leaf and begins(entry.name, 0):
            yield leaf
            leaf = []
        leaf.append(entry)
    if leaf:
        yield leaf


def _with_indexes(put: Put, nodes: list[tuple[bytes, Digest]]) -> Reference | None:
    """Lead to leaves, or index nodes, by as many levels as it takes to have one on top."""
    if not nodes:
        return None
    level = 0
    while len(nodes) > 1:
        level += 1
        above: list[tuple[bytes, Digest]] = []
        start = 0
        for i in range(1, len(nodes) + 1):
            if i == len(nodes) or (begins(nodes[i][0], level) and level < LISTING_LEVELS_MAX):
                above.append((nodes[start][0], put(encode_index(level, nodes[start:i]))))
                start = i
        nodes = above
    return Reference.to(level, nodes[0][1])


def _leaf_references(source: Source, place: Place) -> list[tuple[bytes, Digest | bytes]]:
    """First name and digest (or bytes) of every leaf."""
    if place is None:
        return []
    if isinstance(place, bytes):
        return [(decode_leaf(place)[0].name, place)]
    if not place.level:
        return [(source.load(place.digest, decode_leaf)[0].name, place.digest)]
    found: list[tuple[bytes, Digest | bytes]] = []
    below: list[_Below] = [(place.level, place.digest, None)]
    while below:
        level, digest, first = below.pop()
        index = load_index(source, digest, level, first)
        if level == 1:
            found += [(name, index.child(i)) for i, name in enumerate(index.names)]
        else:
            below += _children(index)
    return found


# --- reading ---


def lookup(source: Source, place: Place, name: bytes) -> ListingEntry | None:
    """The entry of a name."""
    leaf = _leaf_for(source, place, name)
    i = bisect_right(leaf, name, key=_name_of)
    return leaf[i - 1] if i and leaf[i - 1].name == name else None


def entries(
    source: Source, place: Place, after: bytes = b"", on_bad: OnBad | None = None
) -> Iterator[ListingEntry]:
    """Every entry whose name is beyond `after`, in order; one leaf at a time is in memory.

    Args:
      on_bad: Told of leaves and index nodes that cannot be read, whose names are left out; default: the error is
        raised.
    """
    below: list[_Below | bytes] = []
    if isinstance(place, Reference):
        below.append((place.level, place.digest, None))
    elif place is not None:
        below.append(place)
    last = b""
    while below:
        where = below.pop()
        try:
            if isinstance(where, bytes):
                leaf = decode_leaf(where)
            elif where[0]:
                level, digest, first = where
                index = load_index(source, digest, level, first)
                below += _children(index, max(bisect_right(index.names, after) - 1, 0))
                continue
            else:
                _, digest, first = where
                leaf = source.load(digest, decode_leaf)
                _require_first(digest, leaf[0].name, first)
            if leaf[0].name <= last:
                raise CorruptError(f"a listing in which {leaf[0].name!r} follows {last!r}")
            last = leaf[-1].name
        except UNREADABLE as exc:
            if on_bad is None:
                raise
            on_bad(exc)
            continue
        for entry in leaf:
            if entry.name > after:
                yield entry


def objects(
    source: Source, place: Place, skip: set[bytes] | None = None, on_bad: OnBad | None = None
) -> Iterator[Digest]:
    """Every blob a listing is made of, index nodes before what is below them.

    Args:
      skip: SHA-256 of what is left out, with all below; what is yielded is added.
      on_bad: As for `entries`, of index nodes; leaves are not read.
    """
    if not isinstance(place, Reference):
        return
    below: list[_Below] = [(place.level, place.digest, None)]
    while below:
        level, digest, first = below.pop()
        if skip is not None:
            if digest.sha256 in skip:
                continue
            skip.add(digest.sha256)
        yield digest
        if level:
            try:
                below += _children(load_index(source, digest, level, first))
            except UNREADABLE as exc:
                if on_bad is None:
                    raise
                on_bad(exc)


def _leaf_for(source: Source, place: Place, name: bytes) -> list[ListingEntry]:
    """The leaf in which a name would be."""
    if place is None:
        return []
    if isinstance(place, bytes):
        return decode_leaf(place)
    digest = place.digest
    for level in range(place.level, 0, -1):
        index = load_index(source, digest, level)
        digest = index.child(max(bisect_right(index.names, name) - 1, 0))
    return source.load(digest, decode_leaf)


def load_index(source: Source, digest: Digest, level: int, first: bytes | None = None) -> Index:
    """The index node, which has to be of that level, and to begin with that name if it is given."""
    index = source.load(digest, decode_index)
    if index.level != level:
        raise CorruptError(f"{digest.name}: a listing index of level {index.level} instead of {level}")
    _require_first(digest, index.names[0], first)
    return index


def _require_first(digest: Digest, found: bytes, expected: bytes | None) -> None:
    # So no node is found in two places: ten of them, each with 200 names for the next, would have no end.
    if expected is not None and found != expected:
        raise CorruptError(f"{digest.name}: a listing that begins with {found!r} instead of {expected!r}")


def _children(index: Index, begin: int = 0) -> list[_Below]:
    """Those from a number on, in reverse: the first one is taken next."""
    return [
        (index.level - 1, index.child(i), index.names[i]) for i in reversed(range(begin, len(index.names)))
    ]


def _name_of(entry: ListingEntry) -> bytes:
    return entry.name
