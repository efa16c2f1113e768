"""The one table that turns exceptions into what a system call returns."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3

from mountstore import errors
from mountstore.namespace.connection import damage_told_by

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_O = TypeVar("_O", bound=pyfuse3.Operations)

_ERRNOS: Final[dict[type[Exception], int]] = {
    errors.MisuseError: errno.EINVAL,
    errors.AbsentError: errno.ENOENT,
    errors.ExistsError: errno.EEXIST,
    errors.NotEmptyError: errno.ENOTEMPTY,
    errors.WantsDirectoryError: errno.ENOTDIR,
    errors.FoundDirectoryError: errno.EISDIR,
    errors.NameTooLongError: errno.ENAMETOOLONG,
    errors.TooManyLinksError: errno.EMLINK,
    errors.NoAttributeError: errno.ENODATA,
    errors.AttributeTooLargeError: errno.ENOSPC,
    errors.NotSupportedError: errno.EOPNOTSUPP,
    errors.NotPermittedError: errno.EPERM,
    errors.TooLargeError: errno.EFBIG,
    errors.ImageError: errno.EINVAL,
    errors.ReadOnlyError: errno.EROFS,
    errors.NoSpaceError: errno.ENOSPC,
    errors.QuotaError: errno.EDQUOT,
    errors.StaleError: errno.ESTALE,
    # Not EINTR: after that many programs do the same again.
    errors.CancelledError: errno.ECANCELED,
    errors.BusyError: errno.EBUSY,
    errors.BlobMissingError: errno.EIO,
    errors.CorruptError: errno.EIO,
}

_DAMAGE = (errors.BlobMissingError, errors.CorruptError)


def errno_of(exc: BaseException, operation: str) -> int:
    """The errno for an exception that a handler raised.

    What says that the store is damaged is logged in one line; what nobody foresaw with its traceback, and
    answered EIO, so that the mount goes on.
    """
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    exc = damage_told_by(exc) or exc
    number = _ERRNOS.get(type(exc))  # type: ignore[arg-type]  # any exception may be looked up
    if number is not None:
        if isinstance(exc, _DAMAGE):
            log.error("%s: %s", operation, exc)
        return number
    if isinstance(exc, OSError) and exc.errno:
        log.error("%s: the store's disk answers: %s", operation, exc)
        return exc.errno
    log.error("%s: unforeseen", operation, exc_info=exc)
    return errno.EIO


def fuse_error(exc: BaseException, operation: str) -> pyfuse3.FUSEError:
    """The same as an exception for pyfuse3."""
    return pyfuse3.FUSEError(errno_of(exc, operation))


def guarded(
    handler: Callable[Concatenate[_O, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_O, _P], Coroutine[Any, Any, _R]]:
    """Let nothing but a FUSEError leave a handler: anything else would end the mount."""
    name = handler.__name__

    @functools.wraps(handler)
    async def run(self: _O, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            raise fuse_error(exc, name) from None

    return run
