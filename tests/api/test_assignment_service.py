"""GetAssignment, ListAssignments and CheckAssignments over the wire."""

import itertools
from collections.abc import Iterator
from typing import Any

import grpc

from tests.api.client_calls import SOME_ID, covers
from tests.support.api_driver import (
    ACTIVE,
    COMPLETED,
    COVERING,
    ENDED,
    ENTERED_IN_ERROR,
    PRIMARY,
    SUPERVISING,
    TREATING,
    ApiDriver,
    ahead,
    at,
    refused,
)


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
def test_check_accepts_a_past_time_and_rejects_one_far_ahead(api: ApiDriver) -> None:
    api.period("t1", "p1", 0, 10)
    api.assign("t1", "p1", start_time=at(20), role=SUPERVISING)
    expected = {-1: False, 0: True, 9.999999: True, 10: False, 19.999999: False, 20: True}
    for seconds, assigned in expected.items():
        assert api.checked(("t1", "p1"), as_of_time=at(seconds)) == [assigned], seconds
    found = refused(api.checked, ("t1", "p1"), as_of_time=ahead(3600))
    assert (found.reason, found.fields) == ("INVALID_FIELD", ["as_of_time"])


def test_check_of_a_deleted_record_is_false_now_and_true_for_the_past(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    api.assign("t2", "p1", start_time=at(0))
    api.send("DeletePatient", patient_id="p1", force=True)
    assert api.checked(("t1", "p1"), ("t2", "p1")) == [False, False]
    assert api.checked(("t1", "p1"), ("t2", "p1"), as_of_time=at(5)) == [True, True]
