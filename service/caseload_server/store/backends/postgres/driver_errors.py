"""Maps errors of the driver to domain errors, and retries what may succeed later."""

import random
import time
from collections.abc import Callable
from typing import Final

import psycopg

from caseload_server.domain import errors
from caseload_server.store.backends.postgres.error_text import one_line
from caseload_server.store.backends.protocol import DEFECT, SerializationConflict, T

_RETRY_TIMEOUT_SECONDS: Final = 5.0
"""How long an operation is retried after a lost connection or a conflict, in seconds."""
_RETRY_DELAY_SECONDS: Final = (0.01, 0.1)
"""Shortest and longest delay before a retry, in seconds."""

# SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
_CONFLICTS: Final = {"40001", "40P01"}
"""serialization_failure, deadlock_detected."""
_TAKEN_REVISION: Final = "change_set_pkey"
"""The constraint that a write violates after another instance wrote the same change in the same microsecond."""
_LOCK_TIMEOUT: Final = "55P03"
"""lock_not_available."""
_STATEMENT_TIMEOUT: Final = "57014"
"""query_canceled."""
_READ_ONLY: Final = "25006"
_UNAVAILABLE: Final = {_READ_ONLY, "53200", "53300"}
"""read_only_sql_transaction (a primary that became a standby), out_of_memory, too_many_connections."""
_BROKEN: Final = {"42501", "42P01", "53000", "53400", "58000", "58030", "58P01", "58P02", "XX001", "XX002"}
"""PostgreSQL cannot use its files, lacks a resource, such as open files, or the role lacks a privilege or a table. A
retry would fail as well."""


class UnexpectedDatabaseError(Exception):
    """A defect of this program. PostgreSQL's own text quotes rows, so only SQLSTATE and constraint are kept."""

    cause = DEFECT

    def __init__(self, error: psycopg.Error) -> None:
        """Args: error, of the driver."""
        super().__init__(error.sqlstate, error.diag.constraint_name)
        self.sqlstate = error.sqlstate


class CommitUnconfirmed(Exception):
    """The connection was lost during COMMIT, so it is unknown whether the transaction committed."""


def domain_error(error: psycopg.Error) -> tuple[BaseException, bool]:
    """Maps a driver's error to the exception to raise, and whether a retry may succeed."""
    state = error.sqlstate or ""
    if state in _CONFLICTS or error.diag.constraint_name == _TAKEN_REVISION:
        return errors.StoreBusy(), True
    if state == _LOCK_TIMEOUT:
        return errors.StoreBusy(errors.StoreBusy.LOCK_WAIT), False
    if state == _STATEMENT_TIMEOUT:
        return errors.StoreBusy(errors.StoreBusy.STATEMENT_TIMEOUT), False
    if state == "53100":
        return errors.StoreFull(), False
    is_lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state
    may_recover = is_lost or state in _UNAVAILABLE or state.startswith(("08", "57P"))
    if may_recover or state in _BROKEN:
        return errors.StoreUnavailable(state, one_line(error)), may_recover
    return UnexpectedDatabaseError(error), False


def is_lock_conflict(error: psycopg.Error) -> bool:
    """Returns whether a statement failed only because of a lock of another transaction."""
    return error.sqlstate == _LOCK_TIMEOUT or error.sqlstate in _CONFLICTS


def is_read_only(error: psycopg.Error) -> bool:
    """Returns whether a statement failed because its session accepts no writes."""
    return error.sqlstate == _READ_ONLY


def retry(attempt: Callable[[], T], *, commit_unconfirmed: bool = False) -> T:
    """Runs an attempt until it succeeds or the time is up. Never retries while its COMMIT may be in progress.

    Args: commit_unconfirmed, whether an earlier attempt may have committed.
    """
    deadline = time.monotonic() + _RETRY_TIMEOUT_SECONDS
    while True:
        failure: BaseException
        try:
            return attempt()
        except CommitUnconfirmed:
            failure, may_retry, commit_unconfirmed = errors.OutcomeUnknown(), True, True
        except SerializationConflict:
            failure, may_retry = errors.StoreBusy(), True
        except (errors.StoreBusy, errors.ShuttingDown) as refusal:  # of the pool: no statement was sent
            failure, may_retry = refusal, False
        except psycopg.Error as error:
            failure, may_retry = domain_error(error)
        if not may_retry or time.monotonic() > deadline:
            raise errors.OutcomeUnknown() if commit_unconfirmed else failure
        time.sleep(random.uniform(*_RETRY_DELAY_SECONDS))  # noqa: S311 - it only spreads the callers
