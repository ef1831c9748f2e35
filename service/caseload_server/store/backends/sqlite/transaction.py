"""Transactions on a connection to a SQLite file."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import apsw

from caseload_server.store.backends.protocol import Parameters, Query, Row, Transaction
from caseload_server.store.backends.sqlite.driver_errors import domain_error


class SqliteTransaction:
    """Implements Transaction on a connection."""

    __slots__ = ("_connection", "_cursors")

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._cursors: list[apsw.Cursor] = []

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return list(self._connection.execute(sql, parameters))

    def rows(self, query: Query) -> Iterator[Row]:
        cursor = self._connection.execute(query.sql, query.parameters)
        self._cursors.append(cursor)
        return cursor

    def close_cursors(self) -> None:
        while self._cursors:
            self._cursors.pop().close(True)


class Snapshot:
    """A read-only transaction for the duration of a with block."""

    __slots__ = ("_connection", "_lock", "_transaction")

    def __init__(self, connection: apsw.Connection, lock: Any) -> None:
        self._connection = connection
        self._lock = lock
        self._transaction = SqliteTransaction(connection)

    def __enter__(self) -> Transaction:
        self._lock.acquire()
        try:
            self._connection.execute("BEGIN")
        except BaseException as error:  # noqa: BLE001 - a lock that is not released blocks the thread's next read
            self._lock.release()
            raise domain_error(error) from None
        return self._transaction

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(apsw.Error):
            self._transaction.close_cursors()
        with suppress(apsw.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._lock.release()
        if isinstance(error, apsw.Error):
            raise domain_error(error) from None
