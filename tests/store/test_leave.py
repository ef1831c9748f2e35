"""A therapist on leave: their own periods can be replaced, and cover can demote them."""

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.requests import Assign, ChangeQuery
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import (
    CALL,
    SECOND,
    VALIDATE,
    assert_consistent,
    assign,
    patients,
    remembered,
    therapists,
)
from tests.store.store_calls import dump, history, in_force, update

ON_LEAVE, HOUR = 2, 3600 * SECOND
REQUEST_ID = "0190a3c4-0000-7000-8000-000000000001"


@pytest.fixture
def team(store: RelationshipStore) -> RelationshipStore:
    """Therapist t is the PRIMARY of patient p, for grief; therapist u has no patient."""
    therapists(store, "t", "u")
    patients(store, "p", "q")
    assign(store, "t", "p", role=ROLE_PRIMARY, focus="grief")
    return store


@pytest.mark.parametrize("order", [{"role": ROLE_TREATING}, {"role": ROLE_PRIMARY, "focus": "anxiety"}], ids=str)
def test_the_own_period_of_a_therapist_on_leave_can_be_replaced(
    team: RelationshipStore, clock: Clock, order: dict[str, int | str]
) -> None:
    update(team, THERAPIST, "t", status=ON_LEAVE)
    clock.advance(60)
    begun = assign(team, "t", "p", replace=True, **order)
    assert {name: getattr(begun, name) for name in order} == order
    with pytest.raises(errors.TherapistNotActive):
        assign(team, "t", "q")
    assert_consistent(team)


def test_cover_demotes_the_primary_therapist_on_leave(team: RelationshipStore, clock: Clock) -> None:
    [primary] = history(team)
    update(team, THERAPIST, "t", status=ON_LEAVE, max_active_patients=1)
    clock.advance(60)
    result = team.assign(Assign("u", "p", ROLE_PRIMARY, expire_us=clock() + HOUR, demote_primary=True), CALL)
    demoted = result.demoted
    assert demoted
    ended = team.get_assignment(primary.assignment_id)
    assert (ended.end_us, ended.end_reason, ended.ended_by) == (clock(), enums.END_REPLACED, CALL.actor)
    assert (demoted.therapist_id, demoted.role, demoted.focus) == ("t", ROLE_TREATING, "grief")
    assert (demoted.start_us, demoted.end_us, demoted.expire_us) == (clock(), None, None)
    assert (result.created, result.record.start_us) == (True, clock())
    assert team.get(PATIENT, "p").primary_therapist_id == "u"
    change_set = team.list_changes(ChangeQuery(), "", 100).change_sets[-1]
    assert [(change.kind, change.changed_fields, change.assignment_id) for change in change_set.changes] == [
        (enums.CHANGE_UPDATED, "state,end_time,end_reason,ended_by", primary.assignment_id),
        (enums.CHANGE_CREATED, "", result.record.assignment_id),
        (enums.CHANGE_CREATED, "", demoted.assignment_id),
    ]
    assert_consistent(team)
    # The cover ends by itself, and the demoted therapist stays on the team.
    clock.advance(3600)
    assert in_force(team, clock()) == [demoted.assignment_id]
    team.end_expired()
    assert team.get(PATIENT, "p").primary_therapist_id == ""
    # The therapist is back.
    assert assign(team, "t", "p", role=ROLE_PRIMARY, focus="grief", replace=True).role == ROLE_PRIMARY
    assert_consistent(team)


def test_a_demoted_therapist_keeps_the_planned_end(team: RelationshipStore, clock: Clock) -> None:
    assign(team, "u", "q", role=ROLE_PRIMARY, expire_us=clock() + HOUR)
    result = team.assign(Assign("t", "q", ROLE_PRIMARY, demote_primary=True), CALL)
    assert result.demoted
    assert (result.demoted.expire_us, result.record.expire_us) == (clock() + HOUR, None)


def test_nobody_is_demoted_whose_planned_end_comes_before_the_start(team: RelationshipStore, clock: Clock) -> None:
    planned = assign(team, "u", "q", role=ROLE_PRIMARY, expire_us=clock() + 10 * SECOND)
    request = Assign("t", "q", ROLE_PRIMARY, start_us=clock() + 30 * SECOND, demote_primary=True)
    assert team.assign(request, CALL).demoted is None
    assert team.get_assignment(planned.assignment_id).end_us == planned.expire_us
    assert_consistent(team)


def test_a_replay_has_the_demoted_assignment_as_it_is_now(team: RelationshipStore, clock: Clock) -> None:
    request, call = Assign("u", "p", ROLE_PRIMARY, demote_primary=True), remembered(REQUEST_ID)
    first = team.assign(request, call)
    assert first.demoted
    assert team.assign(request, call) == first
    clock.advance(1)
    changed = team.correct(first.demoted.assignment_id, "", {"focus": "anxiety"}, CALL).record
    assert team.assign(request, call) == first._replace(demoted=changed)


def test_the_same_call_without_a_request_id_changes_nothing_and_demotes_nobody(team: RelationshipStore) -> None:
    request = Assign("u", "p", ROLE_PRIMARY, demote_primary=True)
    team.assign(request, CALL)
    before = dump(team)
    again = team.assign(request, CALL)
    assert (again.created, again.demoted, dump(team)) == (False, None, before)


def test_a_call_that_only_validates_shows_who_would_be_demoted(team: RelationshipStore) -> None:
    before = dump(team)
    shown = team.assign(Assign("u", "p", ROLE_PRIMARY, demote_primary=True), VALIDATE)
    assert shown.demoted
    assert (shown.demoted.therapist_id, shown.demoted.assignment_id, shown.demoted.etag) == ("t", "", "")
    assert (shown.created, shown.revision, dump(team)) == (True, "", before)


@pytest.mark.parametrize("role", [ROLE_TREATING, 3])
def test_other_roles_demote_nobody(team: RelationshipStore, role: int) -> None:
    result = team.assign(Assign("u", "p", role, demote_primary=True), CALL)
    assert result.demoted is None
    assert team.get(PATIENT, "p").primary_therapist_id == "t"
