"""BatchAssign passes its entries to the store and names the one that is rejected; tests/store has its rules."""

from typing import Any

import grpc

from tests.api.client_calls import covers
from tests.support.api_driver import (
    ACTIVE,
    ENDED,
    PRIMARY,
    REPLACED,
    ApiDriver,
    at,
    new_request_id,
    refused,
)

PAIR: dict[str, Any] = {"therapist_id": "t1", "patient_id": "p1"}
LATER: dict[str, Any] = {"seconds": 4_000_000_000}


def period(start: float, end: float, **fields: Any) -> dict[str, Any]:
    return {**PAIR, "start_time": at(start), "end_time": at(end), **fields}


@covers("BatchAssignRequest.requests")
def test_a_batch_returns_the_assignment_and_the_created_flag_of_each_entry(api: ApiDriver) -> None:
    batch = [
        period(10, 20, role=PRIMARY, focus="grief", end_reason=1),
        period(0, 10),
        {**PAIR, "patient_id": "p2"},
        {**PAIR, "patient_id": "p2"},
        {**PAIR, "patient_id": "p2", "role": PRIMARY, "replace": True},
    ]
    answer = api.send("BatchAssign", requests=batch)
    assert [result.created for result in answer.results] == [True, True, True, False, True]
    found = [result.assignment for result in answer.results]
    assert [one.state for one in found] == [ENDED, ENDED, ENDED, ENDED, ACTIVE]
    assert (found[0].role, found[0].focus, found[0].end_reason) == (PRIMARY, "grief", 1)
    assert (found[2], found[2].end_reason, found[2].end_time) == (found[3], REPLACED, found[4].start_time)
    assert [api.get(one.assignment_id) for one in found] == found
    assert answer.revision == api.head()
    again = api.send("BatchAssign", requests=batch[:2])
    assert [(result.created, result.assignment) for result in again.results] == [(False, one) for one in found[:2]]
    assert again.revision == answer.revision


def test_a_rejected_entry_is_named_and_nothing_is_written(api: ApiDriver) -> None:
    existing = api.period("t1", "p1", 15, 30)
    before = api.head()
    found = refused(api.send, "BatchAssign", requests=[period(0, 10), period(10, 16)])
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERIOD_OVERLAPS")
    assert found.metadata == {"assignment_id": existing.assignment_id, "index": "1"}
    found = refused(api.send, "BatchAssign", requests=[period(0, 10), {**PAIR, "patient_id": "p9"}])
    assert (found.reason, found.metadata["index"]) == ("PATIENT_NOT_FOUND", "1")
    assert found.details["ResourceInfo"].resource_name == "p9"
    assert api.head() == before


INVALID: list[tuple[list[dict[str, Any]], list[str]]] = [
    ([], ["requests"]),
    ([PAIR] * 101, ["requests"]),
    ([PAIR, {"patient_id": "p1"}], ["requests[1].therapist_id"]),
    ([PAIR] * 7 + [{**PAIR, "start_time": LATER}], ["requests[7].start_time"]),
    ([PAIR, period(5, 4)], ["requests[1].end_time"]),
    ([{**PAIR, "role": 9}, period(0, 1, replace=True)], ["requests[0].role", "requests[1].replace"]),
    ([{**PAIR, "request_id": "0190a3c4-0000-7000-8000-000000000001"}], ["requests[0].request_id"]),
    ([PAIR, {**PAIR, "validate_only": True}], ["requests[1].validate_only"]),
]
"""Entries of a batch, and the fields that the error names."""


def test_an_invalid_entry_is_rejected_with_its_path(api: ApiDriver) -> None:
    for batch, fields in INVALID:
        found = refused(api.send, "BatchAssign", requests=batch)
        assert (found.reason, found.fields) == ("INVALID_FIELD", fields), str(batch)[-60:]


@covers("BatchAssignRequest.request_id")
def test_a_replay_returns_the_result_of_the_first_call(api: ApiDriver) -> None:
    sent = {"requests": [period(n, n + 1) for n in range(100)], "request_id": new_request_id()}
    api.send("BatchAssign", requests=sent["requests"][:50])
    first = api.send("BatchAssign", **sent)
    assert [result.created for result in first.results] == [False] * 50 + [True] * 50
    assert api.send("BatchAssign", **sent) == first
    found = refused(api.send, "BatchAssign", **{**sent, "requests": sent["requests"][:50]})
    assert found.reason == "REQUEST_ID_REUSED"
    assert refused(api.send, "BatchAssign", requests=[PAIR], request_id="x").fields == ["request_id"]


@covers("BatchAssignRequest.validate_only")
def test_validating_a_batch_writes_nothing_and_leaves_generated_values_empty(api: ApiDriver) -> None:
    before = api.head()
    answer = api.send("BatchAssign", requests=[period(0, 1), PAIR], validate_only=True)
    assert [(one.created, one.assignment.assignment_id, one.assignment.etag) for one in answer.results] == [
        (True, "", "")
    ] * 2
    assert [one.assignment.state for one in answer.results] == [ENDED, ACTIVE]
    assert (answer.revision, api.head()) == ("", before)
    assert (
        "index"
        in refused(api.send, "BatchAssign", requests=[{**PAIR, "patient_id": "p9"}], validate_only=True).metadata
    )
