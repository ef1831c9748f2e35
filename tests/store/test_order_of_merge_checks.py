"""Which reason a merge reports when several apply: the first in the order of the contract."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import CallContext, Merge
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.store_calls import CALL, assign, delete, dump, make, request, update

REQUEST_ID = "3b241101-e2bb-4255-8caf-4136c566a962"


class Scene:
    """Patients s and p, which could be merged, and a patient x."""

    def __init__(self, store: RelationshipStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.monkeypatch = monkeypatch
        self.target = "p"
        self.call: CallContext = CALL
        make(store, THERAPIST, "t")
        for one in ("s", "p", "x"):
            make(store, PATIENT, one)


def reused(scene: Scene) -> None:
    scene.store.create(PATIENT, "", {"display_name": "Eve"}, request(REQUEST_ID, b"another"))
    scene.call = request(REQUEST_ID)


def not_found(scene: Scene) -> None:
    scene.target = "missing"


def target_merged(scene: Scene) -> None:
    scene.store.merge(Merge("p", "x"), CALL)


def target_deleted(scene: Scene) -> None:
    delete(scene.store, PATIENT, "p")


def dates_differ(scene: Scene) -> None:
    for day, one in enumerate(("s", "p"), 1):
        update(scene.store, PATIENT, one, birth_date=f"1990-01-0{day}")


def target_discharged(scene: Scene) -> None:
    assign(scene.store, "t", "s")
    update(scene.store, PATIENT, "p", status=2)


def too_many(scene: Scene) -> None:
    assign(scene.store, "t", "s")
    scene.monkeypatch.setattr("caseload_server.domain.limits.MAX_ASSIGNMENTS_PER_CALL", 0)


def too_large(scene: Scene) -> None:
    scene.monkeypatch.setattr("caseload_server.domain.limits.MAX_IDENTIFIERS", 0)
    update(scene.store, PATIENT, "s", identifiers='[["urn:mrn","1"]]')


REASONS: dict[type[errors.DomainError], Callable[[Scene], None]] = {
    errors.RequestIdReused: reused,
    errors.PatientNotFound: not_found,
    errors.PatientMerged: target_merged,
    errors.PatientDeleted: target_deleted,
    errors.BirthDatesDiffer: dates_differ,
    errors.PatientNotActive: target_discharged,
    errors.TooManyAssignments: too_many,
    errors.MergeTooLarge: too_large,
}
IMPOSSIBLE = {(errors.PatientMerged, errors.PatientDeleted)}
"""A merged record is deleted. The next test has another record for the second reason."""


@pytest.mark.parametrize(
    ("first", "second"),
    [(one, other) for one, other in pairwise(REASONS) if (one, other) not in IMPOSSIBLE],
    ids=lambda error: error.__name__,
)
def test_a_merge_reports_the_first_reason_of_two(
    store: RelationshipStore,
    monkeypatch: pytest.MonkeyPatch,
    first: type[errors.DomainError],
    second: type[errors.DomainError],
) -> None:
    scene = Scene(store, monkeypatch)
    for step in (REASONS[second], REASONS[first]):  # the later reasons need live records
        step(scene)
    before = dump(store)
    with pytest.raises(first):
        store.merge(Merge("s", scene.target), scene.call)
    assert dump(store) == before


def test_a_merged_operand_is_reported_before_a_deleted_one(store: RelationshipStore) -> None:
    for one in ("s", "p", "x"):
        make(store, PATIENT, one)
    store.merge(Merge("p", "x"), CALL)
    delete(store, PATIENT, "s")
    with pytest.raises(errors.PatientMerged):
        store.merge(Merge("s", "p"), CALL)


def test_an_unmerge_reports_a_merged_target_before_a_taken_identifier(store: RelationshipStore) -> None:
    make(store, PATIENT, "s", identifiers='[["urn:mrn","1"]]')
    for one in ("p", "x"):
        make(store, PATIENT, one)
    store.merge(Merge("s", "p"), CALL)
    update(store, PATIENT, "p", identifiers="[]")
    store.merge(Merge("p", "x"), CALL)
    make(store, PATIENT, "holder", identifiers='[["urn:mrn","1"]]')
    with pytest.raises(errors.PatientMerged):
        store.unmerge("s", CALL)
    store.unmerge("p", CALL)
    with pytest.raises(errors.IdentifierTaken):
        store.unmerge("s", CALL)
