"""A Database wrapper that measures reads and writes, and counts their failures by cause."""

import threading
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
    no_metrics,
)


class _Commit:
    """A commit that several writes may share. It ends in the thread that ran their work."""

    __slots__ = ("ended", "seconds", "writes")

    def __init__(self) -> None:
        self.writes = 0  # until it has succeeded
        self.seconds = 0.0
        self.ended = 0.0  # by perf_counter()


class TimedDatabase:
    """Delegates to a database and records how long each operation took, including waiting and failures."""

    def __init__(self, database: Database, metrics: StoreMetrics) -> None:
        """Args: database, does the work; metrics, receives the durations."""
        self.lock_clause = database.lock_clause
        self.dialect = database.dialect
        self.commit_may_be_ambiguous = database.commit_may_be_ambiguous
        self.on_commit: Callable[[int, float], object] = no_metrics
        database.on_commit = self._record_commit
        self._database = database
        self._metrics = metrics
        self._of_thread = threading.local()
        """`commit`: the commit of the batch that this thread runs as its leader."""

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
        started, commits = perf_counter(), list[_Commit]()
        try:
            return self._database.write_with_tail(self._noting_commit(work, commits), tail, sharing)
        except Exception as error:
            self._count(error)
            raise
        finally:
            with suppress(Exception):
                self._of_thread.__dict__.pop("commit", None)  # of a batch that failed
                if commits and commits[-1].writes:
                    self._record_own_commit(commits[-1])
                self._metrics.write(perf_counter() - started)

    def _noting_commit(self, work: Callable[[Transaction], S], commits: list[_Commit]) -> Callable[[Transaction], S]:
        """Returns work that also adds the commit of its batch to the list. It runs in the thread of the batch."""
        if not self._metrics.own_commit:
            return work

        def noting(transaction: Transaction) -> S:
            commits.append(self._of_thread.__dict__.setdefault("commit", _Commit()))
            return work(transaction)

        return noting

    def _record_commit(self, writes: int, seconds: float) -> None:
        self._metrics.commit(writes, seconds)
        self.on_commit(writes, seconds)
        if commit := self._of_thread.__dict__.pop("commit", None):
            commit.writes, commit.seconds, commit.ended = writes, seconds, perf_counter()

    def _record_own_commit(self, commit: _Commit) -> None:
        if self._metrics.own_commit:
            self._metrics.own_commit(commit.writes, commit.seconds, perf_counter() - commit.ended)

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

    def stop_waiting(self) -> None:
        self._database.stop_waiting()

    def close(self) -> None:
        self._database.close()
