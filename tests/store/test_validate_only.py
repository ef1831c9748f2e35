import pytest
from caseload_server.domain import enums, errors, requests, results
from caseload_server.domain.requests import Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, VALIDATE, assign, dump, make, make_pair, race, request, update
from tests.store.write_cases import Mutation, each_mutation, each_no_op, each_write, effect, everyone


@each_mutation
def test_validating_changes_nothing(store: RelationshipStore, clock: Clock, mutation: Mutation) -> None:
    mutation.prepare(store)
    before = dump(store)
    clock.advance(1)
    for call in (VALIDATE, request("3b241101-e2bb-4255-8caf-4136c566a962")._replace(validate_only=True)):
        mutation.do(store, call)
        assert dump(store) == before


@each_mutation
def test_validating_returns_the_result_of_the_write_without_generated_values(
    store: RelationshipStore, clock: Clock, mutation: Mutation
) -> None:
    mutation.prepare(store)
    clock.advance(1)
    would_be = mutation.do(store, VALIDATE)
    done = mutation.do(store, CALL)
    if done.record is None:
        assert would_be.record is None
    else:
        assert would_be.record == done.record._replace(**dict.fromkeys(mutation.made, ""))
    assert (effect(would_be), would_be.revision) == (effect(done), "")


@each_write
def test_a_validated_call_can_then_be_made(store: RelationshipStore, mutation: Mutation) -> None:
    mutation.prepare(store)
    mutation.do(store, VALIDATE)
    before = dump(store)
    outcome = mutation.do(store, CALL)
    assert effect(outcome) == mutation.effect
    assert dump(store) != before


@each_no_op
def test_validating_a_repeat_returns_the_stored_record(store: RelationshipStore, mutation: Mutation) -> None:
    mutation.prepare(store)
    would_be, done = mutation.do(store, VALIDATE), mutation.do(store, CALL)
    assert (would_be.record, effect(would_be)) == (done.record, 0)


def test_validating_is_rejected_like_the_write(store: RelationshipStore) -> None:
    everyone(store)
    update(store, THERAPIST, "t", max_active_patients=0)
    before = dump(store)
    with pytest.raises(errors.TherapistAtCapacity):
        store.assign(requests.Assign("t", "p"), VALIDATE)
    with pytest.raises(errors.IdTaken):
        store.create(THERAPIST, "t", {"display_name": "Ada"}, VALIDATE)
    with pytest.raises(errors.IdentifierTaken):
        store.create(PATIENT, "x", {"display_name": "Ada", "identifiers": '[["urn:mrn","1"]]'}, VALIDATE)
    with pytest.raises(errors.EtagMismatch):
        store.update(PATIENT, Update("p", {}, etag="old"), VALIDATE)
    assert dump(store) == before


def test_concurrent_validations_do_not_affect_writes(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=1)
    for number in range(32):
        make(store, PATIENT, f"p{number}")
    for number in range(0, 32, 2):
        make(store, THERAPIST, f"t{number}")

    def one(number: int) -> results.AssignResult:
        if number % 2:
            return store.assign(requests.Assign("t", f"p{number}"), VALIDATE)
        return store.assign(requests.Assign(f"t{number}", f"p{number}"), CALL)

    outcomes, refusals = race(one)
    assert refusals == []
    assert sum(outcome.revision != "" for outcome in outcomes) == 16
    assert store.get(THERAPIST, "t").active_patient_count == 0
    assert {store.get(PATIENT, f"p{number}").active_therapist_count for number in range(0, 32, 2)} == {1}


def test_validating_shows_the_counts_after_a_forced_delete(store: RelationshipStore) -> None:
    make_pair(store)
    assign(store, role=enums.ROLE_PRIMARY)
    outcome = store.delete(PATIENT, requests.Delete("p", force=True), VALIDATE)
    assert outcome.ended_count == 1
    assert outcome.record is not None
    assert (outcome.record.active_therapist_count, outcome.record.primary_therapist_id) == (0, "")
    assert store.get(PATIENT, "p").primary_therapist_id == "t"
