"""Planned ends: what reads answer around an expire_time, and what ends the assignment in the store."""

from collections.abc import Callable
from typing import Any

import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY, STATE_ACTIVE, STATE_ENDED
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import AssignmentQuery, CaseloadQuery, ChangeQuery, Merge, Transfer, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.expiry_checks import HOUR, assert_expired, expiries
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
from tests.store.store_calls import ALL, delete, dump, head, race, update

REQUEST_ID = "0190a3c4-0000-7000-8000-000000000001"


def listed(store: RelationshipStore, at_us: int | None) -> list[list[str]]:
    """What each read answers about the unassigned, at a time or now."""
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
    unassigned: RelationshipStore, clock: Clock, *, is_swept: bool
) -> None:
    """Whether a sweeper has ended it makes no difference to these answers."""
    begun = assign(unassigned, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + HOUR)
    expire_us = clock() + HOUR
    clock.now_us = expire_us - 1
    found = [[begun.assignment_id]] * 7
    assert listed(unassigned, None) == listed(unassigned, clock()) == listed(unassigned, begun.start_us) == found
    assert checked(unassigned, clock()) == begun.assignment_id
    clock.now_us = expire_us
    if is_swept:
        assert unassigned.end_expired() is None
    assert listed(unassigned, None) == listed(unassigned, expire_us) == [[]] * 7
    assert listed(unassigned, expire_us - 1) == found
    assert [checked(unassigned, at_us) for at_us in (begun.start_us - 1, expire_us, expire_us + 1)] == [None] * 3
    assert checked(unassigned, expire_us - 1) == begun.assignment_id


def test_a_list_of_both_states_has_an_expired_assignment_once_before_and_after_it_ended(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + 1)
    clock.advance(1)

    def found(*states: int) -> list[list[Assignment]]:
        return [
            unassigned.list_assignments(AssignmentQuery(states=states, **sides), ALL).records
            for sides in ({}, {"patient_id": "p"}, {"roles": (2,)})
        ]

    assert found(STATE_ACTIVE, STATE_ENDED) == [[begun]] * 3
    assert found(STATE_ENDED) == found(STATE_ACTIVE) == [[]] * 3
    unassigned.end_expired()
    ended = unassigned.get_assignment(begun.assignment_id)
    assert found(STATE_ACTIVE, STATE_ENDED) == found(STATE_ENDED) == [[ended]] * 3


@pytest.mark.parametrize("end", [RelationshipStore.end_expired, lambda store: delete(store, PATIENT, "p")])
def test_the_changes_of_expiries_are_in_the_order_of_the_planned_ends(
    unassigned: RelationshipStore, clock: Clock, end: Callable[[RelationshipStore], object]
) -> None:
    therapists(unassigned, "t2", "t3")
    offsets = {"t": 3, "t2": 1, "t3": 2}
    begun = {offset: assign(unassigned, one, "p", expire_us=clock() + offset) for one, offset in offsets.items()}
    clock.advance(3)
    end(unassigned)
    assert expiries(unassigned) == [begun[offset].assignment_id for offset in sorted(begun)]


def test_a_sweep_ends_what_has_expired_and_returns_the_next_planned_end(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    first = assign(unassigned, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + SECOND)
    second = assign(unassigned, "u", "p", expire_us=clock() + 2 * SECOND)
    third = assign(unassigned, "u", "q", expire_us=clock() + 2 * SECOND)
    assign(unassigned, "v", "q")
    before = dump(unassigned)
    assert unassigned.end_expired() == first.expire_us
    assert dump(unassigned) == before
    clock.advance(1)
    assert unassigned.end_expired() == second.expire_us
    assert_expired(unassigned, first, clock())
    assert unassigned.get(PATIENT, "p").primary_therapist_id == ""
    clock.advance(60)
    assert unassigned.end_expired() is None
    for begun in (second, third):
        assert_expired(unassigned, begun, clock())
    assert len(expiries(unassigned)) == 3


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
def test_many_sweeps_at_once_write_one_change_set_for_each_expiry(unassigned: RelationshipStore, clock: Clock) -> None:
    begun = [assign(unassigned, therapist, patient, expire_us=clock() + 1) for therapist in "tuv" for patient in "pq"]
    clock.advance(1)
    _, refusals = race(lambda number: unassigned.end_expired() if number % 2 else unassign(unassigned, "t", "p"))
    assert refusals == []
    assert sorted(expiries(unassigned)) == sorted(one.assignment_id for one in begun)
    assert_consistent(unassigned)


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
    unassigned: RelationshipStore, clock: Clock, step: Step
) -> None:
    begun = assign(unassigned, "t", "p", role=ROLE_PRIMARY, focus="grief", expire_us=clock() + 1)
    clock.advance(1)
    step(unassigned)
    assert_expired(unassigned, begun, clock())


def test_a_write_just_before_the_planned_end_finds_the_assignment_active(
    unassigned: RelationshipStore, clock: Clock
) -> None:
    begun = assign(unassigned, "t", "p", role=ROLE_PRIMARY, expire_us=clock() + SECOND)
    clock.now_us += SECOND - 1
    assert assign(unassigned, "t", "p", role=ROLE_PRIMARY) == begun
    with pytest.raises(errors.PrimaryExists):
        assign(unassigned, "u", "p", role=ROLE_PRIMARY)
    with pytest.raises(errors.HasActiveAssignments):
        delete(unassigned, THERAPIST, "t")
    assert (unassigned.end_expired(), expiries(unassigned)) == (begun.expire_us, [])


def test_an_expired_assignment_takes_no_capacity(unassigned: RelationshipStore, clock: Clock) -> None:
    update(unassigned, THERAPIST, "t", max_active_patients=1)
    begun = assign(unassigned, "t", "p", expire_us=clock() + 1)
    with pytest.raises(errors.TherapistAtCapacity):
        assign(unassigned, "t", "q")
    clock.advance(1)
    assign(unassigned, "t", "q")
    with pytest.raises(errors.TherapistAtCapacity) as refused:
        assign(unassigned, "t", "p")
    assert refused.value.metadata == {"limit": "1", "current": "1"}
    unassigned.end_expired()
    assert_expired(unassigned, begun, clock())


def test_a_refused_write_and_one_that_only_validates_end_nothing(unassigned: RelationshipStore, clock: Clock) -> None:
    begun = assign(unassigned, "t", "p", expire_us=clock() + 1)
    update(unassigned, THERAPIST, "t", status=2)
    clock.advance(1)
    before = dump(unassigned)
    with pytest.raises(errors.TherapistNotActive):
        assign(unassigned, "t", "p")
    shown = unassigned.unassign(requests.Unassign("t", "p"), VALIDATE)
    assert shown.record == begun._replace(
        end_us=begun.expire_us,
        end_reason=enums.END_EXPIRED,
        ended_by="system:expiry",
        updated_us=clock(),
        etag="",
    )
    assert (shown.ended, dump(unassigned)) == (False, before)


def test_a_listed_patient_whose_assignment_expired_is_not_moved(unassigned: RelationshipStore, clock: Clock) -> None:
    assign(unassigned, "t", "p", expire_us=clock() + 1)
    begun = assign(unassigned, "t", "q", focus="grief", expire_us=clock() + HOUR)
    clock.advance(1)
    with pytest.raises(errors.AssignmentNotFound):
        unassigned.transfer(Transfer("t", "u", ("p", "q")), CALL)
    [ended], [active] = transfer(unassigned, "t", "u")[:2]
    assert (ended.assignment_id, ended.expire_us) == (begun.assignment_id, begun.expire_us)
    assert (active.focus, active.expire_us) == ("grief", None)  # a transfer does not inherit the planned end


def test_a_write_and_the_expiry_that_it_needs_are_two_change_sets(unassigned: RelationshipStore, clock: Clock) -> None:
    assign(unassigned, "t", "p", expire_us=clock() + 1)
    clock.advance(1)
    before = head(unassigned)
    result = unassigned.assign(requests.Assign("t", "p"), CALL)
    sets = unassigned.list_changes(ChangeQuery(), "", 1000).change_sets[-2:]
    assert [one.actor for one in sets] == ["system:expiry", CALL.actor]
    assert head(unassigned) == before + 2
    assert result.revision == sets[1].revision
