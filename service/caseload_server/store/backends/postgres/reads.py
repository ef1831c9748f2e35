"""Runs the queries of reads through libpq. A cursor of psycopg takes twice the CPU for the read of one record.

https://www.psycopg.org/psycopg3/docs/api/pq.html, https://www.postgresql.org/docs/current/libpq-single-row-mode.html
"""

from collections.abc import Iterator
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.parameters import encode, positional
from caseload_server.store.backends.postgres.pipeline import await_result
from caseload_server.store.backends.protocol import Parameters, Query, Row

_MAX_PREPARED: Final = 500
"""Most prepared statements of a connection. Each further statement replaces the oldest."""
_MARGIN_SECONDS: Final = 5.0
"""How long after the server's timeout of a statement its answer may arrive. A server process that hangs sends none."""
_STATEMENT_TIMEOUT: Final = b"SELECT EXTRACT(EPOCH FROM CAST(current_setting('statement_timeout') AS INTERVAL))"
_SUCCESS: Final = {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.SINGLE_TUPLE}


class _Bound(NamedTuple):
    """A query in the form that libpq takes, with parameters by position, in binary."""

    sql: bytes
    values: list[bytes | None]
    types: tuple[int, ...]
    formats: list[int]


class ReadSession:
    """The queries of one connection, with the statements that it has prepared."""

    def __init__(self, connection: Connection) -> None:
        """Args: connection, in autocommit mode. psycopg must not prepare other statements of it."""
        self._pgconn = connection.pgconn
        self._transformer = Transformer()  # one of the connection would keep it from being freed
        self._timeout_seconds = _timeout_seconds(connection)
        self._prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._count = 0

    def command(self, sql: bytes) -> None:
        """Discards unread rows of an earlier stream, then runs a statement that returns no rows."""
        self._drop_rows()
        self._pgconn.send_query(sql)
        self._result()

    def run(self, sql: str, parameters: Parameters | None) -> list[Row]:
        """Runs one query and returns all its rows. Raises psycopg.Error."""
        self._send_prepared(_bind(sql, parameters))
        return self._rows(self._result())

    def stream(self, query: Query) -> Iterator[Row]:
        """Runs one query and yields its rows as they arrive. Raises psycopg.Error."""
        bound = _bind(query.sql, query.parameters)
        if query.plan_for_values:  # a statement without a name is planned each time
            self._pgconn.send_query_params(*bound, result_format=pq.Format.BINARY)
        else:
            self._send_prepared(bound)
        self._pgconn.set_single_row_mode()
        while result := self._next_result():
            _check(result)
            yield from self._rows(result)

    def _send_prepared(self, query: _Bound) -> None:
        name = self._prepared.get((query.sql, query.types)) or self._prepare(query)
        self._pgconn.send_query_prepared(name, query.values, query.formats, result_format=pq.Format.BINARY)

    def _prepare(self, query: _Bound) -> bytes:
        if len(self._prepared) >= _MAX_PREPARED:
            self.command(b"DEALLOCATE " + self._prepared.pop(next(iter(self._prepared))))
        self._count += 1
        name = b"read_%d" % self._count
        self._pgconn.send_prepare(name, query.sql, query.types)
        self._result()
        self._prepared[query.sql, query.types] = name
        return name

    def _result(self) -> pq.abc.PGresult:
        result = self._next_result()
        if result is None:
            raise psycopg.OperationalError
        _check(result)
        self._drop_rows()
        return result

    def _next_result(self) -> pq.abc.PGresult | None:
        """Returns the next result, or None after the last. While libpq waits by itself, no other thread runs."""
        try:
            if self._pgconn.is_busy():
                await_result(self._pgconn, self._timeout_seconds)
            return self._pgconn.get_result()
        except BaseException:
            self._pgconn.finish()  # it is unknown what has arrived
            raise

    def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _drop_rows(self) -> None:
        if self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            while self._next_result():
                pass


_SESSIONS: Final[WeakKeyDictionary[Connection, ReadSession]] = WeakKeyDictionary()


def read_session(connection: Connection) -> ReadSession:
    """Returns the session of a connection, the same one each time."""
    session = _SESSIONS.get(connection)
    if session is None:
        session = _SESSIONS[connection] = ReadSession(connection)
    return session


def _timeout_seconds(connection: Connection) -> float | None:
    """Returns how long to wait for a result, or None if the session has no statement timeout."""
    [(statement_seconds,)] = connection.execute(_STATEMENT_TIMEOUT, prepare=False).fetchall()
    return float(statement_seconds) + _MARGIN_SECONDS if statement_seconds else None


def _bind(sql: str, parameters: Parameters | None) -> _Bound:
    text, names = positional(sql)
    encoded = [encode(parameters[name]) for name in names] if parameters else []
    return _Bound(text, [value for _, value in encoded], tuple([oid for oid, _ in encoded]), [1] * len(encoded))


def _check(result: pq.abc.PGresult) -> None:
    """Raises psycopg.Error for a failed query; OperationalError for a lost connection, which has no SQLSTATE."""
    if result.status not in _SUCCESS:
        error = error_from_result(result)
        raise error if error.sqlstate else psycopg.OperationalError("the connection was lost")
