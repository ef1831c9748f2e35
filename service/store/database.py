"""The seam between the store and a database: what a driver must give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Value = str | int | bytes | None
Parameters = Mapping[str, Value]
Row = tuple[Any, ...]
T = TypeVar("T")


class Collided(Exception):
    """Raised by work that must begin anew, for what it read is not so any more; only where others write beside it."""


class Transaction(Protocol):
    """Statements that see one state of the database. Parameters are named, `:name` in the SQL."""

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one statement and returns all its rows."""

    def run_all(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        """Runs statements of which none needs another's answer, in one journey, and returns the first one's rows."""

    def rows(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        """Runs one query and returns its rows one by one; the rest is dropped when the transaction ends."""

    def rows_of_page(self, sql: str, parameters: dict[str, Value]) -> Iterator[Row]:
        """As `rows`, of a query in the order of its first column, after `:after`, with `:limit`."""


class Database(Protocol):
    """A database. Every method raises StoreBusy, StoreUnavailable or StoreFull, and `write` OutcomeUnknown too."""

    row_lock: str
    """What a SELECT ends in so that its rows stay as they are until the transaction ends; empty where a write has
    the database for itself."""
    can_lose_answers: bool
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

    def check(self) -> None:
        """Asks once, without patience: raises where the database does not answer, or would take no write."""

    def wait_for_news(self) -> None:
        """Returns when another process may have committed, after half a second at most. For one thread."""

    def close(self) -> None:
        """Ends the writer; everything acknowledged is already on disk."""
