"""A finished period in one call, over the wire and from either side."""

from typing import Any

import grpc

from tests.api.client_calls import SIDES, Side, covers, refused
from tests.support.api_driver import ENDED, PRIMARY, REPLACED, ahead, at

SUPERVISING, COMPLETED, PATIENT_REQUEST = 3, 1, 3
SPAN: dict[str, Any] = {"start_time": at(0), "end_time": at(60)}
LATER: dict[str, Any] = {"seconds": 4_000_000_000}


@covers("Assign{A}Request.end_time", "Assign{A}Request.end_reason")
def test_assign_with_an_end_records_a_finished_period(side: Side) -> None:
    end = {**at(60), "nanos": 123_456_789}
    answer = side.assign(start_time=at(0), end_time=end, end_reason=PATIENT_REQUEST, role=SUPERVISING)
    period = answer.assignment
    assert answer.created
    assert (period.state, period.end_reason, period.role) == (ENDED, PATIENT_REQUEST, SUPERVISING)
    assert (period.end_time.seconds, period.end_time.nanos) == (at(60)["seconds"], 123_456_000)
    assert (period.created_by, period.ended_by) == ("local", "local")
    assert period.update_time == period.create_time
    assert (side.listed(), side.listed(states=[ENDED])) == ([], [period.assignment_id])
    assert answer.revision == side.head()


def test_a_past_period_can_follow_a_present_one(side: Side) -> None:
    active = side.assign(role=PRIMARY, start_time=at(1000)).assignment
    past = side.assign(role=PRIMARY, **SPAN).assignment
    assert side.listed() == [active.assignment_id]
    found = refused(side.assign, start_time=at(900), end_time=at(1001))
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERIOD_OVERLAPS")
    assert found.metadata == {"assignment_id": active.assignment_id}
    found = refused(side.assign, start_time=at(59), end_time=at(61))
    assert found.metadata == {"assignment_id": past.assignment_id}


def test_the_other_side_returns_the_same_finished_period(side: Side) -> None:
    first = side.assign(**SPAN, end_reason=COMPLETED)
    other = Side(side.client, next(kind for kind in SIDES if kind != side.kind))
    again = other.assign(**SPAN, end_reason=COMPLETED)
    assert (again.assignment, again.created, again.revision) == (first.assignment, False, first.revision)


def test_a_replay_returns_the_finished_period(side: Side) -> None:
    sent = {**SPAN, "request_id": "0190a3c4-0000-7000-8000-000000000002"}
    first = side.assign(**sent)
    assert side.assign(**sent) == first
    assert side.assign(**sent, validate_only=True) == type(first)(assignment=first.assignment, created=True)


INVALID: list[tuple[dict[str, Any], list[str]]] = [
    ({"end_time": at(60)}, ["start_time"]),
    ({"start_time": at(61), "end_time": at(60)}, ["end_time"]),
    ({"start_time": at(0), "end_time": LATER}, ["end_time"]),
    ({"start_time": at(0), "end_time": {"nanos": -1}}, ["end_time"]),
    ({"end_reason": COMPLETED}, ["end_reason"]),
    ({**SPAN, "end_reason": REPLACED}, ["end_reason"]),
    ({**SPAN, "end_reason": 8}, ["end_reason"]),
    ({**SPAN, "end_reason": 9}, ["end_reason"]),
    ({**SPAN, "replace": True}, ["replace"]),
    ({**SPAN, "replace_primary": True}, ["replace_primary"]),
    ({**SPAN, "demote_primary": True}, ["demote_primary"]),
    ({**SPAN, "expire_time": LATER}, ["expire_time"]),
    ({**SPAN, "replace": True, "expire_time": LATER}, ["replace", "expire_time"]),
]
"""Fields of a request, and those that the error names."""


def test_an_invalid_finished_period_is_rejected_with_its_fields(side: Side) -> None:
    before = side.head()
    for fields, named in INVALID:
        found = refused(side.assign, **fields)
        assert (found.reason, found.fields) == ("INVALID_FIELD", named), fields
    assert side.head() == before


def test_a_finished_period_may_end_a_few_seconds_ahead_and_have_no_length(side: Side) -> None:
    assert side.assign(start_time=at(0), end_time=ahead(40)).assignment.state == ENDED
    assert side.assign(start_time=at(5), end_time=at(5)).created


def test_capacity_may_be_ignored_beside_an_end(side: Side) -> None:
    assert side.assign(**SPAN, ignore_capacity=True).created
