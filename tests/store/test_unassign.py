import pytest
from caseload_server.domain import errors, requests, results
from caseload_server.domain.enums import PATIENT_DISCHARGED
from caseload_server.domain.requests import Unassign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, assign, count, delete, dump, history, in_force, unassign, update

SECOND = 1_000_000


def test_unassigning_ends_the_period_with_its_reason(pair: RelationshipStore, clock: Clock) -> None:
    period = assign(pair)
    clock.advance(10)
    outcome = pair.unassign(Unassign("t", "p", end_reason=1), CALL._replace(actor="front-desk"))
    assert outcome.record is not None
    assert outcome.record == period._replace(
        end_us=clock.now_us, end_reason=1, ended_by="front-desk", updated_us=clock.now_us, etag=outcome.record.etag
    )
    assert outcome.record.etag != period.etag
    assert outcome.ended
    assert history(pair) == [outcome.record]


def test_unassigning_twice_returns_the_ended_period_and_writes_nothing(pair: RelationshipStore, clock: Clock) -> None:
    assign(pair)
    first = pair.unassign(Unassign("t", "p"), CALL)
    before = dump(pair)
    clock.advance(60)
    for order in (
        Unassign("t", "p"),
        Unassign("t", "p", end_us=1),
        Unassign("t", "p", end_reason=5, etag="some other"),
    ):
        assert pair.unassign(order, CALL) == first._replace(ended=False)
    assert dump(pair) == before


def test_unassigning_after_several_periods_returns_the_latest(pair: RelationshipStore, clock: Clock) -> None:
    for _ in range(3):
        assign(pair)
        clock.advance(1)
        latest = unassign(pair)
    assert unassign(pair) == latest


def test_unassigning_an_unassigned_pair_needs_allow_missing(pair: RelationshipStore) -> None:
    assign(pair, "u")
    with pytest.raises(errors.AssignmentNotFound):
        pair.unassign(Unassign("t", "p"), CALL)
    head = pair.list_records(PATIENT, requests.RecordQuery(), requests.PageRequest(1, "")).revision
    assert pair.unassign(Unassign("t", "p", allow_missing=True), CALL) == results.UnassignResult(None, False, head)
    with pytest.raises(errors.TherapistNotFound):
        pair.unassign(Unassign("x", "p", allow_missing=True), CALL)
    with pytest.raises(errors.PatientNotFound):
        pair.unassign(Unassign("t", "x", allow_missing=True), CALL)


def test_a_given_end_may_be_any_time_from_the_start(pair: RelationshipStore, clock: Clock) -> None:
    period = assign(pair, start_us=100)
    before = dump(pair)
    with pytest.raises(errors.InvalidField) as refusal:
        unassign(pair, end_us=99)
    assert [violation.field for violation in refusal.value.violations] == ["end_time"]
    assert dump(pair) == before
    ahead_us = clock.now_us + 60 * SECOND
    assert unassign(pair, end_us=ahead_us).end_us == ahead_us
    assert count(pair, THERAPIST, "t") == 0
    assert in_force(pair, ahead_us - 1) == [period.assignment_id]
    assert in_force(pair, ahead_us) == []


def test_unassigning_with_an_old_etag_is_rejected(pair: RelationshipStore) -> None:
    old = assign(pair).etag
    new = assign(pair, focus="grief", replace=True)
    before = dump(pair)
    with pytest.raises(errors.EtagMismatch):
        unassign(pair, etag=old)
    assert dump(pair) == before
    assert unassign(pair, etag=new.etag).end_us is not None


def test_unassigning_works_on_deleted_records(pair: RelationshipStore) -> None:
    assign(pair)
    delete(pair, PATIENT, "p", force=True)
    delete(pair, THERAPIST, "t")
    outcome = pair.unassign(Unassign("t", "p"), CALL)
    assert (outcome.record, outcome.ended) == (history(pair)[0], False)


def test_discharging_a_patient_keeps_the_history(pair: RelationshipStore) -> None:
    assign(pair)
    period = unassign(pair)
    update(pair, PATIENT, "p", status=PATIENT_DISCHARGED)
    assert history(pair) == [period]
