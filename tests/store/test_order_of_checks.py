"""Which reason is reported when several apply.

A method checks in the order of its contract. A step causes each reason. Two are caused together, and the earlier wins.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from caseload_server.domain import errors, limits, requests
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import CallContext, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    AnyKind,
    assign,
    both_kinds,
    delete,
    dump,
    make,
    make_pair,
    request,
    unassign,
    update,
)

REQUEST_ID = "3b241101-e2bb-4255-8caf-4136c566a962"


class Scene:
    """A store with therapists t, u and w and a patient p, and a call that would succeed."""

    def __init__(self, store: RelationshipStore, clock: Clock, kind: AnyKind = THERAPIST) -> None:
        self.store = store
        self.now_us = clock.now_us
        self.kind = kind
        self.it = kind.name[0]
        make_pair(store)
        for name in "uw":
            make(store, THERAPIST, name)
        self.call: CallContext = CALL
        self.order: dict[str, Any] = {"therapist_id": "t", "patient_id": "p"}
        self.fields: requests.Fields = {"display_name": "Ada King"}


Step = Callable[[Scene], None]
Reason = tuple[type[errors.DomainError], Step]


class Case(NamedTuple):
    """Two reasons, the steps that cause them, and the reason to report."""

    first: Step
    second: Step
    reason: type[errors.DomainError]


def each_pair(reasons: dict[str, Reason], *impossible: tuple[str, str]) -> pytest.MarkDecorator:
    """Parametrizes a test with every two reasons that can apply at once."""
    cases = {
        f"{first} before {second}": Case(reasons[first][1], reasons[second][1], reasons[first][0])
        for first, second in combinations(reasons, 2)
        if (first, second) not in impossible
    }
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def reuse(scene: Scene) -> None:
    scene.store.create(PATIENT, "", {"display_name": "Eve"}, request(REQUEST_ID, b"another"))
    scene.call = request(REQUEST_ID)


def refused(scene: Scene, case: Case, call: Callable[[], Any]) -> None:
    """Takes both steps, those that need a live record first, and asserts the expected reason."""
    for step in sorted(case[:2], key=lambda step: LAST.index(step) if step in LAST else -1):
        step(scene)
    before = dump(scene.store)
    with pytest.raises(errors.DomainError) as refusal:
        call()
    assert type(refusal.value) is of_kind(scene.kind, case)
    assert dump(scene.store) == before


def of_kind(kind: AnyKind, case: Case) -> type[errors.DomainError]:
    """The error for a kind: NOT_FOUND and DELETED have one reason for each kind."""
    if case.reason is not errors.DomainError:
        return case.reason
    return kind.deleted if case.first is deleted else kind.not_found


# Assign.


def therapist_not_found(scene: Scene) -> None:
    scene.order["therapist_id"] = "missing"


def patient_not_found(scene: Scene) -> None:
    scene.order["patient_id"] = "missing"


def therapist_deleted(scene: Scene) -> None:
    delete(scene.store, THERAPIST, "t", force=True)


def patient_deleted(scene: Scene) -> None:
    delete(scene.store, PATIENT, "p", force=True)


def differs(scene: Scene) -> None:
    assign(scene.store, "t", "p", focus="grief", start_us=scene.now_us)


def therapist_on_leave(scene: Scene) -> None:
    update(scene.store, THERAPIST, "t", status=2)


def patient_discharged(scene: Scene) -> None:
    update(scene.store, PATIENT, "p", status=2)


def overlaps(scene: Scene) -> None:
    assign(scene.store, "w", "p", role=ROLE_PRIMARY, start_us=scene.now_us - 20)
    unassign(scene.store, "w", "p", end_us=scene.now_us)
    scene.order |= {"role": ROLE_PRIMARY, "start_us": scene.now_us - 10}


def primary_exists(scene: Scene) -> None:
    assign(scene.store, "u", "p", role=ROLE_PRIMARY, start_us=scene.now_us)
    scene.order["role"] = ROLE_PRIMARY


def at_capacity(scene: Scene) -> None:
    update(scene.store, THERAPIST, "t", max_active_patients=0)


LAST = [primary_exists, therapist_on_leave, patient_discharged, therapist_deleted, patient_deleted]

ASSIGN: dict[str, Reason] = {
    "REQUEST_ID_REUSED": (errors.RequestIdReused, reuse),
    "THERAPIST_NOT_FOUND": (errors.TherapistNotFound, therapist_not_found),
    "PATIENT_NOT_FOUND": (errors.PatientNotFound, patient_not_found),
    "THERAPIST_DELETED": (errors.TherapistDeleted, therapist_deleted),
    "PATIENT_DELETED": (errors.PatientDeleted, patient_deleted),
    "ASSIGNMENT_DIFFERS": (errors.AssignmentDiffers, differs),
    "THERAPIST_NOT_ACTIVE": (errors.TherapistNotActive, therapist_on_leave),
    "PATIENT_NOT_ACTIVE": (errors.PatientNotActive, patient_discharged),
    "PERIOD_OVERLAPS": (errors.PeriodOverlaps, overlaps),
    "PRIMARY_EXISTS": (errors.PrimaryExists, primary_exists),
    "THERAPIST_AT_CAPACITY": (errors.TherapistAtCapacity, at_capacity),
}


@each_pair(
    ASSIGN,
    # A deleted or discharged record has no active assignment.
    ("THERAPIST_DELETED", "ASSIGNMENT_DIFFERS"),
    ("PATIENT_DELETED", "ASSIGNMENT_DIFFERS"),
    ("PATIENT_DELETED", "PRIMARY_EXISTS"),
    ("ASSIGNMENT_DIFFERS", "PATIENT_NOT_ACTIVE"),
    ("PATIENT_NOT_ACTIVE", "PRIMARY_EXISTS"),
)
def test_assign_reports_the_first_reason_of_two(store: RelationshipStore, clock: Clock, case: Case) -> None:
    scene = Scene(store, clock)
    refused(scene, case, lambda: store.assign(requests.Assign(**scene.order), scene.call))


@pytest.mark.parametrize("reason", ASSIGN)
def test_assign_is_rejected_for_each_reason_alone(store: RelationshipStore, clock: Clock, reason: str) -> None:
    scene = Scene(store, clock)
    error, step = ASSIGN[reason]
    case = Case(step, lambda _: None, error)
    refused(scene, case, lambda: store.assign(requests.Assign(**scene.order), scene.call))


# Unassign.


def wrong_etag(scene: Scene) -> None:
    assign(scene.store, "t", "p", start_us=scene.now_us)
    scene.order["etag"] = "old"


def end_before_start(scene: Scene) -> None:
    assign(scene.store, "t", "p", start_us=scene.now_us)
    scene.order["end_us"] = scene.now_us - 1


UNASSIGN: dict[str, Reason] = {
    "REQUEST_ID_REUSED": (errors.RequestIdReused, reuse),
    "THERAPIST_NOT_FOUND": (errors.TherapistNotFound, therapist_not_found),
    "PATIENT_NOT_FOUND": (errors.PatientNotFound, patient_not_found),
    "ASSIGNMENT_NOT_FOUND": (errors.AssignmentNotFound, lambda _: None),
    "ETAG_MISMATCH": (errors.EtagMismatch, wrong_etag),
    "INVALID_FIELD": (errors.InvalidField, end_before_start),
}


# Without an assignment there is no etag and no start.
@each_pair(UNASSIGN, ("ASSIGNMENT_NOT_FOUND", "ETAG_MISMATCH"), ("ASSIGNMENT_NOT_FOUND", "INVALID_FIELD"))
def test_unassign_reports_the_first_reason_of_two(store: RelationshipStore, clock: Clock, case: Case) -> None:
    scene = Scene(store, clock)
    refused(scene, case, lambda: store.unassign(requests.Unassign(**scene.order), scene.call))


# Create.


def id_taken(scene: Scene) -> None:
    scene.order["record_id"] = scene.it


def identifier_taken(scene: Scene) -> None:
    make(scene.store, scene.kind, "owner", identifiers='[["urn:mrn","1"]]')
    scene.fields["identifiers"] = '[["urn:mrn","1"]]'


def too_large(scene: Scene) -> None:
    scene.fields["annotations"] = f'{{"k":"{"x" * limits.MAX_RECORD_BYTES}"}}'


CREATE: dict[str, Reason] = {
    "REQUEST_ID_REUSED": (errors.RequestIdReused, reuse),
    "INVALID_FIELD": (errors.InvalidField, too_large),
    "ID_TAKEN": (errors.IdTaken, id_taken),
    "IDENTIFIER_TAKEN": (errors.IdentifierTaken, identifier_taken),
}


@both_kinds
@each_pair(CREATE, ("REQUEST_ID_REUSED", "INVALID_FIELD"))  # the write checks the record's size
def test_create_reports_the_first_reason_of_two(
    store: RelationshipStore, clock: Clock, kind: AnyKind, case: Case
) -> None:
    scene = Scene(store, clock, kind)
    refused(scene, case, lambda: store.create(kind, scene.order.get("record_id", "new"), scene.fields, scene.call))


# Update.


def not_found(scene: Scene) -> None:
    scene.order["record_id"] = "missing"


def deleted(scene: Scene) -> None:
    delete(scene.store, scene.kind, scene.it, force=True)


def old_etag(scene: Scene) -> None:
    scene.order["etag"] = "old"


def has_active(scene: Scene) -> None:
    assign(scene.store)
    scene.fields["status"] = scene.kind.idle_status


def one_too_many(scene: Scene) -> None:
    has_active(scene)
    scene.order["force"] = True


LAST.append(deleted)

UPDATE: dict[str, Reason] = {
    "REQUEST_ID_REUSED": (errors.RequestIdReused, reuse),
    "NOT_FOUND": (errors.DomainError, not_found),
    "DELETED": (errors.DomainError, deleted),
    "ETAG_MISMATCH": (errors.EtagMismatch, old_etag),
    "INVALID_FIELD": (errors.InvalidField, too_large),
    "HAS_ACTIVE_ASSIGNMENTS": (errors.HasActiveAssignments, has_active),
    "TOO_MANY_ASSIGNMENTS": (errors.TooManyAssignments, one_too_many),
    "IDENTIFIER_TAKEN": (errors.IdentifierTaken, identifier_taken),
}


@both_kinds
@each_pair(UPDATE, ("HAS_ACTIVE_ASSIGNMENTS", "TOO_MANY_ASSIGNMENTS"))  # one needs force=False, the other force=True
def test_update_reports_the_first_reason_of_two(
    store: RelationshipStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: AnyKind, case: Case
) -> None:
    scene = Scene(store, clock, kind)

    def change() -> None:
        monkeypatch.setattr(limits, "MAX_ASSIGNMENTS_PER_CALL", 0)
        order = scene.order
        record_id, end_reason = order.get("record_id", scene.it), 1 if order.get("force") else None
        store.update(kind, Update(record_id, scene.fields, order.get("etag", ""), end_reason), scene.call)

    refused(scene, case, change)


# Delete.

DELETE: dict[str, Reason] = {
    "REQUEST_ID_REUSED": (errors.RequestIdReused, reuse),
    "NOT_FOUND": (errors.DomainError, not_found),
    "ETAG_MISMATCH": (errors.EtagMismatch, old_etag),
    "HAS_ACTIVE_ASSIGNMENTS": (errors.HasActiveAssignments, has_active),
    "TOO_MANY_ASSIGNMENTS": (errors.TooManyAssignments, one_too_many),
}


@both_kinds
@each_pair(DELETE, ("HAS_ACTIVE_ASSIGNMENTS", "TOO_MANY_ASSIGNMENTS"))  # as in UPDATE
def test_delete_reports_the_first_reason_of_two(
    store: RelationshipStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: AnyKind, case: Case
) -> None:
    monkeypatch.setattr(limits, "MAX_ASSIGNMENTS_PER_CALL", 0)
    scene = Scene(store, clock, kind)

    def erase() -> None:
        order = scene.order
        asked = requests.Delete(order.get("record_id", scene.it), order.get("etag", ""), order.get("force", False))
        store.delete(kind, asked, scene.call)

    refused(scene, case, erase)


# Undelete.


def identifiers_gone(scene: Scene) -> None:
    make(scene.store, scene.kind, "it", identifiers='[["urn:mrn","1"]]')
    delete(scene.store, scene.kind, "it")
    identifier_taken(scene)
    scene.order.setdefault("record_id", "it")


UNDELETE: dict[str, Reason] = {
    "REQUEST_ID_REUSED": (errors.RequestIdReused, reuse),
    "NOT_FOUND": (errors.DomainError, not_found),
    "IDENTIFIER_TAKEN": (errors.IdentifierTaken, identifiers_gone),
}


@both_kinds
@each_pair(UNDELETE)
def test_undelete_reports_the_first_reason_of_two(
    store: RelationshipStore, clock: Clock, kind: AnyKind, case: Case
) -> None:
    scene = Scene(store, clock, kind)
    refused(scene, case, lambda: store.undelete(kind, scene.order.get("record_id", scene.it), scene.call))
