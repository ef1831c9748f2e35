"""Writes on PostgreSQL behind a lock that another process holds for long."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.postgres import commit_turn, writes
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.protocol import Sharing, Transaction

from tests.store.backends.batches import batch
from tests.store.backends.postgres.shared_transactions import shared, starting
from tests.store.store_calls import make, run
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually, join


@pytest.mark.parametrize("held_by", ["another process", "a missing standby"])
def test_writes_behind_a_counter_that_stays_locked_are_rejected_without_waiting_in_turn(
    store: RelationshipStore, held_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_turn, "_TIMEOUT_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(writes, "_COLLECT_SECONDS", NEVER_SECONDS)
    database: Any = store._database
    is_stalled = held_by == "a missing standby"
    entered, leave = threading.Event(), threading.Event()

    def tail(_transaction: Transaction, _outcomes: list[Any]) -> list[Any]:
        entered.set()
        assert leave.wait(HUNG_SECONDS)
        database._writer.commits_stalled = is_stalled
        raise errors.StoreUnavailable if is_stalled else psycopg.errors.LockNotAvailable

    failures: list[errors.DomainError] = []
    ran: list[str] = []

    def purge(name: str, transaction: Transaction) -> None:
        transaction.run("INSERT INTO purged (kind, record_id) VALUES ('patient', :id) RETURNING 1", {"id": name})
        ran.append(name)

    def failing(write: Callable[[], Any]) -> None:
        try:
            write()
        except errors.DomainError as failure:
            failures.append(failure)

    first = starting(partial(failing, lambda: database.write_with_tail(lambda _: None, tail, Sharing())))
    assert entered.wait(HUNG_SECONDS)
    others = [starting(partial(failing, partial(shared, store, partial(purge, f"p{number}")))) for number in range(10)]
    eventually(lambda: len(ran) == 10)
    leave.set()
    join(first, *others)
    assert [failure.cause for failure in failures] == ["unavailable" if is_stalled else "lock_wait"] * 11
    database._writer.commits_stalled = False
    assert run(store, "SELECT count(*) FROM purged") == [(0,)]
    make(store, THERAPIST, "after")


def test_a_table_that_stays_locked_rejects_every_write_without_a_second_wait(
    postgres_url: str, admin: "psycopg.Connection[Any]"
) -> None:
    database = PostgresDatabase(f"{postgres_url}?options=-c%20lock_timeout%3D50ms")
    runs: list[int] = []

    def work(transaction: Transaction) -> None:
        runs.append(1)
        transaction.run("SELECT 1")

    with admin.transaction():
        admin.execute("LOCK TABLE request IN SHARE MODE")  # as a migration does
        results = batch(database, [lambda: database.write_with_tail(work, unchanged, Sharing())] * 3)
    assert [one.cause for one in results] == ["lock_wait"] * 3
    assert runs == [1]
    database.close()
