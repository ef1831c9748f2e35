"""Shared transactions on PostgreSQL: locks of others, failed commits, lost connections."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import Therapist
from caseload_server.domain.results import RecordResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.postgres import driver_errors
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.pipeline import StatementPipeline
from caseload_server.store.backends.protocol import Sharing, Transaction
from caseload_server.store.portability.chain_check import broken_chain
from caseload_server.store.write_transaction import Write

from tests.store.backends.batches import batch
from tests.store.backends.postgres.proxy import Cut, Proxy
from tests.store.conftest import Clock
from tests.store.store_calls import CALL, VALIDATE, assign, head, ids, make, make_pair, race, request, run, update
from tests.support.waiting import HUNG_SECONDS, eventually, join

IDS = [f"3b241101-e2bb-4255-8caf-4136c566a96{number}" for number in range(10)]
REFUSE_LATE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = '23514'; END $$;
CREATE {} TRIGGER refuse AFTER INSERT ON {} {} FOR EACH ROW WHEN ({}) EXECUTE FUNCTION refuse()"""


@pytest.fixture
def other(postgres_url: str, clock: Clock) -> Iterator[RelationshipStore]:
    """A second instance on the same database."""
    opened = PostgresDatabase(postgres_url)
    yield RelationshipStore(opened, clock)
    opened.close()


def shared(store: RelationshipStore, work: Callable[[Transaction], Any]) -> Any:
    return store._database.write_with_tail(work, unchanged, Sharing())


def deadlocks(admin: "psycopg.Connection[Any]") -> int:
    admin.execute("SELECT pg_stat_clear_snapshot()")
    [(count,)] = admin.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchall()
    return int(count)


def starting(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# Round trips.


def round_trips(monkeypatch: pytest.MonkeyPatch, write: Callable[[], object]) -> list[int]:
    """Returns the number of statements on the counter in each round trip of a write before its COMMIT."""
    trips: list[int] = []
    exchange = StatementPipeline._exchange

    def count(pipeline: StatementPipeline, queue: list[Any]) -> Any:
        trips.append(sum(b" store SET head" in sql or b"head_hash FROM store FOR" in sql for sql, *_ in queue))
        return exchange(pipeline, queue)

    with monkeypatch.context() as patched:
        patched.setattr(StatementPipeline, "_exchange", count)
        write()
    return trips


def test_a_write_holds_the_counter_for_one_round_trip_unless_another_instance_has_written(
    store: RelationshipStore, other: RelationshipStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make(store, THERAPIST, f"t{number}")

    def trips(writer: RelationshipStore, email: str) -> list[int]:
        clock.advance(1)
        found = round_trips(monkeypatch, lambda: update(writer, THERAPIST, "t0", email=email))
        return found[found.index(1) :]

    assert trips(store, "1@example.org") == [1]
    assert trips(other, "2@example.org") == [1, 1]
    assert trips(store, "3@example.org") == [1, 1, 1]  # it assumes its own head, then reads the other's, then writes
    assert trips(store, "4@example.org") == [1, 1]
    assert trips(store, "5@example.org") == [1]
    with store._database.snapshot() as transaction:
        assert list(broken_chain(transaction)) == []


@pytest.mark.parametrize("alone", [False, True])
def test_the_same_change_of_two_instances_in_the_same_microsecond_is_two_change_sets(
    store: RelationshipStore, other: RelationshipStore, *, alone: bool
) -> None:
    """Both continue the same head, so they compute the same hash."""
    therapist = make(store, THERAPIST, "t")

    def change(writer: RelationshipStore) -> None:
        def work(write: Write) -> tuple[list[Therapist], int]:
            write.record_change(enums.CHANGE_UPDATED, therapist, "email")
            return [therapist], 1

        writer._writes.run(CALL, work, lambda _write, _id: therapist, alone=alone)

    change(other)
    change(other)  # which now assumes its own head
    change(store)
    change(other)
    change(store)
    with store._database.snapshot() as transaction:
        assert list(broken_chain(transaction)) == []
    assert head(store) == 6


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


def test_a_write_waits_in_the_queue_for_one_of_the_same_record_while_others_go_on(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t")
    begun, goes_on = threading.Event(), threading.Event()

    def hold(transaction: Transaction) -> None:
        transaction.run("UPDATE therapist SET email = 'a@b' WHERE therapist_id = 't' RETURNING 1")
        begun.set()
        assert goes_on.wait(HUNG_SECONDS)

    database: Any = store._database
    sharing = Sharing(records=frozenset({"t"}))
    holder = starting(lambda: database.write_with_tail(hold, unchanged, sharing))
    assert begun.wait(HUNG_SECONDS)
    waiting = starting(lambda: update(store, THERAPIST, "t", display_name="Bob"))
    eventually(lambda: len(database._group_commit._queue) == 1)
    make(store, THERAPIST, "u")
    assert [job.conflicts for job in database._group_commit._queue] == [0]
    goes_on.set()
    join(holder, waiting)
    assert (store.get(THERAPIST, "t").email, store.get(THERAPIST, "t").display_name) == ("a@b", "Bob")


def test_a_transaction_takes_further_writes_while_another_is_at_its_commit(
    store: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    sizes: list[int] = []
    database: Any = store._database
    database.on_commit = lambda writes, _: sizes.append(writes)
    database._group_commit._max_leaders = 2
    with admin.transaction():
        admin.execute("SELECT FROM store FOR UPDATE")
        first = starting(lambda: make(store, THERAPIST, "first"))
        eventually(database._writer._turns.lock.locked)
        others = [starting(partial(make, store, THERAPIST, f"t{number}")) for number in range(10)]
        eventually(lambda: not database._group_commit._queue and database._group_commit._leaders == 2)
    join(first, *others)
    assert sizes[0] == 1
    assert sum(sizes) == 11


def test_a_write_that_locks_many_records_has_its_own_transaction(store: RelationshipStore) -> None:
    make_pair(store)
    make(store, THERAPIST, "u")
    assign(store)
    sizes: list[int] = []
    store._database.on_commit = lambda writes, _: sizes.append(writes)
    batch(
        store._database,
        [
            partial(make, store, THERAPIST, "a"),
            partial(make, store, THERAPIST, "b"),
            partial(store.transfer, requests.Transfer("t", "u"), CALL),
            partial(store.delete, PATIENT, requests.Delete("p", force=True), CALL),
        ],
        queued=2,
    )
    assert sorted(sizes) == [1, 1, 2]


# Failures of the whole transaction.


def test_an_error_at_the_commit_fails_only_the_write_that_causes_it(
    store: RelationshipStore, admin: "psycopg.Connection[Any]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.2)
    deferred = "DEFERRABLE INITIALLY DEFERRED"
    admin.execute(REFUSE_LATE.format("CONSTRAINT", "therapist", deferred, "NEW.email = 'bad'").encode())
    results = batch(
        store._database,
        [
            partial(make, store, THERAPIST, "a"),
            partial(make, store, THERAPIST, "t", email="bad"),
            partial(make, store, THERAPIST, "t", email="good"),  # refused because of the write before it
            partial(make, store, THERAPIST, "b"),
        ],
    )
    assert [type(results[number]) for number in (0, 2, 3)] == [Therapist] * 3
    assert isinstance(results[1], errors.StoreBusy | errors.IdTaken)  # it was tried again, after the one behind it
    assert store.get(THERAPIST, "t").email == "good"
    assert head(store) == 3


def test_an_error_that_arrives_with_the_next_write_is_not_its_error(
    store: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    admin.execute(REFUSE_LATE.format("", "therapist_name_word", "", "NEW.word = 'bad'").encode())
    names = ("Ada", "Bad", "Cyd")
    results = batch(store._database, [partial(make, store, THERAPIST, name, display_name=name) for name in names])
    assert [type(one).__name__ for one in results] == ["Therapist", "UnexpectedDatabaseError", "Therapist"]
    assert ids(store, THERAPIST) == ["Ada", "Cyd"]
    assert head(store) == 2


def mixed(store: RelationshipStore) -> list[Callable[[], Any]]:
    """Writes of every kind: with and without a request_id, refused, validated, and a repeat of an earlier one."""
    return [
        partial(make, store, THERAPIST, "a"),
        partial(store.create, THERAPIST, "b", {"display_name": "Ada"}, request(IDS[0])),
        partial(make, store, THERAPIST, "a"),
        partial(store.create, THERAPIST, "c", {"display_name": "Ada"}, VALIDATE),
        partial(store.create, THERAPIST, "d", {"display_name": "Ada"}, request(IDS[1])),
        partial(make, store, THERAPIST, "e"),
    ]


def assert_done_once(store: RelationshipStore, results: list[Any], repeated: Any) -> None:
    kinds = [type(one) for one in results]
    assert kinds.count(errors.IdTaken) == 1
    assert kinds[1] == kinds[3] == kinds[4] == RecordResult
    assert results[4] == repeated
    assert ids(store, THERAPIST) == ["a", "b", "d", "e"]
    assert head(store) == 4
    assert run(store, "SELECT count(*), count(DISTINCT revision), max(revision) FROM change_set") == [(4, 4, 4)]


@pytest.mark.parametrize("cut", ["before", "after"])
def test_writes_whose_shared_commit_lost_its_connection_are_done_exactly_once(
    proxy: Proxy, cut_off: RelationshipStore, cut: Cut
) -> None:
    repeated = cut_off.create(THERAPIST, "d", {"display_name": "Ada"}, request(IDS[1]))
    proxy.cut_next_commit(cut)
    assert_done_once(cut_off, batch(cut_off._database, mixed(cut_off)), repeated)


def test_writes_whose_connection_was_terminated_are_done_exactly_once(store: RelationshipStore) -> None:
    repeated = store.create(THERAPIST, "d", {"display_name": "Ada"}, request(IDS[1]))
    runs: list[int] = []

    def terminate(transaction: Transaction) -> None:
        runs.append(1)
        if len(runs) == 1:
            transaction.run("SELECT pg_terminate_backend(pg_backend_pid())")

    works = mixed(store)
    works.insert(3, partial(shared, store, terminate))
    results = batch(store._database, works)
    assert results.pop(3) is None
    assert len(runs) == 2
    assert_done_once(store, results, repeated)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_only_writes_are_unknown_when_the_database_is_unreachable_after_a_shared_commit(
    proxy: Proxy, cut_off: RelationshipStore, store: RelationshipStore, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.2)
    make(store, THERAPIST, "taken")
    proxy.cut_next_commit(cut, refuse_after=True)
    results = batch(
        cut_off._database,
        [
            partial(make, cut_off, THERAPIST, "a"),
            partial(make, cut_off, THERAPIST, "taken"),
            partial(cut_off.create, THERAPIST, "c", {"display_name": "Ada"}, VALIDATE),
        ],
    )
    assert [type(one) for one in results] == [errors.OutcomeUnknown, errors.StoreUnavailable, errors.StoreUnavailable]
    assert ids(store, THERAPIST) == (["a", "taken"] if cut == "after" else ["taken"])


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
