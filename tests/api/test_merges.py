"""MergePatients and UnmergePatients over the wire; tests/store/test_merges.py tests their rules."""

from typing import Any

import grpc

from tests.api.client_calls import covers
from tests.support.api_driver import MERGED, PRIMARY, TREATING, ApiDriver, new_request_id, refused


def merge(api: ApiDriver, source: str = "p1", target: str = "p2", **fields: Any) -> Any:
    fields.setdefault("request_id", new_request_id())
    return api.send("MergePatients", source_patient_id=source, target_patient_id=target, **fields)


def patient(api: ApiDriver, patient_id: str) -> Any:
    return api.send("GetPatient", patient_id=patient_id).patient


def update(api: ApiDriver, patient_id: str, **fields: Any) -> None:
    api.send("UpdatePatient", patient={"patient_id": patient_id, **fields})


@covers("MergePatientsRequest.source_patient_id", "MergePatientsRequest.target_patient_id")
def test_a_merge_returns_both_records_and_the_moved_assignments(api: ApiDriver) -> None:
    update(api, "p1", email="bob@x.org", identifiers=[{"system": "urn:mrn", "value": "1"}], aliases=["Bo"])
    api.assign("t1", "p1", role=PRIMARY, focus="anxiety")
    api.assign("t2", "p2", role=PRIMARY)
    answer = merge(api)
    assert (answer.source, answer.target) == (patient(api, "p1"), patient(api, "p2"))
    assert answer.source.HasField("delete_time")
    assert (answer.source.merged_into_patient_id, answer.target.merged_into_patient_id) == ("p2", "")
    assert (answer.target.email, list(answer.target.aliases)) == ("bob@x.org", ["Bo"])
    assert [one.value for one in answer.target.identifiers] == ["1"]
    [ended], [active] = answer.ended, answer.active
    assert (ended.end_reason, ended.end_time) == (MERGED, active.start_time)
    assert (active.patient_id, active.role, active.focus, answer.primary_demoted) == ("p2", TREATING, "anxiety", True)
    assert (ended, active) == (api.get(ended.assignment_id), api.get(active.assignment_id))
    assert answer.revision == api.head()
    assert api.checked(("t1", "p1"), ("t2", "p1"), ("t1", "p2"), ("t3", "p1")) == [True, True, True, False]


@covers("MergePatientsRequest.force")
def test_other_birth_dates_need_force(api: ApiDriver) -> None:
    for number in (1, 2):
        update(api, f"p{number}", birth_date={"year": 1990, "month": 1, "day": number})
    found = refused(merge, api)
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BIRTH_DATES_DIFFER")
    assert merge(api, force=True).target.birth_date.day == 2


def test_an_invalid_merge_is_rejected_with_its_field_path(api: ApiDriver) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"request_id": ""}, ["request_id"]),
        ({"request_id": "", "validate_only": True}, ["request_id"]),
        ({"request_id": "not a uuid"}, ["request_id"]),
        ({"source": ""}, ["source_patient_id"]),
        ({"target": "P"}, ["target_patient_id"]),
        ({"target": "p1"}, ["target_patient_id"]),
    ]
    for sent, fields in cases:
        found = refused(merge, api, **sent)
        assert (found.code, found.reason, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields)


@covers("MergePatientsRequest.request_id")
def test_a_replayed_merge_returns_the_first_answer(api: ApiDriver) -> None:
    api.assign("t1", "p1")
    request_id = new_request_id()
    first = merge(api, request_id=request_id)
    assert merge(api, request_id=request_id.upper()) == first
    assert refused(merge, api, "p3", request_id=request_id).reason == "REQUEST_ID_REUSED"
    assert refused(merge, api).reason == "PATIENT_MERGED"


@covers("MergePatientsRequest.validate_only")
def test_a_merge_with_validate_only_shows_everything_that_would_change(api: ApiDriver) -> None:
    moved, head = api.assign("t1", "p1"), api.head()
    answer = merge(api, validate_only=True)
    [ended], [active] = answer.ended, answer.active
    assert (ended.assignment_id, ended.end_reason, ended.etag) == (moved.assignment_id, MERGED, "")
    assert (active.assignment_id, active.patient_id, answer.revision) == ("", "p2", "")
    assert (answer.source.merged_into_patient_id, answer.source.etag, answer.target.etag) == ("p2", "", "")
    assert (api.head(), api.listed()) == (head, [moved])


@covers("UnmergePatientsRequest.source_patient_id")
def test_an_unmerge_returns_both_records(api: ApiDriver) -> None:
    update(api, "p1", identifiers=[{"system": "urn:mrn", "value": "1"}])
    api.assign("t1", "p1")
    merge(api)
    answer = api.send("UnmergePatients", source_patient_id="p1")
    assert (answer.source, answer.target) == (patient(api, "p1"), patient(api, "p2"))
    assert not answer.source.HasField("delete_time")
    assert (answer.source.merged_into_patient_id, len(answer.target.identifiers)) == ("", 0)
    assert answer.revision == api.head()
    assert api.checked(("t1", "p1"), ("t1", "p2")) == [False, True]
    again = api.send("UnmergePatients", source_patient_id="p1")
    assert (again.source, again.HasField("target"), again.revision) == (answer.source, False, answer.revision)


@covers("UnmergePatientsRequest.request_id")
def test_a_replayed_unmerge_returns_the_first_answer(api: ApiDriver) -> None:
    merge(api)
    request_id = new_request_id()
    first = api.send("UnmergePatients", source_patient_id="p1", request_id=request_id)
    merge(api)
    again = api.send("UnmergePatients", source_patient_id="p1", request_id=request_id)
    assert (again.source.merged_into_patient_id, again.target.patient_id) == ("p2", "p2")
    assert again.revision == first.revision
    assert refused(api.send, "UnmergePatients", source_patient_id="P", request_id="x").fields == [
        "request_id",
        "source_patient_id",
    ]


@covers("UnmergePatientsRequest.validate_only")
def test_an_unmerge_with_validate_only_changes_nothing(api: ApiDriver) -> None:
    merge(api)
    head = api.head()
    answer = api.send("UnmergePatients", source_patient_id="p1", validate_only=True)
    assert (answer.source.merged_into_patient_id, answer.target.etag, answer.revision) == ("", "", "")
    assert (api.head(), patient(api, "p1").merged_into_patient_id) == (head, "p2")


def test_the_changes_of_both_calls_are_listed_under_both_ids(api: ApiDriver) -> None:
    start = api.head()
    merge(api)
    api.send("UnmergePatients", source_patient_id="p1")
    for patient_id in ("p1", "p2"):
        found = list(api.log(start, patient_id=patient_id))
        assert [one.method.rpartition("/")[2] for one in found] == ["MergePatients", "UnmergePatients"]
        assert {change.patient_id for one in found for change in one.changes} == {"p1", "p2"}
