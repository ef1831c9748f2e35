"""Assign and Unassign behave the same from the therapist's side and the patient's side."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.rpc.server import build_server
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.client_calls import SIDES, T0, Side, covers, refused
from tests.conftest import NewDatabase
from tests.support.servers import NO_LOG, Client, refusal

ONE = "0190a3c4-0000-7000-8000-000000000001"
PRIMARY, TREATING, SUPERVISING, COVERING = 1, 2, 3, 4
ACTIVE, ENDED = 1, 2
PATIENT_REQUEST, ENTERED_IN_ERROR, REPLACED = 3, 5, 7


@covers("Assign{A}Request.therapist_id", "Assign{A}Request.patient_id")
def test_assign_starts_an_active_period_now(side: Side) -> None:
    before = time.time()
    answer = side.assign()
    period = answer.assignment
    assert answer.created
    assert (period.therapist_id, period.patient_id, period.role, period.state) == ("t1", "p1", TREATING, ACTIVE)
    assert before - 1 <= period.start_time.seconds <= time.time()
    assert period.start_time == period.create_time == period.update_time
    assert (period.created_by, period.ended_by, period.end_reason) == ("local", "", 0)
    assert not period.HasField("end_time")
    assert answer.revision == side.head()
    assert side.page().entries[0].assignment == period


def test_a_repeated_assign_returns_the_first_assignment(side: Side) -> None:
    first = side.assign(focus="anxiety")
    again = side.assign(focus="anxiety", role=TREATING, replace=True, ignore_capacity=True)
    assert not again.created
    assert (again.assignment, again.revision) == (first.assignment, first.revision)


@covers("Assign{A}Request.role")
@pytest.mark.parametrize("role", [PRIMARY, TREATING, SUPERVISING, COVERING])
def test_assign_stores_the_role_and_rejects_a_different_one(side: Side, role: int) -> None:
    assert side.assign(role=role).assignment.role == role
    found = refused(side.assign, role=role % 4 + 1)
    assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ASSIGNMENT_DIFFERS")


@covers("Assign{A}Request.focus")
def test_assign_stores_the_focus_and_rejects_a_different_one(side: Side) -> None:
    assert side.assign(focus="knee-rehabilitation").assignment.focus == "knee-rehabilitation"
    assert refused(side.assign).reason == "ASSIGNMENT_DIFFERS"


@covers("Assign{A}Request.start_time")
def test_assign_truncates_start_time_to_microseconds_and_rejects_a_different_one(side: Side) -> None:
    start = {"seconds": T0, "nanos": 123_456_789}
    period = side.assign(start_time=start).assignment
    assert (period.start_time.seconds, period.start_time.nanos) == (T0, 123_456_000)
    assert not side.assign(start_time={**start, "nanos": 123_456_001}).created
    assert refused(side.assign, start_time={"seconds": T0 + 1}).reason == "ASSIGNMENT_DIFFERS"


@covers("Assign{A}Request.replace")
def test_replace_ends_the_current_period_where_the_new_one_starts(side: Side) -> None:
    first = side.assign(start_time={"seconds": T0}).assignment
    second = side.assign(role=SUPERVISING, start_time={"seconds": T0 + 60}, replace=True)
    assert second.created
    assert side.listed() == [second.assignment.assignment_id]
    [ended] = [entry.assignment for entry in side.page(states=[ENDED]).entries]
    assert (ended.assignment_id, ended.end_reason) == (first.assignment_id, REPLACED)
    assert ended.end_time == second.assignment.start_time
    assert getattr(side.mine.get(f"{side.name[0]}1"), side.mine.count) == 1


def test_replace_before_the_start_of_the_current_period_is_rejected(side: Side) -> None:
    first = side.assign(start_time={"seconds": T0}).assignment
    found = refused(side.assign, role=SUPERVISING, start_time={"seconds": T0 - 1}, replace=True)
    assert (found.reason, found.metadata) == ("PERIOD_OVERLAPS", {"assignment_id": first.assignment_id})
    assert side.page().entries[0].assignment == first


@covers("Assign{A}Request.replace_primary")
def test_replace_primary_ends_the_other_primary_period(side: Side) -> None:
    side.therapists.create("t2")
    first = side.assign("t1", role=PRIMARY, start_time={"seconds": T0}).assignment
    found = refused(side.assign, "t2", role=PRIMARY)
    assert (found.reason, found.metadata) == ("PRIMARY_EXISTS", {"therapist_id": "t1"})
    second = side.assign("t2", role=PRIMARY, start_time={"seconds": T0 + 60}, replace_primary=True).assignment
    ended = side.unassign("t1").assignment
    assert (ended.assignment_id, ended.end_reason, ended.end_time) == (
        first.assignment_id,
        REPLACED,
        second.start_time,
    )


@covers("Assign{A}Request.request_id")
def test_assign_with_a_used_request_id_returns_the_first_period_with_its_current_end(side: Side) -> None:
    first = side.assign(request_id=ONE)
    ended = side.unassign().assignment
    again = side.assign(request_id=ONE)
    assert (again.assignment, again.created, again.revision) == (ended, True, first.revision)
    assert side.listed() == []


@covers("Assign{A}Request.validate_only")
def test_assign_with_validate_only_writes_nothing(side: Side) -> None:
    answer = side.assign(validate_only=True)
    assert (answer.created, answer.assignment.assignment_id, answer.revision) == (True, "", "")
    assert answer.assignment.role == TREATING
    assert side.listed() == []
    side.assign()
    assert refused(side.assign, role=PRIMARY, validate_only=True).reason == "ASSIGNMENT_DIFFERS"


def test_a_start_time_up_to_one_minute_ahead_is_accepted(side: Side) -> None:
    assert side.assign(start_time={"seconds": int(time.time()) + 50}).created
    assert refused(side.assign, start_time={"seconds": int(time.time()) + 90}).fields == ["start_time"]


@covers("Unassign{A}Request.therapist_id", "Unassign{A}Request.patient_id")
def test_unassign_ends_the_period_now_and_is_idempotent(side: Side) -> None:
    made = side.assign().assignment
    answer = side.unassign()
    ended = answer.assignment
    assert answer.ended
    assert (ended.assignment_id, ended.state, ended.end_reason) == (made.assignment_id, ENDED, 0)
    assert ended.end_time.ToNanoseconds() > ended.start_time.ToNanoseconds()
    assert ended.ended_by == "local"
    assert ended.etag != made.etag
    again = side.unassign(etag="whatever", end_reason=PATIENT_REQUEST, end_time={"seconds": T0})
    assert (again.assignment, again.ended, again.revision) == (ended, False, answer.revision)


@covers("Unassign{A}Request.end_reason")
@pytest.mark.parametrize("reason", [1, 3, 4, ENTERED_IN_ERROR])
def test_unassign_stores_the_end_reason(side: Side, reason: int) -> None:
    side.assign()
    assert side.unassign(end_reason=reason).assignment.end_reason == reason


@pytest.mark.parametrize("reason", [2, 6, REPLACED])
def test_an_end_reason_reserved_for_the_server_is_rejected(side: Side, reason: int) -> None:
    side.assign()
    assert refused(side.unassign, end_reason=reason).fields == ["end_reason"]


@covers("Unassign{A}Request.end_time")
def test_end_time_is_truncated_to_microseconds_and_must_not_precede_the_start(side: Side) -> None:
    side.assign(start_time={"seconds": T0})
    early = refused(side.unassign, end_time={"seconds": T0 - 1})
    assert (early.reason, early.fields) == ("INVALID_FIELD", ["end_time"])
    assert refused(side.unassign, end_time={"seconds": int(time.time()) + 90}).fields == ["end_time"]
    ended = side.unassign(end_time={"seconds": T0 + 60, "nanos": 999_999_999}).assignment
    assert (ended.end_time.seconds, ended.end_time.nanos) == (T0 + 60, 999_999_000)


def test_the_default_end_time_does_not_precede_a_future_start(side: Side) -> None:
    start = {"seconds": int(time.time()) + 50}
    made = side.assign(start_time=start).assignment
    assert side.unassign().assignment.end_time == made.start_time


@covers("Unassign{A}Request.etag")
def test_unassign_compares_the_etag(side: Side) -> None:
    made = side.assign().assignment
    assert refused(side.unassign, etag="stale").reason == "ETAG_MISMATCH"
    assert side.unassign(etag=made.etag).ended


@covers("Unassign{A}Request.allow_missing")
def test_unassign_of_an_unassigned_pair_requires_allow_missing(side: Side) -> None:
    found = refused(side.unassign)
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "ASSIGNMENT_NOT_FOUND")
    answer = side.unassign(allow_missing=True)
    assert (answer.HasField("assignment"), answer.ended, answer.revision) == (False, False, side.head())
    assert refused(side.unassign, "t1", "unknown", allow_missing=True).reason == "PATIENT_NOT_FOUND"
    assert refused(side.unassign, "unknown", "p1", allow_missing=True).reason == "THERAPIST_NOT_FOUND"


@covers("Unassign{A}Request.request_id")
def test_unassign_with_a_used_request_id_does_not_change_the_new_period(side: Side) -> None:
    side.assign()
    first = side.unassign(request_id=ONE)
    second = side.assign()
    again = side.unassign(request_id=ONE)
    assert (again.assignment, again.ended, again.revision) == (first.assignment, True, first.revision)
    assert side.listed() == [second.assignment.assignment_id]


@covers("Unassign{A}Request.validate_only")
def test_unassign_with_validate_only_writes_nothing(side: Side) -> None:
    made = side.assign().assignment
    answer = side.unassign(validate_only=True)
    assert (answer.ended, answer.assignment.assignment_id, answer.revision) == (True, made.assignment_id, "")
    assert answer.assignment.state == ENDED
    assert side.page().entries[0].assignment == made


def test_one_side_can_end_what_the_other_side_assigned(client: Client) -> None:
    from_therapist, from_patient = (Side(client, kind) for kind in SIDES)
    from_therapist.therapists.create("t1")
    from_patient.patients.create("p1")
    made = from_therapist.assign(focus="anxiety")
    again = from_patient.assign(focus="anxiety")
    assert (again.assignment, again.created) == (made.assignment, False)
    ended = from_patient.unassign()
    repeated = from_therapist.unassign()
    assert (repeated.assignment, repeated.ended) == (ended.assignment, False)
    assert not from_patient.assign(request_id=ONE).assignment.HasField("end_time")
    assert refused(from_therapist.assign, request_id=ONE).reason == "REQUEST_ID_REUSED"


moments = st.none() | st.integers(-120, 120).map(lambda seconds: {"seconds": T0 + seconds})
pairs = st.fixed_dictionaries(
    {"therapist_id": st.sampled_from(["t1", "t2"]), "patient_id": st.sampled_from(["p1", "p2"])}
)
assigns = st.fixed_dictionaries(
    {"role": st.integers(0, 5), "start_time": moments, "focus": st.sampled_from(["", "knee", "No"])}
    | {flag: st.booleans() for flag in ("replace", "replace_primary", "ignore_capacity", "validate_only")}
)
unassigns = st.fixed_dictionaries(
    {"end_reason": st.sampled_from([0, 1, 2, 5]), "end_time": moments, "etag": st.sampled_from(["", "", "stale"])}
    | {flag: st.booleans() for flag in ("allow_missing", "validate_only")}
)
orders = st.tuples(st.just("assign"), pairs, assigns) | st.tuples(st.just("unassign"), pairs, unassigns)


@pytest.mark.slow
@given(st.lists(orders, min_size=4, max_size=16))
@settings(max_examples=8)
def test_both_sides_return_the_same_answers(
    new_database: NewDatabase, story: list[tuple[str, dict[str, str], dict[str, Any]]]
) -> None:
    answers = []
    for kind in SIDES:
        with new_database() as url, _stopped_clock(url) as client:
            side = Side(client, kind)
            for one in ("1", "2"):
                side.therapists.create(f"t{one}", max_active_patients=1)
                side.patients.create(f"p{one}")
            answers.append([_comparable(getattr(side, verb), **pair, **fields) for verb, pair, fields in story])
    assert answers[0] == answers[1]


@contextmanager
def _stopped_clock(url: str) -> Iterator[Client]:
    """A server whose clock always says T0, so that two runs can be compared."""
    server = build_server(
        Config("127.0.0.1:0", url, threads=4, drain_seconds=0, access_log=NO_LOG), lambda: T0 * 1_000_000
    )
    server.start()
    client = Client(server.address)
    yield client
    client.close()
    server.stop()


def _comparable(call: Any, **fields: Any) -> object:
    """The response of a call, without values that differ between stores."""
    try:
        answer = call(**fields)
    except grpc.RpcError as error:
        found = refusal(error)
        known = {key: value for key, value in found.metadata.items() if key != "assignment_id"}
        return found.code, found.reason, found.message, known, found.fields
    for made in ("assignment_id", "etag"):
        answer.assignment.ClearField(made)
    fields_of = {field.name: value for field, value in answer.ListFields()}
    return fields_of | {"revision": answer.revision.rpartition(".")[2]}  # the number, without the store id
