"""What calls may say about a planned end, and how it bounds other ends."""

from typing import Any

import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import ChangeQuery, Delete
from caseload_server.store import THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.expiry_checks import HOUR, assert_expired, expiries
from tests.store.store_builders import CALL, SECOND, assign, remembered, unassign
from tests.store.store_calls import both_kinds, dump, in_force

REQUEST_ID = "0190a3c4-0000-7000-8000-000000000001"


def test_a_planned_end_is_part_of_the_same_assignment_only_where_a_call_gives_one(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + HOUR)
    assert assign(unassigned, "t", "p") == assign(unassigned, "t", "p", expire_us=begun.expire_us) == begun
    with pytest.raises(errors.AssignmentDiffers):
        assign(unassigned, "t", "p", expire_us=clock() + 2 * HOUR)
    clock.advance(60)
    replaced = assign(unassigned, "t", "p", focus="grief", replace=True)
    assert replaced.expire_us is None  # not inherited
    with pytest.raises(errors.AssignmentDiffers):
        assign(unassigned, "t", "p", focus="grief", expire_us=clock() + HOUR)
    again = assign(unassigned, "t", "p", focus="grief", replace=True, expire_us=clock() + HOUR)
    assert again.expire_us == clock() + HOUR


def test_a_planned_end_lies_in_the_future_and_after_the_start(unassigned: RelationshipStore, clock: Clock) -> None:
    before = dump(unassigned)
    for expire_us in (clock() - 1, clock()):
        with pytest.raises(errors.InvalidField) as refused:
            assign(unassigned, "t", "p", expire_us=expire_us, start_us=clock() - HOUR)
        assert refused.value.violations == (errors.Violation("expire_time", "must lie in the future"),)
    with pytest.raises(errors.InvalidField) as refused:
        assign(unassigned, "t", "p", expire_us=clock() + 30 * SECOND, start_us=clock() + 30 * SECOND)
    assert refused.value.violations == (errors.Violation("expire_time", "must lie after start_time"),)
    assert dump(unassigned) == before
    assign(unassigned, "t", "p", expire_us=clock() + 1)


def test_a_replay_is_answered_after_the_planned_end_has_passed(unassigned: RelationshipStore, clock: Clock) -> None:
    call = remembered(REQUEST_ID)
    request = requests.Assign("t", "p", expire_us=clock() + SECOND)
    first = unassigned.assign(request, call)
    clock.advance(2)
    assert unassigned.assign(request, call) == first
    unassigned.end_expired()
    again = unassigned.assign(request, call)
    assert (again.created, again.revision) == (True, first.revision)
    assert_expired(unassigned, first.record, clock())


def test_an_end_is_at_the_planned_end_at_the_latest(unassigned: RelationshipStore, clock: Clock) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + 10 * SECOND)
    ended = unassign(unassigned, "t", "p", end_us=clock() + 30 * SECOND)
    assert (ended.end_us, ended.expire_us, ended.end_reason) == (begun.expire_us, begun.expire_us, 0)
    sooner = assign(unassigned, "u", "p", expire_us=clock() + 10 * SECOND)
    assert unassign(unassigned, "u", "p").end_us == clock()
    clock.advance(60)
    assert unassigned.end_expired() is None
    assert expiries(unassigned) == []
    assert unassigned.get_assignment(sooner.assignment_id).end_us == clock() - 60 * SECOND


@both_kinds
def test_a_forced_delete_ends_an_assignment_before_its_planned_end(
    unassigned: RelationshipStore, clock: Clock, kind: Any
) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + HOUR)
    assert unassigned.delete(kind, Delete("t" if kind is THERAPIST else "p", force=True), CALL).ended_count == 1
    ended = unassigned.get_assignment(begun.assignment_id)
    assert (ended.end_us, ended.end_reason) == (clock(), enums.END_RECORD_DELETED)


def correct(store: RelationshipStore, one: Assignment, **fields: Any) -> Assignment:
    return store.correct(one.assignment_id, "", fields, CALL).record


def test_a_planned_end_is_set_moved_and_cleared_by_a_correction(unassigned: RelationshipStore, clock: Clock) -> None:
    begun = assign(unassigned, "t", "p")
    planned = correct(unassigned, begun, expire_us=clock() + HOUR)
    assert planned.expire_us == clock() + HOUR
    page = unassigned.list_changes(ChangeQuery(actor=CALL.actor), "", 1000)
    assert page.change_sets[-1].changes[0].changed_fields == "expire_time"
    assert correct(unassigned, begun, expire_us=planned.expire_us) == planned  # nothing changes
    assert correct(unassigned, begun, expire_us=clock() + 2 * HOUR).expire_us == clock() + 2 * HOUR
    assert correct(unassigned, begun, expire_us=None).expire_us is None
    clock.advance(3 * 3600)
    assert (unassigned.end_expired(), in_force(unassigned, clock())) == (None, [begun.assignment_id])


def test_a_correction_keeps_the_planned_end_of_an_active_assignment_ahead_and_after_its_start(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + 10 * SECOND)
    for wrong in (
        {"expire_us": clock()},
        {"expire_us": clock() - HOUR},
        {"start_us": clock() + 10 * SECOND},
        {"start_us": clock() + 20 * SECOND, "expire_us": clock() + 15 * SECOND},
    ):
        with pytest.raises(errors.InvalidField) as refused:
            correct(unassigned, begun, **wrong)
        assert refused.value.violations[0].field == "assignment.expire_time"
    moved = correct(unassigned, begun, start_us=clock() + 20 * SECOND, expire_us=clock() + HOUR)
    assert (moved.start_us, moved.expire_us) == (clock() + 20 * SECOND, clock() + HOUR)


def test_a_correction_leaves_the_planned_end_of_an_ended_assignment(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + HOUR)
    clock.advance(3600)
    for expire_us in (None, clock() + HOUR):
        with pytest.raises(errors.InvalidField) as refused:
            correct(unassigned, begun, expire_us=expire_us)  # not in force any more, though nothing has ended it yet
        assert refused.value.violations[0].description == "must not change on an ended assignment"
    # The therapist had left earlier. The record says so, and still why the period ended.
    corrected = correct(unassigned, begun, end_us=clock() - 60 * SECOND, expire_us=begun.expire_us)
    assert (corrected.end_us, corrected.end_reason) == (clock() - 60 * SECOND, enums.END_EXPIRED)
    later = correct(unassigned, begun, end_us=clock() + 30 * SECOND, end_reason=1)
    assert (later.end_us, later.expire_us) == (clock() + 30 * SECOND, begun.expire_us)
    assert in_force(unassigned, clock()) == [
        begun.assignment_id
    ]  # an end that was recorded counts, not the planned one
    with pytest.raises(errors.InvalidField):
        correct(unassigned, begun, end_reason=enums.END_EXPIRED)


def test_a_period_may_begin_at_the_instant_at_which_another_expired(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    begun = assign(unassigned, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + SECOND)
    clock.advance(60)
    for therapist in ("t", "u"):
        with pytest.raises(errors.PeriodOverlaps):
            assign(unassigned, therapist, "p", role=ROLE_PRIMARY, start_us=(begun.expire_us or 0) - 1)
    assert assign(unassigned, "u", "p", role=ROLE_PRIMARY, start_us=begun.expire_us).start_us == begun.expire_us
    assert_expired(unassigned, begun, clock())
