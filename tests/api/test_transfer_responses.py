"""TransferPatients over the wire; tests/store/test_transfers.py tests its rules."""

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api.client_calls import covers
from tests.support.api_driver import (
    ACTIVE,
    COVERING,
    PRIMARY,
    T0,
    TRANSFERRED,
    ApiDriver,
    ahead,
    at,
    new_request_id,
    refused,
)


@covers("TransferPatientsRequest.source_therapist_id", "TransferPatientsRequest.target_therapist_id")
def test_a_transfer_keeps_roles_and_focus(api: ApiDriver) -> None:
    api.assign("t1", "p1", role=PRIMARY, focus="anxiety", start_time=at(0))
    api.assign("t1", "p2", role=COVERING)
    api.assign("t3", "p3")
    answer = api.transfer("t1", "t2")
    assert [(one.patient_id, one.role, one.focus, one.state) for one in answer.active] == [
        ("p1", PRIMARY, "anxiety", ACTIVE),
        ("p2", COVERING, "", ACTIVE),
    ]
    assert [(one.patient_id, one.end_reason, one.ended_by) for one in answer.ended] == [
        ("p1", TRANSFERRED, "local"),
        ("p2", TRANSFERRED, "local"),
    ]
    assert {one.therapist_id for one in answer.active} == {"t2"}
    assert [one.end_time for one in answer.ended] == [one.start_time for one in answer.active]
    assert (answer.revision, api.listed(therapist_id="t1")) == (api.head(), [])
    assert api.listed(therapist_id="t2") == list(answer.active)


def test_an_invalid_transfer_is_rejected_with_its_field_path(api: ApiDriver) -> None:
    api.assign("t1", "p1")
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"request_id": ""}, ["request_id"]),
        ({"request_id": "not a uuid"}, ["request_id"]),
        ({"source_therapist_id": ""}, ["source_therapist_id"]),
        ({"target_therapist_id": ""}, ["target_therapist_id"]),
        ({"source_therapist_id": "T"}, ["source_therapist_id"]),
        ({"target_therapist_id": "t1"}, ["target_therapist_id"]),
        ({"patient_ids": ["p1", "", "p 2"]}, ["patient_ids[1]", "patient_ids[2]"]),
        ({"patient_ids": ["p1"] * 1001}, ["patient_ids"]),
    ]
    for sent, fields in cases:
        order = {"source_therapist_id": "t1", "target_therapist_id": "t2", "request_id": new_request_id(), **sent}
        found = refused(api.send, "TransferPatients", **order)
        assert (found.code, found.reason, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields)


@covers("TransferPatientsRequest.request_id")
def test_a_replayed_transfer_returns_the_first_answer(api: ApiDriver) -> None:
    for patient_id in ("p1", "p2"):
        api.assign("t1", patient_id)
    request_id = new_request_id()
    first = api.transfer(request_id=request_id)
    api.assign("t1", "p3")
    assert api.transfer(request_id=request_id.upper()) == first
    found = refused(api.transfer, "t1", "t3", request_id=request_id)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert refused(api.transfer, ignore_capacity=True, request_id=request_id).reason == "REQUEST_ID_REUSED"
    assert [one.patient_id for one in api.listed(therapist_id="t1")] == ["p3"]


@covers("TransferPatientsRequest.validate_only")
def test_a_transfer_with_validate_only_returns_the_result(api: ApiDriver) -> None:
    moved = api.assign("t1", "p1", focus="anxiety")
    head = api.head()
    answer = api.transfer(validate_only=True)
    [ended], [active] = answer.ended, answer.active
    assert (ended.assignment_id, ended.end_reason, ended.etag) == (moved.assignment_id, TRANSFERRED, "")
    assert (active.assignment_id, active.etag, active.therapist_id) == ("", "", "t2")
    assert (active.patient_id, active.focus, answer.revision) == ("p1", "anxiety", "")
    assert (api.head(), api.listed()) == (head, [moved])


@covers("TransferPatientsRequest.effective_time")
def test_a_transfer_takes_effect_at_a_time_in_the_past(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    precise = {"seconds": T0 + 60, "nanos": 999}
    validated = api.transfer(validate_only=True, effective_time=precise)
    assert [one.end_time.ToSeconds() for one in validated.ended] == [T0 + 60]
    request_id = new_request_id()
    answer = api.transfer(effective_time=precise, request_id=request_id)
    [ended], [active] = answer.ended, answer.active
    assert ended.end_time == active.start_time == Timestamp(seconds=T0 + 60)
    pairs = [("t1", "p1"), ("t2", "p1")]
    assert api.checked(*pairs, as_of_time=at(59.999999)) == [True, False]
    assert api.checked(*pairs, as_of_time=at(60)) == [False, True]
    assert api.transfer(effective_time=precise, request_id=request_id) == answer
    assert refused(api.transfer, request_id=request_id).reason == "REQUEST_ID_REUSED"


def test_an_effective_time_in_the_future_or_before_a_moved_period_is_rejected(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    api.assign("t1", "p2", start_time=at(1))
    for time in (ahead(120), at(-1), at(0.999999)):
        found = refused(api.transfer, effective_time=time)
        assert (found.reason, found.fields) == ("INVALID_FIELD", ["effective_time"])
    assert api.transfer("t1", "t2", "p1", effective_time=at(0)).ended
    assert api.transfer("t1", "t2", "p2", effective_time=ahead(30)).ended


def test_a_transfer_names_the_period_of_the_target_in_the_way(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0), role=PRIMARY)
    other = api.period("t2", "p1", 10, 20)
    found = refused(api.transfer, effective_time=at(5))
    assert (found.reason, found.metadata) == ("PERIOD_OVERLAPS", {"assignment_id": other.assignment_id})
    assert api.transfer(effective_time=at(20)).ended
