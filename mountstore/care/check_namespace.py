"""The structure of the namespace: every name stands for something, everything has its names, once.

Each finding's change is the smallest that makes its row true. Changes may bring further findings about (what
an entry to nothing hid, or a directory brought back holds), so the repair checks again after making them.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import Any

from mountstore.care.findings import Change, Findings, Kind
from mountstore.namespace.audit import (
    NUMBER_MAX,
    Audit,
    AuditedDirectory,
    AuditedEntry,
    AuditedInode,
)
from mountstore.namespace.inodes import FIRST_COOKIE, ROOT, TYPE_BITS

_TYPES = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)
_ID_MAX = (1 << 32) - 2


def check_namespace(audit: Audit, findings: Findings) -> None:
    """Find what is wrong with names, inodes and their attributes; contents are `check_contents`.

    `Audit.prepare_names` was called after the last change.
    """
    _check_counters(audit, findings)
    _check_root(audit, findings)
    for entry in audit.unsound_entries():
        _judge_entry(audit, findings, entry)
    for directory in audit.misnamed_directories():
        _judge_directory(audit, findings, directory)
    for number in audit.directories_in_cycles():
        findings.add(
            Kind.DIRECTORY_CYCLE,
            f"directory {number} lies below itself, and so is out of reach",
            Change(
                "take it out of the cycle and put it into /lost+found",
                automatic=False,
                catalog=partial(_break_cycle, inode=number),
            ),
        )
    for inode in audit.unsound_inodes():
        _judge_inode(findings, inode)
    for number, nlink in audit.nameless_files():
        _judge_nameless(findings, number, nlink, "file")
    for number, name in audit.stray_attributes():
        findings.add(
            Kind.ATTRIBUTE_STRAY,
            f"extended attribute {show(name)} of inode {number} belongs to nothing or cannot be",
            Change("remove it", catalog=partial(Audit.remove_attribute, inode=number, name=name)),
        )


def show(name: bytes | Any) -> str:
    """A name on one line, whatever bytes it has."""
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return "".join(c if c.isprintable() else f"\\x{b:02x}" for c in text for b in _bytes_of(c)[:1])


def _bytes_of(character: str) -> bytes:
    return character.encode("utf-8", "surrogateescape")


def _check_counters(audit: Audit, findings: Findings) -> None:
    # Absent until the first number is handed out.
    for key, first, highest, what in (
        ("next_inode", ROOT + 1, audit.highest_inode(), "inode number"),
        ("next_cookie", FIRST_COOKIE, audit.highest_cookie(), "listing position"),
    ):
        value = audit.meta(key)
        if value is None:
            value = first
        if not isinstance(value, int) or not max(first, highest + 1) <= value <= NUMBER_MAX + 1:
            right = max(first, highest + 1)
            findings.add(
                Kind.COUNTER_WRONG,
                f"the next {what} would be {value}, the highest in use is {highest}",
                Change(f"continue from {right}", catalog=partial(Audit.set_meta, key=key, value=right)),
            )


def _check_root(audit: Audit, findings: Findings) -> None:
    mode = audit.root_mode()
    if mode is None:
        findings.add(
            Kind.ROOT_WRONG,
            "there is no root directory",
            Change("make it anew", automatic=False, catalog=_make_root),
        )
    elif _type_of(mode) != stat.S_IFDIR:
        findings.add(
            Kind.ROOT_WRONG,
            f"the root is no directory (mode {mode:o})",
            Change(
                "make it one; what else it was goes to /lost+found", automatic=False, catalog=_replace_root
            ),
        )


def _make_root(audit: Audit) -> None:
    if audit.root_mode() is None:
        audit.make_directory(ROOT, ROOT, 0o755)


def _replace_root(audit: Audit) -> None:
    if audit.is_bare(ROOT):
        audit.set_field(ROOT, "mode", stat.S_IFDIR | 0o755)
        return
    number = audit.renumber(ROOT)
    audit.make_directory(ROOT, ROOT, 0o755)
    audit.move_entries(number, ROOT)


def _judge_entry(audit: Audit, findings: Findings, entry: AuditedEntry) -> None:
    parent, name = entry.parent, entry.name
    what = f"{show(audit.path_of(entry.parent, entry.name))} (inode {entry.inode})"
    remove = Change("remove the entry", catalog=partial(Audit.remove_entry, parent=parent, name=name))
    if not entry.exists:
        findings.add(Kind.ENTRY_DANGLING, f"{what} stands for nothing", remove)
        return
    if entry.parent_mode is None:
        if 1 < entry.parent <= NUMBER_MAX:
            change = Change(
                f"make directory {entry.parent} anew in /lost+found, with this entry in it",
                catalog=partial(_bring_back, inode=entry.parent),
            )
        else:
            change = Change("remove the entry", automatic=False, catalog=remove.catalog)
        if entry.parent != ROOT:
            findings.add(Kind.ENTRY_ASTRAY, f"{what}: directory {entry.parent} does not exist", change)
    elif _type_of(entry.parent_mode) != stat.S_IFDIR:
        # The root's own type is put right, not its entries.
        if entry.parent != ROOT and _type_of(entry.parent_mode) in _TYPES:
            findings.add(Kind.ENTRY_ASTRAY, f"{what}: inode {entry.parent} is no directory", remove)
        return
    if not _is_name(entry.name):
        wanted = b"#invalid-%d" % entry.inode
        findings.add(
            Kind.NAME_INVALID,
            f"{what} has a name that cannot be",
            Change(
                f"rename it to {wanted.decode()}",
                catalog=partial(Audit.rename_entry, parent=parent, name=name, wanted=wanted),
            ),
        )
    elif not FIRST_COOKIE <= entry.cookie <= NUMBER_MAX:
        findings.add(
            Kind.COOKIE_INVALID,
            f"{what} has the position {entry.cookie} in its listing",
            Change("put it at the end", catalog=partial(Audit.replace_cookie, parent=parent, name=name)),
        )


def _type_of(mode: int) -> int:
    """As stat.S_IFMT, for any number."""
    return mode & TYPE_BITS


def _is_name(name: bytes) -> bool:
    return 1 <= len(name) <= 255 and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def _bring_back(audit: Audit, inode: int) -> None:
    """A directory of which only the entries are left."""
    if not audit.exists(inode):
        audit.make_directory(inode, ROOT)
        audit.attach(inode)


def _judge_directory(audit: Audit, findings: Findings, directory: AuditedDirectory) -> None:
    number = directory.id
    names = directory.names
    if number == ROOT:
        for parent, name in names:
            findings.add(
                Kind.DIRECTORY_NAMES,
                f"{show(audit.path_of(parent, name))} stands for the root",
                Change(
                    "remove the entry",
                    automatic=False,
                    catalog=partial(Audit.remove_entry, parent=parent, name=name),
                ),
            )
        if directory.parent != ROOT:
            what = "the root lies in another directory"
            findings.add(Kind.DIRECTORY_PARENT, what, _set(ROOT, "parent", ROOT))
        return
    if not names:
        if directory.nlink == 0 and directory.subdirectories == 0 and not audit.has_entries(number):
            _judge_nameless(findings, number, 0, "directory")
        else:
            _judge_nameless(findings, number, max(directory.nlink, 1), "directory")
        return
    kept = next((place for place in names if place[0] == directory.parent), names[0])
    for parent, name in names:
        if (parent, name) != kept:
            findings.add(
                Kind.DIRECTORY_NAMES,
                f"{show(audit.path_of(parent, name))} is a second name of directory {number},"
                f" which is {show(audit.path_of(*kept))}",
                Change(
                    "remove the second name",
                    automatic=False,
                    catalog=partial(Audit.remove_entry, parent=parent, name=name),
                ),
            )
    if directory.parent != kept[0]:
        findings.add(
            Kind.DIRECTORY_PARENT,
            f"{show(audit.path_of(*kept))} (inode {number}) says it lies in directory {directory.parent}",
            _set(number, "parent", kept[0]),
        )


def _break_cycle(audit: Audit, inode: int) -> None:
    audit.remove_names(inode)
    audit.attach(inode)


def _judge_nameless(findings: Findings, number: int, nlink: int, what: str) -> None:
    if number < 1 or number > NUMBER_MAX:
        return  # it gets a number first
    if nlink == 0:
        findings.add(
            Kind.ORPHAN,
            f"{what} {number} was removed while it was open",
            Change("let go of it", catalog=partial(Audit.remove_inode, inode=number)),
        )
    elif number != ROOT:
        findings.add(
            Kind.UNREACHABLE,
            f"{what} {number} has no name",
            Change(f"name it /lost+found/#{number}", catalog=partial(Audit.attach, inode=number)),
        )


def _set(inode: int, field: str, value: object, *, automatic: bool = True, words: str = "") -> Change:
    return Change(
        words or f"set it to {value}",
        automatic,
        catalog=partial(Audit.set_field, inode=inode, field=field, value=value),
    )


def _judge_inode(findings: Findings, inode: AuditedInode) -> None:
    number = inode.id
    if not 1 <= number <= NUMBER_MAX:
        findings.add(
            Kind.INODE_INVALID,
            f"there is an inode with the number {number}",
            Change("give it a new number", catalog=partial(Audit.renumber, inode=number)),
        )
        return
    what = f"inode {number}"
    kind = _type_of(inode.mode)
    if not 0 <= inode.mode <= 0xFFFF or kind not in _TYPES:
        right = _likely_type(inode) | inode.mode & 0o7777
        findings.add(
            Kind.INODE_INVALID,
            f"{what} has the mode {inode.mode:o}",
            _set(number, "mode", right, automatic=False, words=f"make it {right:o}, by what else it has"),
        )
        return
    directory = kind == stat.S_IFDIR
    for field, value, highest in (
        ("uid", inode.uid, _ID_MAX),
        ("gid", inode.gid, _ID_MAX),
        ("rdev", inode.rdev, NUMBER_MAX),
    ):
        if not 0 <= value <= highest and not (field == "rdev" and value > 0):
            findings.add(Kind.INODE_INVALID, f"{what} has the {field} {value}", _set(number, field, 0))
    _judge_size(findings, inode, kind)
    if directory:
        # A directory's own place is told by its entry, see `_judge_directory`.
        right_nlink = 2 + inode.subdirectories
        orphaned = inode.nlink == 0 and not inode.names and not inode.subdirectories and number != ROOT
    else:
        right_nlink = inode.names
        orphaned = inode.names == 0
        if inode.parent != 0:
            findings.add(
                Kind.DIRECTORY_PARENT,
                f"{what} is no directory and yet says it lies in directory {inode.parent}",
                _set(number, "parent", 0),
            )
    if inode.nlink != right_nlink and not orphaned:
        findings.add(
            Kind.LINK_COUNT,
            f"{what} counts {inode.nlink} links, there are {right_nlink}",
            _set(number, "nlink", right_nlink),
        )
    if inode.xattrs != inode.attributes:
        findings.add(
            Kind.ATTRIBUTE_COUNT,
            f"{what} counts {inode.xattrs} extended attributes, there are {inode.attributes}",
            _set(number, "xattrs", inode.attributes),
        )


def _judge_size(findings: Findings, inode: AuditedInode, kind: int) -> None:
    number, what = inode.id, f"inode {inode.id}"
    if kind == stat.S_IFLNK:
        if not isinstance(inode.target, bytes) or not 1 <= len(inode.target) <= 4095:
            findings.add(
                Kind.INODE_INVALID,
                f"{what} is a symbolic link without a target",
                _set(number, "target", b"lost-target", automatic=False, words="let it point to lost-target"),
            )
        elif inode.size != len(inode.target):
            findings.add(
                Kind.SIZE_WRONG,
                f"{what} is a symbolic link of size {inode.size} with a target of {len(inode.target)} bytes",
                _set(number, "size", len(inode.target)),
            )
    elif inode.target is not None:
        findings.add(
            Kind.INODE_INVALID,
            f"{what} is no symbolic link and yet has a target",
            _set(number, "target", None, automatic=False, words="remove the target"),
        )
    if kind != stat.S_IFREG:
        if inode.size < 0:
            findings.add(Kind.SIZE_WRONG, f"{what} has the size {inode.size}", _set(number, "size", 0))
        if inode.kind != 0 or inode.sha256 is not None or inode.blob_size is not None:
            findings.add(
                Kind.CONTENT_INVALID,
                f"{what} is no regular file and yet has a content",
                Change(
                    "let go of the content",
                    automatic=False,
                    catalog=partial(
                        Audit.set_content, inode=number, kind=0, digest=None, size=max(inode.size, 0)
                    ),
                ),
            )
    if not 0 <= inode.allocated <= max(inode.size, 0):
        right = min(max(inode.allocated, 0), max(inode.size, 0))
        findings.add(
            Kind.SIZE_WRONG,
            f"{what} has {inode.allocated} of its {inode.size} bytes allocated",
            _set(number, "allocated", right),
        )


def _likely_type(inode: AuditedInode) -> int:
    if inode.has_entries or inode.parent != 0:
        return stat.S_IFDIR
    return stat.S_IFLNK if inode.target is not None else stat.S_IFREG
