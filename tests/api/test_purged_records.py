"""What each RPC answers about purged records."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from caseload_server.rpc.server import CaseloadServer
from caseload_server.store import PATIENT, THERAPIST

from tests.support.api_driver import ApiDriver, new_request_id, refused

NAMED = {"therapist": {"display_name": "Ann Lee"}, "patient": {"display_name": "Bob Ray"}}
IDS = {"therapist": "t1", "patient": "p1"}


class Purged:
    """A store where t1 and p1 are purged. Each was assigned to both p1 or t1 and the remaining p2 or t2."""

    def __init__(self, server: CaseloadServer, api: ApiDriver) -> None:
        self.created = new_request_id()
        self.assigned = new_request_id()
        for number in ("1", "2"):
            request_id = self.created if number == "1" else ""
            api.send("CreateTherapist", therapist_id=f"t{number}", therapist=NAMED["therapist"], request_id=request_id)
            api.patients(f"p{number}")
        self.assignment = api.assign("t1", "p1", request_id=self.assigned)
        self.of_patient = api.assign("t1", "p2")
        self.of_therapist = api.assign("t2", "p1")
        self.kept = api.assign("t2", "p2")
        api.send("DeleteTherapist", therapist_id="t1", force=True)
        api.send("DeletePatient", patient_id="p1", force=True)
        self.before = api.head()
        for kind in (PATIENT, THERAPIST):
            list(server.store.purger.purge_records(kind, time.time_ns() // 1000 + 1))


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    with ApiDriver(server.address) as opened:
        yield opened


@pytest.fixture
def purged(server: CaseloadServer, api: ApiDriver) -> Purged:
    return Purged(server, api)


@pytest.mark.parametrize("name", ["therapist", "patient"])
def test_every_rpc_answers_not_found_for_a_purged_record(purged: Purged, api: ApiDriver, name: str) -> None:
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
        found = refused(api.send, rpc, **fields)
        assert found.reason == f"{name.upper()}_NOT_FOUND", rpc
        if rpc.startswith("BatchGet"):
            assert found.metadata["missing"] == "1"
    api.send(f"Delete{title}", allow_missing=True, **one)
    assert refused(api.send, f"Create{title}", **one, **{name: NAMED[name]}).reason == "ID_TAKEN"
    validated = refused(api.send, f"Create{title}", validate_only=True, **one, **{name: NAMED[name]})
    assert validated.reason == "ID_TAKEN"
    records = api.send(f"List{title}s", show_deleted=True)
    assert [getattr(record, f"{name}_id") for record in getattr(records, f"{name}s")] == [IDS[name].replace("1", "2")]


def test_a_purge_deletes_only_the_assignments_of_purged_records(purged: Purged, api: ApiDriver) -> None:
    for assignment in (purged.assignment, purged.of_patient, purged.of_therapist):
        one = assignment.assignment_id
        assert refused(api.send, "GetAssignment", assignment_id=one).reason == "ASSIGNMENT_NOT_FOUND"
        assert refused(api.correct, one, "focus", focus="x").reason == "ASSIGNMENT_NOT_FOUND"
    assert api.checked(("t1", "p1"), ("t1", "p2"), ("t2", "p1"), ("t2", "p2")) == [False, False, False, True]
    for rpc, side in (
        ("ListTherapistPatients", {"therapist_id": "t2"}),
        ("ListPatientTherapists", {"patient_id": "p2"}),
    ):
        entries = api.send(rpc, states=[1, 2], **side).entries
        assert [entry.assignment.assignment_id for entry in entries] == [purged.kept.assignment_id]
    for filters in ({}, {"therapist_id": "t2"}, {"patient_id": "p2"}):
        assert [one.assignment_id for one in api.listed(states=[1, 2], **filters)] == [purged.kept.assignment_id]
    for ids in ({"therapist_id": "t1"}, {"patient_id": "p1"}):
        assert api.listed(states=[1, 2], **ids) == []
    assert refused(api.transfer, "t1", "t2").reason == "THERAPIST_NOT_FOUND"
    assert refused(api.transfer, "t2", "t1").reason == "THERAPIST_NOT_FOUND"
    assert refused(api.transfer, "t2", "t2x", "p1").reason == "THERAPIST_NOT_FOUND"
    api.therapists("t3")
    assert refused(api.transfer, "t2", "t3", "p1").reason == "PATIENT_NOT_FOUND"


def test_a_purged_record_is_not_found_by_a_replayed_request(purged: Purged, api: ApiDriver) -> None:
    again = refused(
        api.send, "CreateTherapist", therapist_id="t1", therapist=NAMED["therapist"], request_id=purged.created
    )
    assert again.reason == "THERAPIST_NOT_FOUND"
    assert refused(api.assign, "t1", "p1", request_id=purged.assigned).reason == "ASSIGNMENT_NOT_FOUND"


def test_a_watch_reports_purged_records_by_id_only(purged: Purged, api: ApiDriver) -> None:
    first, second = api.log(purged.before)
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
    watched = next(iter(api.watch(purged.before, therapist_id="t1")))
    assert list(watched.change_sets) == [first, second]
