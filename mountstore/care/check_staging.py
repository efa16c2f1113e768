"""Drafts and what lies in staging: does each recorded draft have its file, and is there nothing else?"""

from __future__ import annotations

import stat
from functools import partial

from mountstore.care.findings import Change, Findings, Kind
from mountstore.care.premises import Premises
from mountstore.errors import CorruptError
from mountstore.namespace.audit import Audit, DraftFacts
from mountstore.namespace.catalog import lies_in_staging
from mountstore.namespace.draft_record import decode, dirty_ranges
from mountstore.namespace.drafts import inode_of_draft
from mountstore.namespace.inodes import TYPE_BITS


def check_staging(premises: Premises, audit: Audit, findings: Findings) -> int:
    """Compare staging with the drafts that the catalog records; returns how many are sound."""
    names = set(premises.staging_names())
    sound = 0
    changed = audit.staging_with_changes()
    for draft in audit.drafts():
        flaw = _flaw(draft, names, changed)
        if flaw is None:
            sound += 1
        else:
            present = draft.staging in names
            words = "let go of the record" + ("; the file is kept in staging/kept" if present else "")
            findings.add(
                Kind.DRAFT_LOST,
                f"the draft of inode {draft.inode} ({draft.size} bytes, {draft.staging!r}) {flaw}",
                Change(
                    words,
                    catalog=partial(Audit.remove_draft, inode=draft.inode),
                    files=partial(_clear, name=draft.staging) if present else None,
                ),
            )
        names.discard(draft.staging)
    names -= audit.staging_names()
    for name in sorted(names):
        inode = inode_of_draft(name)
        if inode is None or audit.was_removed(inode):
            owner = "a removed file's" if inode is not None else "nobody's"
            change = Change("delete it", files=partial(_delete, name=name))
        else:
            owner = "nobody's"
            change = Change("keep it aside in staging/kept", files=partial(_clear, name=name))
        findings.add(Kind.STAGING_LEFTOVER, f"{name} in staging is {owner}", change)
    return sound


def _flaw(draft: DraftFacts, names: set[str], changed: set[str]) -> str | None:
    if draft.mode is None:
        return "belongs to no inode"
    if draft.mode & TYPE_BITS != stat.S_IFREG:
        return "belongs to something that is no regular file"
    if not lies_in_staging(draft.staging):
        return "has no file that could lie in staging"
    if draft.size < 0 or draft.base_limit < 0:
        return "has an impossible size"
    try:
        ranges = dirty_ranges(decode(draft.dirty))
    except CorruptError:
        return "has an unreadable list of extents"
    if draft.staging not in names and (ranges or draft.staging not in changed):
        return "has no file in staging: what it held is lost"
    last = 0
    for start, end in ranges:
        if not last <= start < end <= max(draft.size, end if start < draft.size else 0):
            return "has an impossible list of extents"
        last = end
    return None


def _delete(premises: Premises, name: str) -> None:
    premises.delete_staged(name)


def _clear(premises: Premises, name: str) -> None:
    premises.clear_staged(name)
