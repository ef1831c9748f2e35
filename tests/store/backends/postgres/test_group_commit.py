"""Shared transactions on PostgreSQL: round trips, the queue, failed commits and lost connections."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import Therapist
from caseload_server.domain.requests import Update
from caseload_server.domain.results import RecordResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.postgres import driver_errors
from caseload_server.store.backends.postgres.pipeline import StatementPipeline
from caseload_server.store.backends.protocol import Sharing, Transaction
from caseload_server.store.portability.chain_check import broken_chain
from caseload_server.store.write_transaction import Write

from tests.store.backends.batches import batch, transaction_under_way
from tests.store.backends.postgres.proxy import Cut, Proxy
from tests.store.backends.postgres.shared_transactions import shared, starting
from tests.store.conftest import Clock
from tests.store.store_calls import CALL, VALIDATE, assign, delete, head, ids, make, make_pair, request, run, update
from tests.support.waiting import HUNG_SECONDS, eventually, join

IDS = [f"3b241101-e2bb-4255-8caf-4136c566a96{number}" for number in range(10)]
REFUSE_LATE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = '23514'; END $$;
CREATE {} TRIGGER refuse AFTER INSERT ON {} {} FOR EACH ROW WHEN ({}) EXECUTE FUNCTION refuse()"""


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


def test_a_write_with_force_shares_no_transaction(store: RelationshipStore) -> None:
    """It locks many records, and others would wait for it. So it does not queue behind a transaction under way."""
    make_pair(store)
    assign(store)
    with transaction_under_way(store._database):
        assert store.update(PATIENT, Update("p", {"status": PATIENT.idle_status}, end_reason=1), CALL).ended_count == 1
        assert delete(store, THERAPIST, "t", force=True).record.deleted_us


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
    # It was tried again, before or after the one behind it.
    assert isinstance(results[1], errors.StoreBusy | errors.IdTaken | driver_errors.UnexpectedDatabaseError)
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
