from typing import Any

import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.records import Assignment
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, assign, count, dump, history, in_force, make, unassign, update

ROLE_SUPERVISING, ROLE_COVERING = 3, 4


def primary_of(store: RelationshipStore, patient_id: str = "p") -> str:
    return store.get(PATIENT, patient_id).primary_therapist_id


# Assign.


def test_an_assignment_is_recorded_with_who_and_when(pair: RelationshipStore, clock: Clock) -> None:
    clock.advance(5)
    outcome = pair.assign(requests.Assign("t", "p", role=ROLE_TREATING, focus="anxiety"), CALL)
    now = clock.now_us
    period = outcome.record
    assert period == Assignment(
        assignment_id=period.assignment_id,
        therapist_id="t",
        patient_id="p",
        role=ROLE_TREATING,
        focus="anxiety",
        start_us=now,
        end_us=None,
        expire_us=None,
        end_reason=0,
        created_by=CALL.actor,
        ended_by="",
        created_us=now,
        updated_us=now,
        etag=period.etag,
    )
    assert outcome.created
    assert history(pair) == [period]


@pytest.mark.parametrize("role", [ROLE_PRIMARY, ROLE_TREATING, ROLE_SUPERVISING, ROLE_COVERING])
def test_every_role_changes_both_counts_but_no_etag_and_no_time(
    pair: RelationshipStore, clock: Clock, role: int
) -> None:
    therapist, patient = pair.get(THERAPIST, "t"), pair.get(PATIENT, "p")
    clock.advance(1)
    assign(pair, role=role)
    primary = "t" if role == ROLE_PRIMARY else ""
    assert pair.get(THERAPIST, "t") == therapist._replace(active_patient_count=1)
    assert pair.get(PATIENT, "p") == patient._replace(active_therapist_count=1, primary_therapist_id=primary)
    clock.advance(1)
    unassign(pair)
    assert (pair.get(THERAPIST, "t"), pair.get(PATIENT, "p")) == (therapist, patient)


def test_assigning_twice_returns_the_first_assignment(pair: RelationshipStore, clock: Clock) -> None:
    first = pair.assign(requests.Assign("t", "p", focus="anxiety"), CALL)
    before = dump(pair)
    clock.advance(60)
    start_us = first.record.start_us
    for order in (
        requests.Assign("t", "p", focus="anxiety"),
        requests.Assign("t", "p", focus="anxiety", start_us=start_us),
        requests.Assign("t", "p", focus="anxiety", replace=True, replace_primary=True, ignore_capacity=True),
    ):
        assert pair.assign(order, CALL) == first._replace(created=False)
    assert dump(pair) == before


@pytest.mark.parametrize(
    "order", [{"role": ROLE_PRIMARY}, {"focus": "grief"}, {"start_us": 5}], ids=["role", "focus", "start"]
)
def test_another_role_focus_or_start_is_rejected_without_replace(
    pair: RelationshipStore, clock: Clock, order: dict[str, Any]
) -> None:
    first = assign(pair, start_us=1)
    before = dump(pair)
    clock.advance(1)
    with pytest.raises(errors.AssignmentDiffers) as refusal:
        assign(pair, **order)
    assert refusal.value.metadata == {"assignment_id": first.assignment_id}
    assert dump(pair) == before
    second = assign(pair, **order, replace=True)
    start_us = order.get("start_us", clock.now_us)
    assert second.start_us == start_us
    assert history(pair) == [
        first._replace(
            end_us=start_us,
            end_reason=enums.END_REPLACED,
            ended_by=CALL.actor,
            updated_us=clock.now_us,
            etag=history(pair)[0].etag,
        ),
        second,
    ]
    assert (count(pair, THERAPIST, "t"), count(pair, PATIENT, "p")) == (1, 1)


def test_replace_has_no_effect_without_an_active_assignment(pair: RelationshipStore) -> None:
    period = assign(pair, replace=True)
    assert history(pair) == [period]


def test_after_an_end_assigning_begins_a_new_period_and_keeps_the_old_one(
    pair: RelationshipStore, clock: Clock
) -> None:
    assign(pair)
    clock.advance(1)
    first = unassign(pair)
    clock.advance(1)
    second = assign(pair)
    assert second.assignment_id != first.assignment_id
    assert history(pair) == [first, second]


def test_a_replacement_can_gain_or_lose_the_primary_role(pair: RelationshipStore) -> None:
    assign(pair)
    assign(pair, role=ROLE_PRIMARY, replace=True)
    assert primary_of(pair) == "t"
    assign(pair, role=ROLE_PRIMARY, focus="grief", replace=True)
    assert primary_of(pair) == "t"
    assign(pair, role=ROLE_COVERING, replace=True)
    assert primary_of(pair) == ""
    assert count(pair, THERAPIST, "t") == 1


def test_a_replacement_that_begins_before_what_it_replaces_is_refused(pair: RelationshipStore, clock: Clock) -> None:
    current = assign(pair)
    before = dump(pair)
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        assign(pair, focus="grief", start_us=clock.now_us - 1, replace=True)
    assert refusal.value.metadata == {"assignment_id": current.assignment_id}
    assert dump(pair) == before


def test_a_replacement_may_begin_when_what_it_replaces_began(pair: RelationshipStore, clock: Clock) -> None:
    first = assign(pair)
    second = assign(pair, focus="grief", replace=True)
    assert (second.start_us, history(pair)[0].end_us) == (first.start_us, first.start_us)
    assert in_force(pair, clock.now_us) == [second.assignment_id]


# Primary.


def test_a_patient_has_one_primary_therapist(pair: RelationshipStore) -> None:
    assign(pair, "u", role=ROLE_PRIMARY)
    before = dump(pair)
    with pytest.raises(errors.PrimaryExists) as refusal:
        assign(pair, "t", role=ROLE_PRIMARY)
    assert refusal.value.metadata == {"therapist_id": "u"}
    assert dump(pair) == before
    assign(pair, "t", role=ROLE_TREATING)
    assert primary_of(pair) == "u"


def test_replacing_the_primary_ends_the_other_period_in_the_same_write(pair: RelationshipStore, clock: Clock) -> None:
    old = assign(pair, "u", role=ROLE_PRIMARY)
    clock.advance(1)
    new = assign(pair, "t", role=ROLE_PRIMARY, replace_primary=True)
    ended = history(pair)[0]
    assert ended == old._replace(
        end_us=new.start_us,
        end_reason=enums.END_REPLACED,
        ended_by=CALL.actor,
        updated_us=clock.now_us,
        etag=ended.etag,
    )
    assert primary_of(pair) == "t"
    assert [count(pair, THERAPIST, name) for name in "tu"] == [1, 0]
    assert count(pair, PATIENT, "p") == 1


def test_replacing_the_primary_needs_no_primary(pair: RelationshipStore) -> None:
    assign(pair, role=ROLE_PRIMARY, replace_primary=True)
    assert primary_of(pair) == "t"


def test_replace_primary_without_the_primary_role_leaves_the_primary_alone(pair: RelationshipStore) -> None:
    assign(pair, "u", role=ROLE_PRIMARY)
    assign(pair, "t", role=ROLE_TREATING, replace_primary=True)
    assert (primary_of(pair), count(pair, PATIENT, "p")) == ("u", 2)


def test_a_treating_therapist_can_replace_the_primary(pair: RelationshipStore, clock: Clock) -> None:
    assign(pair, "u", role=ROLE_PRIMARY)
    assign(pair, "t")
    clock.advance(1)
    with pytest.raises(errors.AssignmentDiffers):
        assign(pair, "t", role=ROLE_PRIMARY, replace_primary=True)
    with pytest.raises(errors.PrimaryExists):
        assign(pair, "t", role=ROLE_PRIMARY, replace=True)
    new = assign(pair, "t", role=ROLE_PRIMARY, replace=True, replace_primary=True)
    assert primary_of(pair) == "t"
    assert in_force(pair, clock.now_us) == [new.assignment_id]
    assert [count(pair, THERAPIST, name) for name in "tu"] == [1, 0]


def test_a_primary_cannot_be_replaced_before_it_began(pair: RelationshipStore, clock: Clock) -> None:
    rival = assign(pair, "u", role=ROLE_PRIMARY)
    before = dump(pair)
    with pytest.raises(errors.PeriodOverlaps) as refusal:
        assign(pair, "t", role=ROLE_PRIMARY, replace_primary=True, start_us=clock.now_us - 1)
    assert refusal.value.metadata == {"assignment_id": rival.assignment_id}
    assert dump(pair) == before


def test_ending_a_primary_leaves_the_patient_without_one(pair: RelationshipStore) -> None:
    assign(pair, "u", role=ROLE_PRIMARY)
    assign(pair, "t")
    unassign(pair, "t")
    assert primary_of(pair) == "u"
    unassign(pair, "u")
    assert primary_of(pair) == ""


# Capacity.


def test_a_full_caseload_rejects_patients_unless_capacity_is_ignored(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=2)
    for name in "pqr":
        make(store, PATIENT, name)
    assign(store, "t", "p", role=ROLE_SUPERVISING)
    assign(store, "t", "q", role=ROLE_COVERING)
    before = dump(store)
    with pytest.raises(errors.TherapistAtCapacity) as refusal:
        assign(store, "t", "r")
    assert refusal.value.metadata == {"limit": "2", "current": "2"}
    assert dump(store) == before
    assign(store, "t", "r", ignore_capacity=True)
    assert count(store, THERAPIST, "t") == 3


def test_capacity_0_rejects_every_patient_and_no_capacity_accepts_all(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=0)
    make(store, PATIENT, "p")
    with pytest.raises(errors.TherapistAtCapacity):
        assign(store)
    update(store, THERAPIST, "t", max_active_patients=None)
    assign(store)


def test_an_ended_assignment_frees_capacity(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=1)
    for name in "pq":
        make(store, PATIENT, name)
    assign(store, "t", "p")
    unassign(store, "t", "p")
    assign(store, "t", "q")
    assert count(store, THERAPIST, "t") == 1


def test_replacing_the_pairs_own_period_ignores_capacity(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t")
    make_pair_patients(store, "pq")
    assign(store, "t", "p")
    assign(store, "t", "q")
    update(store, THERAPIST, "t", max_active_patients=1)
    assign(store, "t", "p", role=ROLE_PRIMARY, replace=True)
    assert count(store, THERAPIST, "t") == 2


def make_pair_patients(store: RelationshipStore, names: str) -> None:
    for name in names:
        make(store, PATIENT, name)


def test_replacing_the_primary_of_another_therapist_needs_capacity(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=0)
    make(store, THERAPIST, "u")
    make(store, PATIENT, "p")
    assign(store, "u", role=ROLE_PRIMARY)
    before = dump(store)
    with pytest.raises(errors.TherapistAtCapacity):
        assign(store, "t", role=ROLE_PRIMARY, replace_primary=True)
    assert dump(store) == before


def test_repeating_an_assignment_needs_no_capacity(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=1)
    make(store, PATIENT, "p")
    first = assign(store)
    assert assign(store) == first
