"""Versions of records, and answers as they were known at a time, over the wire."""

from datetime import datetime
from typing import Any

import grpc
from caseload_server.rpc.server import CaseloadServer

from tests.api.client_calls import People, covers
from tests.store.store_calls import run
from tests.support.api_driver import ACTIVE, ENDED, ApiDriver, ahead, at, refused

SOME_ID = "0190a3c4-0000-7000-8000-000000000001"
KNOWN: list[tuple[str, dict[str, Any]]] = [
    ("ListAssignments", {}),
    ("CheckAssignments", {"pairs": [{"therapist_id": "t1", "patient_id": "p1"}]}),
]
"""The RPCs with known_at."""


def versions(api: ApiDriver, rpc: str, **fields: Any) -> Any:
    return api.send(f"List{rpc}Versions", **fields)


@covers("List{A}VersionsRequest.{a}_id")
def test_the_versions_of_a_person_show_what_changed_when_and_by_whom(people: People) -> None:
    created = people.create("a", identifiers=[{"system": "urn:x", "value": "1"}], annotations={"k": "v"})
    first = people.head()
    changed = people.update("a", display_name="Ann King", aliases=["Ann Lee"])
    response = people.send(f"List{people.kind}Versions", **{f"{people.name}_id": "a"})
    new, old = response.versions
    assert [people.record(one) for one in (new, old)] == [changed, created]
    assert (new.from_revision, new.from_time, new.to_revision) == (response.revision, changed.update_time, "")
    assert (old.from_revision, old.from_time) == (first, created.create_time)
    assert (old.to_revision, old.to_time) == (new.from_revision, new.from_time)
    assert not new.HasField("to_time")
    assert {one.actor for one in (new, old)} == {"local"}
    assert (response.revision, response.oldest_revision) == (people.head(), "")
    assert not response.HasField("oldest_time")
    assert people.send(f"List{people.kind}Versions", **{f"{people.name}_id": "a"}, page_size=1).versions == [new]


def test_a_version_has_no_fields_that_follow_from_assignments(api: ApiDriver) -> None:
    api.assign("t1", "p1", role=1)
    [patient] = versions(api, "Patient", patient_id="p1").versions
    [therapist] = versions(api, "Therapist", therapist_id="t1").versions
    assert (patient.patient.primary_therapist_id, patient.patient.active_therapist_count) == ("", 0)
    assert therapist.therapist.active_patient_count == 0


@covers("ListAssignmentVersionsRequest.assignment_id")
def test_the_versions_of_an_assignment_show_its_corrections(api: ApiDriver) -> None:
    begun = api.assign("t1", "p1", focus="grief")
    corrected = api.correct(begun.assignment_id, "focus", focus="anxiety").assignment
    sent = {"metadata": [("caseload-on-behalf-of", "jdoe")]}
    api.send("UnassignPatient", therapist_id="t1", patient_id="p1", **sent)
    found = versions(api, "Assignment", assignment_id=begun.assignment_id).versions
    assert [one.assignment for one in found] == [api.get(begun.assignment_id), corrected, begun]
    assert [one.on_behalf_of for one in found] == ["jdoe", "", ""]


def test_the_versions_of_an_unknown_record_are_not_found(api: ApiDriver) -> None:
    for rpc, field in (("Therapist", "therapist_id"), ("Patient", "patient_id"), ("Assignment", "assignment_id")):
        found = refused(versions, api, rpc, **{field: SOME_ID})
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, f"{rpc.upper()}_NOT_FOUND")
        assert refused(versions, api, rpc, **{field: "A!"}).fields == [field]


def test_a_merged_patient_has_versions(api: ApiDriver) -> None:
    api.send("MergePatients", source_patient_id="p1", target_patient_id="p2", request_id=SOME_ID)
    new, old = versions(api, "Patient", patient_id="p1").versions
    assert [one.patient.merged_into_patient_id for one in (new, old)] == ["p2", ""]


@covers("CheckAssignmentsRequest.known_at", "ListAssignmentsRequest.known_at")
def test_an_answer_as_known_at_a_time_has_no_later_correction(api: ApiDriver) -> None:
    wrong = api.assign("t1", "p1", start_time=at(100))
    right = api.correct(wrong.assignment_id, "start_time", start_time=at(500)).assignment
    for known_at, start, stored in ((wrong.update_time, 100, wrong), (right.update_time, 500, right)):
        for second in (99, 100, 499, 500):
            asked = {"as_of_time": at(second)}
            in_force = api.checked(("t1", "p1"), **asked, known_at=known_at)
            assert in_force == [second >= start]
            for filters in (asked, {**asked, "patient_id": "p1"}, {**asked, "therapist_id": "t1"}):
                listed = api.send("ListAssignments", filter=filters, known_at=known_at).assignments
                assert list(listed) == ([stored] if second >= start else [])


def test_an_answer_as_known_at_a_time_is_that_of_a_call_then(api: ApiDriver) -> None:
    begun = api.assign("t1", "p1")
    ended = api.unassign("t1", "p1")
    for rpc, fields in KNOWN:
        assert api.send(rpc, known_at=begun.update_time, **fields).revision == api.head()
    for known_at, state in ((begun.update_time, ACTIVE), (ended.update_time, ENDED)):
        assert api.checked(("t1", "p1"), known_at=known_at) == [state == ACTIVE]
        for asked in (ACTIVE, ENDED):
            listed = api.send("ListAssignments", filter={"states": [asked]}, known_at=known_at).assignments
            assert [one.state for one in listed] == [state] * (asked == state)
    before = begun.update_time
    before.nanos, before.seconds = (before.nanos - 1000) % 10**9, before.seconds - (before.nanos < 1000)
    assert api.send("ListAssignments", filter={"states": [ACTIVE, ENDED]}, known_at=before).assignments == []


def test_what_is_known_a_minute_ahead_is_what_is_known_now(api: ApiDriver) -> None:
    begun = api.assign("t1", "p1")
    assert api.checked(("t1", "p1"), known_at=ahead(30)) == [True]
    assert list(api.send("ListAssignments", known_at=ahead(30)).assignments) == [begun]
    for rpc, fields in KNOWN:
        found = refused(api.send, rpc, known_at=ahead(120), **fields)
        assert (found.reason, found.fields) == ("INVALID_FIELD", ["known_at"])


def test_a_time_before_all_versions_were_kept_is_rejected(server: CaseloadServer, api: ApiDriver) -> None:
    begun = api.assign("t1", "p1")
    complete_us = begun.update_time.ToMicroseconds()
    sql = "UPDATE store SET versions_revision = head_revision, versions_us = :complete_us"
    run(server.store, sql, {"complete_us": complete_us})
    for rpc, fields in KNOWN:
        found = refused(api.send, rpc, known_at=at(0), **fields)
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "VERSIONS_NOT_KEPT")
        oldest = datetime.fromisoformat(found.metadata["oldest_time"])
        assert found.metadata["oldest_time"].endswith("Z")
        assert oldest == begun.update_time.ToDatetime(oldest.tzinfo)
        api.send(rpc, known_at=begun.update_time, **fields)
    page = versions(api, "Patient", patient_id="p1")
    assert (page.oldest_revision, page.oldest_time) == (api.head(), begun.update_time)
