"""TransferPatients with an effective_time: Friday's handover, entered on Monday."""

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.store import RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import (
    CALL,
    SECOND,
    VALIDATE,
    assert_consistent,
    assign,
    dump,
    patients,
    period,
    periods,
    remembered,
    split,
    transfer,
    unassign,
)
from tests.store.store_calls import in_force
from tests.store.transfer_setup import COVERING, ID, ON_LEAVE, update

DAY = 24 * 3600 * SECOND


@pytest.fixture
def friday(filled_store: RelationshipStore, clock: Clock) -> int:
    """A time after the periods of the store began, three days before now."""
    then = clock.advance(60)
    clock.advance(3 * 24 * 3600)
    assert all(one.start_us < then for one in periods(filled_store))
    return then


def test_the_patients_move_at_the_effective_time(filled_store: RelationshipStore, friday: int, clock: Clock) -> None:
    ended, active = split(transfer(filled_store, "s", "t", effective_us=friday))
    assert [(one.end_us, one.end_reason) for one in ended] == [(friday, enums.END_TRANSFERRED)] * 3
    assert [(one.start_us, one.end_us, one.created_us) for one in active] == [(friday, None, clock.now_us)] * 3
    assert in_force(filled_store, friday - 1, record_id="a") == [ended[0].assignment_id]
    assert in_force(filled_store, friday, record_id="a") == [active[0].assignment_id]
    assert_consistent(filled_store)


def test_an_effective_time_before_the_start_of_a_moved_period_is_rejected(
    filled_store: RelationshipStore, friday: int
) -> None:
    assign(filled_store, "s", "d", start_us=friday + 1)
    before = dump(filled_store)
    with pytest.raises(errors.InvalidField) as caught:
        transfer(filled_store, "s", "t", effective_us=friday)
    assert [one.field for one in caught.value.violations] == ["effective_time"]
    assert dump(filled_store) == before
    assert len(transfer(filled_store, "s", "t", "a", "b", "c", effective_us=friday).ended) == 3
    at_its_start = transfer(filled_store, "s", "t", effective_us=friday + 1)
    assert [(one.start_us, one.end_us) for one in at_its_start.ended] == [(friday + 1, friday + 1)]
    assert_consistent(filled_store)


def test_an_ended_period_of_the_target_in_the_way_is_named(filled_store: RelationshipStore, friday: int) -> None:
    """Also one that began after the effective time: the new period would run over it."""
    for start_us in (friday - SECOND, friday + SECOND):
        other = period(filled_store, "t", "b", start_us, start_us + 2 * SECOND)
        before = dump(filled_store)
        with pytest.raises(errors.PeriodOverlaps) as caught:
            transfer(filled_store, "s", "t", effective_us=friday)
        assert caught.value.metadata == {"assignment_id": other.assignment_id}
        assert dump(filled_store) == before
    assert transfer(filled_store, "s", "t", effective_us=friday + 3 * SECOND).ended
    assert_consistent(filled_store)


def test_periods_that_were_never_in_force_are_not_in_the_way(filled_store: RelationshipStore, friday: int) -> None:
    period(filled_store, "t", "a", friday + SECOND, friday + SECOND)
    assign(filled_store, "t", "b", start_us=friday + SECOND)
    unassign(filled_store, "t", "b", end_us=friday + 2 * SECOND, end_reason=enums.END_ENTERED_IN_ERROR)
    period(filled_store, "t", "c", friday - SECOND, friday)
    assert len(transfer(filled_store, "s", "t", effective_us=friday).ended) == 3
    assert_consistent(filled_store)


def test_a_period_that_the_target_has_stays_if_it_began_by_then(filled_store: RelationshipStore, friday: int) -> None:
    present = assign(filled_store, "t", "b", role=COVERING, start_us=friday)
    ended, active = split(transfer(filled_store, "s", "t", "b", effective_us=friday))
    assert [one.end_us for one in ended] == [friday]
    assert active == [present]
    assert_consistent(filled_store)


@pytest.mark.parametrize("patient", ["a", "b"])
def test_a_period_of_the_target_that_began_later_is_in_the_way(
    filled_store: RelationshipStore, friday: int, patient: str
) -> None:
    """Otherwise no therapist would have treated the patient in between. The PRIMARY period of a would replace it."""
    present = assign(filled_store, "t", patient, role=COVERING, start_us=friday + 1)
    before = dump(filled_store)
    with pytest.raises(errors.PeriodOverlaps) as caught:
        transfer(filled_store, "s", "t", patient, effective_us=friday)
    assert caught.value.metadata == {"assignment_id": present.assignment_id}
    assert dump(filled_store) == before


def test_a_moved_primary_period_replaces_the_targets_own_from_the_effective_time(
    filled_store: RelationshipStore, friday: int
) -> None:
    present = assign(filled_store, "t", "a", role=COVERING, start_us=friday - SECOND)
    _, [active] = split(transfer(filled_store, "s", "t", "a", effective_us=friday))
    assert (active.role, active.start_us) == (ROLE_PRIMARY, friday)
    [replaced] = [one for one in periods(filled_store) if one.assignment_id == present.assignment_id]
    assert (replaced.end_us, replaced.end_reason) == (friday, enums.END_REPLACED)
    assert_consistent(filled_store)


def test_a_replay_and_validate_only_answer_with_the_effective_time(
    filled_store: RelationshipStore, friday: int, clock: Clock
) -> None:
    before = dump(filled_store)
    seen = transfer(filled_store, "s", "t", call=VALIDATE, effective_us=friday)
    assert dump(filled_store) == before
    assert [one.start_us for one in seen.active] == [friday] * 3
    outcome = transfer(filled_store, "s", "t", call=remembered(ID), effective_us=friday)
    clock.advance(60)
    assert transfer(filled_store, "s", "t", call=remembered(ID), effective_us=friday) == outcome


def test_a_rejected_transfer_at_a_time_reports_the_first_failed_check(
    filled_store: RelationshipStore, friday: int
) -> None:
    def refusal(*ids: str) -> type[Exception]:
        with pytest.raises(errors.DomainError) as caught:
            transfer(filled_store, "s", "t", *ids, effective_us=friday)
        return caught.type

    late = assign(filled_store, "s", "d", start_us=friday + 1)
    other = period(filled_store, "t", "b", friday, friday + 1)
    update("t", status=ON_LEAVE, max_active_patients=0)(filled_store)
    patients(filled_store, "e")
    assert refusal("d", "e") is errors.AssignmentNotFound
    assert refusal() is errors.InvalidField
    unassign(filled_store, "s", late.patient_id)
    assert refusal() is errors.TherapistNotActive
    update("t", status=1)(filled_store)
    assert refusal("b", "a") is errors.PeriodOverlaps
    filled_store.correct(other.assignment_id, "", {"end_us": friday}, CALL)
    assert refusal("b", "a") is errors.TherapistAtCapacity
