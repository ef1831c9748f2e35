"""Statements in a transaction of PostgreSQL."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import psycopg

from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.driver_errors import domain_error
from caseload_server.store.backends.protocol import Parameters, Row, Value

_FETCH_SIZE: Final = 101
"""Rows that one statement of `fetch_page` returns."""
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


class SnapshotTransaction(PostgresTransaction):
    """Raises domain errors itself: an exception that leaves a with block keeps the driver's error as its context."""

    __slots__ = ()

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            return super().run(sql, parameters)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        raise failure
