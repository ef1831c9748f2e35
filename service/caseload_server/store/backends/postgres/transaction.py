"""Statements in a transaction of PostgreSQL."""

import time
from collections.abc import Iterator

import psycopg

from caseload_server.domain import errors
from caseload_server.domain.call_deadline import read_deadline
from caseload_server.store.backends.postgres.driver_errors import domain_error
from caseload_server.store.backends.postgres.pipeline import StatementPipeline, returns_no_rows
from caseload_server.store.backends.postgres.reads import ReadSession
from caseload_server.store.backends.protocol import Parameters, Query, Row


class PostgresTransaction:
    """Implements Transaction on a connection. It raises the errors of the driver."""

    __slots__ = ("_session",)

    def __init__(self, session: ReadSession) -> None:
        self._session = session

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return self._session.run(sql, parameters)

    def rows(self, query: Query) -> Iterator[Row]:
        return self._session.stream(query)


class SnapshotTransaction(PostgresTransaction):
    """Implements Transaction for reads. It raises domain errors that do not carry the driver's error.

    It starts no statement after the deadline of the call: `statement_timeout` limits each statement alone.
    """

    __slots__ = ()

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        _require_time()
        try:
            return super().run(sql, parameters)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        raise failure  # outside of the except block, so that it does not have the driver's error as its context

    def rows(self, query: Query) -> Iterator[Row]:
        _require_time()
        try:
            yield from super().rows(query)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        else:
            return
        raise failure


def _require_time() -> None:
    """Raises StoreBusy after the deadline of the call."""
    if time.monotonic() > read_deadline.get():
        raise errors.StoreBusy(errors.StoreBusy.STATEMENT_TIMEOUT)


class WriteTransaction:
    """Sends a statement without rows together with the next one that returns rows. So its error may be raised later."""

    __slots__ = ("_pipeline",)

    def __init__(self, pipeline: StatementPipeline) -> None:
        self._pipeline = pipeline

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        self._pipeline.add(sql, parameters)
        return [] if returns_no_rows(sql) else self._pipeline.flush()

    def rows(self, query: Query) -> Iterator[Row]:
        return iter(self.run(query.sql, query.parameters))
