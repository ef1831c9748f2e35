"""UpdateAssignment over the wire: masks, etags, replays and validate_only."""

import itertools
from typing import Any

import grpc
import pytest

from tests.api.client_calls import SOME_ID, covers
from tests.support.api_driver import (
    ACTIVE,
    COMPLETED,
    ENDED,
    ENTERED_IN_ERROR,
    RECORD_DELETED,
    REPLACED,
    SUPERVISING,
    T0,
    TRANSFERRED,
    ApiDriver,
    ahead,
    at,
    new_request_id,
    refused,
)


@covers("UpdateAssignmentRequest.assignment", "Assignment.assignment_id", "Assignment.start_time")
def test_a_correction_without_a_mask_sets_the_populated_fields(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 0, 10, focus="anxiety", end_reason=COMPLETED)
    answer = api.correct(period.assignment_id, start_time=at(5))
    corrected = answer.assignment
    assert corrected.start_time.seconds == T0 + 5
    assert (corrected.focus, corrected.end_time, corrected.end_reason) == ("anxiety", period.end_time, COMPLETED)
    assert corrected == api.get(period.assignment_id)
    assert answer.revision == api.head()


@covers("Assignment.focus")
@pytest.mark.parametrize("mask", [(), ("*",), ("focus",), ("focus", "assignment_id"), ("focus", "focus", "role")])
@pytest.mark.parametrize("state", [ACTIVE, ENDED])
def test_read_modify_write_of_an_assignment_works(api: ApiDriver, state: int, mask: tuple[str, ...]) -> None:
    period = api.assign("t1", "p1", focus="anxiety", start_time=at(0))
    if state == ENDED:
        period = api.unassign("t1", "p1", end_reason=COMPLETED)
    period.focus = "grief"
    answer = api.send("UpdateAssignment", assignment=period, update_mask={"paths": mask})
    assert answer.assignment.etag != period.etag
    assert answer.assignment.update_time.ToNanoseconds() > period.update_time.ToNanoseconds()
    period.etag, period.update_time.seconds, period.update_time.nanos = (
        answer.assignment.etag,
        answer.assignment.update_time.seconds,
        answer.assignment.update_time.nanos,
    )
    assert answer.assignment == period == api.get(period.assignment_id)


@covers("UpdateAssignmentRequest.update_mask")
def test_a_mask_clears_fields_missing_from_the_body(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 0, 10, focus="anxiety", end_reason=COMPLETED)
    corrected = api.correct(period.assignment_id, "focus", "end_reason").assignment
    assert (corrected.focus, corrected.end_reason) == ("", 0)
    assert corrected.end_time == period.end_time


@covers("Assignment.end_time")
def test_a_wildcard_mask_clears_fields_missing_from_the_body(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 0, 10, focus="anxiety", end_reason=COMPLETED)
    corrected = api.correct(period.assignment_id, "*", start_time=at(1), end_time=at(2)).assignment
    assert (corrected.focus, corrected.end_reason, corrected.start_time.seconds) == ("", 0, T0 + 1)


def test_a_correction_truncates_times_to_microseconds(api: ApiDriver) -> None:
    period = api.assign("t1", "p1")
    start = {"seconds": T0, "nanos": 123_456_789}
    corrected = api.correct(period.assignment_id, "start_time", start_time=start).assignment
    assert corrected.start_time.nanos == 123_456_000


def test_a_mask_may_name_only_correctable_fields(api: ApiDriver) -> None:
    period = api.assign("t1", "p1")
    cases = [
        (("nonsense",), "update_mask.paths[0]"),
        (("focus", "state"), "update_mask.paths[1]"),
        (("created_by",), "update_mask.paths[0]"),
        (("ended_by",), "update_mask.paths[0]"),
        (("create_time",), "update_mask.paths[0]"),
        (("update_time",), "update_mask.paths[0]"),
        (("etag",), "update_mask.paths[0]"),
        (("start_time.seconds",), "update_mask.paths[0]"),
        (("",), "update_mask.paths[0]"),
        (("focus", "*"), "update_mask.paths[1]"),
        (("*", "*"), "update_mask.paths[0]"),
    ]
    for mask, field in cases:
        found = refused(api.correct, period.assignment_id, *mask, focus="grief")
        assert (found.reason, found.fields[:1]) == ("INVALID_FIELD", [field])
        assert api.get(period.assignment_id) == period


@covers("Assignment.therapist_id", "Assignment.patient_id", "Assignment.role")
def test_a_field_that_cannot_be_corrected_is_rejected_with_its_path(api: ApiDriver) -> None:
    periods = {ACTIVE: api.assign("t1", "p1", start_time=at(0)), ENDED: api.period("t2", "p2", 0, 10)}
    head = api.head()
    cases: list[tuple[int, str, Any]] = [
        (ACTIVE, "therapist_id", "t2"),
        (ACTIVE, "patient_id", "p2"),
        (ENDED, "role", SUPERVISING),
        (ACTIVE, "focus", "Not Kebab"),
        (ACTIVE, "focus", "a" * 65),
        (ACTIVE, "start_time", ahead(300)),
        (ACTIVE, "start_time", {"seconds": -(10**12)}),
        (ACTIVE, "end_time", at(5)),
        (ACTIVE, "end_reason", COMPLETED),
        (ENDED, "end_time", at(-1)),
        (ENDED, "end_time", ahead(300)),
        (ENDED, "end_reason", TRANSFERRED),
        (ENDED, "end_reason", RECORD_DELETED),
        (ENDED, "end_reason", REPLACED),
        (ENDED, "end_reason", 99),
    ]
    for (state, field, value), mask in itertools.product(cases, (False, True)):
        period = periods[state]
        found = refused(api.correct, period.assignment_id, *([field] if mask else []), **{field: value})
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert found.fields == [f"assignment.{field}"]
        assert api.get(period.assignment_id) == period
    assert api.head() == head


def test_a_mask_cannot_clear_a_required_field(api: ApiDriver) -> None:
    periods = {ACTIVE: api.assign("t1", "p1", start_time=at(0)), ENDED: api.period("t2", "p2", 0, 10)}
    for state in (ACTIVE, ENDED):
        for field in ("start_time", "therapist_id", "patient_id", "role", *(["end_time"] if state == ENDED else [])):
            found = refused(api.correct, periods[state].assignment_id, field)
            assert (found.reason, found.fields) == ("INVALID_FIELD", [f"assignment.{field}"])


def test_start_time_must_not_be_after_end_time(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 0, 10)
    found = refused(api.correct, period.assignment_id, start_time=at(11))
    assert (found.reason, found.fields) == ("INVALID_FIELD", ["assignment.end_time"])
    assert api.correct(period.assignment_id, start_time=at(10)).assignment.start_time.seconds == T0 + 10


@covers("Assignment.end_reason")
def test_a_reserved_end_reason_can_be_kept_or_replaced(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    api.assign("t1", "p1", role=SUPERVISING, replace=True, start_time=at(5))
    [period] = api.listed(states=[ENDED])
    kept = api.correct(period.assignment_id, "focus", "end_reason", focus="grief", end_reason=REPLACED)
    assert kept.assignment.end_reason == REPLACED
    assert api.correct(period.assignment_id, end_reason=COMPLETED).assignment.end_reason == COMPLETED


def test_a_correction_without_its_required_fields_is_rejected(api: ApiDriver) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["assignment"]),
        ({"assignment": {"focus": "grief"}}, ["assignment.assignment_id"]),
        ({"assignment": {"assignment_id": "No"}}, ["assignment.assignment_id"]),
        ({"assignment": {"assignment_id": SOME_ID}, "request_id": "1"}, ["request_id"]),
    ]
    for sent, fields in cases:
        found = refused(api.send, "UpdateAssignment", **sent)
        assert (found.reason, found.fields) == ("INVALID_FIELD", fields)


@covers("Assignment.etag")
def test_a_stale_etag_is_rejected_even_when_nothing_would_change(api: ApiDriver) -> None:
    period = api.assign("t1", "p1", focus="anxiety")
    api.correct(period.assignment_id, focus="grief", etag=period.etag)
    for focus in ("grief", "anxiety"):
        found = refused(api.correct, period.assignment_id, focus=focus, etag=period.etag)
        assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


def test_a_correction_changes_only_its_own_etag(api: ApiDriver) -> None:
    period = api.assign("t1", "p1")
    before = (api.send("GetTherapist", therapist_id="t1"), api.send("GetPatient", patient_id="p1"))
    api.correct(period.assignment_id, focus="grief", start_time=at(0))
    assert (api.send("GetTherapist", therapist_id="t1"), api.send("GetPatient", patient_id="p1")) == before


def test_a_correction_that_changes_nothing_writes_nothing(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 0, 10, focus="anxiety", end_reason=COMPLETED)
    head = api.head()
    for mask in ((), ("*",), ("focus", "start_time"), ("assignment_id",)):
        answer = api.send("UpdateAssignment", assignment=period, update_mask={"paths": mask})
        assert (answer.assignment, answer.revision) == (period, head)
    assert api.head() == head


@covers("UpdateAssignmentRequest.request_id")
def test_a_replayed_correction_returns_the_current_assignment(api: ApiDriver) -> None:
    period = api.assign("t1", "p1", focus="anxiety")
    call = {"request_id": new_request_id()}
    first = api.correct(period.assignment_id, focus="grief", etag=period.etag, call=call)
    assert api.correct(period.assignment_id, focus="grief", etag=period.etag, call=call) == first
    later = api.correct(period.assignment_id, focus="sleep").assignment
    head = api.head()
    again = api.correct(period.assignment_id, focus="grief", etag=period.etag, call=call)
    assert (again.assignment, again.revision) == (later, first.revision)
    assert api.head() == head
    assert refused(api.correct, period.assignment_id, focus="other", call=call).reason == "REQUEST_ID_REUSED"


@covers("UpdateAssignmentRequest.validate_only")
def test_a_correction_with_validate_only_returns_the_result_and_writes_nothing(api: ApiDriver) -> None:
    period = api.assign("t1", "p1", focus="anxiety")
    head = api.head()
    call = {"validate_only": True, "request_id": new_request_id()}
    answer = api.correct(period.assignment_id, focus="grief", call=call)
    assert (answer.assignment.focus, answer.assignment.etag, answer.revision) == ("grief", "", "")
    assert answer.assignment.assignment_id == period.assignment_id
    assert refused(api.correct, period.assignment_id, end_time=at(0), call=call).reason == "INVALID_FIELD"
    assert refused(api.correct, SOME_ID, focus="grief", call=call).reason == "ASSIGNMENT_NOT_FOUND"
    assert (api.get(period.assignment_id), api.head()) == (period, head)
    del call["validate_only"]
    assert api.correct(period.assignment_id, focus="grief", call=call).assignment.focus == "grief"


def test_as_of_reads_use_the_corrected_history(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 100, 200)
    assert api.checked(("t1", "p1"), as_of_time=at(150)) == [True]
    api.correct(period.assignment_id, "end_reason", end_reason=ENTERED_IN_ERROR)
    assert api.checked(("t1", "p1"), as_of_time=at(150)) == [False]
