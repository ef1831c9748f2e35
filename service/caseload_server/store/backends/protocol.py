"""The interface between the store and a database. Each driver implements it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol, TypeVar

Value = str | int | bytes | None
Parameters = Mapping[str, Value]
Row = tuple[Any, ...]
T = TypeVar("T")


Gauges = Sequence[tuple[str, dict[str, str], Callable[[], float]]]
"""Gauges as name, labels and sampling function. Any thread may sample them; sampling runs no query."""


DEFECT: Final = "defect"
"""The cause of an error of PostgreSQL that no DomainError stands for."""


class StoreMetrics(NamedTuple):
    """Callbacks that record database operations: their duration in seconds, and their failures."""

    read: Callable[[float], object]
    """Takes the duration of a read."""
    write: Callable[[float], object]
    """Takes the duration of a write."""
    commit: Callable[[int, float], object]
    """Takes the number of writes in a commit, and its duration."""
    failure: Callable[[str], object]
    """Takes the cause of a failure: that of a DomainError, or DEFECT."""


def no_metrics(_writes: int, _seconds: float) -> None:
    """Ignores a commit. It is the default for `Database.on_commit`."""


class SerializationConflict(Exception):
    """Raised by work whose reads are outdated, to run it again. Only databases with concurrent writers need it."""


class Transaction(Protocol):
    """Statements that see one state of the database. Parameters are named, `:name` in the SQL."""

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one statement and returns all its rows."""

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        """Runs independent statements in one round trip and returns the rows of the first."""

    def rows(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        """Runs one query and yields its rows. Rows that were not fetched are dropped when the transaction ends."""

    def fetch_page(self, sql: str, parameters: dict[str, Value]) -> Iterator[Row]:
        """Yields the rows of a query that is ordered by its first column, starts after `:after` and has a `:limit`."""


class Database(Protocol):
    """A database. Every method raises StoreBusy, StoreUnavailable or StoreFull; `write` also OutcomeUnknown."""

    lock_clause: str
    """Appended to a SELECT to lock its rows until the transaction ends. Empty where a write locks the whole
    database."""
    on_commit: Callable[[int, float], object]
    """Called after each commit, as StoreMetrics.commit."""
    commit_may_be_ambiguous: bool
    """True where a commit can succeed and its response be lost. Then every write needs a request_id to look up."""

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one query in a transaction of its own."""

    def snapshot(self) -> AbstractContextManager[Transaction]:
        """Opens a read-only transaction: all its queries see one state of the database."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs work in a transaction and returns its result once the commit is durable.

        Work may run more than once, and may share a commit with other writes. An exception that it raises is raised
        here, and its changes are rolled back.
        """

    def gauges(self) -> Gauges:
        """Returns the gauges of this database."""

    def check(self) -> None:
        """Tries the database once, without retries. Raises where it does not respond, or would accept no write."""

    def wait_for_commit(self) -> None:
        """Returns when another process may have committed, after half a second at most. Call it from one thread."""

    def close(self) -> None:
        """Finishes the writes in progress and closes all connections. Acknowledged writes are already durable."""
