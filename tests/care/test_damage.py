"""One damage at a time: it is found under its name, described, repaired, and then the store is clean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from care.damage import LARGE, Hurt, Specimen, overwrite, read_all, sql, write_again
from mountstore.care import check_contents, findings
from mountstore.care.checking import check_store
from mountstore.care.findings import NOTES, Kind
from mountstore.care.repair import repair_store


class Case(NamedTuple):
    kind: Kind
    hurt: Hurt
    automatic: bool = True
    full: bool = False


def insert_inode(number: int, mode: int, nlink: int, parent: int = 0, size: int = 0) -> str:
    return (
        f"INSERT INTO inode VALUES ({number}, {mode}, 0, 0, {nlink}, 0, {size}, 0, 0, 0, 0, 0, {parent},"
        " 0, NULL, NULL, NULL, 0)"
    )


def insert_version(history: int, number: int, kind: int, size: int = 0, blob_size: int = 0) -> str:
    return f"INSERT INTO version VALUES ({history}, {number}, {kind}, NULL, {blob_size}, {size}, 0, 0, 0, 0, 0)"


def leave(name: str, data: bytes = b"x") -> Hurt:
    def hurt(specimen: Specimen) -> None:
        (specimen.path / name).parent.mkdir(exist_ok=True)
        (specimen.path / name).write_bytes(data)

    return hurt


def misplace(specimen: Specimen) -> None:
    path = specimen.blob(b"a small file")
    wrong = "0" if path.name[0] != "0" else "1"
    (specimen.path / "blobs" / wrong).mkdir(exist_ok=True)
    path.rename(specimen.path / "blobs" / wrong / path.name)


def misplace_forgery(specimen: Specimen) -> None:
    (specimen.path / "blobs" / specimen.blob(b"never seen").name).write_bytes(b"never se3n")


def truncate_unneeded(specimen: Specimen) -> None:
    (specimen.blob(b"gone").parent).mkdir(exist_ok=True)
    specimen.blob(b"gone").write_bytes(b"gon")


def flip_unneeded(specimen: Specimen) -> None:
    (specimen.blob(b"gone").parent).mkdir(exist_ok=True)
    specimen.blob(b"gone").write_bytes(b"gOne")
    specimen.blob(b"gone").chmod(0o444)


def unrecord(specimen: Specimen) -> None:
    specimen.run("DELETE FROM blob WHERE size = 12")


CASES = {
    "next inode too low": Case(Kind.COUNTER_WRONG, sql("UPDATE meta SET value = 4 WHERE key = 'next_inode'")),
    "next cookie is text": Case(Kind.COUNTER_WRONG, sql("UPDATE meta SET value = 'x' WHERE key = 'next_cookie'")),
    "no counters": Case(Kind.COUNTER_WRONG, sql("DELETE FROM meta WHERE key LIKE 'next%'")),
    "no root": Case(Kind.ROOT_WRONG, sql("DELETE FROM inode WHERE id = 1"), False),
    "root is a fifo": Case(Kind.ROOT_WRONG, sql("UPDATE inode SET mode = 4516 WHERE id = 1"), False),
    "root is a file": Case(
        Kind.ROOT_WRONG,
        sql(
            "UPDATE inode SET mode = 33188, kind = 1, size = 12, blob_size = 12, parent = 0,"
            " sha256 = (SELECT sha256 FROM inode WHERE id = :small) WHERE id = 1"
        ),
        False,
    ),
    "root has a parent": Case(Kind.DIRECTORY_PARENT, sql("UPDATE inode SET parent = :outer WHERE id = 1")),
    "entry to nothing": Case(Kind.ENTRY_DANGLING, sql("INSERT INTO entry VALUES (1, x'61', 999, 3000000)")),
    "inode row lost": Case(Kind.ENTRY_DANGLING, sql("DELETE FROM inode WHERE id = :linked")),
    "directory row lost": Case(Kind.ENTRY_ASTRAY, sql("DELETE FROM inode WHERE id = :inner")),
    "entry below a file": Case(Kind.ENTRY_ASTRAY, sql("UPDATE entry SET parent = :same WHERE inode = :small")),
    "entry below nothing": Case(
        Kind.ENTRY_ASTRAY, sql("UPDATE entry SET parent = -5 WHERE inode = :small"), False
    ),
    "empty name": Case(Kind.NAME_INVALID, sql("UPDATE entry SET name = x'' WHERE inode = :small")),
    "name with a slash": Case(Kind.NAME_INVALID, sql("UPDATE entry SET name = x'612f62' WHERE inode = :small")),
    "name with a NUL": Case(Kind.NAME_INVALID, sql("UPDATE entry SET name = x'6100' WHERE inode = :deep")),
    "name dot": Case(Kind.NAME_INVALID, sql("UPDATE entry SET name = x'2e' WHERE inode = :small")),
    "name dot dot": Case(Kind.NAME_INVALID, sql("UPDATE entry SET name = x'2e2e' WHERE inode = :small")),
    "long name": Case(Kind.NAME_INVALID, sql("UPDATE entry SET name = zeroblob(256) WHERE inode = :small")),
    "cookie 1": Case(Kind.COOKIE_INVALID, sql("UPDATE entry SET cookie = 1 WHERE inode = :small")),
    "cookie huge": Case(
        Kind.COOKIE_INVALID, sql("UPDATE entry SET cookie = 9223372036854775807 WHERE inode = :small")
    ),
    "two names of a directory": Case(
        Kind.DIRECTORY_NAMES, sql("INSERT INTO entry VALUES (1, x'61', :deep, 3000000)"), False
    ),
    "the root has a name": Case(
        Kind.DIRECTORY_NAMES, sql("INSERT INTO entry VALUES (:outer, x'61', 1, 3000000)"), False
    ),
    "wrong parent": Case(Kind.DIRECTORY_PARENT, sql("UPDATE inode SET parent = 1 WHERE id = :deep")),
    "file with a parent": Case(Kind.DIRECTORY_PARENT, sql("UPDATE inode SET parent = 1 WHERE id = :small")),
    "cycle": Case(
        Kind.DIRECTORY_CYCLE,
        sql(
            "UPDATE entry SET parent = :deep WHERE inode = :outer",
            "UPDATE inode SET parent = :deep WHERE id = :outer",
        ),
        False,
    ),
    "directory in itself": Case(
        Kind.DIRECTORY_CYCLE,
        sql(
            "UPDATE entry SET parent = :deep WHERE inode = :deep",
            "UPDATE inode SET parent = :deep WHERE id = :deep",
        ),
        False,
    ),
    "nameless file": Case(Kind.UNREACHABLE, sql("DELETE FROM entry WHERE inode = :small")),
    "nameless directory": Case(Kind.UNREACHABLE, sql("DELETE FROM entry WHERE inode = :inner")),
    "links of a file": Case(Kind.LINK_COUNT, sql("UPDATE inode SET nlink = 7 WHERE id = :linked")),
    "links zero but named": Case(Kind.LINK_COUNT, sql("UPDATE inode SET nlink = 0 WHERE id = :linked")),
    "links of a directory": Case(Kind.LINK_COUNT, sql("UPDATE inode SET nlink = 2 WHERE id = :outer")),
    "links of a directory zero": Case(Kind.LINK_COUNT, sql("UPDATE inode SET nlink = 0 WHERE id = :deep")),
    "no type": Case(Kind.INODE_INVALID, sql("UPDATE inode SET mode = 420 WHERE id = :small"), False),
    "directory without type": Case(Kind.INODE_INVALID, sql("UPDATE inode SET mode = 0 WHERE id = :inner"), False),
    "symlink without type": Case(Kind.INODE_INVALID, sql("UPDATE inode SET mode = 0 WHERE id = :symlink"), False),
    "negative mode": Case(Kind.INODE_INVALID, sql("UPDATE inode SET mode = -1 WHERE id = :small"), False),
    "uid too large": Case(Kind.INODE_INVALID, sql("UPDATE inode SET uid = 4294967296 WHERE id = :small")),
    "gid negative": Case(Kind.INODE_INVALID, sql("UPDATE inode SET gid = -1 WHERE id = :small")),
    "rdev negative": Case(Kind.INODE_INVALID, sql("UPDATE inode SET rdev = -1 WHERE id = :small")),
    "inode 0": Case(
        Kind.INODE_INVALID,
        sql("UPDATE inode SET id = 0 WHERE id = :small", "UPDATE entry SET inode = 0 WHERE inode = :small"),
    ),
    "inode huge": Case(
        Kind.INODE_INVALID,
        sql(
            "UPDATE inode SET id = 9223372036854775807 WHERE id = :small",
            "UPDATE entry SET inode = 9223372036854775807 WHERE inode = :small",
        ),
    ),
    "symlink without target": Case(
        Kind.INODE_INVALID, sql("UPDATE inode SET target = NULL WHERE id = :symlink"), False
    ),
    "file with a target": Case(
        Kind.INODE_INVALID, sql("UPDATE inode SET target = x'61' WHERE id = :small"), False
    ),
    "symlink size": Case(Kind.SIZE_WRONG, sql("UPDATE inode SET size = 3 WHERE id = :symlink")),
    "directory size": Case(Kind.SIZE_WRONG, sql("UPDATE inode SET size = -3 WHERE id = :deep")),
    "allocated": Case(Kind.SIZE_WRONG, sql("UPDATE inode SET allocated = 9999 WHERE id = :small")),
    "file size": Case(Kind.CONTENT_INVALID, sql("UPDATE inode SET size = 5 WHERE id = :small"), False),
    "blob size": Case(Kind.CONTENT_INVALID, sql("UPDATE inode SET blob_size = 5 WHERE id = :small"), False),
    "large file's size": Case(Kind.SIZE_WRONG, sql("UPDATE inode SET size = 5 WHERE id = :large"), False),
    "unknown kind": Case(Kind.CONTENT_INVALID, sql("UPDATE inode SET kind = 9 WHERE id = :small"), False),
    "unknown kind of a large file": Case(
        Kind.CONTENT_INVALID, sql("UPDATE inode SET kind = 9 WHERE id = :large"), False
    ),
    "empty with a digest": Case(Kind.CONTENT_INVALID, sql("UPDATE inode SET kind = 0 WHERE id = :small"), False),
    "empty with a size": Case(Kind.CONTENT_INVALID, sql("UPDATE inode SET size = 9 WHERE id = :empty"), False),
    "fifo with a content": Case(
        Kind.CONTENT_INVALID, sql("UPDATE inode SET kind = 1, sha256 = x'00' WHERE id = :fifo"), False
    ),
    "attribute of nothing": Case(
        Kind.ATTRIBUTE_STRAY, sql("INSERT INTO xattr VALUES (999, x'757365722e61', x'00')")
    ),
    "attribute without name": Case(
        Kind.ATTRIBUTE_STRAY, sql("INSERT INTO xattr VALUES (:large, x'', x'00')")
    ),
    "attribute count": Case(Kind.ATTRIBUTE_COUNT, sql("UPDATE inode SET xattrs = 0 WHERE id = :small")),
    "blob row": Case(Kind.BLOB_ROW_INVALID, sql("INSERT INTO blob VALUES (x'00', -1, x'')")),
    "checksum length": Case(Kind.BLOB_ROW_INVALID, sql("UPDATE blob SET checksum = x'00' WHERE size = 12")),
    "unsynced row": Case(Kind.BLOB_ROW_INVALID, sql("INSERT INTO unsynced VALUES (x'00', 1)")),
    "checksum": Case(
        Kind.CHECKSUM_WRONG, sql("UPDATE blob SET checksum = zeroblob(16) WHERE size = 12"), full=True
    ),
    "truncated garbage": Case(Kind.BLOB_DAMAGED, truncate_unneeded),
    "changed garbage": Case(Kind.BLOB_DAMAGED, flip_unneeded, full=True),
    "version of no kind": Case(Kind.HISTORY_INVALID, sql(insert_version(7, 1, 9)), False),
    "version without digest": Case(Kind.HISTORY_INVALID, sql(insert_version(7, 1, 1, size=3, blob_size=3)), False),
    "version of no history": Case(Kind.HISTORY_INVALID, sql(insert_version(0, 1, 3, size=3)), False),
    "version beside the last": Case(
        Kind.HISTORY_INVALID,
        sql(insert_version(7, 1, 3, size=3), insert_version(8, 1, 4, 7, 1), insert_version(8, 0, 4, 7, 1)),
        False,
    ),
    "splice of nothing": Case(Kind.HISTORY_INVALID, sql(insert_version(7, 1, 4, 8, 2)), False),
    "splice of too much": Case(
        Kind.HISTORY_INVALID, sql(insert_version(7, 1, 4, 8, 2), insert_version(8, 1, 3, 3)), False
    ),
    "splices in a circle": Case(
        Kind.HISTORY_INVALID, sql(insert_version(7, 1, 4, 8, 1), insert_version(8, 1, 4, 7, 1)), False
    ),
    "splice of itself": Case(Kind.HISTORY_INVALID, sql(insert_version(7, 1, 4, 7, 1)), False),
    "history of no inode": Case(
        Kind.HISTORY_STRAY, sql(insert_version(7, 1, 6, 0, 1), "INSERT INTO inode_history VALUES (999, 7)")
    ),
    "inode's history without rows": Case(
        Kind.HISTORY_STRAY, sql("INSERT INTO inode_history VALUES (:small, 7)")
    ),
    "name's history without rows": Case(
        Kind.HISTORY_STRAY, sql("INSERT INTO name_history VALUES (999, x'61', 7)")
    ),
    "misplaced": Case(Kind.BLOB_MISPLACED, misplace),
    "misplaced and wrong": Case(Kind.BLOB_MISPLACED, misplace_forgery),
    "draft of nothing": Case(Kind.DRAFT_LOST, sql("INSERT INTO draft VALUES (999, 'draft-999-1', 1, 1, x'90')")),
    "draft of a directory": Case(
        Kind.DRAFT_LOST, sql("INSERT INTO draft VALUES (:deep, 'draft-1-1', 1, 1, x'90')")
    ),
    "draft without a file": Case(
        Kind.DRAFT_LOST, sql("INSERT INTO draft VALUES (:small, 'draft-1-1', 1, 1, x'90')")
    ),
    "removed while open": Case(Kind.ORPHAN, sql(insert_inode(40, 0o100644, 0))),
    "directory removed while open": Case(Kind.ORPHAN, sql(insert_inode(40, 0o40755, 0, 1, 4096))),
    "row of an absent blob": Case(
        Kind.BLOB_ROW_STALE, sql("INSERT INTO blob VALUES (zeroblob(32), 7, zeroblob(16))")
    ),
    "blob without a row": Case(Kind.BLOB_UNRECORDED, unrecord, full=True),
    "blob mode": Case(Kind.BLOB_MODE, lambda specimen: specimen.blob(b"a small file").chmod(0o666)),
    "half-written blob": Case(Kind.STAGING_LEFTOVER, leave("staging/123-abc-0")),
    "unclaimed draft": Case(Kind.STAGING_LEFTOVER, leave("staging/draft-7-abc")),
    "unfinished ref": Case(Kind.STAGING_LEFTOVER, leave("blobs/refs/.one.tmp")),
    "ref that is none": Case(Kind.SNAPSHOT_LOST, leave("blobs/refs/one"), False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_damage_is_found_and_repaired(specimen: Specimen, name: str) -> None:
    kind, hurt, automatic, full = CASES[name]
    hurt(specimen)
    found = check_store(str(specimen.path), full=full)
    assert kind in found.counts, found.findings
    assert {finding.kind: finding.what for finding in found.findings}[kind]
    careful = repair_store(str(specimen.path), approve=lambda report: True, automatic_only=True, full=full)
    assert (kind not in careful.after.counts) == automatic, careful.after.findings
    thorough = repair_store(str(specimen.path), approve=lambda report: True, full=full)
    assert not thorough.failed
    # Without --full a blob whose record went is not read to make a new one.
    again = check_store(str(specimen.path), full=True)
    assert set(again.counts) <= {Kind.BLOB_UNRECORDED}, again.findings


@pytest.mark.parametrize("name", CASES)
def test_a_repaired_store_works_and_keeps_every_content(specimen: Specimen, name: str) -> None:
    CASES[name].hurt(specimen)
    repair_store(str(specimen.path), approve=lambda report: True, full=CASES[name].full)
    contents = list(read_all(specimen).values())
    if name != "inode row lost":
        assert LARGE in contents
        assert contents.count(b"a small file") == (3 if name == "root is a file" else 2)
        assert b"another small file" in contents
    write_again(specimen, b"new", b"new content")
    assert set(check_store(str(specimen.path), full=True).counts) <= {Kind.BLOB_UNRECORDED}


def test_every_kind_that_can_be_repaired_has_a_case() -> None:
    elsewhere = {
        Kind.CATALOG_DAMAGED,
        Kind.CATALOG_OUTDATED,
        Kind.INDEX_DAMAGED,
        Kind.CONFIGURATION_DAMAGED,
        Kind.TREE_MISSING,
        Kind.CONTENT_LOST,
        Kind.VERSION_LOST,
        Kind.UNREADABLE,
        Kind.FOREIGN,
        Kind.SNAPSHOT_NONE,
    }
    assert {case.kind for case in CASES.values()} | elsewhere == set(Kind)


def test_a_new_store_has_no_findings(original: Specimen) -> None:
    report = check_store(str(original.path))
    assert not report.findings
    assert report.clean
    assert report.statistics.inodes == len(original.numbers) + 1
    assert report.statistics.entries == len(original.numbers) + 1
    assert report.statistics.garbage_blobs == 0
    assert report.statistics.blobs == len(list(original.path.glob("blobs/*/*_*")))


def test_garbage_is_counted(specimen: Specimen) -> None:
    specimen.run("DELETE FROM entry WHERE inode = :other")
    specimen.run("DELETE FROM inode WHERE id = :other")
    statistics = check_store(str(specimen.path)).statistics
    assert (statistics.garbage_blobs, statistics.garbage_bytes) == (1, len(b"another small file"))


def test_names_below_a_lost_directory_are_kept(specimen: Specimen) -> None:
    specimen.run("DELETE FROM inode WHERE id = :inner")
    repair_store(str(specimen.path), approve=lambda report: True)
    place = b"/lost+found/#%d/" % specimen.numbers["inner"]
    contents = read_all(specimen)
    assert contents[place + b"small"] == b"a small file"
    assert contents[place + b"deep/other \xff name"] == b"another small file"


# --- contents that are lost ---


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
def test_a_damaged_blob_is_moved_aside_and_heals_when_written_again(specimen: Specimen, how: str) -> None:
    blob = specimen.blob(b"a small file")
    if how == "missing":
        blob.unlink()
    elif how == "truncated":
        os.truncate(blob, 3)
    else:
        overwrite(blob, 2, b"S")
    found = check_store(str(specimen.path), full=True)
    lost = [finding.what for finding in found.errors if finding.kind is Kind.CONTENT_LOST]
    assert len(lost) == 2
    assert any("/outer/inner/small" in what for what in lost)
    # The repair reads nothing again: the findings were kept.
    repaired = repair_store(str(specimen.path), approve=lambda report: True)
    assert set(repaired.after.counts) == {Kind.CONTENT_LOST}
    assert not blob.exists()
    if how != "missing":
        assert (specimen.path / "bad" / blob.name).exists()
        assert not specimen.ask("SELECT 1 FROM blob WHERE size = 12")
    assert specimen.ask("SELECT size FROM inode WHERE id = :small") == [(12,)]
    assert b"/same" not in read_all(specimen)
    write_again(specimen, b"copy", b"a small file")
    assert not check_store(str(specimen.path), full=True).findings
    assert read_all(specimen)[b"/same"] == b"a small file"


@pytest.mark.parametrize("what", ["manifest", "piece"])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_large_file_with_a_damaged_part(specimen: Specimen, what: str, how: str) -> None:
    path: Path = getattr(specimen, what)()
    if how == "missing":
        path.unlink()
    else:
        overwrite(path, 20, b"damage")
    # A manifest is read by every check, a piece by a full one.
    found = check_store(str(specimen.path), full=what == "piece")
    assert found.counts[Kind.CONTENT_LOST] == 1
    assert found.counts.get(Kind.BLOB_DAMAGED, 0) == (how == "changed")
    repaired = repair_store(str(specimen.path), approve=lambda report: True)
    assert set(repaired.after.counts) <= {Kind.CONTENT_LOST}
    write_again(specimen, b"copy", LARGE)
    assert not check_store(str(specimen.path), full=True).errors
    assert read_all(specimen)[b"/large"] == LARGE


def test_a_content_that_is_no_manifest(specimen: Specimen) -> None:
    specimen.run(
        "UPDATE inode SET kind = 2, size = 99999, blob_size = 12, sha256 ="
        " (SELECT sha256 FROM inode WHERE id = :small) WHERE id = :large"
    )
    found = check_store(str(specimen.path))
    assert Kind.CONTENT_LOST in found.counts
    after = repair_store(str(specimen.path), approve=lambda report: True).after
    assert after.counts[Kind.CONTENT_LOST] == 1
    assert specimen.ask("SELECT size FROM inode WHERE id = :large") == [(99999,)]


def test_a_blob_that_lost_its_bytes_with_the_power_is_found_without_a_full_check(specimen: Specimen) -> None:
    specimen.run("INSERT INTO unsynced SELECT sha256, size FROM blob WHERE size = 12")
    overwrite(specimen.blob(b"a small file"), 0, bytes(12))
    assert check_store(str(specimen.path)).counts == {Kind.BLOB_DAMAGED: 1, Kind.CONTENT_LOST: 2}


def test_findings_of_a_file_that_changed_since_are_dropped(specimen: Specimen) -> None:
    blob = specimen.blob(b"a small file")
    overwrite(blob, 2, b"S")
    assert check_store(str(specimen.path), full=True).errors
    assert check_store(str(specimen.path)).errors
    overwrite(blob, 2, b"s")
    assert not check_store(str(specimen.path)).findings


def test_old_versions_need_their_blobs(specimen: Specimen) -> None:
    columns = (
        "history INTEGER, number INTEGER, kind INTEGER, sha256 BLOB, blob_size INTEGER, size INTEGER,"
        " mode INTEGER, uid INTEGER, gid INTEGER, mtime_ns INTEGER, until_ns INTEGER"
    )
    specimen.run(f"CREATE TABLE IF NOT EXISTS version ({columns})")
    for name, kind in (("small", 1), ("large", 2)):
        specimen.run(
            f"INSERT INTO version SELECT id, 1, {kind}, sha256, blob_size, size, mode, 0, 0, 0, 0"
            f" FROM inode WHERE id = :{name}"
        )
        specimen.run(f"UPDATE inode SET kind = 0, sha256 = NULL, blob_size = NULL, size = 0 WHERE id = :{name}")
        specimen.run(f"INSERT INTO inode_history SELECT id, id FROM inode WHERE id = :{name}")
    specimen.run("UPDATE inode SET allocated = 0")
    report = check_store(str(specimen.path), full=True)
    assert not report.findings
    assert report.statistics.garbage_blobs == 0
    specimen.blob(b"a small file").unlink()
    specimen.run("DELETE FROM entry WHERE inode = :same")
    specimen.run("DELETE FROM inode WHERE id = :same")
    specimen.piece().unlink()
    report = check_store(str(specimen.path))
    assert report.counts == {Kind.VERSION_LOST: 2}
    assert sorted(finding.what.partition(" cannot")[0] for finding in report.findings) == [
        "an old version of /large",
        "an old version of /outer/inner/small",
    ]


# --- the tree and the store's directory ---


def test_foreign_things_are_noted_and_left_alone(specimen: Specimen) -> None:
    (specimen.path / "README").write_text("hello")
    (specimen.path / "blobs" / "readme").write_text("hello")
    (specimen.path / "blobs" / "0").mkdir(exist_ok=True)
    (specimen.path / "blobs" / "0" / "x").mkdir()
    (specimen.path / "blobs" / "f").mkdir(exist_ok=True)
    (specimen.path / "blobs" / "f" / ("f" * 64 + "_1")).symlink_to("/etc/passwd")
    report = repair_store(str(specimen.path), approve=lambda report: True).after
    assert report.counts == {Kind.FOREIGN: 4}
    assert not report.errors
    assert (specimen.path / "blobs" / "readme").read_text() == "hello"
    assert Kind.FOREIGN in NOTES


def test_a_tree_that_is_not_mounted(specimen: Specimen) -> None:
    (specimen.path / "blobs").rename(specimen.path / "away")
    report = repair_store(str(specimen.path), approve=lambda report: True).after
    assert report.counts[Kind.TREE_MISSING] == 1
    assert not (specimen.path / "blobs").exists()
    (specimen.path / "away").rename(specimen.path / "blobs")
    assert not check_store(str(specimen.path), full=True).errors


def test_more_is_lost_than_is_kept(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a large store whose blobs are on a file system that is not mounted."""
    monkeypatch.setattr(findings, "KEPT_PER_KIND", 2)
    monkeypatch.setattr(check_contents, "KEPT_PER_KIND", 2)
    specimen.run("INSERT INTO inode_history SELECT id, id FROM inode WHERE kind IN (1, 2)")
    specimen.run(
        "INSERT INTO version SELECT id, 1, kind, sha256, blob_size, size, mode, 0, 0, 0, 0"
        " FROM inode WHERE kind IN (1, 2)"
    )
    (specimen.path / "blobs").rename(specimen.path.parent / "blobs")
    report = check_store(str(specimen.path))
    assert report.counts == {Kind.TREE_MISSING: 1, Kind.CONTENT_LOST: 4, Kind.VERSION_LOST: 3}
    shown = [finding.what for finding in report.findings if finding.kind is not Kind.TREE_MISSING]
    assert len(shown) == 4 and all("/" in what.partition(" (")[0] for what in shown)


def test_an_index_that_differs_from_its_table_is_made_anew(specimen: Specimen) -> None:
    with specimen.sql() as db:
        db.execute("PRAGMA writable_schema = ON")
        (sql_text,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'orphan'").fetchone()
        db.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'nlink = 0', 'nlink = 99') WHERE name = 'orphan'"
        )
    specimen.run("UPDATE inode SET nlink = 99 WHERE id = :linked")
    with specimen.sql() as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'orphan'", (sql_text,))
    specimen.run("UPDATE inode SET nlink = 2 WHERE id = :linked")
    assert check_store(str(specimen.path), full=True).counts == {Kind.INDEX_DAMAGED: 1}
    assert repair_store(str(specimen.path), approve=lambda report: True, full=True).made
    assert not check_store(str(specimen.path), full=True).findings
