import threading

import pytest
from caseload_server.domain import errors
from caseload_server.domain.enums import END_ENTERED_IN_ERROR, ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import Correction
from caseload_server.store import RelationshipStore
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import Clock
from tests.store.store_builders import (
    CALL,
    VALIDATE,
    assert_consistent,
    assign,
    dump,
    overlap,
    patients,
    period,
    periods,
    remembered,
    run,
    therapists,
)
from tests.support.waiting import join

ID = "3b241101-e2bb-4255-8caf-4136c566a962"


@pytest.fixture
def filled_store(store: RelationshipStore) -> RelationshipStore:
    """Therapists t and u, patients p and q."""
    therapists(store, "t", "u")
    patients(store, "p", "q")
    return store


def correct(store: RelationshipStore, one: Assignment, **fields: str | int | None) -> Assignment:
    return store.correct(one.assignment_id, "", dict(fields), CALL).record


def test_a_correction_sets_the_named_fields_and_the_update_time(filled_store: RelationshipStore, clock: Clock) -> None:
    before = period(filled_store, "t", "p", 100, 200)
    now = clock.advance(60)
    after = correct(filled_store, before, focus="grief", start_us=50)
    assert after == before._replace(focus="grief", start_us=50, updated_us=now, etag=after.etag)
    assert after.etag != before.etag
    assert periods(filled_store) == [after]


def test_the_log_names_only_the_corrected_fields(filled_store: RelationshipStore) -> None:
    one = period(filled_store, "t", "p", 100, 200)
    outcome = filled_store.correct(
        one.assignment_id, "", {"focus": "", "start_us": 100, "end_us": 150, "end_reason": 1}, CALL
    )
    sql = "SELECT revision, kind, changed_fields, therapist_id, patient_id, assignment_id FROM change"
    assert run(filled_store, f"{sql} ORDER BY revision DESC LIMIT 1") == [
        (filled_store.keys.number(outcome.revision), 2, "end_time,end_reason", "t", "p", one.assignment_id)
    ]


def test_a_correction_that_changes_nothing_writes_nothing(filled_store: RelationshipStore, clock: Clock) -> None:
    one = period(filled_store, "t", "p", 100, 200)
    before = dump(filled_store)
    clock.advance(60)
    same: Correction = {"focus": "", "start_us": 100, "end_us": 200, "end_reason": 0, "role": ROLE_TREATING}
    outcome = filled_store.correct(one.assignment_id, one.etag, same, CALL)
    assert (outcome.record, outcome.revision) == (one, filled_store.keys.revision(filled_store.head_revision()))
    assert dump(filled_store) == before


def test_a_rejected_or_validated_correction_writes_nothing(filled_store: RelationshipStore) -> None:
    there = period(filled_store, "t", "p", 100, 200)
    one = period(filled_store, "t", "p", 300, 400)
    before = dump(filled_store)
    for call in (CALL, VALIDATE, remembered(ID)):
        with pytest.raises(errors.PeriodOverlaps) as caught:
            filled_store.correct(one.assignment_id, "", {"start_us": 199}, call)
        assert caught.value.metadata == {"assignment_id": there.assignment_id}
        with pytest.raises(errors.EtagMismatch):
            filled_store.correct(one.assignment_id, "0" * 16, {"start_us": 300}, call)
    assert filled_store.correct(one.assignment_id, "", {"start_us": 200}, VALIDATE).record.etag == ""
    assert dump(filled_store) == before


def test_a_correction_does_not_change_the_counts(filled_store: RelationshipStore) -> None:
    assign(filled_store, "t", "p", role=ROLE_PRIMARY, start_us=500)
    ended = period(filled_store, "u", "p", 600, 700)
    correct(filled_store, ended, end_us=650, end_reason=END_ENTERED_IN_ERROR)
    assert_consistent(filled_store)


def test_racing_corrections_never_overlap(filled_store: RelationshipStore) -> None:
    rivals = [period(filled_store, "t", "p", 1000 + n * 100, 1050 + n * 100) for n in range(8)]
    outcomes: list[str] = []
    barrier = threading.Barrier(len(rivals))

    def race(one: Assignment) -> None:
        barrier.wait()
        try:
            correct(filled_store, one, start_us=100, end_us=200)
            outcomes.append("moved")
        except errors.PeriodOverlaps:
            outcomes.append("refused")

    racers = [threading.Thread(target=race, args=(one,)) for one in rivals]
    for racer in racers:
        racer.start()
    join(*racers)
    assert sorted(outcomes) == ["moved"] + ["refused"] * 7
    assert_consistent(filled_store)


spans = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)
roles = st.sampled_from([ROLE_PRIMARY, ROLE_TREATING])
reasons = st.sampled_from([0, 1, END_ENTERED_IN_ERROR])
written = st.tuples(st.sampled_from("tu"), st.sampled_from("ppq"), roles, spans, reasons)


@pytest.mark.slow
@settings(max_examples=150)
@given(rows=st.lists(written, min_size=2, max_size=7), span=spans, reason=reasons, active=st.booleans())
def test_a_correction_is_rejected_exactly_when_two_periods_would_overlap(
    filled_store: RelationshipStore,
    rows: list[tuple[str, str, int, list[int], int]],
    span: list[int],
    reason: int,
    *,
    active: bool,
) -> None:
    run(filled_store, "DELETE FROM assignment")
    made: list[Assignment] = []
    for n, (therapist_id, patient_id, role, (start_us, end_us), why) in enumerate(rows):
        one = Assignment(f"a{n}", therapist_id, patient_id, role, "", start_us, end_us, why, "x", "x", 0, 0, "e", None)
        if active and n == len(rows) - 1:
            one = one._replace(end_us=None, end_reason=0, ended_by="")
        if n == 0 or not any(overlap(one, other) for other in made):
            made.append(one)
            columns = ", ".join(Assignment._fields)
            values = ", ".join(f":{column}" for column in Assignment._fields)
            run(filled_store, f"INSERT INTO assignment ({columns}) VALUES ({values})", one._asdict())
    subject, *others = made
    wanted = subject._replace(start_us=span[0], end_us=span[1], end_reason=reason)
    in_the_way = {other.assignment_id for other in others if overlap(wanted, other)}
    fields: Correction = {"start_us": span[0], "end_us": span[1], "end_reason": reason}
    if not in_the_way:
        filled_store.correct(subject.assignment_id, "", fields, CALL)
        return
    with pytest.raises(errors.PeriodOverlaps) as caught:
        filled_store.correct(subject.assignment_id, "", fields, CALL)
    assert caught.value.metadata["assignment_id"] in in_the_way
