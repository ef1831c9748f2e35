"""What each RPC answers about people who were purged."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from caseload_server.rpc.server import CaseloadServer
from caseload_server.store import PATIENT, THERAPIST

from tests.clinic import Clinic, new_request_id, refused

NAMED = {"therapist": {"display_name": "Ann Lee"}, "patient": {"display_name": "Bob Ray"}}
IDS = {"therapist": "t1", "patient": "p1"}


class Purged:
    """A clinic where t2 and p2 go on, and t1 and p1, each of whom treated or was treated by both others, are purged."""

    def __init__(self, server: CaseloadServer, clinic: Clinic) -> None:
        self.created = new_request_id()
        self.assigned = new_request_id()
        for number in ("1", "2"):
            request_id = self.created if number == "1" else ""
            clinic.send(
                "CreateTherapist", therapist_id=f"t{number}", therapist=NAMED["therapist"], request_id=request_id
            )
            clinic.patients(f"p{number}")
        self.assignment = clinic.assign("t1", "p1", request_id=self.assigned)
        self.of_patient = clinic.assign("t1", "p2")
        self.of_therapist = clinic.assign("t2", "p1")
        self.kept = clinic.assign("t2", "p2")
        clinic.send("DeleteTherapist", therapist_id="t1", force=True)
        clinic.send("DeletePatient", patient_id="p1", force=True)
        self.before = clinic.head()
        for kind in (PATIENT, THERAPIST):
            list(server.store.purge_records(kind, time.time_ns() // 1000 + 1))


@pytest.fixture
def clinic(server: CaseloadServer) -> Iterator[Clinic]:
    with Clinic(server.address) as opened:
        yield opened


@pytest.fixture
def purged(server: CaseloadServer, clinic: Clinic) -> Purged:
    return Purged(server, clinic)


@pytest.mark.parametrize("name", ["therapist", "patient"])
def test_every_call_about_one_finds_nothing(purged: Purged, clinic: Clinic, name: str) -> None:
    del purged
    title, one = name.title(), {f"{name}_id": IDS[name]}
    other = {"patient_id": "p2"} if name == "therapist" else {"therapist_id": "t2"}
    listed = "ListTherapistPatients" if name == "therapist" else "ListPatientTherapists"
    verbs = ("AssignPatient", "UnassignPatient") if name == "therapist" else ("AssignTherapist", "UnassignTherapist")
    body = {name: {**one, **NAMED[name]}, "update_mask": {"paths": ["display_name"]}}
    calls: list[tuple[str, dict[str, Any]]] = [
        (f"Get{title}", one),
        (f"BatchGet{title}s", {f"{name}_ids": [IDS[name]]}),
        (f"Update{title}", body),
        (f"Delete{title}", one),
        (f"Undelete{title}", one),
        (listed, one),
        *((verb, one | other) for verb in verbs),
    ]
    for rpc, fields in calls:
        found = refused(clinic.send, rpc, **fields)
        assert found.reason == f"{name.upper()}_NOT_FOUND", rpc
        if rpc.startswith("BatchGet"):
            assert found.metadata["missing"] == "1"
    clinic.send(f"Delete{title}", allow_missing=True, **one)
    assert refused(clinic.send, f"Create{title}", **one, **{name: NAMED[name]}).reason == "ID_TAKEN"
    validated = refused(clinic.send, f"Create{title}", validate_only=True, **one, **{name: NAMED[name]})
    assert validated.reason == "ID_TAKEN"
    records = clinic.send(f"List{title}s", show_deleted=True)
    assert [getattr(record, f"{name}_id") for record in getattr(records, f"{name}s")] == [IDS[name].replace("1", "2")]


def test_their_assignments_are_gone_and_those_of_others_are_not(purged: Purged, clinic: Clinic) -> None:
    for assignment in (purged.assignment, purged.of_patient, purged.of_therapist):
        one = assignment.assignment_id
        assert refused(clinic.send, "GetAssignment", assignment_id=one).reason == "ASSIGNMENT_NOT_FOUND"
        assert refused(clinic.correct, one, "focus", focus="x").reason == "ASSIGNMENT_NOT_FOUND"
    assert clinic.checked(("t1", "p1"), ("t1", "p2"), ("t2", "p1"), ("t2", "p2")) == [False, False, False, True]
    for rpc, side in (
        ("ListTherapistPatients", {"therapist_id": "t2"}),
        ("ListPatientTherapists", {"patient_id": "p2"}),
    ):
        entries = clinic.send(rpc, states=[1, 2], **side).entries
        assert [entry.assignment.assignment_id for entry in entries] == [purged.kept.assignment_id]
    for filters in ({}, {"therapist_id": "t2"}, {"patient_id": "p2"}):
        assert [one.assignment_id for one in clinic.listed(states=[1, 2], **filters)] == [purged.kept.assignment_id]
    for ids in ({"therapist_id": "t1"}, {"patient_id": "p1"}):
        assert clinic.listed(states=[1, 2], **ids) == []
    assert refused(clinic.transfer, "t1", "t2").reason == "THERAPIST_NOT_FOUND"
    assert refused(clinic.transfer, "t2", "t1").reason == "THERAPIST_NOT_FOUND"
    assert refused(clinic.transfer, "t2", "t2x", "p1").reason == "THERAPIST_NOT_FOUND"
    clinic.therapists("t3")
    assert refused(clinic.transfer, "t2", "t3", "p1").reason == "PATIENT_NOT_FOUND"


def test_repeats_of_remembered_requests_find_nothing(purged: Purged, clinic: Clinic) -> None:
    again = refused(
        clinic.send, "CreateTherapist", therapist_id="t1", therapist=NAMED["therapist"], request_id=purged.created
    )
    assert again.reason == "THERAPIST_NOT_FOUND"
    assert refused(clinic.assign, "t1", "p1", request_id=purged.assigned).reason == "ASSIGNMENT_NOT_FOUND"


def test_watchers_learn_who_was_purged_by_id_alone(purged: Purged, clinic: Clinic) -> None:
    first, second = clinic.log(purged.before)
    for change_set in (first, second):
        assert (change_set.actor, change_set.method, change_set.request_id) == ("cli:purge", "", "")
        assert {change.kind for change in change_set.changes} == {5}
        assert not [change for change in change_set.changes if change.changed_fields]
    assert first.changes[-1].patient_id == "p1"
    assert [change.assignment.assignment_id for change in first.changes[:-1]] == [
        purged.assignment.assignment_id,
        purged.of_therapist.assignment_id,
    ]
    assert second.changes[-1].therapist_id == "t1"
    assert [change.assignment.assignment_id for change in second.changes[:-1]] == [purged.of_patient.assignment_id]
    watched = next(iter(clinic.watch(purged.before, therapist_id="t1")))
    assert list(watched.change_sets) == [first, second]
