"""`store.toml`: what a store was made with, and which versions and snapshots it keeps; see docs/format.md."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Final

import msgspec

from mountstore.blobs.chunking import DEFAULT_PARAMETERS, ChunkingParameters
from mountstore.blobs.flush import fsync_path
from mountstore.blobs.opening import open_fresh, read_limited
from mountstore.blobs.refs import has_refs
from mountstore.blobs.tree import DIR_LIMIT
from mountstore.errors import StoreError
from mountstore.namespace.policy import Policy
from mountstore.namespace.snapshot_policy import SnapshotPolicy
from mountstore.store.layout import BLOBS_NAME, CATALOG_NAME, CONFIG_NAME, NEW_SUFFIX

__all__ = ["STORE_FORMAT", "StoreConfig", "config_text", "is_uuid", "parse_config", "read_config", "write_config"]

STORE_FORMAT: Final = 1

_SIZE_LIMIT: Final = 1 << 20

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def is_uuid(text: str) -> bool:
    """Whether refs of snapshots can say that this is the store's uuid."""
    return _UUID.fullmatch(text) is not None


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`store.toml`; see docs/format.md."""

    format: int
    uuid: str
    dir_limit: int = DIR_LIMIT
    piece_min: int = DEFAULT_PARAMETERS.min_size
    piece_avg: int = DEFAULT_PARAMETERS.avg_size
    piece_max: int = DEFAULT_PARAMETERS.max_size
    hole_min: int = DEFAULT_PARAMETERS.hole_min
    versions: Policy = Policy()
    snapshots: SnapshotPolicy = SnapshotPolicy()

    def chunking(self) -> ChunkingParameters:
        return ChunkingParameters(
            min_size=self.piece_min,
            avg_size=self.piece_avg,
            max_size=self.piece_max,
            piece_max=self.piece_max,
            hole_min=self.hole_min,
        )


def config_text(config: StoreConfig) -> str:
    """What `store.toml` has to say for this configuration."""
    lines = ["# A store of mountstore. The pieces' sizes decide how files are cut: never change them.\n"]
    fields = msgspec.to_builtins(config)
    tables = {key: fields.pop(key) for key in ("versions", "snapshots")}
    lines += _assignments(fields)
    lines.append("\n# Which old versions garbage collection keeps; without a line the value shown is meant.\n")
    lines += _table("versions", tables["versions"], Policy())
    lines.append("\n# How many automatic snapshots are kept: the last of so many hours, days and months.\n")
    lines += _table("snapshots", tables["snapshots"], SnapshotPolicy())
    return "".join(lines)


def _table(name: str, fields: dict[str, object], usual: msgspec.Struct) -> list[str]:
    """A table of TOML in which what is as usual is a comment."""
    known = _assignments(msgspec.to_builtins(usual))
    return [f"[{name}]\n", *(f"# {line}" if line in known else line for line in _assignments(fields))]


def write_config(path: str, text: str) -> None:
    """Put `store.toml` into the store at `path`, in one step, so that it survives power loss."""
    target = os.path.join(path, CONFIG_NAME)
    with open(open_fresh(target + NEW_SUFFIX, 0o666), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(target + NEW_SUFFIX, target)
    fsync_path(path, os.O_DIRECTORY)


def _assignments(fields: dict[str, object]) -> list[str]:
    """Fields as lines of TOML."""
    lines = []
    for key, value in fields.items():
        text = f'"{value}"' if isinstance(value, str) else str(value)
        lines.append(f"{key} = {text.lower() if isinstance(value, bool) else text}\n")
    return lines


def read_config(path: str) -> StoreConfig:
    """The configuration of the store at `path`.

    Raises:
      StoreError: Not a store, one of another format, or a configuration that cannot be used.
      OSError: It cannot be read.
    """
    file = os.path.join(path, CONFIG_NAME)
    try:
        text = read_limited(file, _SIZE_LIMIT, follow=True).decode()
    except FileNotFoundError:
        raise StoreError(f"{path}: is not a store (no {CONFIG_NAME}); {_advice(path)}") from None
    except UnicodeDecodeError as exc:
        raise StoreError(f"{file}: cannot be read: {exc}") from exc
    return parse_config(text, file)


def _advice(path: str) -> str:
    """What to do with a directory that has no `store.toml`."""
    if has_refs(path):
        return f"but the blobs of one: they belong into a directory {BLOBS_NAME}, above which it can be mounted"
    if os.path.lexists(os.path.join(path, CATALOG_NAME)):
        return (
            "bring that back from a copy, or write it anew (docs/format.md); if neither can be done,"
            " fsck.cas --rebuild makes it, and a new catalog, from the newest snapshot"
        )
    return "mkfs.cas makes one"


def parse_config(text: str, file: str) -> StoreConfig:
    """The configuration in the text of a `store.toml`; `file` says in errors where it was found.

    Raises:
      StoreError: Of another format, or it cannot be used.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise StoreError(f"{file}: cannot be read: {exc}") from exc
    if raw.get("format") != STORE_FORMAT:
        raise StoreError(
            f"{file}: store format {raw.get('format')!r}, this release reads {STORE_FORMAT};"
            " use the release that wrote it"
        )
    try:
        config = msgspec.convert(raw, StoreConfig)
        config.chunking()
        if not is_uuid(config.uuid):
            raise ValueError(f"uuid must be one, as in 8a3d4c2e-5d6f-4b1a-9c7e-0f1e2d3c4b5a, not {config.uuid!r}")
        if config.dir_limit < 1:
            raise ValueError(f"dir_limit must be 1 or more, not {config.dir_limit}")
    except Exception as exc:
        raise StoreError(f"{file}: {exc}") from exc
    return config
