"""Maps errors of SQLite to domain errors: https://sqlite.org/rescode.html"""

import errno
from collections.abc import Callable
from functools import partial
from typing import Final

import apsw

from caseload_server.domain import errors

_DOMAIN_ERRORS: Final[dict[type[BaseException], Callable[[], errors.DomainError]]] = {
    apsw.BusyError: partial(errors.StoreBusy, errors.StoreBusy.LOCK_WAIT),
    apsw.LockedError: errors.StoreBusy,
    apsw.FullError: errors.StoreFull,
    apsw.ConnectionClosedError: errors.ShuttingDown,
    apsw.CursorClosedError: errors.ShuttingDown,
    apsw.IOError: errors.StoreUnavailable,
    apsw.CantOpenError: errors.StoreUnavailable,
    apsw.CorruptError: errors.StoreUnavailable,
    apsw.NotADBError: errors.StoreUnavailable,
    apsw.ReadOnlyError: errors.StoreUnavailable,
    apsw.NoMemError: errors.StoreUnavailable,
    apsw.ProtocolError: errors.StoreUnavailable,
    apsw.PermissionsError: errors.StoreUnavailable,
}
_STORAGE_FAILURES: Final = (apsw.IOError, apsw.CantOpenError, apsw.CorruptError, apsw.NotADBError, apsw.ReadOnlyError)
_REFUSED_WRITES: Final = {errno.EROFS, errno.EFBIG, errno.EDQUOT, errno.EPERM, errno.EACCES}
"""What write(2) returns before it takes any data. After EIO, the kernel may have taken some.
https://man7.org/linux/man-pages/man2/write.2.html"""


def domain_error(error: BaseException, system_error: int = 0) -> BaseException:
    """Maps a driver's error to a domain error. Returns any other error unchanged: it is a defect of this program.

    Args: system_error, the errno of the system call that failed in SQLite, if it is known.
    """
    if isinstance(error, apsw.InterruptError):  # by the progress handler of a read
        return errors.StoreBusy(errors.StoreBusy.STATEMENT_TIMEOUT)
    if _exceeds_quota(error, system_error):
        return errors.StoreFull()
    found = _DOMAIN_ERRORS.get(type(error))
    return found() if found else error


def commit_error(error: BaseException, system_error: int) -> BaseException:
    """Maps the error of a COMMIT. Args: as `domain_error`.

    The outcome is unknown, except where nothing can have been written. After a failed fsync, say, the frames may have
    reached the file, and a later recovery could find them.
    """
    # The last frame of a transaction makes it valid, and it was refused.
    is_refused = _is_failed_write(error) and system_error in _REFUSED_WRITES
    if is_refused or isinstance(error, apsw.BusyError | apsw.FullError | apsw.ReadOnlyError):
        return domain_error(error, system_error)
    return errors.OutcomeUnknown()


def _is_failed_write(error: BaseException) -> bool:
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE


def _exceeds_quota(error: BaseException, system_error: int) -> bool:
    """Returns whether a write found no space, for which SQLite has the same error as for a fault of the disk."""
    return _is_failed_write(error) and system_error == errno.EDQUOT


def storage_failure(error: BaseException, system_error: int) -> dict[str, str]:
    """Returns the fields of a log event if SQLite cannot use its files, else an empty dict. They quote no row.

    Args: as `domain_error`.
    """
    code = getattr(error, "extendedresult", 0)  # 0 if SQLite did not raise it
    if not (code and isinstance(error, _STORAGE_FAILURES)) or _exceeds_quota(error, system_error):
        return {}
    names = apsw.mapping_extended_result_codes | apsw.mapping_result_codes
    fields = {"error": str(names.get(code, code))}
    if isinstance(error, apsw.IOError | apsw.CantOpenError):  # others come from no system call
        fields["system_error"] = errno.errorcode.get(system_error, str(system_error))
    return fields
