"""TransferPatients moves a caseload: periods, counts, replays and concurrent writes."""

import threading

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.requests import CallContext, Transfer
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import (
    CALL,
    SECOND,
    VALIDATE,
    assert_consistent,
    assign,
    dump,
    period,
    periods,
    remembered,
    run,
    split,
    transfer,
    unassign,
)
from tests.store.transfer_setup import COVERING, ID, INACTIVE, ON_LEAVE, SUPERVISING, count, update
from tests.support.waiting import join


def test_each_period_of_the_target_begins_where_the_source_period_ended(
    filled_store: RelationshipStore, clock: Clock
) -> None:
    now = clock.advance(60)
    ended, active = split(transfer(filled_store, "s", "t", call=CALL._replace(actor="lead")))
    assert [(one.patient_id, one.role, one.focus) for one in active] == [
        ("a", ROLE_PRIMARY, "anxiety"),
        ("b", SUPERVISING, ""),
        ("c", COVERING, "grief"),
    ]
    for before, after in zip(ended, active, strict=True):
        assert (before.therapist_id, after.therapist_id) == ("s", "t")
        assert (before.patient_id, before.role, before.focus) == (after.patient_id, after.role, after.focus)
        assert before.end_us == after.start_us == now
        assert (before.end_reason, before.ended_by, before.created_by) == (enums.END_TRANSFERRED, "lead", "reception")
        assert (after.end_us, after.created_by, after.created_us) == (None, "lead", now)
    assert sorted(periods(filled_store)) == sorted(ended + active)


def test_a_transfer_updates_counts_and_primary_therapists(filled_store: RelationshipStore) -> None:
    transfer(filled_store, "s", "t", "a", "b")
    assert (count(filled_store, "s"), count(filled_store, "t")) == (1, 2)
    assert [filled_store.get(PATIENT, one).primary_therapist_id for one in "abc"] == ["t", "", ""]
    assert [filled_store.get(PATIENT, one).active_therapist_count for one in "abcd"] == [1, 1, 1, 0]
    assert_consistent(filled_store)


def test_a_transfer_changes_no_etag_of_therapists_and_patients(filled_store: RelationshipStore) -> None:
    def etags() -> list[str]:
        return [filled_store.get(THERAPIST, one).etag for one in "st"] + [
            filled_store.get(PATIENT, one).etag for one in "abc"
        ]

    before = etags()
    transfer(filled_store, "s", "t")
    assert etags() == before


def test_a_transfer_moves_only_the_listed_patients_once_in_order(filled_store: RelationshipStore) -> None:
    ended, active = split(transfer(filled_store, "s", "t", "c", "a"))
    assert [one.patient_id for one in ended] == [one.patient_id for one in active] == ["c", "a"]
    assert (count(filled_store, "s"), count(filled_store, "t")) == (1, 2)


def test_a_transfer_leaves_other_therapists_of_the_patient_unchanged(filled_store: RelationshipStore) -> None:
    other = assign(filled_store, "u", "a", role=SUPERVISING)
    transfer(filled_store, "s", "t")
    assert other in periods(filled_store)


def test_a_transfer_that_exactly_fills_the_capacity_succeeds(filled_store: RelationshipStore) -> None:
    assign(filled_store, "t", "d")
    update("t", max_active_patients=3)(filled_store)
    with pytest.raises(errors.TherapistAtCapacity) as caught:
        transfer(filled_store, "s", "t")
    assert caught.value.metadata == {"limit": "3", "current": "1"}
    update("t", max_active_patients=4)(filled_store)
    transfer(filled_store, "s", "t")
    assert count(filled_store, "t") == 4


def test_a_transfer_can_ignore_capacity(filled_store: RelationshipStore) -> None:
    update("t", max_active_patients=0)(filled_store)
    transfer(filled_store, "s", "t", ignore_capacity=True)
    assert count(filled_store, "t") == 3


def test_a_transfer_merges_a_pair_that_is_already_assigned(filled_store: RelationshipStore) -> None:
    present = assign(filled_store, "t", "b", role=ROLE_TREATING, focus="sleep")
    ended, active = split(transfer(filled_store, "s", "t", "b"))
    assert [(one.end_reason, one.patient_id) for one in ended] == [(enums.END_TRANSFERRED, "b")]
    assert active == [present]
    assert present in periods(filled_store)
    assert filled_store.get(PATIENT, "b").active_therapist_count == 1
    assert_consistent(filled_store)


def test_merged_pairs_need_no_capacity(filled_store: RelationshipStore) -> None:
    for patient_id in "abc":
        assign(filled_store, "t", patient_id, role=SUPERVISING)
    update("t", max_active_patients=0)(filled_store)  # below the count: no capacity left
    transfer(filled_store, "s", "t")
    assert (count(filled_store, "s"), count(filled_store, "t")) == (0, 3)
    assert_consistent(filled_store)


def test_a_merged_pair_leaves_its_capacity_to_another(filled_store: RelationshipStore) -> None:
    assign(filled_store, "t", "b")
    update("t", max_active_patients=3)(filled_store)
    transfer(filled_store, "s", "t")
    assert count(filled_store, "t") == 3


def test_a_transferred_primary_period_replaces_the_targets_own(filled_store: RelationshipStore, clock: Clock) -> None:
    present = assign(filled_store, "t", "a", role=SUPERVISING, focus="sleep")
    now = clock.advance(60)
    ended, active = split(transfer(filled_store, "s", "t", "a"))
    assert [(one.therapist_id, one.end_reason) for one in ended] == [("s", enums.END_TRANSFERRED)]
    assert [(one.role, one.focus, one.start_us) for one in active] == [(ROLE_PRIMARY, "anxiety", now)]
    [replaced] = [one for one in periods(filled_store) if one.assignment_id == present.assignment_id]
    assert (replaced.end_us, replaced.end_reason) == (now, enums.END_REPLACED)
    assert (filled_store.get(PATIENT, "a").primary_therapist_id, count(filled_store, "t")) == ("t", 1)
    assert_consistent(filled_store)


def test_a_primary_therapist_as_target_stays_primary(filled_store: RelationshipStore) -> None:
    present = assign(filled_store, "t", "b", role=ROLE_PRIMARY)
    _, active = split(transfer(filled_store, "s", "t", "b"))
    assert active == [present]
    assert filled_store.get(PATIENT, "b").primary_therapist_id == "t"


def test_a_transfer_of_an_empty_caseload_writes_nothing(filled_store: RelationshipStore) -> None:
    update("t", status=INACTIVE)(filled_store)
    before = dump(filled_store)
    outcome = transfer(filled_store, "u", "t")
    assert (outcome.ended, outcome.active) == ([], [])
    assert outcome.revision == filled_store.keys.revision(filled_store.head_revision())
    assert dump(filled_store) == before


def test_the_source_may_be_on_leave_or_full(filled_store: RelationshipStore) -> None:
    update("s", status=ON_LEAVE, max_active_patients=0)(filled_store)
    transfer(filled_store, "s", "t")
    assert count(filled_store, "s") == 0


def test_a_transfer_with_skewed_clocks_leaves_no_gap_and_no_overlap(
    filled_store: RelationshipStore, clock: Clock
) -> None:
    now = clock.now_us
    soon = now + 30 * SECOND
    assign(filled_store, "u", "d", start_us=soon)  # from a caller whose clock is ahead
    period(filled_store, "t", "a", now, soon)
    period(filled_store, "t", "b", now, soon)
    period(filled_store, "u", "c", now, soon, role=ROLE_PRIMARY)
    assign(filled_store, "s", "c", role=ROLE_PRIMARY, replace=True, start_us=None)
    clock.advance(1)
    ended, active = split(transfer(filled_store, "s", "t"))
    assert [(one.patient_id, one.start_us) for one in active] == [("a", soon), ("b", soon), ("c", soon)]
    assert [one.end_us for one in ended] == [soon] * 3
    [late], [later] = split(transfer(filled_store, "u", "t"))
    assert (late.start_us, late.end_us, later.start_us) == (soon, soon, soon)
    assert_consistent(filled_store)


def test_a_replayed_transfer_returns_the_current_periods(filled_store: RelationshipStore, clock: Clock) -> None:
    assign(filled_store, "t", "b")
    first = transfer(filled_store, "s", "t", call=remembered(ID))
    assert transfer(filled_store, "s", "t", call=remembered(ID)) == first
    clock.advance(60)
    assign(filled_store, "s", "d")
    over = unassign(filled_store, "t", "c")
    head = filled_store.head_revision()
    again = transfer(filled_store, "s", "t", call=remembered(ID))
    active = [over if one.assignment_id == over.assignment_id else one for one in first.active]
    assert again == first._replace(active=active)
    assert (filled_store.head_revision(), count(filled_store, "s")) == (head, 1)


def test_a_validated_transfer_returns_its_result_and_changes_nothing(filled_store: RelationshipStore) -> None:
    assign(filled_store, "t", "b")
    assign(filled_store, "t", "a", role=SUPERVISING)
    before = dump(filled_store)
    would = transfer(filled_store, "s", "t", call=VALIDATE)
    assert dump(filled_store) == before
    did = transfer(filled_store, "s", "t")
    assert (would.revision, len(would.ended)) == ("", len(did.ended))
    kept = {row[0] for row in before["assignment"]}
    for one, other in zip(would.ended + would.active, did.ended + did.active, strict=True):
        is_new = other.assignment_id not in kept
        is_touched = is_new or other.end_us is not None
        expected = other._replace(
            assignment_id="" if is_new else other.assignment_id, etag="" if is_touched else other.etag
        )
        assert one == expected


def test_the_log_records_the_change_of_each_period(filled_store: RelationshipStore) -> None:
    supervised = assign(filled_store, "t", "a", role=SUPERVISING)
    ended, active = split(transfer(filled_store, "s", "t", "a", "b"))
    sql = (
        "SELECT kind, changed_fields, therapist_id, patient_id, assignment_id FROM change"
        " WHERE revision = (SELECT head_revision FROM store) ORDER BY position"
    )
    ending = (2, "state,end_time,end_reason,ended_by")
    assert run(filled_store, sql) == [
        (*ending, "s", "a", ended[0].assignment_id),
        (*ending, "t", "a", supervised.assignment_id),
        (1, "", "t", "a", active[0].assignment_id),
        (*ending, "s", "b", ended[1].assignment_id),
        (1, "", "t", "b", active[1].assignment_id),
    ]


def test_racing_transfers_move_each_patient_once(filled_store: RelationshipStore) -> None:
    update("t", max_active_patients=3)(filled_store)
    orders = [("s", "t"), ("s", "u"), ("t", "u"), ("u", "s"), ("u", "t"), ("t", "s")]
    refusals: list[str] = []

    def move(number: int) -> None:
        for turn in range(12):
            source, target = orders[(number + turn) % len(orders)]
            try:
                filled_store.transfer(Transfer(source, target), CallContext(f"racer-{number}", CALL.method))
            except errors.TherapistAtCapacity as error:
                refusals.append(error.reason)

    racers = [threading.Thread(target=move, args=(number,)) for number in range(8)]
    for racer in racers:
        racer.start()
    join(*racers)
    active = [one for one in periods(filled_store) if one.end_us is None]
    assert sorted(one.patient_id for one in active) == ["a", "b", "c"]
    assert_consistent(filled_store)
