"""The interface between the store and a database. Each driver implements it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol, TypeVar

Value = str | int | bytes | None
Parameters = Mapping[str, Value]
Row = tuple[Any, ...]
T = TypeVar("T")


S = TypeVar("S")
Tail = Callable[["Transaction", list[S]], list[T]]
"""Takes what each work returned, and returns the result of each."""
OnCommit = Callable[[int, float], object]
"""Takes the number of writes in a commit, and its duration in seconds."""
Gauges = Sequence[tuple[str, dict[str, str], Callable[[], float]]]
"""Gauges as name, labels and sampling function. Any thread may sample them; sampling runs no query."""


DEFECT: Final = "defect"
"""The cause of an error of PostgreSQL that no DomainError stands for."""


class Sharing(NamedTuple):
    """With which others a write may share a transaction."""

    key: tuple[str, str] | None = None
    """At most one write of a transaction has it."""
    records: frozenset[str] = frozenset()
    """Ids of records that the write is known to lock. Transactions of one process do not wait for each other there."""
    alone: bool = False
    """Whether it locks so much that no other may wait for it."""


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
    own_commit: Callable[[int, float, float], object] | None = None
    """Takes the number of writes in the commit of one write, its duration, and the seconds since its end. It is called
    in the thread of the write, before `write`."""


def no_metrics(_writes: int, _seconds: float) -> None:
    """Ignores a commit. It is the default for `Database.on_commit`."""


class SerializationConflict(Exception):
    """Raised by work whose reads are outdated, to run it again. Only databases with concurrent writers need it."""


class Query(NamedTuple):
    """A SELECT with its parameters, which are named, `:name` in the SQL."""

    sql: str
    parameters: dict[str, Value]
    plan_for_values: bool = False
    """True where the database must plan it for these values: one plan for all values would be much slower for some."""

    def of_page(self, after: str, limit: int, after_key: Value = None) -> "Query":
        """Returns the query of one page: at most `limit` rows after the record `after`, which has that sort key."""
        page: dict[str, Value] = {"after": after, "limit": limit, "after_key": after_key if after else None}
        return self._replace(parameters={**self.parameters, **page})


class Dialect(NamedTuple):
    """Where the SQL of a list differs, because the planners of the databases do."""

    index_range: str
    """The condition that a scan of the index on {column} and {record_id} starts after :after, among those with the
    {value}."""
    index_order: str
    """The order of such a scan, by {column} and {record_id}."""
    merged_scan: str
    """One of several scans that are merged in the order of their first column: {scan} is its SELECT, {number} its
    number, {order} the columns of its index."""
    unindexed: str
    """Before a column, it keeps an index on that column from being used."""
    indexed: str
    """After a table, it makes a SELECT read its {index}. Empty where the database has no such clause."""
    merged_ids: str
    """The {id}s after :after that the {where} of a {table} finds for each of the :values, merged in order. The rows of
    each have the {order} of an index. In {where}, `merged` has the value, and the id to begin after."""
    merges_in_full: bool
    """Whether it reads the whole limit of each value, instead of about as many rows as it returns."""
    with_ids: str
    """The records of a {table} whose {id} is among {ids}, a SELECT of a column `id`, as FROM and WHERE. They are found
    one by one, whatever else they must meet."""
    fence: str
    """After a subquery, it keeps the order and the limit of the outer query from changing its plan."""
    has_statistics: bool
    """True where the planner knows how many rows match a value, and chooses between a lookup and a scan in order."""


class Transaction(Protocol):
    """Statements that see one state of the database. Parameters are named, `:name` in the SQL."""

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one statement and returns all its rows.

        A write may send a statement that returns no rows together with a later one. So its error may come later.
        """

    def rows(self, query: Query) -> Iterator[Row]:
        """Runs one query and yields its rows. Rows that were not fetched are dropped when the transaction ends."""


class Database(Protocol):
    """A database. Every method raises StoreBusy, StoreUnavailable or StoreFull; `write` also OutcomeUnknown."""

    lock_clause: str
    """Appended to a SELECT to lock its rows until the transaction ends. Empty where a write locks the whole
    database."""
    on_commit: Callable[[int, float], object]
    """Called after each commit, as StoreMetrics.commit."""
    dialect: Dialect
    commit_may_be_ambiguous: bool
    """True where a commit can succeed and its response be lost. Then every write needs a request_id to look up."""

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Runs one query in a transaction of its own."""

    def snapshot(self) -> AbstractContextManager[Transaction]:
        """Opens a read-only transaction: all its queries see one state of the database."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs work in a transaction and returns its result once the commit is durable.

        Work may run more than once. An exception that it raises is raised here, and its changes are rolled back.
        """

    def write_with_tail(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> T:
        """Does the same for work that may share a transaction, and its commit, with other writes.

        Args: tail, runs once at the end of the transaction, for all writes that share it, given what their work
        returned. It returns their results.
        """

    def gauges(self) -> Gauges:
        """Returns the gauges of this database. Call it once: the database may start to sample them."""

    def check(self) -> None:
        """Tries the database once, without retries. Raises where it does not respond, or would accept no write."""

    def wait_for_commit(self) -> None:
        """Returns when another process may have committed, after half a second at most. Call it from one thread."""

    def stop_waiting(self) -> None:
        """Ends wait_for_commit, now and in future. Any thread may call it."""

    def close(self) -> None:
        """Finishes the writes in progress and closes all connections. Acknowledged writes are already durable."""
