"""Snapshots against the tree: is each ref one, and is everything there that it leads to?

Pages are read once, in however many snapshots they are, and checked by their SHA-256; of listings the leaves, and
of files the contents, are looked for by name and size, and read by a full check as all other blobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Final

from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import REFS_NAME, Ref, read_refs
from mountstore.care.findings import Change, Findings, Kind
from mountstore.care.premises import Premises
from mountstore.care.snapshot_tree import SnapshotTree
from mountstore.errors import MisuseError
from mountstore.namespace.audit import Audit
from mountstore.namespace.pages import UNREADABLE
from mountstore.namespace.stale import BASE_KEY, SNAPSHOT_KEY
from mountstore.store.lineage import lineage_flaw

_BATCH: Final = 10_000
_HINT: Final = "it can be deleted (casctl snapshot-delete); other snapshots are not concerned"


def survey_snapshots(premises: Premises, audit: Audit, findings: Findings) -> list[Ref]:
    """Tell `audit` what the snapshots need, and `findings` which cannot be read; the tree was surveyed.

    Returns: Those that can be read.
    """
    for name in _unfinished(premises):
        findings.add(
            Kind.STAGING_LEFTOVER,
            f"{REFS_NAME}/{name} is a ref that was not finished",
            Change("delete it", files=partial(_delete_ref, name=name)),
        )
    try:
        refs, bad = read_refs(premises.blobs)
    except OSError as exc:
        findings.add(Kind.UNREADABLE, f"{os.path.join(premises.blobs, REFS_NAME)}: {exc.strerror or exc}")
        return []
    noted_ns = audit.meta(SNAPSHOT_KEY)
    if not refs and not bad and isinstance(noted_ns, int) and noted_ns > 0:
        findings.add(
            Kind.SNAPSHOT_NONE,
            "there is none any more: should the catalog be lost, nothing says which blobs are what; the next mount"
            " takes one, and so does casctl snapshot",
        )
    if premises.configuration is not None:
        flaw = lineage_flaw(audit.meta, premises.configuration.uuid, refs)
        if flaw is not None:
            findings.add(Kind.CATALOG_OUTDATED, flaw)
    for name, error in bad:
        findings.add(
            Kind.SNAPSHOT_LOST,
            error,
            Change("move it to bad/", automatic=False, files=partial(_set_ref_aside, name=name)),
        )
    readable = []
    walked: set[bytes] = set()
    for ref in refs:
        try:
            contents = _needs(premises, ref.root, walked)
            while batch := list(islice(contents, _BATCH)):
                audit.add_snapshot_contents(batch)
        except UNREADABLE as exc:
            # What lies below what cannot be read was not walked.
            walked = set()
            findings.add(Kind.SNAPSHOT_LOST, f"snapshot {ref.name} cannot be read: {exc}; {_HINT}")
        else:
            readable.append(ref)
    _add_base(premises, audit)
    return readable


def check_snapshots(premises: Premises, audit: Audit, findings: Findings, refs: list[Ref]) -> None:
    """Say of which snapshots something is missing; `read_manifests` was called."""
    lost = audit.lost_snapshot_contents()
    if not lost:
        return
    for ref in refs:
        missing = {digest for _, digest in _needs(premises, ref.root, None) if digest in lost}
        if missing:
            first = min(missing)
            findings.add(
                Kind.SNAPSHOT_LOST,
                f"snapshot {ref.name}: {len(missing)} of its contents are missing or damaged ({first.name});"
                f" all else can be read, and {_HINT}",
            )


def _needs(premises: Premises, root: Digest, walked: set[bytes] | None) -> Iterator[tuple[int, Digest]]:
    for content in SnapshotTree(premises.tree(), root).references(walked):
        if content.digest is not None:
            yield int(content.kind), content.digest


def _add_base(premises: Premises, audit: Audit) -> None:
    """What the next snapshot is built on is no garbage. If it cannot be read, the next one is written whole."""
    name = audit.meta(BASE_KEY)
    if not isinstance(name, str):
        return
    try:
        audit.add_references(SnapshotTree(premises.tree(), Digest.parse(name)).pages())
    except (*UNREADABLE, MisuseError):
        pass


def _unfinished(premises: Premises) -> list[str]:
    try:
        names = os.listdir(os.path.join(premises.blobs, REFS_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name.startswith(".") and name.endswith(".tmp"))


def _delete_ref(premises: Premises, name: str) -> None:
    try:
        os.unlink(os.path.join(premises.blobs, REFS_NAME, name))
    except FileNotFoundError:
        pass


def _set_ref_aside(premises: Premises, name: str) -> None:
    premises.set_aside(os.path.join(premises.blobs, REFS_NAME, name))
