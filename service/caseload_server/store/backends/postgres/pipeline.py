"""Sends several statements to PostgreSQL in one round trip, through libpq's pipeline mode.

psycopg has a pipeline mode too, but takes three times the CPU of this module for five statements.
https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

import re
import select
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.parameters import encode, positional
from caseload_server.store.backends.protocol import Parameters, Row

_RETURNS_NO_ROWS: Final = re.compile(r"\s*(?:INSERT|UPDATE|DELETE)\b(?!.*\bRETURNING\b)", re.DOTALL)
_MAX_PREPARED: Final = 500
"""Most prepared statements of a connection. PostgreSQL parses further statements each time."""
TIMEOUT_SECONDS: Final = 10.0
"""How long the statements of one round trip may take. The server's timeouts do not end a server process that hangs."""
_MAX_PART_BYTES: Final = 32 * 1024
"""Most bytes of several statements that are sent together. The server reads none while it runs one of them, and the
kernel drops a connection whose bytes are not taken within tcp_user_timeout."""
_SUCCESS: Final = {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}


class EarlierStatementFailed(Exception):
    """A statement that was queued before `StatementPipeline.mark` failed."""

    def __init__(self, sql: bytes, error: psycopg.Error) -> None:
        """Args: sql, the statement; error, why it failed."""
        super().__init__()
        self.sql = sql
        self.error = error

    def is_lock_timeout_of(self, sql: str) -> bool:
        """Returns whether the statement is `sql`, and waited too long for a lock."""
        return self.sql == sql.encode() and isinstance(self.error, psycopg.errors.LockNotAvailable)


class NoAnswer(psycopg.OperationalError):
    """The server did not answer in time. The connection is closed, and its transaction will not commit."""


class _Statement(NamedTuple):
    """A statement in the form that libpq takes, with parameters by position."""

    sql: bytes
    types: tuple[int, ...]
    values: tuple[bytes | None, ...]


class _Command(NamedTuple):
    """A message that was sent for a statement: it prepares or executes it."""

    number: int
    """The position of the statement in the queue."""
    prepares: tuple[_Statement, bytes] | None = None
    """The statement to prepare, and its name."""


@lru_cache(4096)
def returns_no_rows(sql: str) -> bool:
    """Returns whether a statement returns no rows, so that its sender need not wait for it."""
    return _RETURNS_NO_ROWS.match(sql) is not None


def _parts(queue: list[_Statement]) -> Iterator[list[_Statement]]:
    """Yields statements to send together. A large one is sent alone, because the server is then free to read it."""
    part: list[_Statement] = []
    size = 0
    for statement in queue:
        statement_bytes = len(statement.sql) + sum(len(value) for value in statement.values if value is not None)
        if part and size + statement_bytes > _MAX_PART_BYTES:
            yield part
            part, size = [], 0
        part.append(statement)
        size += statement_bytes
    if part:
        yield part


class StatementPipeline:
    """Statements of one connection. A statement without rows is sent together with the next one that returns rows."""

    def __init__(self, connection: Connection) -> None:
        """Args: connection, in autocommit mode. Others may use it too, between two calls of `flush`."""
        self._pgconn = connection.pgconn
        self._transformer = Transformer()  # one of the connection would keep it from being freed
        self._prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._queue: list[_Statement] = []
        self._marked = 0

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        """The status of the connection, of which a broken transaction is INERROR and a lost connection UNKNOWN."""
        return pq.TransactionStatus(self._pgconn.transaction_status)

    def roll_back(self) -> None:
        """Ends the transaction. Raises psycopg.Error."""
        self.restart("ROLLBACK")
        self.flush()

    def restart(self, sql: str) -> None:
        """Empties the queue, which may hold statements of an earlier transaction, and queues the first statement."""
        self._queue, self._marked = [], 0
        self.add(sql)

    def add(self, sql: str, parameters: Parameters | None = None) -> None:
        """Queues a statement. If it fails, a later `flush` raises the error."""
        text, names = positional(sql)
        encoded = [encode(parameters[name]) for name in names] if parameters else []
        types, values = zip(*encoded, strict=True) if encoded else ((), ())
        self._queue.append(_Statement(text, types, values))

    def mark(self) -> None:
        """Marks the queued statements, so that `flush` and `drop_unsent` treat later ones differently."""
        self._marked = len(self._queue)

    def drop_unsent(self) -> None:
        """Removes the statements that were queued after the last `mark` or `flush`."""
        del self._queue[self._marked :]

    def flush(self) -> list[Row]:
        """Sends the queued statements. Returns the rows of the last one.

        Raises psycopg.Error if a statement fails, or EarlierStatementFailed if it was marked.
        """
        queue, marked = self._queue, self._marked
        self._queue, self._marked = [], 0
        result: pq.abc.PGresult | None = None
        sent = 0
        for part in _parts(queue):
            for command, result in self._exchange(part):
                if result.status not in _SUCCESS:
                    error, number = error_from_result(result), sent + command.number
                    raise EarlierStatementFailed(queue[number].sql, error) if number < marked else error
                if command.prepares:
                    statement, name = command.prepares
                    self._prepared[statement.sql, statement.types] = name
            sent += len(part)
        return self._rows(result) if result else []

    def _exchange(self, queue: list[_Statement]) -> list[tuple[_Command, pq.abc.PGresult]]:
        """Runs statements in one round trip. Returns each command with its result."""
        try:
            self._pgconn.enter_pipeline_mode()
            commands = self._send(queue)
            self._pgconn.pipeline_sync()
            results = self._receive()
            self._pgconn.exit_pipeline_mode()
        except BaseException:
            self._pgconn.finish()  # the state of the connection is unknown
            raise
        return list(zip(commands, results, strict=True))

    def _send(self, queue: list[_Statement]) -> list[_Command]:
        commands: list[_Command] = []
        preparing: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        for number, statement in enumerate(queue):
            key = statement.sql, statement.types
            name = self._prepared.get(key) or preparing.get(key)
            if name is None and len(self._prepared) + len(preparing) < _MAX_PREPARED:
                name = preparing[key] = f"caseload_{len(self._prepared) + len(preparing)}".encode()
                self._pgconn.send_prepare(name, statement.sql, statement.types)
                commands.append(_Command(number, (statement, name)))
            formats = [pq.Format.BINARY] * len(statement.values)
            if name is None:
                self._pgconn.send_query_params(
                    statement.sql, statement.values, statement.types, formats, pq.Format.BINARY
                )
            else:
                self._pgconn.send_query_prepared(name, statement.values, formats, pq.Format.BINARY)
            commands.append(_Command(number))
        return commands

    def _receive(self) -> list[pq.abc.PGresult]:
        """Returns the results until the end of the pipeline. Raises NoAnswer, psycopg.Error for a lost connection."""
        results: list[pq.abc.PGresult] = []
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            await_result(self._pgconn, deadline - time.monotonic())
            result = self._pgconn.get_result()
            if result is None:
                if self._pgconn.status != pq.ConnStatus.OK:
                    raise psycopg.OperationalError
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            else:
                results.append(result)

    def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        if not result.ntuples:
            return []
        self._transformer.set_pgresult(result, format=pq.Format.BINARY)
        return self._transformer.load_rows(0, result.ntuples, tuple)


def await_result(connection: pq.abc.PGconn, timeout_seconds: float | None) -> None:
    """Waits for the next result as `wait_for_result`. Raises NoAnswer after the timeout, psycopg.Error."""
    if not wait_for_result(connection, timeout_seconds):
        raise NoAnswer("the server did not answer in time")


def wait_for_result(connection: pq.abc.PGconn, timeout_seconds: float | None) -> bool:
    """Sends the remaining bytes, and waits for the next result. Returns False after the timeout.

    Args: timeout_seconds, or None to wait without limit. Raises psycopg.Error for a lost connection.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    poll = select.poll()
    while (unsent := connection.flush()) or connection.is_busy():
        poll.register(connection.socket, select.POLLIN | (select.POLLOUT if unsent else 0))
        remaining_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(remaining_ms):
            return False
        connection.consume_input()
    return True


def query_row(connection: pq.abc.PGconn, sql: bytes, timeout_seconds: float) -> list[bytes | None]:
    """Runs a query that returns one row. A server that hangs keeps its connections open, so the wait is limited.

    Raises NoAnswer after the timeout, psycopg.Error. The caller closes the connection after either.
    """
    connection.send_query(sql)
    result = connection.get_result() if wait_for_result(connection, timeout_seconds) else None
    if result is None:
        raise NoAnswer("the server did not answer in time")
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)
    connection.get_result()  # None: the query has one result
    return [result.get_value(0, column) for column in range(result.nfields)]
