"""Writes that share a transaction do not notice each other, whatever becomes of one of them."""

import threading
from functools import partial
from typing import Any

import pytest
from caseload_server.domain import errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.records import Therapist
from caseload_server.domain.requests import Update
from caseload_server.domain.results import RecordResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.protocol import Sharing

from tests.store.backends.batches import batch, transaction_under_way
from tests.store.store_calls import (
    ALL,
    CALL,
    VALIDATE,
    assign,
    dump,
    head,
    ids,
    make,
    make_pair,
    request,
    run,
    unassign,
    update,
)
from tests.support.waiting import HUNG_SECONDS, eventually, join

ID = "3b241101-e2bb-4255-8caf-4136c566a962"


@pytest.fixture
def commits(store: RelationshipStore) -> list[int]:
    """The number of writes in each commit, filled while the test runs."""
    sizes: list[int] = []
    store._database.on_commit = lambda writes, _: sizes.append(writes)
    return sizes


def test_waiting_writes_share_a_commit_and_are_logged_in_their_order(
    store: RelationshipStore, commits: list[int]
) -> None:
    make_pair(store)
    commits.clear()
    made = batch(
        store._database,
        [
            *(partial(make, store, THERAPIST, f"t{number}") for number in range(20)),
            partial(assign, store, role=ROLE_PRIMARY),
            partial(update, store, PATIENT, "p", email="a@b"),
            partial(unassign, store),
        ],
    )
    assert commits == [23]
    assert [type(one) for one in made if isinstance(one, Exception)] == []
    page = store.list_changes(requests.ChangeQuery(), store.keys.revision(2), 100)
    assert [one.revision for one in page.change_sets] == [store.keys.revision(number) for number in range(3, 26)]
    first_ids = [(one.changes[0].therapist_id, one.changes[0].patient_id) for one in page.change_sets]
    assert first_ids == [*((f"t{number}", None) for number in range(20)), ("t", "p"), (None, "p"), ("t", "p")]


def test_each_write_of_a_commit_is_answered_with_its_own_revision(store: RelationshipStore) -> None:
    make_pair(store)

    def create(name: str) -> Any:
        return store.create(THERAPIST, name, {"display_name": "Ada"}, CALL)

    def change_nothing() -> Any:
        return store.update(THERAPIST, Update("t", {"display_name": "Ada Lovelace"}), CALL)

    made = batch(store._database, [partial(create, "a"), change_nothing, partial(create, "b"), change_nothing])
    assert [one.revision for one in made] == [store.keys.revision(number) for number in (3, 3, 4, 4)]
    for name, result in (("a", made[0]), ("b", made[2])):
        page = store.list_changes(requests.ChangeQuery(therapist_id=name), "", 10)
        assert [one.revision for one in page.change_sets] == [result.revision]


def test_a_failed_write_does_not_affect_others_that_share_its_transaction(store: RelationshipStore) -> None:
    make(store, THERAPIST, "taken")
    specialty = "INSERT INTO therapist_specialty VALUES ('taken', 'half')"

    def defect(transaction: Any) -> None:
        transaction.run(specialty)
        transaction.run("SELECT 1")
        raise ZeroDivisionError

    def broken_sql(transaction: Any) -> None:
        transaction.run(specialty)
        transaction.run("SELECT * FROM nowhere")

    def broken_late(transaction: Any) -> None:
        transaction.run(specialty)
        transaction.run("INSERT INTO therapist_specialty VALUES ('nobody', 'half')")

    def write(work: Any) -> Any:
        return store._database.write_with_tail(work, unchanged, Sharing())

    results = batch(
        store._database,
        [
            partial(make, store, THERAPIST, "first"),
            partial(make, store, THERAPIST, "taken"),
            partial(write, defect),
            partial(make, store, THERAPIST, "second"),
            partial(write, broken_sql),
            partial(store.create, THERAPIST, "third", {"display_name": "Ada"}, VALIDATE),
            partial(write, broken_late),
            partial(make, store, THERAPIST, "fourth"),
        ],
    )
    kinds = [type(result) for result in results]
    assert kinds[:4] == [Therapist, errors.IdTaken, ZeroDivisionError, Therapist]
    assert kinds[5] is RecordResult
    assert kinds[7] is Therapist
    assert all(isinstance(results[number], Exception) for number in (4, 6))
    assert ids(store, THERAPIST) == ["first", "fourth", "second", "taken"]
    assert run(store, "SELECT * FROM therapist_specialty") == []
    assert head(store) == 4


def test_no_call_is_answered_before_the_commit(store: RelationshipStore) -> None:
    make(store, THERAPIST, "taken")
    first = store.create(THERAPIST, "named", {"display_name": "Ada"}, request(ID))
    results: list[Any] = []
    answered_before: list[Any] = []
    store._database.on_commit = lambda _writes, _seconds: answered_before.append(list(results))
    batch(
        store._database,
        [
            partial(make, store, THERAPIST, "new"),
            partial(make, store, THERAPIST, "taken"),
            partial(store.create, THERAPIST, "valid", {"display_name": "Ada"}, VALIDATE),
            partial(store.create, THERAPIST, "named", {"display_name": "Ada"}, request(ID)),
        ],
        results,
    )
    assert answered_before == [[None] * 4]
    assert [type(one) for one in results] == [Therapist, errors.IdTaken, RecordResult, RecordResult]
    assert results[3] == first


def test_a_request_id_twice_in_the_queue_is_written_once(store: RelationshipStore, commits: list[int]) -> None:
    create = partial(store.create, THERAPIST, "", {"display_name": "Ada"}, request(ID))
    made = batch(store._database, [create, partial(make, store, THERAPIST, "other"), create, create])
    assert made[0] == made[2] == made[3]
    assert len(ids(store, THERAPIST)) == 2
    assert head(store) == 2
    assert commits[0] == 2


def test_a_request_id_twice_in_the_queue_with_another_request_is_rejected(store: RelationshipStore) -> None:
    create = partial(store.create, THERAPIST, "", {"display_name": "Ada"})
    made = batch(store._database, [partial(create, request(ID)), partial(create, request(ID, b"another"))])
    assert [type(one) for one in made] == [RecordResult, errors.RequestIdReused]


def test_the_outcomes_of_a_shared_commit_are_replayed_alone(store: RelationshipStore) -> None:
    calls = [request(f"3b241101-e2bb-4255-8caf-4136c566a96{number}", b"%d" % number) for number in range(5)]
    creates = [partial(store.create, THERAPIST, "", {"display_name": "Ada"}, call) for call in calls]
    made = batch(store._database, creates)
    before = dump(store)
    assert [create() for create in creates] == made
    assert batch(store._database, creates) == made
    assert dump(store) == before


def test_a_refused_write_and_a_validated_one_leave_nothing(store: RelationshipStore) -> None:
    make_pair(store)
    make(store, THERAPIST, "full", max_active_patients=0)
    before = dump(store)

    def defect(transaction: Any) -> None:
        transaction.run("UPDATE patient SET email = 'a@b' WHERE patient_id = 'p' RETURNING 1")
        raise ZeroDivisionError

    results = batch(
        store._database,
        [
            partial(store.assign, requests.Assign("full", "p"), request(ID)),
            partial(store.assign, requests.Assign("t", "p"), VALIDATE),
            partial(store.create, PATIENT, "", {"display_name": "Bob"}, VALIDATE._replace(request_id=ID)),
            partial(store._database.write_with_tail, defect, unchanged, Sharing()),
            partial(update, store, THERAPIST, "t", email="a@b"),
        ],
    )
    assert isinstance(results[0], errors.TherapistAtCapacity)
    assert {results[1].revision, results[2].revision} == {""}
    assert store.get(THERAPIST, "t").email == "a@b"
    after = dump(store)
    assert {name for name in after if after[name] != before[name]} == {
        "store",
        "therapist",
        "therapist_version",
        "change_set",
        "change",
    }


def test_a_write_sees_the_ones_before_it_in_its_transaction(store: RelationshipStore) -> None:
    works = [
        partial(make, store, THERAPIST, "t", max_active_patients=1),
        partial(make, store, PATIENT, "p"),
        partial(make, store, PATIENT, "q"),
        partial(assign, store, "t", "p"),
        partial(assign, store, "t", "q"),
        partial(unassign, store, "t", "p"),
        partial(assign, store, "t", "q"),
    ]
    results = batch(store._database, works)
    failed = [number for number, result in enumerate(results) if isinstance(result, Exception)]
    assert failed == [4]
    assert isinstance(results[4], errors.TherapistAtCapacity)
    page = store.list_therapist_patients(requests.CaseloadQuery("t"), ALL)
    assert [patient.patient_id for _, patient in page.records] == ["q"]


def test_a_longer_queue_than_a_batch_needs_several_commits(
    store: RelationshipStore, commits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    group_commit: Any = store._database
    monkeypatch.setattr(group_commit._group_commit, "max_batch", 4)
    made = batch(store._database, [partial(make, store, THERAPIST, f"t{number}") for number in range(10)])
    assert commits == [4, 4, 2]
    assert store.list_records(THERAPIST, requests.RecordQuery(), ALL).records == made


def test_a_transaction_takes_the_writes_that_come_while_it_runs(store: RelationshipStore, commits: list[int]) -> None:
    database: Any = store._database
    database._group_commit._max_leaders = 1
    begun, goes_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        begun.set()
        assert goes_on.wait(HUNG_SECONDS)

    def write(number: int) -> None:
        if number:
            make(store, THERAPIST, f"t{number}")
        else:
            database.write_with_tail(hold, unchanged, Sharing())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
        assert begun.wait(HUNG_SECONDS)
    eventually(lambda: len(database._group_commit._queue) == 5)
    goes_on.set()
    join(*threads)
    assert commits == [6]


def test_a_lone_writer_commits_without_waiting_for_others(store: RelationshipStore, commits: list[int]) -> None:
    for number in range(5):
        make(store, THERAPIST, f"t{number}")
    assert commits == [1] * 5


def test_a_closed_store_rejects_what_waits_and_what_comes(store: RelationshipStore) -> None:
    with transaction_under_way(store._database):
        pass
    store.close()
    with pytest.raises(errors.ShuttingDown):
        make(store, THERAPIST, "t")


def test_closing_waits_for_the_writes_in_progress(store: RelationshipStore) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    answers: list[str] = []

    def hold(_: object) -> str:
        begun.set()
        assert goes_on.wait(HUNG_SECONDS)
        return "written"

    database: Any = store._database
    write = threading.Thread(target=lambda: answers.append(database.write_with_tail(hold, unchanged, Sharing())))
    write.start()
    assert begun.wait(HUNG_SECONDS)
    closing = threading.Thread(target=store.close)
    closing.start()
    eventually(lambda: database._group_commit._closed)
    assert closing.is_alive()
    goes_on.set()
    join(closing, write)
    assert answers == ["written"]
