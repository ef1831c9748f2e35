"""Periods that are over, recorded in one call each and in any order of calls."""

import itertools
from typing import Any

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import Assign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    assign,
    broken,
    count,
    delete,
    dump,
    history,
    in_force,
    make,
    race,
    unassign,
    update,
)

COVERING = 4


def finished(store: RelationshipStore, start_us: int, end_us: int, therapist_id: str = "t", **order: Any) -> Assignment:
    return assign(store, therapist_id, start_us=start_us, end_us=end_us, **order)


def overlapped(store: RelationshipStore, start_us: int, end_us: int, therapist_id: str = "t", **order: Any) -> str:
    """The id of the period that a rejected one would overlap. Nothing is written."""
    before = dump(store)
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        finished(store, start_us, end_us, therapist_id, **order)
    assert dump(store) == before
    return refusal.value.metadata["assignment_id"]


def test_a_finished_period_is_recorded_as_ended_by_its_caller(pair: RelationshipStore, clock: Clock) -> None:
    now = clock.advance(1)
    result = pair.assign(Assign("t", "p", COVERING, "anxiety", start_us=100, end_us=200, end_reason=1), CALL)
    record = result.record
    assert result.created
    assert record == Assignment(
        assignment_id=record.assignment_id,
        therapist_id="t",
        patient_id="p",
        role=COVERING,
        focus="anxiety",
        start_us=100,
        end_us=200,
        end_reason=1,
        created_by=CALL.actor,
        ended_by=CALL.actor,
        created_us=now,
        updated_us=now,
        etag=record.etag,
        expire_us=None,
    )
    assert history(pair) == [record]
    assert (count(pair, THERAPIST, "t"), count(pair, PATIENT, "p")) == (0, 0)
    period = [record.assignment_id]
    assert [in_force(pair, at) for at in (99, 100, 199, 200)] == [[], period, period, []]


def test_a_history_can_be_recorded_in_any_order(pair: RelationshipStore) -> None:
    spans = ((100, 200), (200, 300), (500, 600), (700, None))
    for number, order in enumerate(itertools.permutations(spans), 1):
        patient_id = f"p{number}"
        make(pair, PATIENT, patient_id)
        for start_us, end_us in order:
            assign(pair, "t", patient_id, role=ROLE_PRIMARY, start_us=start_us, end_us=end_us)
        assert [(one.start_us, one.end_us) for one in history(pair, patient_id)] == list(spans), order
        assert count(pair, THERAPIST, "t") == number
        assert pair.get(PATIENT, patient_id).primary_therapist_id == "t"


def test_periods_are_half_open(pair: RelationshipStore) -> None:
    period = finished(pair, 100, 200)
    for start_us, end_us in ((50, 101), (100, 150), (120, 180), (199, 300), (50, 300), (100, 201)):
        assert overlapped(pair, start_us, end_us) == period.assignment_id
    finished(pair, 50, 100)
    finished(pair, 200, 300)
    finished(pair, 100, 200, "u")  # only another PRIMARY period would overlap


def test_primary_periods_of_a_patient_do_not_overlap_across_therapists(pair: RelationshipStore) -> None:
    period = finished(pair, 100, 200, role=ROLE_PRIMARY)
    assert overlapped(pair, 150, 250, "u", role=ROLE_PRIMARY) == period.assignment_id
    finished(pair, 150, 250, "u", role=ROLE_TREATING)
    finished(pair, 50, 100, "u", role=ROLE_PRIMARY)
    make(pair, PATIENT, "q")
    assign(pair, "u", "q", role=ROLE_PRIMARY, start_us=100, end_us=200)


def test_an_active_period_is_overlapped_from_its_start_for_ever(pair: RelationshipStore, clock: Clock) -> None:
    active = assign(pair, "u", start_us=1000, role=ROLE_PRIMARY)
    assert overlapped(pair, 900, 1001, "u") == active.assignment_id
    assert overlapped(pair, 5000, clock.now_us, "t", role=ROLE_PRIMARY) == active.assignment_id
    finished(pair, 5000, clock.now_us, "t")
    finished(pair, 900, 1000, "u")
    finished(pair, 800, 1000, "t", role=ROLE_PRIMARY)


def test_an_active_period_with_a_planned_end_is_overlapped_until_then(pair: RelationshipStore, clock: Clock) -> None:
    expire_us = pair.assign(Assign("t", "p", start_us=1000, expire_us=clock.now_us + 10), CALL).record.expire_us or 0
    [active] = history(pair)
    assert overlapped(pair, expire_us - 1, expire_us + 9) == active.assignment_id
    finished(pair, expire_us, expire_us + 9)
    clock.now_us += 10
    assert in_force(pair, expire_us) == [history(pair)[1].assignment_id]
    assert broken(pair) == []


def test_an_expiring_period_may_come_before_a_finished_one(pair: RelationshipStore, clock: Clock) -> None:
    soon_us, later_us = clock.now_us + 5, clock.now_us + 9
    period = finished(pair, soon_us, later_us)
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        assign(pair, start_us=100, expire_us=soon_us + 1)
    assert refusal.value.metadata == {"assignment_id": period.assignment_id}
    active = assign(pair, start_us=100, expire_us=soon_us)
    assert (active.start_us, active.expire_us) == (100, soon_us)
    assert broken(pair) == []


def test_an_error_names_the_first_of_several_periods(pair: RelationshipStore) -> None:
    later, first = finished(pair, 300, 400), finished(pair, 100, 200)
    assert overlapped(pair, 0, 1000) == first.assignment_id
    assert overlapped(pair, 200, 1000) == later.assignment_id


def test_an_open_period_is_compared_with_the_periods_that_it_would_really_overlap(pair: RelationshipStore) -> None:
    finished(pair, 2019, 2020)
    later = finished(pair, 2024, 2025)
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        assign(pair, start_us=2023)
    assert refusal.value.metadata == {"assignment_id": later.assignment_id}
    assert assign(pair, start_us=2025).start_us == 2025
    make(pair, PATIENT, "q")
    assign(pair, "t", "q", start_us=2019, end_us=2020)
    assert assign(pair, "t", "q", start_us=2023).start_us == 2023


def test_a_default_start_is_moved_behind_a_finished_period(pair: RelationshipStore, clock: Clock) -> None:
    later_us = clock.now_us + 30_000_000
    finished(pair, clock.now_us - 5, later_us)
    assert assign(pair).start_us == later_us


def test_status_capacity_and_the_active_primary_do_not_stand_in_the_way(pair: RelationshipStore) -> None:
    make(pair, PATIENT, "q")
    assign(pair, "u", "p", role=ROLE_PRIMARY, start_us=1000)
    assign(pair, "t", "p", start_us=1000, focus="grief")
    update(pair, THERAPIST, "t", max_active_patients=1, status=2)
    for therapist_status, patient_id in ((2, "p"), (2, "q")):
        update(pair, THERAPIST, "t", status=therapist_status)
        finished(pair, 100, 200, role=ROLE_PRIMARY, patient_id=patient_id)
    unassign(pair, "t", "p")
    unassign(pair, "u", "p")
    update(pair, THERAPIST, "t", status=enums.THERAPIST_INACTIVE)
    update(pair, PATIENT, "p", status=enums.PATIENT_DISCHARGED)
    finished(pair, 300, 400, role=ROLE_PRIMARY)
    assert broken(pair) == []


def test_missing_and_deleted_records_stand_in_the_way(pair: RelationshipStore) -> None:
    finished(pair, 0, 5)
    overlapped(pair, 1, 2)  # which is found last
    with pytest.raises(errors.TherapistNotFound):
        finished(pair, 1, 2, "missing", patient_id="missing")
    with pytest.raises(errors.PatientNotFound):
        finished(pair, 1, 2, patient_id="missing")
    delete(pair, PATIENT, "p")
    with pytest.raises(errors.PatientDeleted):
        finished(pair, 1, 2)
    delete(pair, THERAPIST, "t")
    with pytest.raises(errors.TherapistDeleted):
        finished(pair, 1, 2)


def test_the_very_same_period_again_writes_nothing(pair: RelationshipStore) -> None:
    order = Assign("t", "p", COVERING, "grief", start_us=100, end_us=200, end_reason=1)
    first = pair.assign(order, CALL)
    before = dump(pair)
    again = pair.assign(order._replace(ignore_capacity=True), CALL._replace(actor="someone else"))
    assert (again.record, again.created, again.revision) == (first.record, False, first.revision)
    assert dump(pair) == before


def test_a_period_with_another_value_is_not_the_same(pair: RelationshipStore) -> None:
    values: dict[str, Any] = {"role": COVERING, "focus": "grief", "start_us": 100, "end_us": 200, "end_reason": 1}
    first = assign(pair, **values)
    for difference in ({"role": 1}, {"focus": ""}, {"start_us": 101}, {"end_us": 199}, {"end_reason": 0}):
        with pytest.raises(errors.PeriodOverlaps) as refusal:
            assign(pair, **{**values, **difference})
        assert refusal.value.metadata == {"assignment_id": first.assignment_id}


def test_the_period_is_the_same_when_it_was_once_active(pair: RelationshipStore) -> None:
    assign(pair, start_us=100)
    ended = unassign(pair, end_us=200, end_reason=1)
    again = pair.assign(Assign("t", "p", start_us=100, end_us=200, end_reason=1), CALL)
    assert (again.record, again.created) == (ended, False)


def test_a_period_entered_in_error_or_without_length_overlaps_nothing(pair: RelationshipStore) -> None:
    wrong = finished(pair, 100, 200, end_reason=enums.END_ENTERED_IN_ERROR)
    empty = finished(pair, 150, 150)
    right = finished(pair, 100, 200)
    finished(pair, 160, 160)
    assert len({wrong.assignment_id, empty.assignment_id, right.assignment_id}) == 3
    assert finished(pair, 150, 150) == empty
    assert finished(pair, 100, 200, end_reason=enums.END_ENTERED_IN_ERROR) == wrong
    assert in_force(pair, 150) == [right.assignment_id]


def test_an_active_period_is_not_changed_by_a_finished_one(pair: RelationshipStore) -> None:
    active = assign(pair, start_us=1000)
    finished(pair, 100, 200)
    assert history(pair)[1] == active
    again = pair.assign(Assign("t", "p", start_us=1000), CALL)
    assert (again.record, again.created) == (active, False)


instants = st.integers(0, 8)


@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from("tu"),
            st.sampled_from([ROLE_PRIMARY, ROLE_TREATING]),
            instants,
            st.none() | instants,
            st.sampled_from([0, 0, 0, enums.END_ENTERED_IN_ERROR]),
        ),
        max_size=12,
    )
)
@settings(max_examples=40)
def test_a_call_is_rejected_exactly_when_two_periods_would_overlap(
    store: RelationshipStore, clock: Clock, calls: list[tuple[Any, ...]]
) -> None:
    mark = f"m{clock.advance(1000)}"
    make(store, PATIENT, mark)
    for who in "tu":
        make(store, THERAPIST, mark + who)
    for who, role, start, end, reason in calls:
        if end is not None and end < start:
            continue
        order = Assign(mark + who, mark, role, "", start, replace=False)
        if end is not None:
            order = order._replace(end_us=end, end_reason=reason)
        stored = history(store, mark)
        try:
            result = store.assign(order, CALL)
        except errors.PeriodOverlaps as refusal:
            named = [one for one in stored if one.assignment_id == refusal.metadata["assignment_id"]]
            assert len(named) == 1
            assert overlap(named[0], order)
            assert history(store, mark) == stored
        except (errors.AssignmentDiffers, errors.PrimaryExists):
            assert end is None
        else:
            if result.created:
                assert not any(overlap(one, order) for one in stored)
    assert broken(store) == []


def overlap(period: Assignment, order: Assign) -> bool:
    rivals = period.therapist_id == order.therapist_id or period.role == order.role == ROLE_PRIMARY
    if not rivals or enums.END_ENTERED_IN_ERROR in (period.end_reason, order.end_reason):
        return False
    ends = [10**9 if end is None else end for end in (period.end_us, order.end_us)]
    return max(period.start_us, order.start_us or 0) < min(ends)


@pytest.mark.slow
@pytest.mark.parametrize("role", [ROLE_PRIMARY, ROLE_TREATING])
def test_racing_callers_never_leave_overlapping_periods(
    store: RelationshipStore, instances: list[RelationshipStore], role: int
) -> None:
    make(store, PATIENT, "p")
    for number in range(4):
        make(store, THERAPIST, f"t{number}")

    def one(number: int) -> list[Assignment]:
        """Records overlapping spans, each caller in another order, and an active period now and then."""
        done = []
        for turn in range(6):
            start = (number * 7 + turn * 13) % 40
            order: dict[str, Any] = {"start_us": start, "role": role, "end_us": start + 1 + number % 9}
            if turn == 3 and number % 8 == 0:
                order |= {"start_us": 45, "end_us": None, "replace": True, "replace_primary": True}
            try:
                done.append(assign(instances[number % 3], f"t{number % 4}", "p", **order))
            except errors.PeriodOverlaps:
                continue
        return done

    done, refusals = race(one)
    assert refusals == []
    periods = history(store)
    assert {period.assignment_id for periods_of_one in done for period in periods_of_one} <= {
        period.assignment_id for period in periods
    }
    assert len(periods) >= 4
    assert broken(store) == []
