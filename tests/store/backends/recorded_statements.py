"""The statements that a list runs, as they are sent."""

from collections.abc import Iterator
from typing import Any

from caseload_server.domain.requests import PageRequest, RecordQuery
from caseload_server.store.backends.protocol import Database, Parameters, Query, Row, Transaction
from caseload_server.store.lists import RecordList


class Recorder:
    """A transaction that keeps each of its statements."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.statements: list[Query] = []

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs a statement."""
        self.statements.append(Query(sql, dict(parameters or {})))
        return self._transaction.run(sql, parameters)

    def rows(self, query: Query) -> Iterator[Row]:
        """Runs a query."""
        self.statements.append(query)
        return self._transaction.rows(query)


def statements_of_list(database: Database, kind: Any, query: RecordQuery, page: PageRequest) -> list[Query]:
    """Returns the statements of one page, and of its total if the query asks for it."""
    with database.snapshot() as transaction:
        recorder = Recorder(transaction)
        listed = RecordList(recorder, kind, query, database.dialect)
        if query.with_total:
            listed.total()
        for _ in zip(listed.rows(page), range(page.size + 1), strict=False):
            pass
        return recorder.statements
