"""Checks of histories: rows that cannot be, circles, histories of nothing. Lost blobs: `check_contents`."""

from __future__ import annotations

from functools import partial

from mountstore.care.check_namespace import show
from mountstore.care.findings import Change, Findings, Kind
from mountstore.namespace.audit import Audit


def check_versions(audit: Audit, findings: Findings) -> None:
    """Compare histories with themselves, and with inodes and names; `prepare_names` was called."""
    rows = list(audit.invalid_version_rows())
    for history, number, kind in rows:
        what = f"version {number} of history {history} (kind {kind}) cannot be what it says"
        _add_invalid(findings, history, number, what)
    if not rows:
        # Only then splices lead somewhere.
        for history, number in audit.endless_splices():
            what = f"versions from {number} of history {history} on show each other, without an end"
            _add_invalid(findings, history, number, what)
    for inode in audit.stray_inode_histories():
        findings.add(
            Kind.HISTORY_STRAY,
            f"inode {inode} does not exist or has a history without versions",
            Change("forget it", catalog=partial(Audit.remove_inode_history, inode=inode)),
        )
    for parent, name in audit.stray_name_histories():
        findings.add(
            Kind.HISTORY_STRAY,
            f"{show(audit.path_of(parent, name))} has a history without versions",
            Change("forget it", catalog=partial(Audit.remove_name_history, parent=parent, name=name)),
        )


def _add_invalid(findings: Findings, history: int, number: int, what: str) -> None:
    findings.add(
        Kind.HISTORY_INVALID,
        what,
        Change(
            "drop it; the others keep their numbers",
            automatic=False,
            catalog=partial(Audit.drop_version, history=history, number=number),
        ),
    )
