"""One pass over the balanced tree: which blobs are there, and what is there that should not be.

Only names, sizes and modes are looked at. See docs/format.md, "Blobs and the balanced tree".
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import Final

from mountstore.blobs.digest import Digest
from mountstore.blobs.refs import REFS_NAME
from mountstore.blobs.staging import BLOB_MODE
from mountstore.blobs.tree import LEVELS_MAX
from mountstore.care.findings import Change, Findings, Kind
from mountstore.care.premises import Premises
from mountstore.errors import MisuseError
from mountstore.namespace.audit import Audit

_HEX: Final = frozenset("0123456789abcdef")
_BATCH: Final = 10_000

_Row = tuple[bytes, int, int, bool]


def survey_tree(premises: Premises, audit: Audit, findings: Findings) -> None:
    """Tell `audit` every blob in the tree, and `findings` what is wrong with names, places, sizes and modes.

    Never raises for what the tree holds; a directory that cannot be read is a finding.
    """
    audit.begin_survey()
    if not os.path.isdir(premises.blobs):
        findings.add(
            Kind.TREE_MISSING,
            f"{premises.blobs} is not there: no content can be read. If it is a file system of its own,"
            " mount it",
        )
        return
    surveyor = _Surveyor(premises, findings)
    below = [""]
    rows: list[_Row] = []
    while below:
        prefix = below.pop()
        directory = "/".join((premises.blobs, *prefix))
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name = entry.name
                    if len(name) == 1 and name in _HEX and len(prefix) < LEVELS_MAX:
                        if entry.is_dir(follow_symlinks=False):
                            below.append(prefix + name)
                        else:
                            surveyor.foreign(entry.path)
                    elif prefix or not (name == REFS_NAME or name.startswith(".")):
                        row = surveyor.look(entry, prefix)
                        if row is not None:
                            rows.append(row)
        except OSError as exc:
            findings.add(Kind.UNREADABLE, f"{directory}: {exc.strerror or exc}")
        if len(rows) >= _BATCH:
            audit.add_files(rows)
            rows = []
    audit.add_files(rows)


class _Surveyor:
    def __init__(self, premises: Premises, findings: Findings) -> None:
        self._premises = premises
        self._findings = findings

    def foreign(self, path: str) -> None:
        self._findings.add(Kind.FOREIGN, f"{path} is not part of the tree; it is left alone")

    def look(self, entry: os.DirEntry[str], prefix: str) -> _Row | None:
        """The row of a blob at its place."""
        name = entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        try:
            digest = Digest.parse(name)
        except MisuseError:
            digest = None
        if digest is None or not stat.S_ISREG(status.st_mode):
            self.foreign(entry.path)
            return None
        if not prefix or not name.startswith(prefix):
            self._misplaced(entry.path, digest)
            return None
        whole = status.st_size == digest.size_bytes
        if not whole:
            self._findings.add(
                Kind.BLOB_DAMAGED,
                f"{entry.path} has {status.st_size} bytes instead of {digest.size_bytes}",
                aside(entry.path, digest),
            )
        elif stat.S_IMODE(status.st_mode) != BLOB_MODE:
            self._findings.add(
                Kind.BLOB_MODE,
                f"{entry.path} has mode {stat.S_IMODE(status.st_mode):04o}",
                Change(f"give it mode {BLOB_MODE:04o}", files=partial(_protect, path=entry.path)),
            )
        return digest.sha256, digest.size_bytes, len(prefix), whole

    def _misplaced(self, path: str, digest: Digest) -> None:
        self._findings.add(
            Kind.BLOB_MISPLACED,
            f"{path} is in a directory where it is not looked for",
            Change(
                "move it to its place if its bytes are those of its name, otherwise to bad/",
                files=partial(_place, path=path, digest=digest),
            ),
        )


def aside(path: str, digest: Digest) -> Change:
    """Move a damaged blob away and forget it, so that the same content written again heals what needs it."""
    return Change(
        "move it to bad/; written again, the same content takes its place",
        catalog=partial(_forget, digest=digest),
        files=partial(_set_aside, path=path),
    )


def _forget(audit: Audit, digest: Digest) -> None:
    if not audit.levels_of(digest):
        audit.remove_blob_row(*digest)


def _set_aside(premises: Premises, path: str) -> None:
    premises.set_aside(path)


def _protect(premises: Premises, path: str) -> None:
    premises.protect(path)


def _place(premises: Premises, path: str, digest: Digest) -> None:
    premises.place(path, digest)
