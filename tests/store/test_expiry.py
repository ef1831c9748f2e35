"""Planned ends: what reads answer around an expire_time, and what ends the assignment in the store."""

from collections.abc import Callable
from typing import Any

import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY, STATE_ACTIVE, STATE_ENDED
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import AssignmentQuery, CaseloadQuery, ChangeQuery, Delete, Merge, Transfer, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import (
    CALL,
    SECOND,
    VALIDATE,
    assert_consistent,
    assign,
    patients,
    periods,
    remembered,
    therapists,
    transfer,
    unassign,
)
from tests.store.store_calls import ALL, both_kinds, delete, dump, head, in_force, race, update

HOUR = 3600 * SECOND
REQUEST_ID = "0190a3c4-0000-7000-8000-000000000001"


@pytest.fixture
def pair(store: RelationshipStore) -> RelationshipStore:
    therapists(store, "t", "u", "v")
    patients(store, "p", "q")
    return store


def expiries(store: RelationshipStore) -> list[str]:
    """The ids of the assignments that expired, by the change log: one for each change set of an expiry."""
    page = store.list_changes(ChangeQuery(actor="system:expiry"), "", 1000)
    ids = []
    for change_set in page.change_sets:
        [change] = change_set.changes
        assert change_set.method == change_set.request_id == change_set.on_behalf_of == ""
        assert (change.kind, change.changed_fields) == (enums.CHANGE_UPDATED, "state,end_time,end_reason,ended_by")
        ids.append(change.assignment_id or "")
    return ids


def assert_expired(store: RelationshipStore, begun: Assignment, now_us: int) -> None:
    """Asserts that an assignment ended as planned, in one change set, and that counts and primary therapists follow."""
    ended = store.get_assignment(begun.assignment_id)
    assert ended.etag != begun.etag
    assert ended == begun._replace(
        end_us=begun.expire_us,
        end_reason=enums.END_EXPIRED,
        ended_by="system:expiry",
        updated_us=now_us,
        etag=ended.etag,
    )
    assert expiries(store).count(begun.assignment_id) == 1
    assert_consistent(store)


def listed(store: RelationshipStore, at_us: int | None) -> list[list[str]]:
    """What each read answers about the pair, at a time or now."""
    everything = [
        [row.assignment_id for row in store.list_assignments(AssignmentQuery(**sides, as_of_us=at_us), ALL).records]
        for sides in ({}, {"therapist_id": "t"}, {"patient_id": "p"}, {"roles": (ROLE_PRIMARY,)}, {"roles": (1, 2, 3)})
    ]
    for kind, record_id in ((THERAPIST, "t"), (PATIENT, "p")):
        query = CaseloadQuery(record_id, as_of_us=at_us)
        page = (store.list_therapist_patients if kind is THERAPIST else store.list_patient_therapists)(query, ALL)
        everything.append([row[0].assignment_id for row in page.records])
    return everything


def checked(store: RelationshipStore, at_us: int) -> str | None:
    [check], _ = store.check_assignments([("t", "p")], at_us)
    return check.assignment_id


@pytest.mark.parametrize("is_swept", [False, True])
def test_an_assignment_is_in_force_until_the_instant_of_its_expire_time(
    pair: RelationshipStore, clock: Clock, *, is_swept: bool
) -> None:
    """Whether a sweeper has ended it makes no difference to these answers."""
    begun = assign(pair, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + HOUR)
    expire_us = clock() + HOUR
    clock.now_us = expire_us - 1
    found = [[begun.assignment_id]] * 7
    assert listed(pair, None) == listed(pair, clock()) == listed(pair, begun.start_us) == found
    assert checked(pair, clock()) == begun.assignment_id
    clock.now_us = expire_us
    if is_swept:
        assert pair.end_expired() is None
    assert listed(pair, None) == listed(pair, expire_us) == [[]] * 7
    assert listed(pair, expire_us - 1) == found
    assert [checked(pair, at_us) for at_us in (begun.start_us - 1, expire_us, expire_us + 1)] == [None] * 3
    assert checked(pair, expire_us - 1) == begun.assignment_id


def test_a_list_of_both_states_has_an_expired_assignment_once_before_and_after_it_ended(
    pair: RelationshipStore, clock: Clock
) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + 1)
    clock.advance(1)

    def found(*states: int) -> list[list[Assignment]]:
        return [
            pair.list_assignments(AssignmentQuery(states=states, **sides), ALL).records
            for sides in ({}, {"patient_id": "p"}, {"roles": (2,)})
        ]

    assert found(STATE_ACTIVE, STATE_ENDED) == [[begun]] * 3
    assert found(STATE_ENDED) == found(STATE_ACTIVE) == [[]] * 3
    pair.end_expired()
    ended = pair.get_assignment(begun.assignment_id)
    assert found(STATE_ACTIVE, STATE_ENDED) == found(STATE_ENDED) == [[ended]] * 3


def test_a_sweep_ends_what_has_expired_and_returns_the_next_planned_end(pair: RelationshipStore, clock: Clock) -> None:
    first = assign(pair, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + SECOND)
    second = assign(pair, "u", "p", expire_us=clock() + 2 * SECOND)
    third = assign(pair, "u", "q", expire_us=clock() + 2 * SECOND)
    assign(pair, "v", "q")
    before = dump(pair)
    assert pair.end_expired() == first.expire_us
    assert dump(pair) == before
    clock.advance(1)
    assert pair.end_expired() == second.expire_us
    assert_expired(pair, first, clock())
    assert pair.get(PATIENT, "p").primary_therapist_id == ""
    clock.advance(60)
    assert pair.end_expired() is None
    for begun in (second, third):
        assert_expired(pair, begun, clock())
    assert len(expiries(pair)) == 3


def test_a_sweep_ends_more_than_one_batch(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t")
    names = [f"p{n}" for n in range(150)]
    patients(store, *names)
    for name in names:
        assign(store, "t", name, expire_us=clock() + 1)
    clock.advance(1)
    assert store.end_expired() is None
    assert sorted(expiries(store)) == sorted(one.assignment_id for one in periods(store))
    assert_consistent(store)


@pytest.mark.slow
def test_many_sweeps_at_once_write_one_change_set_for_each_expiry(pair: RelationshipStore, clock: Clock) -> None:
    begun = [assign(pair, therapist, patient, expire_us=clock() + 1) for therapist in "tuv" for patient in "pq"]
    clock.advance(1)
    _, refusals = race(lambda number: pair.end_expired() if number % 2 else unassign(pair, "t", "p"))
    assert refusals == []
    assert sorted(expiries(pair)) == sorted(one.assignment_id for one in begun)
    assert_consistent(pair)


Step = Callable[[RelationshipStore], Any]


def update_with_force(store: RelationshipStore, kind: Any, record_id: str) -> None:
    """Sets the status that no record with active assignments may have."""
    updated = store.update(kind, Update(record_id, {"status": kind.idle_status}, end_reason=1), CALL)
    assert updated.ended_count == 0


OBSTRUCTED: dict[str, Step] = {
    "assign the pair": lambda store: assign(store, "t", "p"),
    "assign another PRIMARY therapist": lambda store: assign(store, "u", "p", role=ROLE_PRIMARY),
    "unassign": lambda store: unassign(store, "t", "p"),
    "delete the therapist": lambda store: delete(store, THERAPIST, "t"),
    "delete the patient": lambda store: delete(store, PATIENT, "p"),
    "delete the patient with force": lambda store: delete(store, PATIENT, "p", force=True),
    "make the therapist inactive": lambda store: update(store, THERAPIST, "t", status=enums.THERAPIST_INACTIVE),
    "discharge the patient": lambda store: update(store, PATIENT, "p", status=enums.PATIENT_DISCHARGED),
    "discharge the patient with force": lambda store: update_with_force(store, PATIENT, "p"),
    "make the therapist inactive with force": lambda store: update_with_force(store, THERAPIST, "t"),
    "transfer the caseload": lambda store: transfer(store, "t", "u"),
    "merge the patient": lambda store: store.merge(Merge("p", "q"), remembered(REQUEST_ID)),
    "merge into the patient": lambda store: store.merge(Merge("q", "p"), remembered(REQUEST_ID)),
}


@pytest.mark.parametrize("step", OBSTRUCTED.values(), ids=OBSTRUCTED)
def test_a_write_that_an_expired_assignment_would_obstruct_ends_it_first(
    pair: RelationshipStore, clock: Clock, step: Step
) -> None:
    begun = assign(pair, "t", "p", role=ROLE_PRIMARY, focus="grief", expire_us=clock() + 1)
    clock.advance(1)
    step(pair)
    assert_expired(pair, begun, clock())


def test_a_write_just_before_the_planned_end_finds_the_assignment_active(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + SECOND)
    clock.now_us += SECOND - 1
    assert assign(pair, "t", "p", role=ROLE_PRIMARY) == begun
    with pytest.raises(errors.PrimaryExists):
        assign(pair, "u", "p", role=ROLE_PRIMARY)
    with pytest.raises(errors.HasActiveAssignments):
        delete(pair, THERAPIST, "t")
    assert (pair.end_expired(), expiries(pair)) == (begun.expire_us, [])


def test_an_expired_assignment_takes_no_capacity(pair: RelationshipStore, clock: Clock) -> None:
    update(pair, THERAPIST, "t", max_active_patients=1)
    begun = assign(pair, "t", "p", expire_us=clock() + 1)
    with pytest.raises(errors.TherapistAtCapacity):
        assign(pair, "t", "q")
    clock.advance(1)
    assign(pair, "t", "q")
    with pytest.raises(errors.TherapistAtCapacity) as refused:
        assign(pair, "t", "p")
    assert refused.value.metadata == {"limit": "1", "current": "1"}
    pair.end_expired()
    assert_expired(pair, begun, clock())


def test_a_refused_write_and_one_that_only_validates_end_nothing(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + 1)
    update(pair, THERAPIST, "t", status=2)
    clock.advance(1)
    before = dump(pair)
    with pytest.raises(errors.TherapistNotActive):
        assign(pair, "t", "p")
    shown = pair.unassign(requests.Unassign("t", "p"), VALIDATE)
    assert shown.record == begun._replace(
        end_us=begun.expire_us,
        end_reason=enums.END_EXPIRED,
        ended_by="system:expiry",
        updated_us=clock(),
        etag="",
    )
    assert (shown.ended, dump(pair)) == (False, before)


def test_a_listed_patient_whose_assignment_expired_is_not_moved(pair: RelationshipStore, clock: Clock) -> None:
    assign(pair, "t", "p", expire_us=clock() + 1)
    begun = assign(pair, "t", "q", focus="grief", expire_us=clock() + HOUR)
    clock.advance(1)
    with pytest.raises(errors.AssignmentNotFound):
        pair.transfer(Transfer("t", "u", ("p", "q")), CALL)
    [ended], [active] = transfer(pair, "t", "u")[:2]
    assert (ended.assignment_id, ended.expire_us) == (begun.assignment_id, begun.expire_us)
    assert (active.focus, active.expire_us) == ("grief", None)  # a transfer does not inherit the planned end


def test_a_planned_end_is_part_of_the_same_assignment_only_where_a_call_gives_one(
    pair: RelationshipStore, clock: Clock
) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + HOUR)
    assert assign(pair, "t", "p") == assign(pair, "t", "p", expire_us=begun.expire_us) == begun
    with pytest.raises(errors.AssignmentDiffers):
        assign(pair, "t", "p", expire_us=clock() + 2 * HOUR)
    clock.advance(60)
    replaced = assign(pair, "t", "p", focus="grief", replace=True)
    assert replaced.expire_us is None  # not inherited
    with pytest.raises(errors.AssignmentDiffers):
        assign(pair, "t", "p", focus="grief", expire_us=clock() + HOUR)
    again = assign(pair, "t", "p", focus="grief", replace=True, expire_us=clock() + HOUR)
    assert again.expire_us == clock() + HOUR


def test_a_planned_end_lies_in_the_future_and_after_the_start(pair: RelationshipStore, clock: Clock) -> None:
    before = dump(pair)
    for expire_us in (clock() - 1, clock()):
        with pytest.raises(errors.InvalidField) as refused:
            assign(pair, "t", "p", expire_us=expire_us, start_us=clock() - HOUR)
        assert refused.value.violations == (errors.Violation("expire_time", "must lie in the future"),)
    with pytest.raises(errors.InvalidField) as refused:
        assign(pair, "t", "p", expire_us=clock() + 30 * SECOND, start_us=clock() + 30 * SECOND)
    assert refused.value.violations == (errors.Violation("expire_time", "must lie after start_time"),)
    assert dump(pair) == before
    assign(pair, "t", "p", expire_us=clock() + 1)


def test_a_replay_is_answered_after_the_planned_end_has_passed(pair: RelationshipStore, clock: Clock) -> None:
    call = remembered(REQUEST_ID)
    request = requests.Assign("t", "p", expire_us=clock() + SECOND)
    first = pair.assign(request, call)
    clock.advance(2)
    assert pair.assign(request, call) == first
    pair.end_expired()
    again = pair.assign(request, call)
    assert (again.created, again.revision) == (True, first.revision)
    assert_expired(pair, first.record, clock())


def test_an_end_is_at_the_planned_end_at_the_latest(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + 10 * SECOND)
    ended = unassign(pair, "t", "p", end_us=clock() + 30 * SECOND)
    assert (ended.end_us, ended.expire_us, ended.end_reason) == (begun.expire_us, begun.expire_us, 0)
    sooner = assign(pair, "u", "p", expire_us=clock() + 10 * SECOND)
    assert unassign(pair, "u", "p").end_us == clock()
    clock.advance(60)
    assert pair.end_expired() is None
    assert expiries(pair) == []
    assert pair.get_assignment(sooner.assignment_id).end_us == clock() - 60 * SECOND


@both_kinds
def test_a_forced_delete_ends_an_assignment_before_its_planned_end(
    pair: RelationshipStore, clock: Clock, kind: Any
) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + HOUR)
    assert pair.delete(kind, Delete("t" if kind is THERAPIST else "p", force=True), CALL).ended_count == 1
    ended = pair.get_assignment(begun.assignment_id)
    assert (ended.end_us, ended.end_reason) == (clock(), enums.END_RECORD_DELETED)


def correct(store: RelationshipStore, one: Assignment, **fields: Any) -> Assignment:
    return store.correct(one.assignment_id, "", fields, CALL).record


def test_a_planned_end_is_set_moved_and_cleared_by_a_correction(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, "t", "p")
    planned = correct(pair, begun, expire_us=clock() + HOUR)
    assert planned.expire_us == clock() + HOUR
    page = pair.list_changes(ChangeQuery(actor=CALL.actor), "", 1000)
    assert page.change_sets[-1].changes[0].changed_fields == "expire_time"
    assert correct(pair, begun, expire_us=planned.expire_us) == planned  # nothing changes
    assert correct(pair, begun, expire_us=clock() + 2 * HOUR).expire_us == clock() + 2 * HOUR
    assert correct(pair, begun, expire_us=None).expire_us is None
    clock.advance(3 * 3600)
    assert (pair.end_expired(), in_force(pair, clock())) == (None, [begun.assignment_id])


def test_a_correction_keeps_the_planned_end_of_an_active_assignment_ahead_and_after_its_start(
    pair: RelationshipStore, clock: Clock
) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + 10 * SECOND)
    for wrong in (
        {"expire_us": clock()},
        {"expire_us": clock() - HOUR},
        {"start_us": clock() + 10 * SECOND},
        {"start_us": clock() + 20 * SECOND, "expire_us": clock() + 15 * SECOND},
    ):
        with pytest.raises(errors.InvalidField) as refused:
            correct(pair, begun, **wrong)
        assert refused.value.violations[0].field == "assignment.expire_time"
    moved = correct(pair, begun, start_us=clock() + 20 * SECOND, expire_us=clock() + HOUR)
    assert (moved.start_us, moved.expire_us) == (clock() + 20 * SECOND, clock() + HOUR)


def test_a_correction_leaves_the_planned_end_of_an_ended_assignment(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, "t", "p", expire_us=clock() + HOUR)
    clock.advance(3600)
    for expire_us in (None, clock() + HOUR):
        with pytest.raises(errors.InvalidField) as refused:
            correct(pair, begun, expire_us=expire_us)  # not in force any more, though nothing has ended it yet
        assert refused.value.violations[0].description == "must not change on an ended assignment"
    # The therapist had left earlier. The record says so, and still why the period ended.
    corrected = correct(pair, begun, end_us=clock() - 60 * SECOND, expire_us=begun.expire_us)
    assert (corrected.end_us, corrected.end_reason) == (clock() - 60 * SECOND, enums.END_EXPIRED)
    later = correct(pair, begun, end_us=clock() + 30 * SECOND, end_reason=1)
    assert (later.end_us, later.expire_us) == (clock() + 30 * SECOND, begun.expire_us)
    assert in_force(pair, clock()) == [begun.assignment_id]  # an end that was recorded counts, not the planned one
    with pytest.raises(errors.InvalidField):
        correct(pair, begun, end_reason=enums.END_EXPIRED)


def test_a_period_may_begin_at_the_instant_at_which_another_expired(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + SECOND)
    clock.advance(60)
    for therapist in ("t", "u"):
        with pytest.raises(errors.PeriodOverlaps):
            assign(pair, therapist, "p", role=ROLE_PRIMARY, start_us=(begun.expire_us or 0) - 1)
    assert assign(pair, "u", "p", role=ROLE_PRIMARY, start_us=begun.expire_us).start_us == begun.expire_us
    assert_expired(pair, begun, clock())


def test_a_write_and_the_expiry_that_it_needs_are_two_change_sets(pair: RelationshipStore, clock: Clock) -> None:
    assign(pair, "t", "p", expire_us=clock() + 1)
    clock.advance(1)
    before = head(pair)
    result = pair.assign(requests.Assign("t", "p"), CALL)
    sets = pair.list_changes(ChangeQuery(), "", 1000).change_sets[-2:]
    assert [one.actor for one in sets] == ["system:expiry", CALL.actor]
    assert head(pair) == before + 2
    assert result.revision == sets[1].revision
