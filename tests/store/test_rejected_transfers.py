"""TransferPatients rejects a transfer as a whole, and names the reason."""

from typing import NamedTuple

import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import Delete, Merge, Transfer
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.store_builders import (
    CALL,
    VALIDATE,
    assign,
    crowd,
    dump,
    patients,
    remembered,
    run,
    therapists,
    transfer,
    unassign,
)
from tests.store.transfer_setup import ID, INACTIVE, ON_LEAVE, Prepare, count, update


def nothing(_store: RelationshipStore) -> None:
    """Nothing to prepare."""


class Case(NamedTuple):
    """A transfer that is rejected."""

    error: type[errors.DomainError]
    order: Transfer
    prepare: Prepare = nothing
    metadata: dict[str, str] | None = None


REFUSED = {
    "unknown source": Case(errors.TherapistNotFound, Transfer("missing", "t"), metadata={"missing": "1"}),
    "unknown target": Case(errors.TherapistNotFound, Transfer("s", "missing"), metadata={"missing": "1"}),
    "unknown patients": Case(
        errors.PatientNotFound, Transfer("s", "t", ("a", "x", "b", "y")), metadata={"missing": "2"}
    ),
    "deleted source": Case(
        errors.TherapistDeleted, Transfer("u", "t"), lambda store: store.delete(THERAPIST, Delete("u"), CALL)
    ),
    "deleted target": Case(
        errors.TherapistDeleted, Transfer("s", "t"), lambda store: store.delete(THERAPIST, Delete("t"), CALL)
    ),
    "deleted patient": Case(
        errors.PatientDeleted, Transfer("s", "t", ("a", "d")), lambda store: store.delete(PATIENT, Delete("d"), CALL)
    ),
    "a patient that was never the source's": Case(
        errors.AssignmentNotFound, Transfer("s", "t", ("a", "d")), metadata={"missing": "1"}
    ),
    "a patient that no longer is the source's": Case(
        errors.AssignmentNotFound, Transfer("s", "t", ("a", "b")), lambda store: unassign(store, "s", "b")
    ),
    "target on leave": Case(errors.TherapistNotActive, Transfer("s", "t"), update("t", status=ON_LEAVE)),
    "target inactive": Case(errors.TherapistNotActive, Transfer("s", "t"), update("t", status=INACTIVE)),
    "no room for the third": Case(
        errors.TherapistAtCapacity,
        Transfer("s", "t"),
        update("t", max_active_patients=2),
        {"limit": "2", "current": "0"},
    ),
    "no room at all": Case(
        errors.TherapistAtCapacity,
        Transfer("s", "t", ("a",)),
        update("t", max_active_patients=0),
        {"limit": "0", "current": "0"},
    ),
    "more than a thousand": Case(
        errors.TooManyAssignments,
        Transfer("s", "t", ignore_capacity=True),
        lambda store: crowd(store, "s", 998),
        {"limit": "1000", "current": "1001"},
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_rejected_transfer_moves_nothing(filled_store: RelationshipStore, case: Case) -> None:
    case.prepare(filled_store)
    before = dump(filled_store)
    for call in (CALL, VALIDATE, remembered(ID)):
        with pytest.raises(case.error) as caught:
            filled_store.transfer(case.order, call)
        assert case.metadata is None or caught.value.metadata == case.metadata
    assert dump(filled_store) == before


def test_a_rejected_transfer_names_at_most_fifteen_missing_patients(filled_store: RelationshipStore) -> None:
    strangers = [f"x{n:02}" for n in range(40)]
    patients(filled_store, *strangers)
    for ids, error, kind in (
        ((*strangers, "a"), errors.AssignmentNotFound, "caseload.v1.Patient"),
        ([f"no-{one}" for one in strangers], errors.PatientNotFound, "caseload.v1.Patient"),
    ):
        with pytest.raises(error) as caught:
            transfer(filled_store, "s", "t", *ids)
        assert caught.value.metadata == {"missing": "40"}
        assert [(one.type, one.name) for one in caught.value.resources] == [(kind, one) for one in ids[:15]]


@pytest.mark.parametrize("ids", [("d", "b"), ("b", "d")])
def test_errors_name_patients_in_the_order_of_the_request(
    filled_store: RelationshipStore, ids: tuple[str, str]
) -> None:
    def named(error: type[errors.DomainError]) -> tuple[str, ...]:
        with pytest.raises(error) as caught:
            transfer(filled_store, "s", "t", *ids)
        return tuple(one.name for one in caught.value.resources)

    for one in ids:
        filled_store.delete(PATIENT, Delete(one, force=True), CALL)
    assert named(errors.PatientDeleted) == ids
    for one in ids:
        filled_store.undelete(PATIENT, one, CALL)
        filled_store.merge(Merge(one, "a"), CALL)
    assert named(errors.PatientMerged) == ids[:1]


def test_a_rejected_transfer_reports_the_first_failed_check(filled_store: RelationshipStore) -> None:
    def refusal(*ids: str) -> type[Exception]:
        with pytest.raises(errors.DomainError) as caught:
            transfer(filled_store, "u", "t", *ids)
        return caught.type

    filled_store.delete(THERAPIST, Delete("t"), CALL)
    filled_store.delete(PATIENT, Delete("d"), CALL)
    assert refusal("d", "b", "missing") is errors.PatientNotFound
    assert refusal("d", "b") is errors.TherapistDeleted
    filled_store.undelete(THERAPIST, "t", CALL)
    update("t", status=ON_LEAVE, max_active_patients=0)(filled_store)
    assert refusal("d", "b") is errors.PatientDeleted
    filled_store.undelete(PATIENT, "d", CALL)
    assert refusal("d", "b") is errors.AssignmentNotFound
    assign(filled_store, "u", "d")
    assign(filled_store, "u", "b")
    assert refusal("d", "b") is errors.TherapistNotActive
    update("t", status=1)(filled_store)
    assert refusal("d", "b") is errors.TherapistAtCapacity


@pytest.mark.slow
def test_a_transfer_of_more_than_a_thousand_patients_is_rejected(filled_store: RelationshipStore) -> None:
    therapists(filled_store, "big")
    ids = crowd(filled_store, "big", 1001)
    with pytest.raises(errors.TooManyAssignments) as caught:
        transfer(filled_store, "big", "t")
    assert caught.value.metadata == {"limit": "1000", "current": "1001"}
    outcome = transfer(filled_store, "big", "t", *ids[:1000], call=remembered(ID))
    assert (len(outcome.ended), count(filled_store, "big"), count(filled_store, "t")) == (1000, 1, 1000)
    assert run(filled_store, "SELECT count(*) FROM change WHERE revision = (SELECT head_revision FROM store)") == [
        (2000,)
    ]
    order = Transfer("big", "t", tuple(ids[:1000]))
    assert filled_store.transfer(order, remembered(ID)) == outcome
