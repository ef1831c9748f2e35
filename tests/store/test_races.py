"""Invariants under races. 32 threads start each race at once."""

import json

import pytest
from caseload_server.domain import errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.requests import Assign, Delete, PageRequest, RecordQuery, Unassign, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.store_calls import (
    CALL,
    AnyKind,
    assign,
    both_kinds,
    count,
    dump,
    head,
    history,
    ids,
    make,
    make_pair,
    race,
    request,
    run,
    update,
)

THREADS = 32


def kinds(refusals: list[Exception]) -> set[type[Exception]]:
    return {type(refusal) for refusal in refusals}


def test_racing_callers_never_take_a_caseload_above_its_capacity(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=10)
    for number in range(THREADS):
        make(store, PATIENT, f"p{number}")
    done, refusals = race(lambda number: assign(store, "t", f"p{number}"))
    assert (len(done), len(refusals)) == (10, 22)
    assert kinds(refusals) == {errors.TherapistAtCapacity}
    assert count(store, THERAPIST, "t") == 10
    page = store.list_therapist_patients(requests.CaseloadQuery("t"), PageRequest(100, ""))
    assert len(page.records) == 10


def test_capacity_holds_during_unassigns_and_calls_that_ignore_it(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=8)
    for number in range(THREADS):
        make(store, PATIENT, f"p{number}")
    for number in range(8):
        assign(store, "t", f"p{number}")

    def one(number: int) -> str:
        if number < 8:
            store.unassign(Unassign("t", f"p{number}"), CALL)
            return "left"
        store.assign(Assign("t", f"p{number}", ignore_capacity=number < 12), CALL)
        return "pushed in" if number < 12 else "came"

    done, refusals = race(one)
    assert kinds(refusals) <= {errors.TherapistAtCapacity}
    assert (done.count("left"), done.count("pushed in")) == (8, 4)
    assert done.count("came") <= 8
    active = run(store, "SELECT count(*) FROM assignment WHERE therapist_id = 't' AND end_us IS NULL")[0][0]
    assert count(store, THERAPIST, "t") == active == 4 + done.count("came")


def test_racing_therapists_leave_a_patient_with_one_primary(store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    for number in range(THREADS):
        make(store, THERAPIST, f"t{number}")
    done, refusals = race(lambda number: assign(store, f"t{number}", "p", role=ROLE_PRIMARY))
    assert len(done) == 1
    assert kinds(refusals) == {errors.PrimaryExists}
    assert store.get(PATIENT, "p").primary_therapist_id == done[0].therapist_id


def test_racing_takeovers_leave_one_primary_and_a_history_without_overlap(store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    for number in range(THREADS):
        make(store, THERAPIST, f"t{number}")
    done, refusals = race(lambda number: assign(store, f"t{number}", "p", role=ROLE_PRIMARY, replace_primary=True))
    assert (len(done), refusals) == (THREADS, [])
    periods = history(store)
    active = [period for period in periods if period.end_us is None]
    assert [store.get(PATIENT, "p").primary_therapist_id] == [period.therapist_id for period in active]
    assert sum(count(store, THERAPIST, f"t{number}") for number in range(THREADS)) == 1
    assert count(store, PATIENT, "p") == 1
    assert all(period.end_us == period.start_us for period in periods if period.end_us is not None)


def test_racing_callers_assign_a_pair_once(store: RelationshipStore) -> None:
    make_pair(store)
    before = head(store)
    done, refusals = race(lambda _: store.assign(Assign("t", "p"), CALL))
    assert refusals == []
    assert len({outcome.record for outcome in done}) == 1
    assert sum(outcome.created for outcome in done) == 1
    assert head(store) == before + 1
    assert (count(store, THERAPIST, "t"), count(store, PATIENT, "p")) == (1, 1)


def test_racing_callers_with_different_orders_leave_one_active_assignment_of_the_pair(
    store: RelationshipStore,
) -> None:
    make_pair(store)
    done, refusals = race(
        lambda number: assign(store, focus=f"focus-{number}", role=ROLE_TREATING, replace=number % 2 == 0)
    )
    assert kinds(refusals) <= {errors.AssignmentDiffers}
    assert len(done) >= THREADS // 2
    active = [period for period in history(store) if period.end_us is None]
    assert len(active) == count(store, THERAPIST, "t") == count(store, PATIENT, "p") == 1


def test_racing_callers_end_a_period_once(store: RelationshipStore) -> None:
    make_pair(store)
    assign(store)
    done, refusals = race(lambda number: store.unassign(Unassign("t", "p", end_reason=number % 2), CALL))
    assert refusals == []
    assert len({outcome.record for outcome in done}) == 1
    assert sum(outcome.ended for outcome in done) == 1
    assert (count(store, THERAPIST, "t"), count(store, PATIENT, "p")) == (0, 0)


@both_kinds
def test_one_of_racing_creates_gets_the_identifier(store: RelationshipStore, kind: AnyKind) -> None:
    done, refusals = race(lambda number: make(store, kind, f"a{number}", identifiers='[["urn:mrn","1"]]'))
    assert len(done) == 1
    assert kinds(refusals) == {errors.IdentifierTaken}
    assert ids(store, kind) == ids(store, kind, identifier=("urn:mrn", "1")) == [done[0][0]]


@both_kinds
def test_one_of_racing_creates_gets_an_identifier_that_looks_the_same(store: RelationshipStore, kind: AnyKind) -> None:
    values = ["GC-1", "GC-1\u200b", "GC-\uff11", "\ufeffGC-1"]

    def one(number: int) -> str:
        identifiers = json.dumps([["urn:mrn", values[number % 4]], ["urn:mrn", str(number)]])
        return str(make(store, kind, f"a{number}", identifiers=identifiers)[0])

    done, refusals = race(one)
    assert len(done) == 1
    assert kinds(refusals) == {errors.IdentifierTaken}
    found = [ids(store, kind, identifier=("urn:mrn", value)) for value in values]
    assert found == [done] * 4


@both_kinds
def test_one_of_racing_creates_updates_and_undeletes_gets_the_identifier(
    store: RelationshipStore, kind: AnyKind
) -> None:
    mrn = '[["urn:mrn","1"]]'
    for number in range(THREADS):
        if number % 3 == 0:
            make(store, kind, f"a{number}", identifiers=mrn)
            store.delete(kind, Delete(f"a{number}"), CALL)
        elif number % 3 == 1:
            make(store, kind, f"a{number}")

    def one(number: int) -> str:
        record_id = f"a{number}"
        if number % 3 == 0:
            store.undelete(kind, record_id, CALL)
        elif number % 3 == 1:
            update(store, kind, record_id, identifiers=mrn)
        else:
            make(store, kind, record_id, identifiers=mrn)
        return record_id

    done, refusals = race(one)
    assert len(done) == 1
    assert kinds(refusals) == {errors.IdentifierTaken}
    assert ids(store, kind, identifier=("urn:mrn", "1")) == done


@both_kinds
def test_undeletes_that_release_identifiers_all_succeed_and_one_gets_them(
    store: RelationshipStore, kind: AnyKind
) -> None:
    mrn = '[["urn:mrn","1"]]'
    for number in range(0, THREADS, 2):
        make(store, kind, f"a{number}", identifiers=mrn)
        store.delete(kind, Delete(f"a{number}"), CALL)

    def one(number: int) -> str:
        if number % 2:
            return str(make(store, kind, f"a{number}", identifiers=mrn)[0])
        released = store.undelete(kind, f"a{number}", CALL, release_identifiers=True).record
        assert released.identifiers in ("[]", mrn)
        return "undeleted"

    done, refusals = race(one)
    assert done.count("undeleted") == THREADS // 2
    assert kinds(refusals) == {errors.IdentifierTaken}
    [holder] = [one for one in ids(store, kind) if store.get(kind, one).identifiers == mrn]
    assert ids(store, kind, identifier=("urn:mrn", "1")) == [holder]


@both_kinds
def test_one_of_racing_creates_gets_the_id(store: RelationshipStore, kind: AnyKind) -> None:
    done, refusals = race(lambda number: make(store, kind, "a", display_name=f"Ada {number}"))
    assert len(done) == 1
    assert kinds(refusals) == {errors.IdTaken}
    assert store.get(kind, "a") == done[0]


@both_kinds
def test_the_same_request_from_many_callers_writes_once(store: RelationshipStore, kind: AnyKind) -> None:
    call = request("3b241101-e2bb-4255-8caf-4136c566a962")
    done, refusals = race(lambda _: store.create(kind, "", {"display_name": "Ada"}, call))
    assert refusals == []
    assert len(set(done)) == 1
    assert ids(store, kind) == [done[0].record[0]]
    assert head(store) == 1


@both_kinds
def test_one_of_racing_updates_with_the_same_etag_succeeds(store: RelationshipStore, kind: AnyKind) -> None:
    etag = make(store, kind, "a").etag
    done, refusals = race(
        lambda number: store.update(kind, Update("a", {"display_name": f"Ada {number}"}, etag=etag), CALL)
    )
    assert len(done) == 1
    assert kinds(refusals) == {errors.EtagMismatch}
    assert store.get(kind, "a") == done[0].record


@both_kinds
def test_a_delete_racing_assigns_leaves_no_deleted_record_with_a_caseload(
    store: RelationshipStore, kind: AnyKind
) -> None:
    make_pair(store)
    for number in range(THREADS):
        make(store, THERAPIST if kind is PATIENT else PATIENT, f"x{number}")

    def one(number: int) -> object:
        if number % 8 == 0:
            return store.delete(kind, Delete(kind.name[0], force=True), CALL)
        return assign(store, *(("t", f"x{number}") if kind is THERAPIST else (f"x{number}", "p")))

    _, refusals = race(one)
    assert kinds(refusals) <= {kind.deleted}
    record = store.get(kind, kind.name[0])
    assert record.deleted_us is not None
    assert getattr(record, kind.count_column) == 0
    assert run(store, "SELECT count(*) FROM assignment WHERE end_us IS NULL") == [(0,)]


def test_a_discharge_racing_assigns_leaves_no_discharged_patient_in_care(store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    for number in range(THREADS):
        make(store, THERAPIST, f"t{number}")

    def one(number: int) -> object:
        return update(store, PATIENT, "p", status=2) if number % 8 == 0 else assign(store, f"t{number}", "p")

    _, refusals = race(one)
    assert kinds(refusals) <= {errors.HasActiveAssignments, errors.PatientNotActive}
    patient = store.get(PATIENT, "p")
    assert patient.status == 1 or patient.active_therapist_count == 0


@both_kinds
def test_concurrent_readers_see_only_whole_writes(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a", display_name="0", email="0@b")

    def one(number: int) -> list[bool]:
        if number < 8:
            update(store, kind, "a", display_name=f"{number}", email=f"{number}@b")
            return []
        seen = [store.get(kind, "a") for _ in range(10)]
        seen += [store.list_records(kind, RecordQuery(), PageRequest(1, "")).records[0] for _ in range(10)]
        return [record.email == f"{record.display_name}@b" for record in seen]

    done, refusals = race(one)
    assert refusals == []
    assert all(all(seen) for seen in done)


@pytest.mark.parametrize("turn", range(3))
def test_rejected_calls_leave_nothing_behind(store: RelationshipStore, turn: int) -> None:
    make(store, THERAPIST, "t", max_active_patients=turn)
    for number in range(THREADS):
        make(store, PATIENT, f"p{number}")
    before = dump(store)
    done, refusals = race(lambda number: assign(store, "t", f"p{number}"))
    after = dump(store)
    assert len(done) == turn
    assert len(refusals) == THREADS - turn
    grown = {name for name in after if len(after[name]) != len(before[name])}
    assert grown == ({"assignment", "change_set", "change"} if turn else set())
    assert len(after["change_set"]) - len(before["change_set"]) == turn
