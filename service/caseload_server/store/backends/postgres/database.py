"""PostgreSQL through psycopg 3, for any number of instances on one database.

Transactions are read committed. Row locks, unique indexes and the order of revisions keep the rules between instances.
https://www.postgresql.org/docs/current/transaction-iso.html, https://www.psycopg.org/psycopg3/docs/
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Final

import psycopg
from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.postgres.connection import READS, Connection, SessionSettings, connect
from caseload_server.store.backends.postgres.connection_pool import ConnectionPool
from caseload_server.store.backends.postgres.error_text import one_line
from caseload_server.store.backends.postgres.store_check import StoreCheck, wait_for_result
from caseload_server.store.backends.protocol import (
    DEFECT,
    Gauges,
    Parameters,
    Row,
    SerializationConflict,
    T,
    Transaction,
    Value,
    no_metrics,
)

_BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_FETCH_SIZE: Final = 101
"""Rows that one statement of `fetch_page` returns."""
_CHANNEL: Final = "caseload_revision"
_RETRY_TIMEOUT_SECONDS: Final = 5.0
"""How long an operation is retried after a lost connection or a conflict."""
_RETRY_DELAY_SECONDS: Final = (0.01, 0.1)
"""Shortest and longest delay before a retry, in seconds."""
_POLL_SECONDS: Final = 0.5
"""How long `wait_for_commit` waits for a notification."""
_NAMED_PARAMETER: Final = re.compile(r"(?<![\w:]):([a-z]\w*)")

# SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
_CONFLICTS: Final = {"40001", "40P01"}
"""serialization_failure, deadlock_detected."""
_LOCK_TIMEOUT: Final = "55P03"
"""lock_not_available."""
_STATEMENT_TIMEOUT: Final = "57014"
"""query_canceled."""
_UNAVAILABLE: Final = {"25006", "53200", "53300"}
"""read_only_sql_transaction (a primary that became a standby), out_of_memory, too_many_connections."""


class UnexpectedDatabaseError(Exception):
    """A defect of this program. PostgreSQL's own text quotes rows, so only SQLSTATE and constraint are kept."""

    cause = DEFECT

    def __init__(self, error: psycopg.Error) -> None:
        """Args: error, of the driver."""
        super().__init__(error.sqlstate, error.diag.constraint_name)
        self.sqlstate = error.sqlstate


class _CommitUnconfirmed(Exception):
    """The connection was lost during COMMIT, so it is unknown whether the transaction committed."""


@lru_cache(4096)
def _psycopg_sql(sql: str) -> bytes:
    """Converts `:name` parameters to psycopg's `%(name)s`."""
    return _NAMED_PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")).encode()


def _domain_error(error: psycopg.Error) -> tuple[BaseException, bool]:
    """Maps a driver's error to the exception to raise, and whether a retry may succeed."""
    state = error.sqlstate or ""
    if state in _CONFLICTS:
        return errors.StoreBusy(), True
    if state == _LOCK_TIMEOUT:
        return errors.StoreBusy(errors.StoreBusy.LOCK_WAIT), False
    if state == _STATEMENT_TIMEOUT:
        return errors.StoreBusy(errors.StoreBusy.STATEMENT_TIMEOUT), False
    if state == "53100":
        return errors.StoreFull(), False
    is_lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state
    if is_lost or state in _UNAVAILABLE or state.startswith(("08", "57P")):
        return errors.StoreUnavailable(state, one_line(error)), True
    return UnexpectedDatabaseError(error), False


class PostgresTransaction:
    """Implements Transaction on a connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        cursor = self._connection.execute(_psycopg_sql(sql), parameters, binary=True)
        return cursor.fetchall() if cursor.description else []

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        with self._connection.pipeline():
            first, *_ = [self._connection.execute(_psycopg_sql(sql), values, binary=True) for sql, values in statements]
        return first.fetchall()

    def rows(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        return iter(self.run(sql, parameters))

    def fetch_page(self, sql: str, parameters: dict[str, Value]) -> Iterator[Row]:
        # Several statements, because all rows of one arrive at once, and a page may end after two mebibytes.
        remaining = int(parameters["limit"] or 0)
        while remaining:
            rows = self.run(sql, {**parameters, "limit": min(remaining, _FETCH_SIZE)})
            yield from rows
            remaining -= min(remaining, _FETCH_SIZE)
            if len(rows) < _FETCH_SIZE:
                return
            parameters = {**parameters, "after": rows[-1][0]}


class _SnapshotTransaction(PostgresTransaction):
    """Raises domain errors itself: an exception that leaves a with block keeps the driver's error as its context."""

    __slots__ = ()

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            return super().run(sql, parameters)
        except psycopg.Error as error:
            failure, _ = _domain_error(error)
        raise failure


class PostgresDatabase:
    """Implements Database on PostgreSQL.

    A write is retried after a conflict or a lost connection. That includes a connection lost during COMMIT: if the
    first attempt committed, the stored outcome of its request_id answers the retry. The retry writes that outcome
    again, so its answer waits for the standby as any commit does.
    """

    lock_clause = " FOR NO KEY UPDATE"
    commit_may_be_ambiguous = True

    def __init__(
        self, url: str, *, connections: int = 16, commit_timeout_seconds: float = 3.0, reads: SessionSettings = READS
    ) -> None:
        """Opens no connection yet.

        Args: connections, limit for reads, and the same for writes; commit_timeout_seconds, how long a caller waits
        for a COMMIT; reads, the settings of the sessions for reads.
        """
        self.on_commit: Callable[[int, float], object] = no_metrics
        self._readers = ConnectionPool(partial(connect, url, reads), connections)
        self._writers = ConnectionPool(partial(connect, url), connections)
        self._commit_timeout_seconds = commit_timeout_seconds
        self._abandoned: set[Connection] = set()
        self._commits_stalled = False
        self._readers.on_connect_failure = self._writers.give_way
        self._writers.on_connect_failure = self._readers.give_way
        self._connect = partial(self._connect_beside_pools, url)
        self._listener: Connection | None = None
        self._store_check = StoreCheck(self._connect)

    def _connect_beside_pools(self, url: str) -> Connection:
        try:
            return connect(url)
        except psycopg.OperationalError:
            for pool in (self._readers, self._writers):
                pool.give_way(urgent=True)
            raise

    def open(self) -> None:
        """Opens the connection of `check`, which keeps an import away. Raises SchemaError, psycopg.Error."""
        self._store_check.open()

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return self._retry(partial(self._read, sql, parameters))

    def _read(self, sql: str, parameters: Parameters | None) -> list[Row]:
        connection = self._readers.acquire()
        try:
            return connection.execute(_psycopg_sql(sql), parameters, binary=True).fetchall()
        finally:
            self._readers.release(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        connection = self._retry(self._begin_snapshot)
        try:
            yield _SnapshotTransaction(connection)
        finally:
            with suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            self._readers.release(connection)

    def _begin_snapshot(self) -> Connection:
        connection = self._readers.acquire()
        try:
            connection.execute(_BEGIN_SNAPSHOT)
        except BaseException:
            self._readers.release(connection)
            raise
        return connection

    def write(self, work: Callable[[Transaction], T]) -> T:
        if self._commits_stalled:  # they wait for a standby, and so would this one
            raise errors.StoreUnavailable
        return self._retry(partial(self._transact, work))

    def _retry(self, attempt: Callable[[], T]) -> T:
        """Runs an attempt until it succeeds or the time is up. Never retries while its COMMIT may be in progress."""
        deadline = time.monotonic() + _RETRY_TIMEOUT_SECONDS
        commit_unconfirmed = False
        while True:
            failure: BaseException
            try:
                return attempt()
            except _CommitUnconfirmed:
                failure, may_retry, commit_unconfirmed = errors.OutcomeUnknown(), True, True
            except SerializationConflict:
                failure, may_retry = errors.StoreBusy(), True
            except (errors.StoreBusy, errors.ShuttingDown) as refusal:  # of the pool: no statement was sent
                failure, may_retry = refusal, False
            except psycopg.Error as error:
                failure, may_retry = _domain_error(error)
            if not may_retry or time.monotonic() > deadline:
                raise errors.OutcomeUnknown() if commit_unconfirmed else failure
            time.sleep(random.uniform(*_RETRY_DELAY_SECONDS))  # noqa: S311 - it only spreads the callers

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        connection = self._writers.acquire()
        try:
            connection.execute("BEGIN")
            result = work(PostgresTransaction(connection))
            self._commit(connection)
        except BaseException:
            if connection.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            raise
        finally:
            if connection in self._abandoned:
                self._writers.discard()
            else:
                self._writers.release(connection)
        return result

    def _commit(self, connection: Connection) -> None:
        """Raises OutcomeUnknown, _CommitUnconfirmed; StoreBusy where the server rolled back instead."""
        warnings: list[str | None] = []
        on_notice = lambda notice: warnings.append(notice.sqlstate)  # noqa: E731 - it is removed again by its name
        connection.add_notice_handler(on_notice)
        started = time.perf_counter()
        try:
            connection.pgconn.send_query(b"COMMIT")
            if not wait_for_result(connection.pgconn, self._commit_timeout_seconds):
                self._abandon_commit(connection)
                raise errors.OutcomeUnknown
            result = connection.pgconn.get_result()
            while connection.pgconn.get_result():
                pass
        except psycopg.Error:
            raise _CommitUnconfirmed from None
        finally:
            connection.remove_notice_handler(on_notice)
        if connection.pgconn.status != pq.ConnStatus.OK:
            raise _CommitUnconfirmed
        if "01000" in warnings:  # an administrator canceled its wait for the standby
            raise errors.OutcomeUnknown
        if result is None or result.command_status != b"COMMIT":
            raise errors.StoreBusy
        with suppress(Exception):  # a failing metric must not turn a committed write into an error
            self.on_commit(1, time.perf_counter() - started)

    def _abandon_commit(self, connection: Connection) -> None:
        """Leaves a COMMIT that waits for its standby. Canceling it would show others data that can still be lost."""
        self._commits_stalled = True  # until `check` finds no waiting commit
        self._abandoned.add(connection)
        threading.Thread(
            target=self._await_abandoned_commit, args=(connection,), name="abandoned-commit", daemon=True
        ).start()

    def _await_abandoned_commit(self, connection: Connection) -> None:
        with suppress(psycopg.Error):
            wait_for_result(connection.pgconn, None)
        connection.close()
        self._abandoned.discard(connection)

    def gauges(self) -> Gauges:
        return [*self._readers.gauges("read"), *self._writers.gauges("write")]

    def check(self) -> None:
        for pool in (self._readers, self._writers):
            pool.close_unused()
        self._commits_stalled = self._store_check.run()
        if self._commits_stalled:
            raise errors.StoreUnavailable(detail="commits wait for a standby")

    def wait_for_commit(self) -> None:
        try:
            if self._listener is None:
                self._listener = self._connect()
                self._listener.execute(f"LISTEN {_CHANNEL}")
                return  # earlier commits sent no notification to it: the caller looks now
            for _ in self._listener.notifies(timeout=_POLL_SECONDS, stop_after=1):
                pass
        except psycopg.Error:
            if self._listener is not None:
                self._listener.close()
            self._listener = None
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        self._readers.close()
        self._writers.close()
        self._store_check.close()
        if self._listener is not None:
            self._listener.close()
