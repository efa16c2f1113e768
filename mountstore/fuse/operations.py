"""The request handlers: pyfuse3's terms on one side, the store's on the other. No logic of its own.

Names are bytes; inode numbers of the kernel are those of the namespace. A file handle is a number of its own,
a directory handle the inode's number. Look-up counts are not kept, see `mountstore.namespace.inodes`.

The kernel caches (docs/architecture.md): entries and attributes for a day, since only this daemon changes
them; names that do not exist too; data always; writes until it writes them back. It is then the authority on
size and times of a regular file, so a WRITE does not touch the times here: the kernel sends them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Hashable, Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from mountstore.control.statistics import Statistics
from mountstore.errors import (
    BlobMissingError,
    CorruptError,
    ExistsError,
    FoundDirectoryError,
    NoSpaceError,
    NotSupportedError,
)
from mountstore.fuse.answers import CACHE_S, caller_of, is_shown, keeps_setgid, statfs_answer
from mountstore.fuse.errnos import fuse_error
from mountstore.fuse.errnos import guarded as _guarded
from mountstore.fuse.open_files import OpenFiles
from mountstore.fuse.refusals import Refusals
from mountstore.fuse.reserved import ReservedNames
from mountstore.fuse.versions_view import VersionsView
from mountstore.fuse.virtual import VIRTUAL, Directory, VirtualInodes
from mountstore.namespace import acl as acls
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.namespace.limbo import LIMBO
from mountstore.namespace.namespace import Caller
from mountstore.store import Store

_BLOCK = 4096


class Operations(pyfuse3.Operations):
    """Handlers of one mount.

    Args:
      cache_s: How long the kernel may cache; shorter for a read-only mount beside a writer.
      versions_name: Of the version directory in every directory; None for none.
      show_versions: List it, too.
      control: What the name `control_name` in the root directory stands for, hidden from listings.
      statistics: To be added to.

    Attributes:
      reserved: Names that stand for something virtual, or hidden.
      open_files: Those of the store; what is virtual keeps its own.
    """

    supports_dot_lookup = True
    enable_writeback_cache = True

    def __init__(
        self,
        store: Store,
        *,
        acl: bool = False,
        xattr: bool = True,
        cache_s: float = CACHE_S,
        versions_name: bytes | None = b".versions",
        show_versions: bool = False,
        control: Directory | None = None,
        control_name: bytes = b".cas",
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.enable_acl = acl
        # With it the kernel is the authority on sizes and times, which somebody else may change here.
        self.enable_writeback_cache = not store.read_only
        self._xattr = xattr
        self._rare = (b"security.", b"system.posix_acl_") if acl else (b"security.",)
        self._store = store
        self._namespace = store.namespace
        self._files = store.files
        self._attributes = store.attributes
        self._drafted = store.drafts.inodes
        self._find = store.namespace.find
        self._find_view = store.namespace.find_view
        store.inodes.present = self._present
        self._get = store.namespace.get
        self._cache_s = cache_s
        self.open_files = OpenFiles(store)
        self._open = self.open_files.open
        self._handles = self.open_files.handles
        self._virtual = VirtualInodes()
        self._versions = VersionsView(store, cache_s)
        self._control = control
        self.reserved = ReservedNames(versions_name, control_name if control is not None else None)
        self._require_real = self.reserved.require_real
        self._versions_name = self.reserved.versions
        self._hidden = self.reserved.everywhere
        self._hidden_in_root = self.reserved.in_root
        self._statistics = statistics or Statistics()
        self._refusals = Refusals(store.space)
        self._refused = self._refusals.errnos
        self._show_versions = show_versions and bool(versions_name)
        # A name that does not exist: inode number 0, kept by the kernel like any other answer.
        self._absent = EntryAttributes()
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = cache_s

    # --- presenting inodes ---

    def _present(self, inode: Inode) -> EntryAttributes:
        """The attributes of an inode as the kernel wants them; kept until they change."""
        entry: EntryAttributes | None = inode.view
        if entry is not None:
            return entry
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode.id)
        entry.st_mode = ModeT(inode.mode)
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        draft = inode.draft
        data = inode.allocated if draft is None else draft.allocated_bytes
        entry.st_blocks = (data + _BLOCK - 1) // _BLOCK * (_BLOCK // 512)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        entry.entry_timeout = entry.attr_timeout = self._cache_s
        inode.view = entry
        return entry

    # --- names ---

    @_guarded
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if (
            parent_inode >= VIRTUAL
            or name == self._versions_name
            or (parent_inode == ROOT and name in self._hidden_in_root)
        ):
            return await self._lookup_virtual(parent_inode, name)
        view: EntryAttributes | None = self._find_view(parent_inode, name)
        if view is not None:
            return view
        inode = self._find(parent_inode, name)
        if inode is None:
            return self._absent
        return inode.view or self._present(inode)

    async def _lookup_virtual(self, parent: int, name: bytes) -> EntryAttributes:
        if parent >= VIRTUAL:
            answer = await self._virtual.lookup(parent, name)
            return self._present(self._get(answer)) if isinstance(answer, int) else answer
        if name == LIMBO:
            return self._absent
        if name != self._versions_name:
            assert self._control is not None
            return self._virtual.present(self._control)
        if not self.reserved.shadowed_reported and self._find(parent, name) is not None:
            self.reserved.report_shadowed(parent, name)
        return self._virtual.present(self._versions.of_directory(parent))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            if self._virtual:
                self._virtual.forget(inode_list)
            for inode in self._namespace.forget([number for number, _ in inode_list]):
                await self._files.drop(inode)
        except Exception as exc:
            # There is no answer to a FORGET; the orphan goes at the next mount.
            fuse_error(exc, "forget")

    @_guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._require_real(parent_inode, name, made=True)
        return self._present(
            self._namespace.create(
                parent_inode, name, mode, Caller(ctx.uid, ctx.gid), umask=ctx.umask, rdev=rdev
            )
        )

    @_guarded
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        self._require_real(parent_inode, name, made=True)
        mode = ModeT(stat.S_IFDIR | mode & 0o7777)
        return self._present(
            self._namespace.create(parent_inode, name, mode, Caller(ctx.uid, ctx.gid), umask=ctx.umask)
        )

    @_guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._require_real(parent_inode, name, made=True)
        mode = stat.S_IFLNK | 0o777
        return self._present(
            self._namespace.create(parent_inode, name, mode, Caller(ctx.uid, ctx.gid), target=target)
        )

    @_guarded
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._require_real(new_parent_inode, new_name, made=True)
        if inode >= VIRTUAL:
            raise FUSEError(errno.EROFS)
        return self._present(self._namespace.link(inode, new_parent_inode, new_name))

    @_guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if parent_inode >= VIRTUAL:
            await self._virtual.unlink(parent_inode, name)
            return
        self._require_real(parent_inode, name)
        if self._drafted:
            await self._seal_closed(self._find(parent_inode, name))
        self._namespace.unlink(parent_inode, name)

    @_guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._require_real(parent_inode, name)
        self._namespace.rmdir(parent_inode, name)

    async def _seal_closed(self, inode: Inode | None) -> None:
        """What is about to lose a name leaves what its last writer wrote as a version: that is sealed first.

        If it cannot be (a full disk), the name goes all the same.
        """
        if inode is not None and inode.draft is not None and inode.writers == 0:
            await self._store.sealer.seal_or_keep(inode)

    @_guarded
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if parent_inode_old >= VIRTUAL:
            await self._virtual.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
            return
        exchanged = bool(flags & pyfuse3.RENAME_EXCHANGE)
        self._require_real(parent_inode_old, name_old)
        self._require_real(parent_inode_new, name_new, made=not exchanged)
        if self._drafted:
            await self._settle_rename(parent_inode_old, name_old, parent_inode_new, name_new)
        if exchanged:
            if flags != pyfuse3.RENAME_EXCHANGE:
                raise FUSEError(errno.EINVAL)
            self._namespace.exchange(parent_inode_old, name_old, parent_inode_new, name_new)
            return
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        self._namespace.rename(
            parent_inode_old,
            name_old,
            parent_inode_new,
            name_new,
            noreplace=bool(flags & pyfuse3.RENAME_NOREPLACE),
        )

    async def _settle_rename(self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes) -> None:
        """Seal what a rename needs sealed.

        A file renamed over another must have its content by the time the rename is committed: after a crash
        the name has the old content or the new, never none. What is replaced becomes a version.
        """
        source = self._find(parent_old, name_old)
        target = self._find(parent_new, name_new)
        await self._seal_closed(target)
        if source is None:
            return
        if source.draft is not None:
            await self._files.seal(source)

    @_guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        if inode >= VIRTUAL:
            return self._virtual.readlink(inode)
        target = self._get(inode).target
        if target is None:
            raise FUSEError(errno.EINVAL)
        return FileNameT(target)

    # --- directories ---

    @_guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        if inode >= VIRTUAL:
            return self._virtual.opendir(inode)
        self._get(inode).handles += 1
        return FileHandleT(inode)

    @_guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        if fh >= VIRTUAL:
            await self._virtual.readdir(fh, start_id, token)
            return
        present = self._present
        hidden = self._hidden_in_root if fh == ROOT else self._hidden
        listing = self._namespace.listing(self._get(InodeT(fh)), start_id)
        try:
            for position, name, inode in listing:
                if name in hidden:
                    if name != LIMBO:
                        self.reserved.report_shadowed(fh, name)
                    continue
                if not pyfuse3.readdir_reply(token, FileNameT(name), inode.view or present(inode), position):
                    return
        finally:
            listing.close()
        if self._show_versions and start_id < VIRTUAL:
            # After everything else: no entry's position is as high.
            shown = self._virtual.present(self._versions.of_directory(fh))
            if not pyfuse3.readdir_reply(token, FileNameT(self._versions_name), shown, VIRTUAL):
                self._virtual.forget([(shown.st_ino, 1)])

    @_guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        if fh >= VIRTUAL:
            self._virtual.releasedir(fh)
            return
        inode = self._get(InodeT(fh))
        inode.handles -= 1
        if inode.handles == 0 and inode.nlink == 0 and inode.forgotten:
            await self._files.drop(inode)

    @_guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        # It covers every earlier operation, also the close of a file that is still being sealed.
        if self._drafted:
            await self._store.sealer.settle()
        await self._store.commits.hard_sync()

    # --- attributes ---

    @_guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        if inode >= VIRTUAL:
            return self._virtual.getattr(inode)
        found = self._get(inode)
        if found.id in self._refused:
            self._refusals.tell(found.id, ctx.pid)
        return found.view or self._present(found)

    @_guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if inode >= VIRTUAL:
            return await self._virtual.setattr(inode, attr.st_size if fields.update_size else None)
        found = self._get(inode)
        self._namespace.require_writable()
        others = (
            fields.update_size
            or fields.update_mode
            or fields.update_uid
            or fields.update_gid
            or fields.update_atime
        )
        if not others and fields.update_mtime and fields.update_ctime:
            # What the kernel notes by itself, also after every unlink(2) and rename(2) of a regular file.
            self._namespace.set_times(found, attr.st_mtime_ns, attr.st_ctime_ns)
            return self._present(found)
        if fields.update_size:
            if not found.is_regular:
                raise FUSEError(errno.EISDIR if found.is_directory else errno.EINVAL)
            same = attr.st_size == found.size
            await self._files.truncate(
                found, attr.st_size, privileged=ctx.uid == 0, member=keeps_setgid(ctx, found)
            )
            if same and not (fields.update_mtime or fields.update_ctime):
                # truncate(2) to the size it has: the kernel goes on showing the times it has.
                return self._present(found)
            self._namespace.resized(found)
        mode = attr.st_mode if fields.update_mode else None
        uid = attr.st_uid if fields.update_uid else None
        gid = attr.st_gid if fields.update_gid else None
        atime_ns = attr.st_atime_ns if fields.update_atime else None
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
        # A chown(2) that names neither id comes with the change time alone, and where the kernel does not keep
        # that, without any field. For a regular file that is the removal of its security.capability by a write.
        named = mode is None and atime_ns is None and mtime_ns is None and not fields.update_size
        if found.is_regular and not fields.update_ctime:
            named = False
        self._namespace.set_attributes(
            found,
            caller_of(ctx, found),
            mode=mode,
            uid=uid,
            gid=gid,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            owner_named=named,
        )
        return self._present(found)

    @_guarded
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        # With default_permissions the kernel decides and does not ask.
        return True

    @_guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statfs_answer(self._store.statvfs())

    # --- extended attributes ---

    @_guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)
        if inode >= VIRTUAL:
            shown = is_shown(name, ctx, acl=self.enable_acl)
            value = dict(self._virtual.xattrs(inode)).get(name) if shown else None
            if value is None:
                raise FUSEError(errno.ENODATA)
            return value
        found = self._get(inode)
        if not found.xattrs and name.startswith(self._rare):
            # Asked for all the time, and hardly ever there.
            raise FUSEError(errno.ENODATA)
        return self._attributes.get(found, name)

    @_guarded
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)
        if inode >= VIRTUAL:
            raise self._virtual.refuse_attribute(inode)
        found = self._get(inode)
        if name in (acls.ACCESS, acls.DEFAULT):
            self._attributes.set_acl(found, name, value, keep_setgid=keeps_setgid(ctx, found))
        else:
            self._attributes.set(found, name, value)

    @_guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)
        if inode >= VIRTUAL:
            virtual = self._virtual.xattrs(inode)
            return [XAttrNameT(name) for name, _ in virtual if is_shown(name, ctx, acl=self.enable_acl)]
        names = self._attributes.names(self._get(inode), trusted=ctx.uid == 0)
        return [XAttrNameT(name) for name in names]

    @_guarded
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)
        if inode >= VIRTUAL:
            raise FUSEError(errno.EROFS)
        self._attributes.remove(self._get(inode), name)

    # --- files ---

    @_guarded
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        if parent_inode >= VIRTUAL:
            return await self._virtual.create(parent_inode, name, flags, ctx.pid)
        self._require_real(parent_inode, name, made=True)
        try:
            inode = self._namespace.create(
                parent_inode,
                name,
                stat.S_IFREG | mode & 0o7777,
                Caller(ctx.uid, ctx.gid),
                umask=ctx.umask,
            )
        except ExistsError:
            # Somebody was faster; that is what O_CREAT without O_EXCL is for.
            found = self._find(parent_inode, name)
            if flags & os.O_EXCL or found is None:
                raise
            inode = found
            return await self._open_existing(inode, flags, ctx), self._present(inode)
        return self._open(inode, flags, ctx), self._present(inode)

    @_guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if inode >= VIRTUAL:
            return await self._virtual.open(inode, flags, ctx.pid)
        return await self._open_existing(self._get(inode), flags, ctx)

    async def _open_existing(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        if not inode.is_regular:
            raise FoundDirectoryError("open") if inode.is_directory else NotSupportedError("open")
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._namespace.require_writable()
        info = self._open(inode, flags, ctx)
        if flags & os.O_TRUNC:
            mode = inode.mode
            # The times come from the kernel.
            try:
                await self._files.truncate(inode, 0, privileged=ctx.uid == 0, member=keeps_setgid(ctx, inode))
            except BaseException:
                await self._files.release(self._handles.pop(info.fh))
                raise
            if inode.mode != mode:
                self._forget_attributes(inode)
        return info

    @_guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        if fh >= VIRTUAL:
            return await self._virtual.read(fh, off, size)
        inode = self._handles[fh].inode
        try:
            data = await self._files.read(inode, off, size)
            self._statistics.read_bytes += len(data)
            return data
        except (BlobMissingError, CorruptError) as exc:
            await self.open_files.report_damage(inode, exc)
            raise FUSEError(errno.EIO) from None

    @_guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if fh >= VIRTUAL:
            return await self._virtual.write(fh, off, buf)
        handle = self._handles[fh]
        inode = handle.inode
        mode = inode.mode
        self._namespace.require_writable()
        try:
            written = await self._files.write(handle, off, buf)
        except (NoSpaceError, OSError) as exc:
            error = fuse_error(exc, f"write to inode {inode.id}")
            if self._refusals.note(inode.id, error.errno):
                self._forget_attributes(inode)
            raise error from None
        self._statistics.write_bytes += written
        if inode.mode != mode:
            # Setuid or setgid were cleared here, which the kernel, that let us, does not notice by itself: it
            # would go on granting them for as long as it keeps the attributes.
            self._forget_attributes(inode)
        return written

    def _forget_attributes(self, inode: Inode) -> None:
        """Have the kernel ask again."""
        try:
            # Attributes alone: nothing is written back for that, so this may be done from here.
            pyfuse3.invalidate_inode(InodeT(inode.id), attr_only=True)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise

    @_guarded
    async def flush(self, fh: FileHandleT) -> None:
        # Said once, it saves a request for every close(2): there is nothing to do before RELEASE.
        raise FUSEError(errno.ENOSYS)

    @_guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if fh >= VIRTUAL:
            await self._virtual.fsync(fh)
            return
        await self._files.fsync(self._handles[fh].inode)

    @_guarded
    async def release(self, fh: FileHandleT) -> None:
        if fh >= VIRTUAL:
            await self._virtual.release(fh)
            return
        handle = self._handles.pop(fh)
        if handle.writable:
            self._refusals.settle(handle.inode.id)
        await self._files.release(handle)

    async def gone_versions(self) -> list[tuple[int, bytes]]:
        """Directory and name of every old version that the kernel may know and that is gone."""
        gone: list[tuple[int, bytes]] = []
        for done, place in enumerate(self._versions.gone(self._virtual.known())):
            if done % 50 == 49:
                await trio.lowlevel.checkpoint()
            if place is not None:
                gone.append(place)
        return gone

    def number_of(self, key: Hashable) -> int | None:
        """The number that the kernel knows something virtual by, see `mountstore.fuse.virtual`."""
        return self._virtual.number_of(key)

    async def release_all(self) -> None:
        """Close what the kernel left open when the connection ended."""
        await self._virtual.release_all()
        await self.open_files.release_all()
