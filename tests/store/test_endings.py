"""Updates with force end the active assignments of a record that becomes inactive or discharged."""

from typing import Any

import pytest
from caseload_server.domain import enums, errors, limits
from caseload_server.domain.requests import Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import assert_consistent
from tests.store.store_calls import (
    CALL,
    VALIDATE,
    AnyKind,
    assign,
    both_kinds,
    delete,
    dump,
    history,
    make,
    other,
    race,
    unassign,
    update,
)

REASON = 3


def pair(kind: AnyKind, one: str, another: str) -> tuple[str, str]:
    """The therapist and the patient, given a record of the kind and one of the other kind."""
    return (one, another) if kind is THERAPIST else (another, one)


def busy(store: RelationshipStore, kind: AnyKind, *others: str) -> None:
    """Creates the record `a` of the kind, assigned to the others."""
    make(store, kind, "a")
    for name in others:
        make(store, other(kind), name)
        assign(store, *pair(kind, "a", name))


def idle(kind: AnyKind, end_reason: int | None = REASON, **fields: Any) -> Update:
    return Update("a", {"status": kind.idle_status, **fields}, end_reason=end_reason)


@both_kinds
def test_force_ends_the_assignments_on_both_sides(store: RelationshipStore, clock: Clock, kind: AnyKind) -> None:
    busy(store, kind, "x", "y")
    assign(store, *pair(kind, "a", "x"), role=enums.ROLE_PRIMARY, replace=True)
    clock.advance(1)
    before = store.head_revision()
    result = store.update(kind, idle(kind, display_name="Ada King"), CALL)
    assert result.ended_count == 2
    assert result.record == store.get(kind, "a")
    assert (result.record.status, result.record.display_name) == (kind.idle_status, "Ada King")
    patients = ("x", "y") if kind is THERAPIST else ("a",)
    ended = [one for name in patients for one in history(store, name) if one.end_reason != enums.END_REPLACED]
    assert [(one.end_us, one.end_reason, one.ended_by) for one in ended] == [(clock.now_us, REASON, CALL.actor)] * 2
    assert_consistent(store)
    assert store.head_revision() == before + 1


@both_kinds
def test_an_assignment_that_starts_later_ends_where_it_starts(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    busy(store, kind)
    make(store, other(kind), "x")
    start_us = clock.now_us + 60_000_000
    assign(store, *pair(kind, "a", "x"), start_us=start_us)
    store.update(kind, idle(kind), CALL)
    assert [one.end_us for one in history(store, "x" if kind is THERAPIST else "a")] == [start_us]


@both_kinds
def test_without_force_active_assignments_are_in_the_way(store: RelationshipStore, kind: AnyKind) -> None:
    busy(store, kind, "x")
    before = dump(store)
    with pytest.raises(errors.HasActiveAssignments) as refusal:
        store.update(kind, idle(kind, None), CALL)
    assert refusal.value.metadata == {"count": "1"}
    assert dump(store) == before


@both_kinds
def test_force_ends_nothing_if_the_status_does_not_become_idle(store: RelationshipStore, kind: AnyKind) -> None:
    busy(store, kind, "x")
    others: list[Any] = [
        {"display_name": "Ada King"},
        {"status": enums.STATUS_ACTIVE},
        *([{"status": 2}] * (kind is THERAPIST)),
    ]
    for fields in others:
        assert store.update(kind, Update("a", fields, end_reason=REASON), CALL).ended_count == 0
    assert getattr(store.get(kind, "a"), kind.count_column) == 1


@both_kinds
def test_a_retry_with_force_changes_nothing_and_ends_none(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    busy(store, kind, "x")
    first = store.update(kind, idle(kind), CALL)
    before = dump(store)
    clock.advance(1)
    assert store.update(kind, idle(kind), CALL) == first._replace(ended_count=0)
    assert dump(store) == before


@both_kinds
def test_an_update_with_force_is_bounded_by_the_limit_of_one_call(
    store: RelationshipStore, kind: AnyKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ASSIGNMENTS_PER_CALL", 2)
    busy(store, kind, "x", "y", "z")
    before = dump(store)
    with pytest.raises(errors.TooManyAssignments) as refusal:
        store.update(kind, idle(kind), CALL)
    assert refusal.value.metadata == {"limit": "2", "current": "3"}
    assert dump(store) == before
    unassign(store, *pair(kind, "a", "x"))
    assert store.update(kind, idle(kind), CALL).ended_count == 2


@both_kinds
def test_an_update_with_force_is_rejected_as_a_whole(store: RelationshipStore, kind: AnyKind) -> None:
    busy(store, kind, "x")
    make(store, kind, "b", identifiers='[["urn:mrn","1"]]')
    before = dump(store)
    with pytest.raises(errors.IdentifierTaken):
        store.update(kind, idle(kind, identifiers='[["urn:mrn","1"]]'), CALL)
    with pytest.raises(errors.EtagMismatch):
        store.update(kind, idle(kind)._replace(etag="old"), CALL)
    assert dump(store) == before


@both_kinds
def test_validate_only_says_how_many_force_would_end(store: RelationshipStore, kind: AnyKind) -> None:
    busy(store, kind, "x", "y")
    before = dump(store)
    result = store.update(kind, idle(kind), VALIDATE)
    assert (result.ended_count, getattr(result.record, kind.count_column)) == (2, 0)
    assert dump(store) == before


@both_kinds
def test_assigns_racing_updates_with_force_leave_no_idle_record_assigned(
    store: RelationshipStore, kind: AnyKind
) -> None:
    make(store, kind, "a")
    for number in range(24):
        make(store, other(kind), f"x{number}")

    def one(number: int) -> object:
        if number < 24:
            return assign(store, *pair(kind, "a", f"x{number}"))
        if number < 28:
            return store.update(kind, idle(kind), CALL)
        if number < 30:
            return update(store, kind, "a", status=enums.STATUS_ACTIVE)
        return delete(store, other(kind), f"x{number - 30}", force=True)

    _, refusals = race(one)
    not_active = errors.TherapistNotActive if kind is THERAPIST else errors.PatientNotActive
    assert {type(refusal) for refusal in refusals} <= {not_active, other(kind).deleted}
    assert_consistent(store)
    record = store.get(kind, "a")
    assert record.status == enums.STATUS_ACTIVE or getattr(record, kind.count_column) == 0
    assert store.update(kind, idle(kind), CALL).record.status == kind.idle_status
    assert_consistent(store)
    assert getattr(store.get(kind, "a"), kind.count_column) == 0


def test_the_last_primary_therapist_is_cleared_from_a_discharged_patient(store: RelationshipStore) -> None:
    busy(store, PATIENT)
    make(store, THERAPIST, "x")
    assign(store, "x", "a", role=enums.ROLE_PRIMARY)
    assert store.update(PATIENT, idle(PATIENT), CALL).record.primary_therapist_id == ""
