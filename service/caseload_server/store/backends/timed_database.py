"""A Database wrapper that measures reads and writes, and counts their failures by cause."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter

from caseload_server.store.backends.protocol import (
    Database,
    Gauges,
    Parameters,
    Row,
    S,
    Sharing,
    StoreMetrics,
    T,
    Tail,
    Transaction,
)


class TimedDatabase:
    """Delegates to a database and records how long each operation took, including waiting and failures."""

    def __init__(self, database: Database, metrics: StoreMetrics) -> None:
        """Args: database, does the work; metrics, receives the durations."""
        self.lock_clause = database.lock_clause
        self.dialect = database.dialect
        self.commit_may_be_ambiguous = database.commit_may_be_ambiguous
        self.on_commit = database.on_commit = metrics.commit
        self._database = database
        self._metrics = metrics

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        started = perf_counter()
        try:
            return self._database.read(sql, parameters)
        except Exception as error:
            self._count(error)
            raise
        finally:
            self._metrics.read(perf_counter() - started)

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        started = perf_counter()
        try:
            with self._database.snapshot() as transaction:
                yield transaction
        except Exception as error:
            self._count(error)
            raise
        finally:
            self._metrics.read(perf_counter() - started)

    def write(self, work: Callable[[Transaction], T]) -> T:
        started = perf_counter()
        try:
            return self._database.write(work)
        except Exception as error:
            self._count(error)
            raise
        finally:
            with suppress(Exception):  # a failing metric must not turn a committed write into an error
                self._metrics.write(perf_counter() - started)

    def write_with_tail(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> T:
        started = perf_counter()
        try:
            return self._database.write_with_tail(work, tail, sharing)
        except Exception as error:
            self._count(error)
            raise
        finally:
            with suppress(Exception):
                self._metrics.write(perf_counter() - started)

    def _count(self, error: Exception) -> None:
        if cause := getattr(error, "cause", ""):  # else the store refused the call by its rules
            with suppress(Exception):
                self._metrics.failure(cause)

    def gauges(self) -> Gauges:
        return self._database.gauges()

    def check(self) -> None:
        self._database.check()

    def wait_for_commit(self) -> None:
        self._database.wait_for_commit()

    def close(self) -> None:
        self._database.close()
