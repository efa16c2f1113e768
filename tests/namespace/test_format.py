"""The worked examples of docs/format.md: what they say is what is decoded, and what would be written."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from mountstore.blobs.content import ContentKind
from mountstore.blobs.digest import Digest, checksum
from mountstore.blobs.refs import Ref, decode_ref, encode_ref
from mountstore.namespace.pages import (
    decode_histories,
    decode_index,
    decode_inodes,
    decode_leaf,
    decode_node,
    decode_root,
    encode_histories,
    encode_index,
    encode_inodes,
    encode_leaf,
    encode_node,
    encode_root,
)
from mountstore.store.config import parse_config

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
SNAPSHOTS = TEXT.split("\n## Snapshots")[1].split("\n## ")[0]
EXAMPLES = SNAPSHOTS.split("### Worked examples")[1]


def example(words: str) -> bytes:
    """The bytes in the block behind these words."""
    block = EXAMPLES.split(words)[1].split("```")[1]
    return bytes.fromhex("".join(re.findall(r"^([0-9a-f ]+?)(?:  .*)?$", block, re.MULTILINE)))


def test_the_inode_page() -> None:
    data = example("An inode page, 220 bytes")
    assert len(data) == 220
    directory, file = decode_inodes(data)
    assert (directory.number, directory.mode, directory.parent, directory.size) == (1, 0o40755, 1, 4096)
    assert isinstance(directory.listing, bytes)
    assert len(directory.listing) == 24
    (entry,) = decode_leaf(directory.listing)
    assert msgspec.structs.astuple(entry) == (b"greeting", 2, 3, 0)
    assert encode_leaf([entry]) == directory.listing
    assert (file.mode, file.uid, file.xattrs) == (0o100644, 1000, [(b"user.a", b"b")])
    assert file.content.kind is ContentKind.BLOB
    assert file.content.digest == Digest.of(b"hello\n")
    assert file.checksum == checksum(b"hello\n")
    assert encode_inodes([directory, file]) == data


def test_the_root_and_its_ref() -> None:
    page, data = example("An inode page, 220 bytes"), example("The root of that snapshot, 212 bytes")
    root = decode_root(data)
    assert root.inodes is not None
    assert (root.inodes.level, root.inodes.digest) == (0, Digest.of(page))
    assert (root.next_inode, root.next_cookie, root.inode_count, root.bytes) == (3, 4, 2, 6)
    assert encode_root(root) == data
    ref_text = SNAPSHOTS.split("### Refs")[1].split("```")[1].removeprefix("\n").encode()
    ref = decode_ref(ref_text, "first")
    assert ref == Ref("first", Digest.of(data), root.uuid, root.time_ns)
    assert encode_ref(ref) == ref_text


def test_the_node() -> None:
    data = example("A node of a map with two pages")
    node = decode_node(data)
    assert (node.level, node.slots) == (1, b"\x00\x04")
    assert node.child(1) == Digest.of(example("An inode page, 220 bytes"))
    assert encode_node(1, [(slot, node.child(i)) for i, slot in enumerate(node.slots)]) == data


def test_the_index() -> None:
    data = example("An index of a listing with two leaves")
    index = decode_index(data)
    assert (index.level, index.names) == (1, [b"a", b"name 77"])
    assert encode_index(1, [(name, index.child(i)) for i, name in enumerate(index.names)]) == data


def test_the_history_page() -> None:
    data = example("A history page with one history")
    (history,) = decode_histories(data)
    (row,) = history.rows
    assert (history.number, row.number, row.size) == (5, 1, 6)
    assert row.content.digest == Digest.of(b"hullo\n")
    assert encode_histories([history]) == data


def test_the_configuration() -> None:
    text = TEXT.split("### store.toml")[1].split("```")[1]
    config = parse_config(text, "docs/format.md")
    assert config.piece_max == 4 << 20
    assert config.versions.keep_last == 10
    assert config.snapshots.keep_hourly == 24
