"""When periods may begin and end, which are in force at a time, and clocks that are set back."""

from collections.abc import Callable
from typing import Any

import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import Unassign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from hypothesis import given
from hypothesis import strategies as st

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, assign, assigned, count, delete, dump, history, in_force, make, unassign

pytestmark = pytest.mark.slow

SECOND = 1_000_000
ROLE_COVERING = 4


def ended(
    store: RelationshipStore, start_us: int, end_us: int, therapist_id: str = "t", reason: int = 0, **order: Any
) -> Assignment:
    assign(store, therapist_id, start_us=start_us, **order)
    return unassign(store, therapist_id, end_us=end_us, end_reason=reason)


def test_a_period_may_not_begin_inside_an_ended_one_of_the_pair(pair: RelationshipStore) -> None:
    period = ended(pair, 100, 200)
    before = dump(pair)
    for start_us in (50, 100, 150, 199):
        with pytest.raises(errors.PeriodOverlaps) as refusal:
            assign(pair, start_us=start_us)
        assert refusal.value.metadata == {"assignment_id": period.assignment_id}
    assert dump(pair) == before
    assert assign(pair, start_us=200).start_us == 200


def test_a_period_may_overlap_one_of_another_therapist(pair: RelationshipStore) -> None:
    ended(pair, 100, 200, "u")
    ended(pair, 100, 200, "t", role=ROLE_PRIMARY)
    assert assign(pair, "u", start_us=200, role=ROLE_COVERING).start_us == 200


def test_primary_periods_of_a_patient_may_not_overlap_across_therapists(pair: RelationshipStore) -> None:
    period = ended(pair, 100, 200, "u", role=ROLE_PRIMARY)
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        assign(pair, "t", role=ROLE_PRIMARY, start_us=199)
    assert refusal.value.metadata == {"assignment_id": period.assignment_id}
    assert assign(pair, "t", role=ROLE_TREATING, start_us=150).start_us == 150
    assert assign(pair, "t", role=ROLE_PRIMARY, start_us=200, replace=True).start_us == 200


@pytest.mark.parametrize("therapist_ids", [("t", "u"), ("u", "t")])
def test_of_two_periods_that_end_at_once_an_error_names_the_first_recorded(
    pair: RelationshipStore, therapist_ids: tuple[str, str]
) -> None:
    roles = {"t": ROLE_TREATING, "u": ROLE_PRIMARY}
    first, _ = [ended(pair, 100, 200, one, role=roles[one]) for one in therapist_ids]
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        assign(pair, "t", role=ROLE_PRIMARY, start_us=199)
    assert refusal.value.metadata == {"assignment_id": first.assignment_id}


def test_primary_periods_of_different_patients_may_overlap(pair: RelationshipStore) -> None:
    make(pair, PATIENT, "q")
    assign(pair, "t", "q", role=ROLE_PRIMARY, start_us=100)
    unassign(pair, "t", "q", end_us=200)
    assert assign(pair, "t", "p", role=ROLE_PRIMARY, start_us=150).start_us == 150


def test_a_period_entered_in_error_may_be_overlapped(pair: RelationshipStore) -> None:
    ended(pair, 100, 200, reason=enums.END_ENTERED_IN_ERROR, role=ROLE_PRIMARY)
    ended(pair, 100, 200, "u", reason=enums.END_ENTERED_IN_ERROR, role=ROLE_PRIMARY)
    period = assign(pair, start_us=150, role=ROLE_PRIMARY)
    for at_us in (100, 149, 150, 199, 200):
        assert in_force(pair, at_us) == ([period.assignment_id] if at_us >= 150 else [])


def test_a_period_without_length_may_be_overlapped(pair: RelationshipStore) -> None:
    ended(pair, 100, 100)
    assert in_force(pair, 100) == []
    assert assign(pair, start_us=50).start_us == 50


def test_a_default_start_is_not_before_the_end_of_an_earlier_period(pair: RelationshipStore, clock: Clock) -> None:
    later_us = clock.now_us + 30 * SECOND
    ended(pair, 100, later_us)
    assert assign(pair).start_us == later_us


def test_a_default_primary_start_is_not_before_the_end_of_the_previous_primary(
    pair: RelationshipStore, clock: Clock
) -> None:
    later_us = clock.now_us + 30 * SECOND
    ended(pair, 100, later_us, "u", role=ROLE_PRIMARY)
    assert assign(pair, "t", role=ROLE_TREATING).start_us == clock.now_us
    assert assign(pair, "t", role=ROLE_PRIMARY, replace=True).start_us == later_us


# History.


def test_history_returns_the_assignments_in_force_at_any_time(pair: RelationshipStore) -> None:
    first = ended(pair, 100, 200, role=ROLE_PRIMARY)
    second = assign(pair, "u", start_us=200, role=ROLE_PRIMARY)
    third = assign(pair, "t", start_us=300)
    ids = {"first": first.assignment_id, "second": second.assignment_id, "third": third.assignment_id}
    for at_us, expected in (
        (99, []),
        (100, ["first"]),
        (199, ["first"]),
        (200, ["second"]),
        (299, ["second"]),
        (300, ["second", "third"]),
    ):
        assert in_force(pair, at_us) == [ids[name] for name in expected], at_us
        of_t = [ids[name] for name in expected if name != "second"]
        assert in_force(pair, at_us, THERAPIST, "t") == of_t, at_us


def test_history_can_be_filtered_by_role(pair: RelationshipStore) -> None:
    primary = assign(pair, "u", start_us=100, role=ROLE_PRIMARY)
    assign(pair, "t", start_us=100)
    query = requests.CaseloadQuery("p", roles=(ROLE_PRIMARY,), as_of_us=100)
    assert [entry[0] for entry in assigned(pair, PATIENT, query).records] == [primary]


# Clocks that are set back.


def test_unassigning_after_the_clock_is_set_back_ends_the_period_at_its_start(
    pair: RelationshipStore, clock: Clock
) -> None:
    period = assign(pair)
    clock.advance(-3600)
    assert unassign(pair).end_us == period.start_us
    assert (count(pair, THERAPIST, "t"), count(pair, PATIENT, "p")) == (0, 0)


def test_assigning_again_after_the_clock_is_set_back_begins_after_the_earlier_period(
    pair: RelationshipStore, clock: Clock
) -> None:
    assign(pair)
    clock.advance(10)
    first = unassign(pair)
    clock.advance(-3600)
    second = assign(pair)
    assert second.start_us == first.end_us
    assert second.created_us == clock.now_us


@pytest.mark.parametrize("therapist_id", ["t", "u"], ids=["own", "other"])
def test_replacing_after_the_clock_is_set_back_begins_at_the_start_of_the_replaced(
    pair: RelationshipStore, clock: Clock, therapist_id: str
) -> None:
    first = assign(pair, "t", role=ROLE_PRIMARY)
    clock.advance(-3600)
    second = assign(pair, therapist_id, role=ROLE_PRIMARY, focus="grief", replace=True, replace_primary=True)
    assert second.start_us == first.start_us
    assert in_force(pair, first.start_us) == [second.assignment_id]


def test_a_forced_delete_after_the_clock_is_set_back_ends_periods_at_their_start(
    pair: RelationshipStore, clock: Clock
) -> None:
    period = assign(pair)
    clock.advance(-3600)
    delete(pair, PATIENT, "p", force=True)
    assert history(pair)[0].end_us == period.start_us


def test_deletes_and_undeletes_work_after_the_clock_is_set_back(pair: RelationshipStore, clock: Clock) -> None:
    clock.advance(-3600)
    delete(pair, PATIENT, "p")
    clock.advance(-3600)
    assert pair.undelete(PATIENT, "p", CALL).record.deleted_us is None


# The rules hold after any sequence of calls.

times = st.one_of(st.none(), st.integers(-5, 5))
flags = st.booleans()
steps = st.one_of(
    st.tuples(
        st.just("assign"),
        st.sampled_from("tu"),
        st.sampled_from([ROLE_PRIMARY, ROLE_TREATING]),
        st.sampled_from(["", "grief"]),
        times,
        flags,
        flags,
    ),
    st.tuples(st.just("unassign"), st.sampled_from("tu"), times, st.sampled_from([0, enums.END_ENTERED_IN_ERROR])),
    st.tuples(st.just("clock"), st.integers(-4, 4)),
    st.tuples(st.just("delete"), st.sampled_from(["therapist", "patient"])),
)


def take(store: RelationshipStore, clock: Clock, mark: str, step: tuple[Any, ...]) -> None:
    def at_us(offset: int | None) -> int | None:
        return None if offset is None else clock.now_us + offset

    match step:
        case ("assign", who, role, focus, offset, replace, replace_primary):
            order = requests.Assign(mark + who, mark, role, focus, at_us(offset), replace, replace_primary)
            store.assign(order, CALL)
        case ("unassign", who, offset, reason):
            store.unassign(Unassign(mark + who, mark, reason, at_us(offset)), CALL)
        case ("clock", microseconds):
            clock.now_us += microseconds
        case ("delete", "therapist"):
            delete(store, THERAPIST, mark + "t", force=True)
            store.undelete(THERAPIST, mark + "t", CALL)
        case ("delete", "patient"):
            delete(store, PATIENT, mark, force=True)
            store.undelete(PATIENT, mark, CALL)


def refusal_of(call: Callable[[], None]) -> errors.DomainError | None:
    try:
        call()
    except errors.DomainError as refusal:
        return refusal
    return None


def check_rules(store: RelationshipStore, mark: str) -> None:
    periods = history(store, mark)
    active = [period for period in periods if period.end_us is None]
    assert len({period.therapist_id for period in active}) == len(active)
    patient = store.get(PATIENT, mark)
    primaries = [period.therapist_id for period in active if period.role == ROLE_PRIMARY]
    assert [patient.primary_therapist_id] == (primaries or [""])
    assert patient.active_therapist_count == len(active)
    for who in "tu":
        of_them = [period for period in active if period.therapist_id == mark + who]
        assert count(store, THERAPIST, mark + who) == len(of_them)
    real = [period for period in periods if period.end_reason != enums.END_ENTERED_IN_ERROR]
    for at_us in sorted({period.start_us for period in real}):
        now = [p for p in real if p.start_us <= at_us and (p.end_us is None or at_us < p.end_us)]
        assert len({period.therapist_id for period in now}) == len(now)
        assert sum(period.role == ROLE_PRIMARY for period in now) <= 1


@given(todo=st.lists(steps, max_size=14))
def test_no_sequence_of_calls_breaks_the_rules_of_periods_and_counts(
    store: RelationshipStore, clock: Clock, todo: list[tuple[Any, ...]]
) -> None:
    mark = f"m{clock.advance(1000)}"
    make(store, PATIENT, mark)
    for who in "tu":
        make(store, THERAPIST, mark + who)
    for step in todo:
        before = history(store, mark)
        refusal = refusal_of(lambda step=step: take(store, clock, mark, step))  # type: ignore[misc]
        if refusal:
            assert history(store, mark) == before
        if None in step:  # the store chose a time, and it chooses a valid one
            assert not isinstance(refusal, errors.PeriodOverlaps | errors.InvalidField)
        check_rules(store, mark)
