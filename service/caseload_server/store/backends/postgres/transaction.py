"""Statements in a transaction of PostgreSQL."""

from collections.abc import Iterator

import psycopg

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
    """Implements Transaction for reads. It raises domain errors that do not carry the driver's error."""

    __slots__ = ()

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            return super().run(sql, parameters)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        raise failure  # outside of the except block, so that it does not have the driver's error as its context

    def rows(self, query: Query) -> Iterator[Row]:
        try:
            yield from super().rows(query)
        except psycopg.Error as error:
            failure, _ = domain_error(error)
        else:
            return
        raise failure


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
