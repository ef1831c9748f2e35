"""Shared transactions on PostgreSQL: locks of others, and deadlocks."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
from caseload_server.domain import errors
from caseload_server.domain.records import Therapist
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.protocol import Sharing, Transaction

from tests.store.backends.batches import batch
from tests.store.backends.postgres.shared_transactions import shared, starting
from tests.store.conftest import Clock
from tests.store.store_calls import head, ids, make, race, update
from tests.support.waiting import HUNG_SECONDS, eventually, join


def deadlocks(admin: "psycopg.Connection[Any]") -> int:
    admin.execute("SELECT pg_stat_clear_snapshot()")
    [(count,)] = admin.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchall()
    return int(count)


# Locks of other transactions.


def test_a_write_that_meets_a_lock_holds_up_no_other_of_its_transaction(
    store: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    make(store, THERAPIST, "locked")
    results: list[Any] = []
    works = [
        partial(make, store, THERAPIST, "a"),
        partial(update, store, THERAPIST, "locked", email="a@b"),
        partial(make, store, THERAPIST, "b"),
    ]
    with admin.transaction():
        admin.execute("SELECT FROM therapist WHERE therapist_id = 'locked' FOR UPDATE")
        running = starting(lambda: batch(store._database, works, results))
        eventually(lambda: len(results) == 3 and results[0] and results[2])
        assert results[1] is None
    join(running)
    assert [type(one) for one in results] == [Therapist] * 3
    assert store.get(THERAPIST, "locked").email == "a@b"
    assert head(store) == 4


def test_every_write_is_done_while_others_of_its_batches_keep_meeting_locks(
    store: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    for number in range(4):
        make(store, THERAPIST, f"locked-{number}")
    works: list[Callable[[], Any]] = []
    for number in range(4):
        works += [
            partial(update, store, THERAPIST, f"locked-{number}", email="a@b"),
            partial(make, store, THERAPIST, f"t{number}"),
        ]
    results: list[Any] = []
    with admin.transaction():
        admin.execute("SELECT FROM therapist FOR UPDATE")
        running = starting(lambda: batch(store._database, works, results))
        eventually(lambda: len(results) == 8 and all(results[1::2]))
        assert results[::2] == [None] * 4
    join(running)
    assert [type(one) for one in results] == [Therapist] * 8
    assert head(store) == 12


def test_shared_transactions_that_cross_never_deadlock(
    store: RelationshipStore, other: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    for name in ("x", "y"):
        make(store, THERAPIST, name)
    met = threading.Barrier(2)

    def renaming(name: str, *, meets: bool) -> Callable[[Transaction], None]:
        first_run = threading.Event()

        def work(transaction: Transaction) -> None:
            sql = "UPDATE therapist SET email = email || 'x' WHERE therapist_id = :id RETURNING 1"
            transaction.run(sql, {"id": name})
            if meets and not first_run.is_set():
                first_run.set()
                met.wait(HUNG_SECONDS)

        return work

    def crossing(instance: RelationshipStore, first: str, second: str) -> None:
        works = [renaming(first, meets=True), renaming(second, meets=False)]
        results = batch(instance._database, [partial(shared, instance, work) for work in works])
        assert results == [None, None]

    before = deadlocks(admin)
    there = starting(partial(crossing, other, "y", "x"))
    crossing(store, "x", "y")
    join(there)
    assert [store.get(THERAPIST, name).email for name in ("x", "y")] == ["xx", "xx"]
    assert deadlocks(admin) == before


def test_shared_transactions_that_cross_in_a_unique_index_never_deadlock(
    store: RelationshipStore, other: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    met = threading.Barrier(2)

    def creating(instance: RelationshipStore, number: str) -> Any:
        return make(instance, PATIENT, "", identifiers=f'[["urn:mrn","{number}"]]')

    def meeting(_: Transaction) -> None:
        if not met.broken:
            met.wait(HUNG_SECONDS)
            met.abort()

    results: dict[str, list[Any]] = {}

    def crossing(name: str, instance: RelationshipStore, first: str, second: str) -> None:
        results[name] = batch(
            instance._database,
            [
                partial(creating, instance, first),
                partial(shared, instance, meeting),
                partial(creating, instance, second),
            ],
        )

    before = deadlocks(admin)
    there = starting(partial(crossing, "there", other, "2", "1"))
    crossing("here", store, "1", "2")
    join(there)
    outcomes = [type(results[name][number]).__name__ for name in results for number in (0, 2)]
    assert sorted(outcomes) == ["IdentifierTaken", "IdentifierTaken", "Patient", "Patient"]
    assert len(ids(store, PATIENT)) == head(store) == 2
    assert deadlocks(admin) == before


def test_locks_are_waited_for_briefly_in_a_shared_transaction_and_as_set_at_its_end(postgres_url: str) -> None:
    database = PostgresDatabase(f"{postgres_url}?options=-c%20lock_timeout%3D1234ms")
    look = "SHOW lock_timeout"

    def tail(transaction: Transaction, outcomes: list[Any]) -> list[Any]:
        [(timeout,)] = transaction.run(look)
        return [(*outcome, timeout) for outcome in outcomes]

    for _ in range(2):
        seen = database.write_with_tail(lambda transaction: transaction.run(look)[0], tail, Sharing())
        assert seen == ("20ms", "1234ms")
        assert database.write(lambda transaction: transaction.run(look)) == [("1234ms",)]
    database.close()


def test_a_lock_that_is_held_too_long_rejects_the_writes_that_need_it_and_no_other(
    postgres_url: str, clock: Clock, store: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    database = PostgresDatabase(f"{postgres_url}?options=-c%20lock_timeout%3D100ms")
    impatient = RelationshipStore(database, clock)
    make(store, THERAPIST, "locked")

    def one(number: int) -> Any:
        if number % 2:
            return make(impatient, THERAPIST, f"t{number}")
        return update(impatient, THERAPIST, "locked", email=f"{number}@b")

    with admin.transaction():
        admin.execute("SELECT FROM therapist WHERE therapist_id = 'locked' FOR UPDATE")
        done, refusals = race(one, 12)
    assert {type(refusal) for refusal in refusals} == {errors.StoreBusy}
    assert (len(done), len(refusals)) == (6, 6)
    assert update(impatient, THERAPIST, "locked", email="a@b").email == "a@b"
    assert head(store) == 8
    database.close()


def test_a_counter_that_stays_locked_rejects_every_write_of_the_transaction_with_nothing_done(
    postgres_url: str, clock: Clock, store: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    database = PostgresDatabase(f"{postgres_url}?options=-c%20lock_timeout%3D50ms")
    impatient = RelationshipStore(database, clock)
    make(store, THERAPIST, "taken")
    with admin.transaction():
        admin.execute("SELECT FROM store FOR UPDATE")
        names = ("a", "taken", "b")
        results = batch(database, [partial(make, impatient, THERAPIST, name) for name in names])
    assert {type(one) for one in results} == {errors.StoreBusy}
    assert ids(store, THERAPIST) == ["taken"]
    database.close()
