"""Statements in a transaction of PostgreSQL."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import psycopg

from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.driver_errors import domain_error
from caseload_server.store.backends.postgres.reads import ReadSession
from caseload_server.store.backends.protocol import Parameters, Query, Row

_NAMED_PARAMETER: Final = re.compile(r"(?<![\w:]):([a-z]\w*)")


@lru_cache(4096)
def psycopg_sql(sql: str) -> bytes:
    """Converts `:name` parameters to psycopg's `%(name)s`."""
    return _NAMED_PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")).encode()


class PostgresTransaction:
    """Implements Transaction on a connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        cursor = self._connection.execute(psycopg_sql(sql), parameters, binary=True)
        return cursor.fetchall() if cursor.description else []

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        with self._connection.pipeline():
            first, *_ = [self._connection.execute(psycopg_sql(sql), values, binary=True) for sql, values in statements]
        return first.fetchall()

    def rows(self, query: Query) -> Iterator[Row]:
        return iter(self.run(query.sql, query.parameters))


class SnapshotTransaction:
    """Implements Transaction for reads. It raises domain errors that do not carry the driver's error."""

    __slots__ = ("_session",)

    def __init__(self, session: ReadSession) -> None:
        self._session = session

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            return self._session.run(sql, parameters)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        raise failure  # outside of the except block, or it would carry the driver's error as its context

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        first, *_ = [self.run(sql, parameters) for sql, parameters in statements]
        return first

    def rows(self, query: Query) -> Iterator[Row]:
        try:
            yield from self._session.stream(query)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        else:
            return
        raise failure
