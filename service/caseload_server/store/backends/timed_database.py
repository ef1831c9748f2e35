"""A database whose reads and writes are timed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter

from caseload_server.store.backends.protocol import Database, Gauges, Parameters, Row, StoreMetrics, T, Transaction


class TimedDatabase:
    """A database as it is, and the time that it took for callers: waiting included, whatever came of it."""

    def __init__(self, database: Database, meter: StoreMetrics) -> None:
        """Args: meter, is told."""
        self.lock_clause = database.lock_clause
        self.commit_may_be_ambiguous = database.commit_may_be_ambiguous
        self.committed = database.committed = meter.commit
        self._database = database
        self._meter = meter

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        began = perf_counter()
        try:
            return self._database.read(sql, parameters)
        finally:
            self._meter.read(perf_counter() - began)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        began = perf_counter()
        try:
            with self._database.reading() as transaction:
                yield transaction
        finally:
            self._meter.read(perf_counter() - began)

    def write(self, work: Callable[[Transaction], T]) -> T:
        began = perf_counter()
        try:
            return self._database.write(work)
        finally:
            with suppress(Exception):  # what is done stays done, also where it cannot be counted
                self._meter.write(perf_counter() - began)

    def gauges(self) -> Gauges:
        return self._database.gauges()

    def check(self) -> None:
        self._database.check()

    def wait_for_commit(self) -> None:
        self._database.wait_for_commit()

    def close(self) -> None:
        self._database.close()
