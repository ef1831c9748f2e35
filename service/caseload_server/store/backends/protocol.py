"""The seam between the store and a database: what a driver must give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

Value = str | int | bytes | None
Parameters = Mapping[str, Value]
Row = tuple[Any, ...]
T = TypeVar("T")


Gauges = Sequence[tuple[str, dict[str, str], Callable[[], float]]]
"""Numbers that can be looked at, from any thread, without asking the database: the name, labels, and what tells it."""


class StoreMetrics(NamedTuple):
    """What is told of the store's work."""

    read: Callable[[float], object]
    """The seconds that a read took."""
    write: Callable[[float], object]
    """Those that a write took."""
    commit: Callable[[int, float], object]
    """How many writes were in a commit, and its seconds."""


def no_metrics(_writes: int, _seconds: float) -> None:
    """The commit of a meter that is not there."""


class SerializationConflict(Exception):
    """Raised by work that must begin anew, for what it read is not so any more; only where others write beside it."""


class Transaction(Protocol):
    """Statements that see one state of the database. Parameters are named, `:name` in the SQL."""

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one statement and returns all its rows."""

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        """Runs statements of which none needs another's answer, in one journey, and returns the first one's rows."""

    def rows(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        """Runs one query and returns its rows one by one; the rest is dropped when the transaction ends."""

    def fetch_page(self, sql: str, parameters: dict[str, Value]) -> Iterator[Row]:
        """As `rows`, of a query in the order of its first column, after `:after`, with `:limit`."""


class Database(Protocol):
    """A database. Every method raises StoreBusy, StoreUnavailable or StoreFull, and `write` OutcomeUnknown too."""

    lock_clause: str
    """What a SELECT ends in so that its rows stay as they are until the transaction ends; empty where a write has
    the database for itself."""
    committed: Callable[[int, float], object]
    """As in StoreMetrics."""
    commit_may_be_ambiguous: bool
    """Whether a commit may be carried out and its answer lost: then every write needs a request_id to look up."""

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one query by itself."""

    def reading(self) -> AbstractContextManager[Transaction]:
        """Several queries over one state of the database."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs work in a transaction and returns what it returned once that is durable.

        Work may be run more than once, and beside others' in one commit. What it raises is raised here, and nothing
        of it is kept.
        """

    def gauges(self) -> Gauges:
        """What there is to look at."""

    def check(self) -> None:
        """Asks once, without patience: raises where the database does not answer, or would take no write."""

    def wait_for_commit(self) -> None:
        """Returns when another process may have committed, after half a second at most. For one thread."""

    def close(self) -> None:
        """Ends the writer; everything acknowledged is already on disk."""
