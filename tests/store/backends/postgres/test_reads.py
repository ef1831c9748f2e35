"""Reads of PostgreSQL: prepared statements outlive a transaction, and rows arrive one by one."""

import contextvars
import math
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import psycopg
import pytest
from caseload_server.domain.call_deadline import read_deadline
from caseload_server.domain.errors import StoreBusy, StoreUnavailable
from caseload_server.store.backends.postgres import reads
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.protocol import Query, Transaction, Value

from tests.support.waiting import eventually, join

_NUMBERS = "SELECT number FROM generate_series(CAST(:first AS BIGINT), :last) AS number"
_AWAITED_LOCKS = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
_PREPARED = "SELECT statement FROM pg_prepared_statements"


@pytest.fixture
def database(postgres_url: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase(postgres_url, connections=1)
    yield opened
    opened.close()


def numbers(first: int, last: int, *, plan_for_values: bool = False) -> Query:
    return Query(_NUMBERS, {"first": first, "last": last}, plan_for_values)


def prepared(database: PostgresDatabase) -> list[str]:
    return [statement for (statement,) in database.read(_PREPARED) if statement != _PREPARED]


def test_a_statement_stays_prepared_after_a_snapshot(database: PostgresDatabase) -> None:
    for _ in range(2):
        with database.snapshot() as transaction:
            assert list(transaction.rows(numbers(1, 3))) == [(1,), (2,), (3,)]
    assert prepared(database) == ["SELECT number FROM generate_series(CAST($1 AS BIGINT), $2) AS number"]


def test_a_query_that_depends_on_its_values_is_not_prepared(database: PostgresDatabase) -> None:
    with database.snapshot() as transaction:
        assert list(transaction.rows(numbers(1, 2, plan_for_values=True))) == [(1,), (2,)]
    assert prepared(database) == []


def test_a_connection_keeps_a_limited_number_of_prepared_statements(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "_MAX_PREPARED", 3)
    for number in range(10):
        assert database.read(f"SELECT {number}") == [(number,)]
    assert prepared(database) == ["SELECT 8", "SELECT 9"]


@pytest.mark.parametrize(
    "start",
    [lambda transaction: transaction.run("SELECT 1"), lambda transaction: next(transaction.rows(numbers(1, 2)))],
    ids=["run", "rows"],
)
def test_a_snapshot_starts_no_statement_after_the_deadline_of_its_call(
    database: PostgresDatabase, start: Callable[[Transaction], object]
) -> None:
    def read() -> None:
        with database.snapshot() as transaction, pytest.raises(StoreBusy) as caught:
            start(transaction)
        assert caught.value.cause == StoreBusy.STATEMENT_TIMEOUT

    context = contextvars.copy_context()
    context.run(read_deadline.set, -math.inf)
    context.run(read)
    assert database.read("SELECT 1") == [(1,)]


@pytest.mark.parametrize("taken", [0, 1, 1000])
def test_rows_that_were_not_taken_do_not_disturb_the_next_read(database: PostgresDatabase, taken: int) -> None:
    with database.snapshot() as transaction:
        rows = transaction.rows(numbers(1, 100_000))
        assert [next(rows) for _ in range(taken)] == [(n + 1,) for n in range(taken)]
    assert database.read("SELECT 1") == [(1,)]


def test_rows_are_not_kept_in_memory_as_a_whole(database: PostgresDatabase) -> None:
    """PostgreSQL is still sending the rows when the first of them is read."""
    with database.snapshot() as transaction:
        rows = transaction.rows(numbers(1, 1_000_000))
        assert next(rows) == (1,)
        session: Any = transaction
        assert session._session._pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE


@pytest.mark.parametrize("value", ["", "Zoë \U0010ffff", 0, -(2**63), 2**63 - 1, b"\x00\xff", None], ids=repr)
def test_values_are_sent_and_read_unchanged(database: PostgresDatabase, value: Value) -> None:
    kind = "TEXT" if isinstance(value, str) else "BYTEA" if isinstance(value, bytes) else "BIGINT"
    assert database.read(f"SELECT CAST(:value AS {kind})", {"value": value}) == [(value,)]


def test_a_connection_lost_within_a_page_is_told_as_unavailable(database: PostgresDatabase, postgres_url: str) -> None:
    with database.snapshot() as transaction:
        [(pid,)] = transaction.run("SELECT pg_backend_pid()")
        rows: Iterator[Any] = transaction.rows(numbers(1, 5_000_000))
        next(rows)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(StoreUnavailable):
            list(rows)
    assert database.read("SELECT 1") == [(1,)]


@pytest.mark.parametrize("taken", [1, 3], ids=["dropped", "fetched"])
def test_other_threads_run_while_a_later_row_is_slow(postgres_url: str, taken: int) -> None:
    """The third row waits for a lock that only another thread of this process releases."""
    database = PostgresDatabase(f"{postgres_url}?options=-c%20lock_timeout%3D0%20-c%20statement_timeout%3D30s")
    query = Query(
        "SELECT repeat('x', 20000), CASE WHEN number = 3 THEN pg_advisory_xact_lock_shared(3)::TEXT END"
        " FROM generate_series(1, 4) AS number",
        {},
    )
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(3)")

        released: list[Any] = []

        def release() -> None:
            for _ in range(20):  # this thread runs again and again, while the other one waits
                eventually(lambda: other.execute(_AWAITED_LOCKS).fetchall())
            released.extend(other.execute("SELECT pg_advisory_unlock(3)").fetchall())

        releasing = threading.Thread(target=release)
        with database.snapshot() as transaction:
            rows = transaction.rows(query)
            next(rows)
            releasing.start()
            assert len(list(islice(rows, taken - 1))) == taken - 1
        join(releasing)
    assert released == [(True,)]
    assert database.read("SELECT 1") == [(1,)]
    database.close()
