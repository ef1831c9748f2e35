"""PostgreSQL through psycopg 3: any number of instances on one database.

Read-committed transactions; row locks, unique indexes and the order of revisions hold the rules between instances.
https://www.postgresql.org/docs/current/libpq-connect.html, https://www.psycopg.org/psycopg3/docs/
"""

import random
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryDumper

from caseload_server.domain import errors
from caseload_server.store.backends.postgres.connection_pool import Connection, Connections
from caseload_server.store.backends.protocol import (
    Gauges,
    Parameters,
    Row,
    SerializationConflict,
    T,
    Transaction,
    Value,
    no_metrics,
)

_CONNECTING: Final = {
    "application_name": "caseload",
    "client_encoding": "utf8",
    "connect_timeout": "2",  # seconds, for each host
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",  # milliseconds until a peer that acknowledges nothing is given up
    "target_session_attrs": "read-write",  # of several hosts, the primary
}
_SESSION: Final = (
    "-c statement_timeout=0 -c lock_timeout=3s -c idle_in_transaction_session_timeout=10s -c synchronous_commit=on"
    " -c default_transaction_isolation=read\\ committed"
)
# Only for reads: on a COMMIT that waits for a standby it would end the wait, and show what could still be lost.
_READING: Final = " -c statement_timeout=10s"
_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_ROWS_AT_ONCE: Final = 101
_CHANNEL: Final = "caseload_revision"
_PATIENCE_SECONDS: Final = 5.0
"""How long what a lost connection or a collision undid is tried again."""
_PAUSE_SECONDS: Final = (0.01, 0.1)
_CHECK_SECONDS: Final = 2.0
_WAITING_COMMITS: Final = b"""
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'SyncRep' AND now() - state_change > interval '2s' LIMIT 1"""
"""Commits of any instance that wait for a standby."""
_POLL_SECONDS: Final = 0.5
_NAME: Final = re.compile(r"(?<![\w:]):([a-z]\w*)")

_COLLIDED: Final = {"40001", "40P01"}
_TIMED_OUT: Final = {"55P03", "57014"}
_NOT_NOW: Final = {"25006", "53200", "53300"}
"""A standby that was a primary; out of memory; out of connections."""


class Defect(Exception):
    """An error that no caller should meet. PostgreSQL's own text quotes rows, so only the SQLSTATE and the constraint
    are kept."""

    def __init__(self, error: psycopg.Error) -> None:
        """Args: error, of the driver."""
        super().__init__(error.sqlstate, error.diag.constraint_name)


class _CommitLost(Exception):
    """The connection went during COMMIT: whether it was carried out is not known."""


def connect(url: str, session: str = "") -> Connection:
    """Opens a connection in autocommit, with every setting the store relies on. Raises psycopg.Error.

    Args: url, as libpq takes it, whose settings win; session, more of them for the server ("-c name=value").
    """
    given = conninfo_to_dict(url)
    if any(map(_is_elsewhere, str(given.get("hostaddr") or given.get("host") or "").split(","))):
        given.setdefault("sslmode", "require")  # libpq's own default would go on in plain text
    options = f"{_SESSION}{session} {given.pop('options', None) or ''}"
    settings: dict[str, Any] = {**_CONNECTING, **given, "options": options}
    connection = psycopg.connect(make_conninfo(**settings), autocommit=True, prepare_threshold=1)
    connection.prepared_max = 500
    connection.adapters.register_dumper(int, Int8BinaryDumper)  # or numbers of three sizes make three statements
    return connection


def _is_elsewhere(host: str) -> bool:
    """Whether a host is none of this machine: neither a socket nor loopback."""
    return not (host in {"", "localhost", "::1"} or host.startswith(("/", "@", "127.")))


@lru_cache(4096)
def _native(sql: str) -> bytes:
    """The SQL with parameters as psycopg names them."""
    return _NAME.sub(r"%(\1)s", sql.replace("%", "%%")).encode()


def _failure(error: psycopg.Error) -> tuple[BaseException, bool]:
    """What to raise for a driver's error, and whether the same may succeed when tried again."""
    state = error.sqlstate or ""
    if state in _COLLIDED:
        return errors.StoreBusy(), True
    if state in _TIMED_OUT:
        return errors.StoreBusy(), False
    if state == "53100":
        return errors.StoreFull(), False
    is_lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state
    if is_lost or state in _NOT_NOW or state.startswith(("08", "57P")):
        return errors.StoreUnavailable(), True
    return Defect(error), False


class _Statements:
    """A connection as a Transaction."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        cursor = self._connection.execute(_native(sql), parameters, binary=True)
        return cursor.fetchall() if cursor.description else []

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        with self._connection.pipeline():
            first, *_ = [self._connection.execute(_native(sql), values, binary=True) for sql, values in statements]
        return first.fetchall()

    def rows(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        return iter(self.run(sql, parameters))

    def fetch_page(self, sql: str, parameters: dict[str, Value]) -> Iterator[Row]:
        # In parts, for all rows of a statement come at once, and a page may end after two mebibytes of them.
        left = int(parameters["limit"] or 0)
        while left:
            some = self.run(sql, {**parameters, "limit": min(left, _ROWS_AT_ONCE)})
            yield from some
            left -= min(left, _ROWS_AT_ONCE)
            if len(some) < _ROWS_AT_ONCE:
                return
            parameters = {**parameters, "after": some[-1][0]}


class _Snapshot(_Statements):
    """Raises the store's own errors: the context of what leaves a with block is what was raised inside it."""

    __slots__ = ()

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            return super().run(sql, parameters)
        except psycopg.Error as error:
            failure, _ = _failure(error)
        raise failure


class PostgresDatabase:
    """A PostgreSQL database as a Database.

    A write that a collision or a lost connection undid is run again. So is one whose connection was lost during
    COMMIT: the store's note of its request_id answers it where it had been carried out, and since that note is written
    anew each time, the answer waits for the standby as any commit does.
    """

    lock_clause = " FOR NO KEY UPDATE"
    commit_may_be_ambiguous = True

    def __init__(self, url: str, *, connections: int = 16, commit_seconds: float = 3.0) -> None:
        """Opens nothing yet.

        Args: connections, most for reads, and as many for writes; commit_seconds, how long a caller waits for a COMMIT.
        """
        self.committed: Callable[[int, float], object] = no_metrics
        self._readers = Connections(partial(connect, url, _READING), connections)
        self._writers = Connections(partial(connect, url), connections)
        self._commit_seconds = commit_seconds
        self._left: set[Connection] = set()
        self._commits_wait = False
        self._connect = partial(connect, url)
        self._listener: Connection | None = None
        self._checker: Connection | None = None

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return self._again(partial(self._read, sql, parameters))

    def _read(self, sql: str, parameters: Parameters | None) -> list[Row]:
        connection = self._readers.take()
        try:
            return connection.execute(_native(sql), parameters, binary=True).fetchall()
        finally:
            self._readers.give(connection)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        connection = self._again(self._snapshot)
        try:
            yield _Snapshot(connection)
        finally:
            with suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            self._readers.give(connection)

    def _snapshot(self) -> Connection:
        connection = self._readers.take()
        try:
            connection.execute(_SNAPSHOT)
        except BaseException:
            self._readers.give(connection)
            raise
        return connection

    def write(self, work: Callable[[Transaction], T]) -> T:
        if self._commits_wait:  # for a standby, and so would this one
            raise errors.StoreUnavailable
        return self._again(partial(self._transact, work))

    def _again(self, attempt: Callable[[], T]) -> T:
        """Runs it until it succeeds, is refused, or patience ends. Never while a COMMIT of it may still go on."""
        until = time.monotonic() + _PATIENCE_SECONDS
        commit_lost = False
        while True:
            failure: BaseException
            try:
                return attempt()
            except _CommitLost:
                failure, may_retry, commit_lost = errors.OutcomeUnknown(), True, True
            except SerializationConflict:
                failure, may_retry = errors.StoreBusy(), True
            except (errors.StoreBusy, errors.ShuttingDown) as refusal:  # of a place: nobody could be asked
                failure, may_retry = refusal, False
            except psycopg.Error as error:
                failure, may_retry = _failure(error)
            if not may_retry or time.monotonic() > until:
                raise errors.OutcomeUnknown() if commit_lost else failure
            time.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - it only spreads the callers

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        connection = self._writers.take()
        try:
            connection.execute("BEGIN")
            result = work(_Statements(connection))
            self._commit(connection)
        except BaseException:
            if connection.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            raise
        finally:
            if connection in self._left:
                self._writers.forget()
            else:
                self._writers.give(connection)
        return result

    def _commit(self, connection: Connection) -> None:
        """Raises OutcomeUnknown, _CommitLost; StoreBusy where it was rolled back instead."""
        warned: list[str | None] = []
        note = lambda notice: warned.append(notice.sqlstate)  # noqa: E731 - removed again by its name
        connection.add_notice_handler(note)
        began = time.perf_counter()
        try:
            connection.pgconn.send_query(b"COMMIT")
            if not _ended(connection.pgconn, self._commit_seconds):
                self._leave_to_itself(connection)
                raise errors.OutcomeUnknown
            result = connection.pgconn.get_result()
            while connection.pgconn.get_result():
                pass
        except psycopg.Error:
            raise _CommitLost from None
        finally:
            connection.remove_notice_handler(note)
        if connection.pgconn.status != pq.ConnStatus.OK:
            raise _CommitLost
        if "01000" in warned:  # someone ended its wait for the standby
            raise errors.OutcomeUnknown
        if result is None or result.command_status != b"COMMIT":
            raise errors.StoreBusy
        with suppress(Exception):  # what is done stays done, also where it cannot be counted
            self.committed(1, time.perf_counter() - began)

    def _leave_to_itself(self, connection: Connection) -> None:
        """Never cancels a COMMIT that waits for its standby: others would read what can still be lost."""
        self._commits_wait = True  # until a check says otherwise
        self._left.add(connection)
        threading.Thread(target=self._see_out, args=(connection,), name="commit", daemon=True).start()

    def _see_out(self, connection: Connection) -> None:
        with suppress(psycopg.Error):
            _ended(connection.pgconn, None)
        connection.close()
        self._left.discard(connection)

    def gauges(self) -> Gauges:
        return [*self._readers.gauges("read"), *self._writers.gauges("write")]

    def check(self) -> None:
        answered = False
        with suppress(psycopg.Error):
            self._checker = self._checker or self._connect()
            connection = self._checker.pgconn
            connection.send_query(_WAITING_COMMITS)
            # A server that hangs keeps its connections: only a clock of our own tells.
            result = connection.get_result() if _ended(connection, _CHECK_SECONDS) else None
            if result and result.status == pq.ExecStatus.TUPLES_OK and connection.get_result() is None:
                answered, self._commits_wait = True, result.ntuples > 0
        if not answered and self._checker:
            self._checker.close()
            self._checker = None
        if not answered or self._commits_wait:
            raise errors.StoreUnavailable

    def wait_for_commit(self) -> None:
        try:
            if self._listener is None:
                self._listener = self._connect()
                self._listener.execute(f"LISTEN {_CHANNEL}")
                return  # what was committed before is not told: look now
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
        for connection in (self._listener, self._checker):
            if connection is not None:
                connection.close()


def _ended(connection: pq.abc.PGconn, seconds: float | None) -> bool:
    """Waits for the end of what was sent, so long at most; whether it came. Raises psycopg.Error when it is lost."""
    until = None if seconds is None else time.monotonic() + seconds
    poll = select.poll()
    while connection.flush() or connection.is_busy():
        poll.register(connection.socket, select.POLLIN)
        left = None if until is None else max(0.0, until - time.monotonic()) * 1000
        if not poll.poll(left):
            return False
        connection.consume_input()
    return True
