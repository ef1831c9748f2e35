"""AssignmentService over the wire."""

import itertools
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.api.client_calls import covers
from tests.support.api_driver import (
    ACTIVE,
    COMPLETED,
    COVERING,
    ENDED,
    ENTERED_IN_ERROR,
    PRIMARY,
    RECORD_DELETED,
    REPLACED,
    SUPERVISING,
    T0,
    TRANSFERRED,
    TREATING,
    ApiDriver,
    ahead,
    at,
    new_request_id,
    refused,
)

SOME_ID = "0190a3c4-0000-7000-8000-000000000001"


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    """Therapists t1 to t3 and patients p1 to p3."""
    with ApiDriver(server.address) as opened:
        opened.therapists("t1", "t2", "t3")
        opened.patients("p1", "p2", "p3")
        yield opened


def ids(assignments: Any) -> list[str]:
    return [one.assignment_id for one in assignments]


@covers("GetAssignmentRequest.assignment_id")
def test_get_returns_an_active_or_ended_assignment_by_id(api: ApiDriver) -> None:
    active = api.assign("t1", "p1", focus="anxiety")
    assert api.get(active.assignment_id) == active
    ended = api.unassign("t1", "p1", end_reason=COMPLETED)
    assert api.get(active.assignment_id) == ended
    assert (ended.state, ended.end_reason, ended.ended_by) == (ENDED, COMPLETED, "local")


def test_a_malformed_assignment_id_is_rejected_with_its_field_path(api: ApiDriver) -> None:
    for sent in ("", "No id"):
        found = refused(api.get, sent)
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert found.fields == ["assignment_id"]


def test_an_unknown_assignment_id_is_not_found_and_named(api: ApiDriver) -> None:
    for found in (refused(api.get, SOME_ID), refused(api.correct, SOME_ID, focus="anxiety")):
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "ASSIGNMENT_NOT_FOUND")
        info = found.details["ResourceInfo"]
        assert (info.resource_type, info.resource_name) == ("caseload.v1.Assignment", SOME_ID)


@covers(
    "ListAssignmentsRequest.filter",
    "AssignmentFilter.therapist_id",
    "AssignmentFilter.patient_id",
    "AssignmentFilter.roles",
)
def test_list_filters_are_combined_with_and(api: ApiDriver) -> None:
    a = api.assign("t1", "p1", role=PRIMARY).assignment_id
    b = api.assign("t1", "p2", role=SUPERVISING).assignment_id
    c = api.assign("t2", "p1", role=COVERING).assignment_id
    assert ids(api.listed()) == [a, b, c]
    assert ids(api.listed(therapist_id="t1")) == [a, b]
    assert ids(api.listed(patient_id="p1")) == [a, c]
    assert ids(api.listed(therapist_id="t1", patient_id="p1")) == [a]
    assert ids(api.listed(roles=[PRIMARY, COVERING])) == [a, c]
    assert ids(api.listed(roles=[PRIMARY, COVERING], patient_id="p1", therapist_id="t2")) == [c]
    assert api.listed(therapist_id="unknown") == api.listed(patient_id="unknown") == []


@covers("AssignmentFilter.states")
def test_a_list_without_states_returns_active_assignments(api: ApiDriver) -> None:
    ended = api.period("t1", "p1", 0, 10).assignment_id
    active = api.assign("t1", "p1").assignment_id
    assert ids(api.listed()) == ids(api.listed(states=[ACTIVE])) == [active]
    assert ids(api.listed(states=[ENDED])) == [ended]
    assert ids(api.listed(states=[ENDED, ACTIVE])) == ids(api.listed(states=[1, 2, 2])) == [ended, active]


@covers("AssignmentFilter.as_of_time")
def test_a_list_as_of_a_time_returns_assignments_in_force_then(api: ApiDriver) -> None:
    first = api.period("t1", "p1", 0, 10, end_reason=COMPLETED).assignment_id
    second = api.period("t1", "p1", 10, 20).assignment_id
    api.period("t2", "p1", 0, 20, end_reason=ENTERED_IN_ERROR)
    third = api.assign("t1", "p1", start_time=at(30)).assignment_id
    expected = {-0.001: [], 0: [first], 9.999: [first], 10: [second], 20: [], 29.9: [], 30: [third], 99: [third]}
    for seconds, found in expected.items():
        assert ids(api.listed(as_of_time=at(seconds))) == found, seconds
    assert ids(api.listed(as_of_time=at(5), therapist_id="t2")) == []


def test_a_period_that_ends_a_few_seconds_ahead_is_ended_and_still_in_force(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    period = api.unassign("t1", "p1", end_time=ahead(40))
    assert period.state == ENDED
    assert api.checked(("t1", "p1")) == [True]
    assert api.listed() == []
    assert api.listed(as_of_time=ahead(-1)) == [period]


def test_a_period_that_starts_a_few_seconds_ahead_is_active_and_not_in_force(api: ApiDriver) -> None:
    period = api.assign("t1", "p1", start_time=ahead(40))
    assert api.listed() == [period]
    assert api.checked(("t1", "p1")) == [False]


def test_an_invalid_filter_is_rejected_with_its_field_path(api: ApiDriver) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"therapist_id": "No id"}, ["filter.therapist_id"]),
        ({"patient_id": "-"}, ["filter.patient_id"]),
        ({"roles": [1, 0]}, ["filter.roles[1]"]),
        ({"roles": [99]}, ["filter.roles[0]"]),
        ({"states": [0]}, ["filter.states[0]"]),
        ({"states": [3]}, ["filter.states[0]"]),
        ({"as_of_time": ahead(3600)}, ["filter.as_of_time"]),
        ({"as_of_time": {"nanos": -1}}, ["filter.as_of_time"]),
        ({"as_of_time": at(0), "states": [ACTIVE]}, ["filter.as_of_time"]),
        ({"therapist_id": "A", "roles": [7]}, ["filter.therapist_id", "filter.roles[0]"]),
    ]
    for filters, fields in cases:
        found = refused(api.listed, **filters)
        assert (found.reason, found.fields) == ("INVALID_FIELD", fields)


def pages(api: ApiDriver, size: int, **filters: Any) -> Iterator[list[str]]:
    token = ""
    while True:
        page = api.send("ListAssignments", page_size=size, page_token=token, filter=filters)
        yield ids(page.assignments)
        token = page.next_page_token
        if not token:
            return


def test_pages_contain_every_assignment_once_and_in_order(api: ApiDriver) -> None:
    made = [api.assign(t, p).assignment_id for t in ("t1", "t2", "t3") for p in ("p1", "p2", "p3")]
    for size in (1, 2, 3, 4, 9, 10):
        assert list(pages(api, size)) == [made[n : n + size] for n in range(0, 9, size)]
    assert list(pages(api, 2, therapist_id="t2")) == [made[3:5], made[5:6]]


def test_paging_returns_each_matching_assignment_once_despite_concurrent_writes(api: ApiDriver) -> None:
    made = [api.assign("t1", p).assignment_id for p in ("p1", "p2", "p3")]
    walk = pages(api, 1)
    assert next(walk) == made[:1]
    api.unassign("t1", "p1")
    api.unassign("t1", "p2")
    late = api.assign("t2", "p1").assignment_id
    assert list(walk) == [made[2:], [late]]


def test_the_default_page_size_of_assignments_is_50(api: ApiDriver) -> None:
    api.patients(*(f"q{n}" for n in range(52)))
    for n in range(52):
        api.assign("t1", f"q{n}")
    first = api.send("ListAssignments")
    second = api.send("ListAssignments", page_token=first.next_page_token, page_size=1)
    assert (len(first.assignments), len(second.assignments)) == (50, 1)
    assert second.next_page_token
    assert refused(api.send, "ListAssignments", page_size=-1).fields == ["page_size"]


def test_a_page_token_is_valid_only_for_its_own_list(api: ApiDriver) -> None:
    for patient_id in ("p1", "p2"):
        api.assign("t1", patient_id)
    token = api.send("ListAssignments", page_size=1).next_page_token
    narrower = {"therapist_id": "t1"}
    assert refused(api.send, "ListAssignments", page_token=token, filter=narrower).reason == "PAGE_TOKEN_MISMATCH"
    other = api.send("ListTherapistPatients", therapist_id="t1", page_size=1).next_page_token
    assert refused(api.send, "ListAssignments", page_token=other).reason == "PAGE_TOKEN_MISMATCH"
    other_start = "B" if token.startswith("A") else "A"
    for damaged in (token[:-1], other_start + token[1:], "é", "====", f"{token}AAAA"):
        found = refused(api.send, "ListAssignments", page_token=damaged)
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


def test_a_list_returns_the_revision_it_was_read_at(api: ApiDriver) -> None:
    api.assign("t1", "p1")
    assert api.send("ListAssignments").revision == api.head()


# --- corrections


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


GEOMETRY = {
    "before": (0, 50, False),
    "up to its start": (0, 100, False),
    "a moment into its start": (0, 100.000001, True),
    "over its start": (50, 150, True),
    "the same": (100, 200, True),
    "inside": (120, 180, True),
    "from its start": (100, 150, True),
    "to its end": (150, 200, True),
    "around": (50, 250, True),
    "over its end": (150, 250, True),
    "a moment before its end": (199.999999, 250, True),
    "from its end": (200, 250, False),
    "after": (250, 280, False),
    "empty inside": (150, 150, False),
    "empty at its start": (100, 100, False),
    "empty at its end": (200, 200, False),
}
"""The corrected period (start, end) next to one from 100 to 200, and whether the two overlap."""
NEIGHBOURS = {
    "of the pair": ({"therapist": "t1", "role": TREATING}, TREATING, True),
    "primary, of another therapist": ({"therapist": "t2", "role": PRIMARY}, PRIMARY, True),
    "primary, beside one that is not": ({"therapist": "t2", "role": PRIMARY}, TREATING, False),
    "of another therapist": ({"therapist": "t2", "role": TREATING}, PRIMARY, False),
    "of another patient": ({"therapist": "t1", "role": PRIMARY, "patient": "p2"}, PRIMARY, False),
    "in error": ({"therapist": "t1", "role": PRIMARY, "end_reason": ENTERED_IN_ERROR}, PRIMARY, False),
}


def corrected(api: ApiDriver, period: Any, start: float, end: float, *, refused_for: Any = None) -> None:
    """Corrects a period to these times. Asserts the rejection and the unchanged period if it overlaps."""
    fields = {"start_time": at(start), "end_time": at(end)}
    if refused_for is None:
        api.correct(period.assignment_id, **fields)
        return
    found = refused(api.correct, period.assignment_id, **fields)
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERIOD_OVERLAPS")
    assert found.metadata == {"assignment_id": refused_for.assignment_id}
    assert api.get(period.assignment_id) == period


@pytest.mark.parametrize(("neighbour", "role", "rivals"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_a_corrected_period_never_overlaps_a_period_of_the_pair_or_a_primary_period(
    api: ApiDriver, neighbour: dict[str, Any], role: int, *, rivals: bool
) -> None:
    fields = dict(neighbour)
    therapist_id, patient_id = fields.pop("therapist"), fields.pop("patient", "p1")
    there = api.period(therapist_id, patient_id, 100, 200, **fields)
    for start, end, overlaps in GEOMETRY.values():
        period = api.period("t1", "p1", 300, 400, role=role)
        corrected(api, period, start, end, refused_for=there if overlaps and rivals else None)
        api.correct(period.assignment_id, end_reason=ENTERED_IN_ERROR)  # so that it does not overlap the next case


@pytest.mark.parametrize(("therapist_id", "role"), [("t1", TREATING), ("t2", PRIMARY)], ids=["pair", "primary"])
def test_an_empty_period_overlaps_nothing(api: ApiDriver, therapist_id: str, role: int) -> None:
    api.period(therapist_id, "p1", 150, 150, role=role)
    period = api.period("t1", "p1", 300, 400, role=role)
    for start, end, _ in GEOMETRY.values():
        corrected(api, period, start, end)


@pytest.mark.parametrize(("therapist_id", "role"), [("t1", TREATING), ("t2", PRIMARY)], ids=["pair", "primary"])
def test_a_period_entered_in_error_may_overlap_until_it_is_reinstated(
    api: ApiDriver, therapist_id: str, role: int
) -> None:
    there = api.period(therapist_id, "p1", 100, 200, role=role)
    period = api.period("t1", "p1", 300, 400, role=role, end_reason=ENTERED_IN_ERROR)
    for start, end, overlaps in GEOMETRY.values():
        corrected(api, period, start, end)
        if overlaps:
            found = refused(api.correct, period.assignment_id, "end_reason", end_reason=COMPLETED)
            assert (found.reason, found.metadata["assignment_id"]) == ("PERIOD_OVERLAPS", there.assignment_id)


@pytest.mark.parametrize(("therapist_id", "role"), [("t1", TREATING), ("t2", PRIMARY)], ids=["pair", "primary"])
def test_an_active_period_has_no_end_to_overlap(api: ApiDriver, therapist_id: str, role: int) -> None:
    before = api.period("t1", "p1", 0, 50, role=role)
    active = api.assign(therapist_id, "p1", start_time=at(100), role=role)
    corrected(api, before, 0, 100)
    before = api.get(before.assignment_id)
    corrected(api, before, 0, 100.000001, refused_for=active)
    corrected(api, before, 200, 300, refused_for=active)
    found = refused(api.correct, active.assignment_id, start_time=at(99))
    assert (found.reason, found.metadata["assignment_id"]) == ("PERIOD_OVERLAPS", before.assignment_id)
    api.correct(before.assignment_id, end_time=at(20))
    assert api.correct(active.assignment_id, start_time=at(20)).assignment.start_time.seconds == T0 + 20


def test_as_of_reads_use_the_corrected_history(api: ApiDriver) -> None:
    period = api.period("t1", "p1", 100, 200)
    assert api.checked(("t1", "p1"), as_of_time=at(150)) == [True]
    api.correct(period.assignment_id, "end_reason", end_reason=ENTERED_IN_ERROR)
    assert api.checked(("t1", "p1"), as_of_time=at(150)) == [False]


# --- CheckAssignments


@covers("CheckAssignmentsRequest.pairs", "Pair.therapist_id", "Pair.patient_id")
def test_check_answers_pairs_in_request_order(api: ApiDriver) -> None:
    a = api.assign("t1", "p1", role=PRIMARY)
    b = api.assign("t2", "p2")
    api.period("t3", "p3", 0, 10)
    pairs = [("t2", "p2"), ("t1", "p2"), ("t1", "p1"), ("unknown", "p1"), ("t1", "unknown"), ("t2", "p2"), ("t3", "p3")]
    asked = [{"therapist_id": therapist_id, "patient_id": patient_id} for therapist_id, patient_id in pairs]
    answer = api.send("CheckAssignments", pairs=asked)
    found = [(one.assigned, one.assignment_id, one.role) for one in answer.results]
    second, no = (True, b.assignment_id, TREATING), (False, "", 0)
    assert found == [second, no, (True, a.assignment_id, PRIMARY), no, no, second, no]
    assert answer.revision == api.head()


def test_check_accepts_at_most_100_pairs(api: ApiDriver) -> None:
    names = [f"x{n}" for n in range(33)]
    api.assign("t2", "p1")
    pairs = [*itertools.product(("t1", "t2", "t3"), names), ("t2", "p1")]
    assert api.checked(*pairs) == [False] * 99 + [True]
    assert refused(api.checked, *pairs, ("t1", "p1")).fields == ["pairs"]
    assert refused(api.checked).fields == ["pairs"]


def test_a_malformed_pair_is_rejected_with_its_index(api: ApiDriver) -> None:
    cases = [
        (("", "p1"), "pairs[1].therapist_id"),
        (("t1", ""), "pairs[1].patient_id"),
        (("T1", "p1"), "pairs[1].therapist_id"),
        (("t1", "p 1"), "pairs[1].patient_id"),
    ]
    for pair, field in cases:
        found = refused(api.checked, ("t1", "p1"), pair)
        assert (found.reason, found.fields) == ("INVALID_FIELD", [field])


@covers("CheckAssignmentsRequest.as_of_time")
def test_check_accepts_a_past_time_and_rejects_a_future_one(api: ApiDriver) -> None:
    api.period("t1", "p1", 0, 10)
    api.assign("t1", "p1", start_time=at(20), role=SUPERVISING)
    expected = {-1: False, 0: True, 9.999999: True, 10: False, 19.999999: False, 20: True}
    for seconds, assigned in expected.items():
        assert api.checked(("t1", "p1"), as_of_time=at(seconds)) == [assigned], seconds
    found = refused(api.checked, ("t1", "p1"), as_of_time=ahead(30))
    assert (found.reason, found.fields) == ("INVALID_FIELD", ["as_of_time"])


def test_check_of_a_deleted_record_is_false_now_and_true_for_the_past(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    api.assign("t2", "p1", start_time=at(0))
    api.send("DeletePatient", patient_id="p1", force=True)
    assert api.checked(("t1", "p1"), ("t2", "p1")) == [False, False]
    assert api.checked(("t1", "p1"), ("t2", "p1"), as_of_time=at(5)) == [True, True]


# --- TransferPatients; tests/store/test_transfers.py tests its rules


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
