"""Contents against the tree: is everything there that an inode needs, and are the records of blobs right?

A content that is damaged is never cut short or removed: its file stays, reads of it fail with EIO, and it is
whole again when the same content is written anywhere in the store.
"""

from __future__ import annotations

from functools import partial
from itertools import islice

from mountstore.blobs.content import ContentKind
from mountstore.blobs.digest import Digest
from mountstore.blobs.manifest import load_manifest
from mountstore.care.check_namespace import show
from mountstore.care.findings import KEPT_PER_KIND, Change, Findings, Kind
from mountstore.care.premises import Premises
from mountstore.care.rehash import Record, add_damaged, add_wrong_checksum, read_hashes
from mountstore.errors import BlobMissingError, CorruptError
from mountstore.namespace.audit import Audit, ContentRow
from mountstore.namespace.audit_contents import LostVersions


def read_manifests(premises: Premises, audit: Audit, findings: Findings) -> None:
    """Read the manifests that inodes name and note what they need; those read before are not read again."""
    while digests := audit.unread_manifests():
        for digest in digests:
            _read_manifest(premises, audit, findings, digest)


def _read_manifest(premises: Premises, audit: Audit, findings: Findings, digest: Digest) -> None:
    read = partial(_read_blob, premises, audit, findings)
    try:
        manifest, blobs = load_manifest(read, digest, None, None)
    except (CorruptError, BlobMissingError) as exc:
        audit.add_manifest(digest, None, str(exc))
        return
    except OSError as exc:
        findings.add(Kind.UNREADABLE, f"blob {digest.name}: {exc.strerror or exc}")
        audit.add_manifest(digest, None, f"blob {digest.name} cannot be read")
        return
    pieces = {entry.digest for entry in manifest if entry.digest is not None}
    absent = [piece for piece in pieces if not audit.levels_of(piece)]
    broken = None
    if absent:
        broken = f"{len(absent)} of its {len(pieces)} pieces are missing or damaged ({absent[0].name})"
    audit.add_references(blobs)
    audit.add_references(pieces)
    audit.add_manifest(digest, manifest.size_bytes, broken)


def _read_blob(
    premises: Premises, audit: Audit, findings: Findings, digest: Digest, known_checksum: bytes | None
) -> bytes:
    """The bytes of a blob of which SHA-256 says that they are right; what else says so is not believed."""
    levels = audit.levels_of(digest)
    for level in levels:
        path = premises.blob_path(digest, level)
        with open(path, "rb", buffering=0) as file:
            data = file.read(digest.size_bytes + 1)
        if Digest.of(data) == digest:
            _compare_checksum(audit, findings, path, digest)
            return data
        audit.mark_damaged(digest, level)
        add_damaged(findings, path, digest)
    if levels:
        raise CorruptError(f"blob {digest.name} is damaged")
    raise BlobMissingError(f"blob {digest.name} is missing or damaged")


def _compare_checksum(audit: Audit, findings: Findings, path: str, digest: Digest) -> None:
    known = audit.checksum_of(digest)
    if known is not None and len(known) == 16:
        hashes = read_hashes(path)
        if hashes.checksum != known:
            add_wrong_checksum(findings, digest, hashes.checksum)


def check_contents(audit: Audit, findings: Findings) -> None:
    """Compare inodes with what the survey and the manifests tell; `read_manifests` was called."""
    _check_kinds(audit, findings)
    audit.refer_contents()
    # Names are looked up when the rows have been read: SQLite drops no table while somebody reads.
    lost: list[tuple[ContentRow, str]] = []
    more = 0
    for row, file_size, broken in audit.lost_contents():
        assert row.sha256 is not None
        assert row.blob_size is not None
        digest = Digest(row.sha256, row.blob_size)
        if broken is not None:
            lost.append((row, broken))
        elif not audit.levels_of(digest):
            lost.append((row, f"blob {digest.name} is missing or damaged"))
        elif file_size is not None:
            findings.add(
                Kind.SIZE_WRONG,
                f"inode {row.inode} has {row.size} bytes, its manifest describes {file_size}",
                _content(row.inode, ContentKind.MANIFEST, digest, file_size, f"set it to {file_size}"),
            )
        if len(lost) > KEPT_PER_KIND:
            lost.pop()
            more += 1
    _add_lost(audit, findings, lost)
    findings.add_more(Kind.CONTENT_LOST, more)
    rows = audit.lost_versions()
    lost_versions = list(islice(rows, KEPT_PER_KIND))
    more = sum(1 for _ in rows)
    _add_lost_versions(audit, findings, lost_versions)
    findings.add_more(Kind.VERSION_LOST, more)


def _add_lost(audit: Audit, findings: Findings, lost: list[tuple[ContentRow, str]]) -> None:
    if not lost:
        return
    names: dict[int, str] = {}
    for inode, directory, name in list(audit.names_of(row.inode for row, _ in lost)):
        names.setdefault(inode, show(audit.path_of(directory, name)))
    for row, why in lost:
        findings.add(
            Kind.CONTENT_LOST,
            f"{names.get(row.inode, '?')} (inode {row.inode}, {row.size} bytes): {why}; reads fail,"
            " until the same content is written again anywhere",
        )


def _add_lost_versions(audit: Audit, findings: Findings, lost: list[LostVersions]) -> None:
    names: dict[int, str] = {}
    for history, directory, name in list(audit.names_of_histories(versions.history for versions in lost)):
        names.setdefault(history, show(audit.path_of(directory, name)))
    for versions in lost:
        what = "an old version" if versions.number == 1 else f"{versions.number} old versions"
        what += f" of {names.get(versions.history, '?')}" + (" and others" if versions.histories > 1 else "")
        why = versions.broken or f"blob {versions.digest.name} is missing or damaged"
        findings.add(Kind.VERSION_LOST, f"{what} cannot be read: {why}")


def _content(inode: int, kind: ContentKind, digest: Digest | None, size: int, words: str) -> Change:
    return Change(
        words,
        automatic=False,
        catalog=partial(Audit.set_content, inode=inode, kind=int(kind), digest=digest, size=size),
    )


def _check_kinds(audit: Audit, findings: Findings) -> None:
    for row in audit.unnamed_contents():
        what = f"inode {row.inode} ({row.size} bytes)"
        digest = _candidate(audit, row)
        if digest is not None and digest.size_bytes == row.size:
            change = _content(row.inode, ContentKind.BLOB, digest, row.size, f"let it be blob {digest.name}")
        elif digest is not None and row.kind == ContentKind.BLOB:
            size = digest.size_bytes
            change = _content(row.inode, ContentKind.BLOB, digest, size, f"set its size to {size}")
        elif digest is not None:
            change = _content(
                row.inode, ContentKind.MANIFEST, digest, max(row.size, 1), f"let it be manifest {digest.name}"
            )
        elif row.sha256 is None and row.kind == ContentKind.EMPTY and row.blob_size is None:
            change = _content(
                row.inode, ContentKind.EMPTY, None, 0, "nothing tells what it held: let it be empty"
            )
        else:
            findings.add(
                Kind.CONTENT_INVALID,
                f"{what} points to a content that cannot be (kind {row.kind}); reads fail",
            )
            continue
        findings.add(
            Kind.CONTENT_INVALID,
            f"{what} points to a content of kind {row.kind} that does not go with its digest or size",
            change,
        )


def _candidate(audit: Audit, row: ContentRow) -> Digest | None:
    """The blob that is meant, if there is one in the tree that fits."""
    if row.sha256 is None or len(row.sha256) != 32:
        return None
    sizes = [size for size in (row.blob_size, row.size) if size is not None and 0 <= size < 1 << 63]
    for size in sizes:
        if audit.levels_of(Digest(row.sha256, size)):
            return Digest(row.sha256, size)
    return None


def check_blob_rows(audit: Audit, findings: Findings) -> None:
    """The records of blobs against the tree; `check_contents` was called."""
    for sha256, size in audit.invalid_blob_rows():
        findings.add(
            Kind.BLOB_ROW_INVALID,
            f"the record of a blob has a digest of {len(sha256)} bytes, size {size} or a wrong checksum",
            Change(
                "remove it; the blob is then verified by its digest",
                catalog=partial(Audit.remove_blob_row, sha256=sha256, size=size),
            ),
        )
    for sha256, size in audit.invalid_unsynced_rows():
        findings.add(
            Kind.BLOB_ROW_INVALID,
            f"the list of unsynced blobs has a digest of {len(sha256)} bytes and size {size}",
            Change("remove it", catalog=partial(Audit.remove_unsynced_row, sha256=sha256, size=size)),
        )
    # Of a tree that is elsewhere nobody knows what is in it, or what its manifests need.
    stale = () if Kind.TREE_MISSING in findings.counts() else audit.stale_blob_rows()
    for digest in stale:
        findings.add(
            Kind.BLOB_ROW_STALE,
            f"blob {digest.name} is recorded, but not in the tree, and nothing needs it",
            Change(
                "remove the record",
                catalog=partial(Audit.remove_blob_row, sha256=digest.sha256, size=digest.size_bytes),
            ),
        )
    for digest, checksum in audit.unrecorded_blobs():
        change = None
        if checksum is not None:
            change = Change("record it", catalog=Record(digest, checksum))
        findings.add(Kind.BLOB_UNRECORDED, f"blob {digest.name} has no checksum in the catalog", change)
