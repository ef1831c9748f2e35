"""A scenario for each error reason, and the status that the server must answer with.

Database failures differ by backend: see test_errors.py in tests/store/backends/sqlite/ and in .../postgres/.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import pytest
from grpc import StatusCode

from tests.api.client_calls import T0, People, full_error_text
from tests.api.failing_servers import (
    authenticated_read,
    deadline_exceeded,
    internal,
    internal_in_watch,
    overloaded,
    shutting_down,
    shutting_down_in_watch,
    too_many_watches,
    unlogged,
    watch_too_slow,
)
from tests.api.fault_injection import CANARY, MRN, FaultyServer
from tests.store.store_builders import crowd
from tests.store.store_calls import run
from tests.support.api_driver import new_request_id
from tests.support.servers import Refusal, refusal

ONE = "0190a3c4-0000-7000-8000-000000000001"
PRIMARY = 1


def deleted(people: People, record_id: str) -> None:
    people.delete(record_id, force=True)


def invalid_field(faulty: FaultyServer) -> object:
    return faulty.therapists.create("t2", display_name=f"{CANARY}\x00")


def page_token_invalid(faulty: FaultyServer) -> object:
    return faulty.patients.call("List", page_token=CANARY)


def page_token_mismatch(faulty: FaultyServer) -> object:
    faulty.patients.create("p2")
    token = faulty.patients.call("List", page_size=1).next_page_token
    return faulty.patients.call("List", page_size=1, page_token=token, filter={"name_prefix": CANARY})


def request_id_reused(faulty: FaultyServer) -> object:
    faulty.patients.call("Create", record={"display_name": CANARY}, request_id=ONE)
    return faulty.patients.call("Create", record={"display_name": CANARY * 2}, request_id=ONE)


def identifier_taken(faulty: FaultyServer) -> object:
    return faulty.patients.create("p2", identifiers=[MRN])


def in_a_batch(faulty: FaultyServer, *entries: dict[str, Any]) -> object:
    requests = [{"patient": {"display_name": CANARY, **entry}} for entry in entries]
    return faulty.api.send("BatchCreatePatients", requests=requests)


def assignment_differs(faulty: FaultyServer) -> object:
    faulty.side.assign(focus="canary-zq9")
    return faulty.side.assign(focus="canary-zq9-2")


def therapist_deleted(faulty: FaultyServer) -> object:
    deleted(faulty.therapists, "t1")
    return faulty.side.assign()


def patient_deleted(faulty: FaultyServer) -> object:
    deleted(faulty.patients, "p1")
    return faulty.side.assign()


def therapist_not_active(faulty: FaultyServer) -> object:
    faulty.therapists.update("t1", status=2)
    return faulty.side.assign()


def patient_not_active(faulty: FaultyServer) -> object:
    faulty.patients.update("p1", status=2)
    return faulty.side.assign()


def primary_exists(faulty: FaultyServer) -> object:
    faulty.therapists.create("t2")
    faulty.side.assign("t2", role=PRIMARY)
    return faulty.side.assign(role=PRIMARY)


def therapist_at_capacity(faulty: FaultyServer) -> object:
    faulty.therapists.update("t1", "max_active_patients", max_active_patients=0)
    return faulty.side.assign(focus="canary-zq9")


def has_active_assignments(faulty: FaultyServer) -> object:
    faulty.side.assign()
    return faulty.therapists.delete("t1")


def period_overlaps(faulty: FaultyServer) -> object:
    faulty.side.assign(start_time={"seconds": T0})
    faulty.side.unassign(end_time={"seconds": T0 + 60})
    return faulty.side.assign(start_time={"seconds": T0 + 30})


def therapist_deleted_in_transfer(faulty: FaultyServer) -> object:
    faulty.therapists.create("t2")
    deleted(faulty.therapists, "t2")
    return faulty.api.transfer()


def patient_deleted_in_transfer(faulty: FaultyServer) -> object:
    faulty.therapists.create("t2")
    deleted(faulty.patients, "p1")
    return faulty.api.transfer("t1", "t2", "p1")


def not_with_the_source(faulty: FaultyServer) -> object:
    faulty.therapists.create("t2")
    return faulty.api.transfer("t1", "t2", "p1")


def too_many_assignments(faulty: FaultyServer) -> object:
    crowd(faulty.server.store, "t1", 1001)
    return faulty.therapists.delete("t1", force=True)


def too_many_assignments_in_transfer(faulty: FaultyServer) -> object:
    crowd(faulty.server.store, "t1", 1001)
    faulty.therapists.create("t2")
    return faulty.api.transfer()


def merge(faulty: FaultyServer, **fields: Any) -> object:
    sent = {"source_patient_id": "p2", "target_patient_id": "p1", "request_id": ONE, **fields}
    return faulty.api.send("MergePatients", **sent)


def patient_merged(faulty: FaultyServer) -> object:
    faulty.patients.create("p2")
    merge(faulty)
    return faulty.patients.update("p2", display_name=CANARY)


def patient_merged_in_unmerge(faulty: FaultyServer) -> object:
    faulty.patients.create("p2")
    faulty.patients.create("p3")
    merge(faulty)
    faulty.api.send("MergePatients", source_patient_id="p1", target_patient_id="p3", request_id=new_request_id())
    return faulty.api.send("UnmergePatients", source_patient_id="p2")


def birth_dates_differ(faulty: FaultyServer) -> object:
    for number in (1, 2):
        if number == 2:
            faulty.patients.create("p2")
        faulty.patients.update(f"p{number}", birth_date={"year": 1990, "month": 1, "day": number})
    return merge(faulty)


def merge_too_large(faulty: FaultyServer) -> object:
    faulty.patients.create("p2", aliases=[f"{CANARY} {number}" for number in range(10)])
    faulty.patients.update("p1", aliases=[CANARY])
    return merge(faulty)


def etag_mismatch(faulty: FaultyServer) -> object:
    return faulty.patients.update("p1", display_name=CANARY, etag=CANARY)


def pruned(faulty: FaultyServer) -> str:
    """Returns a revision from before a purge."""
    oldest = str(faulty.api.send("ListChanges").oldest_revision)
    faulty.server.store.purger.purge_changes(time.time_ns() // 1000 + 1)
    return oldest


def versions_not_kept(faulty: FaultyServer) -> object:
    """As where versions are kept since now."""
    run(faulty.server.store, f"UPDATE store SET versions_us = {time.time_ns() // 1000}")
    return faulty.api.send("ListAssignments", known_at={"seconds": T0})


class Expected(NamedTuple):
    """The expected status: its code, its details besides ErrorInfo, and the keys of the ErrorInfo metadata."""

    code: StatusCode
    details: frozenset[str] = frozenset()
    metadata: tuple[str, ...] = ()


Scenario = Callable[[FaultyServer], object]

NONE: frozenset[str] = frozenset()
BAD_FIELD = frozenset({"BadRequest"})
BROKEN_RULE = frozenset({"PreconditionFailure"})
NAMED = frozenset({"ResourceInfo"})
LATER = frozenset({"RetryInfo"})


def failed_precondition(*metadata: str) -> Expected:
    return Expected(StatusCode.FAILED_PRECONDITION, BROKEN_RULE, metadata)


TABLE: dict[str, tuple[Scenario, Expected]] = {
    "INVALID_FIELD": (invalid_field, Expected(StatusCode.INVALID_ARGUMENT, BAD_FIELD)),
    "INVALID_FIELD by watch": (
        lambda s: next(s.api.watch(patient_id=CANARY)),
        Expected(StatusCode.INVALID_ARGUMENT, BAD_FIELD),
    ),
    "PAGE_TOKEN_INVALID": (page_token_invalid, Expected(StatusCode.INVALID_ARGUMENT)),
    "PAGE_TOKEN_MISMATCH": (page_token_mismatch, Expected(StatusCode.INVALID_ARGUMENT)),
    "REQUEST_ID_REUSED": (request_id_reused, Expected(StatusCode.INVALID_ARGUMENT)),
    "THERAPIST_NOT_FOUND": (lambda s: s.therapists.get("no"), Expected(StatusCode.NOT_FOUND, NAMED, ("missing",))),
    "PATIENT_NOT_FOUND": (lambda s: s.patients.get("no"), Expected(StatusCode.NOT_FOUND, NAMED, ("missing",))),
    "ASSIGNMENT_NOT_FOUND": (lambda s: s.api.get(ONE), Expected(StatusCode.NOT_FOUND, NAMED)),
    "ASSIGNMENT_NOT_FOUND by unassign": (lambda s: s.side.unassign(), Expected(StatusCode.NOT_FOUND)),
    "ASSIGNMENT_NOT_FOUND by transfer": (not_with_the_source, Expected(StatusCode.NOT_FOUND, NAMED, ("missing",))),
    "ID_TAKEN": (lambda s: s.patients.create("p1", display_name=CANARY), Expected(StatusCode.ALREADY_EXISTS)),
    "IDENTIFIER_TAKEN": (identifier_taken, Expected(StatusCode.ALREADY_EXISTS, NAMED)),
    "IDENTIFIER_TAKEN by batch": (
        lambda s: in_a_batch(s, {}, {"identifiers": [MRN]}),
        Expected(StatusCode.ALREADY_EXISTS, NAMED, ("index",)),
    ),
    "IDENTIFIER_TAKEN by an earlier entry": (
        lambda s: in_a_batch(s, *[{"identifiers": [{**MRN, "value": f"{CANARY}-2"}]}] * 2),
        Expected(StatusCode.ALREADY_EXISTS, NONE, ("index", "other_index")),
    ),
    "INVALID_FIELD by batch": (
        lambda s: in_a_batch(s, {}, {"phone_number": CANARY}),
        Expected(StatusCode.INVALID_ARGUMENT, BAD_FIELD),
    ),
    "INVALID_FIELD by search": (
        lambda s: s.patients.call("List", filter={"email": CANARY}, order_by=CANARY),
        Expected(StatusCode.INVALID_ARGUMENT, BAD_FIELD),
    ),
    "ASSIGNMENT_DIFFERS": (assignment_differs, Expected(StatusCode.ALREADY_EXISTS, NONE, ("assignment_id",))),
    "THERAPIST_DELETED": (therapist_deleted, failed_precondition()),
    "THERAPIST_DELETED by transfer": (therapist_deleted_in_transfer, failed_precondition("therapist_id")),
    "PATIENT_DELETED": (patient_deleted, failed_precondition()),
    "PATIENT_DELETED by transfer": (
        patient_deleted_in_transfer,
        Expected(StatusCode.FAILED_PRECONDITION, BROKEN_RULE | NAMED),
    ),
    "THERAPIST_NOT_ACTIVE": (therapist_not_active, failed_precondition()),
    "PATIENT_NOT_ACTIVE": (patient_not_active, failed_precondition()),
    "PRIMARY_EXISTS": (primary_exists, failed_precondition("therapist_id")),
    "THERAPIST_AT_CAPACITY": (therapist_at_capacity, failed_precondition("limit", "current")),
    "HAS_ACTIVE_ASSIGNMENTS": (has_active_assignments, failed_precondition("count")),
    "PERIOD_OVERLAPS": (period_overlaps, failed_precondition("assignment_id")),
    "TOO_MANY_ASSIGNMENTS": (too_many_assignments, failed_precondition("limit", "current")),
    "TOO_MANY_ASSIGNMENTS by transfer": (too_many_assignments_in_transfer, failed_precondition("limit", "current")),
    "PATIENT_MERGED": (patient_merged, failed_precondition("patient_id")),
    "PATIENT_MERGED by unmerge": (
        patient_merged_in_unmerge,
        Expected(StatusCode.FAILED_PRECONDITION, BROKEN_RULE | NAMED, ("patient_id",)),
    ),
    "BIRTH_DATES_DIFFER": (birth_dates_differ, failed_precondition()),
    "MERGE_TOO_LARGE": (merge_too_large, failed_precondition("field", "limit")),
    "ETAG_MISMATCH": (etag_mismatch, Expected(StatusCode.ABORTED)),
    "SHUTTING_DOWN": (shutting_down, Expected(StatusCode.UNAVAILABLE)),
    "SHUTTING_DOWN by watch": (shutting_down_in_watch, Expected(StatusCode.UNAVAILABLE)),
    "ACCESS_LOG_UNAVAILABLE": (unlogged, Expected(StatusCode.UNAVAILABLE, LATER)),
    "OVERLOADED": (overloaded, Expected(StatusCode.RESOURCE_EXHAUSTED, LATER)),
    "REVISION_PRUNED": (
        lambda s: s.api.send("ListChanges", after_revision=pruned(s)),
        Expected(StatusCode.OUT_OF_RANGE, NONE, ("oldest_revision",)),
    ),
    "REVISION_PRUNED by watch": (
        lambda s: next(s.api.watch(pruned(s))),
        Expected(StatusCode.OUT_OF_RANGE, NONE, ("oldest_revision",)),
    ),
    "VERSIONS_NOT_KEPT": (versions_not_kept, Expected(StatusCode.OUT_OF_RANGE, NONE, ("oldest_time",))),
    "REVISION_FOREIGN": (lambda s: s.api.send("ListChanges", after_revision=CANARY), Expected(StatusCode.OUT_OF_RANGE)),
    "REVISION_FOREIGN by watch": (lambda s: next(s.api.watch(CANARY)), Expected(StatusCode.OUT_OF_RANGE)),
    "TOO_MANY_WATCHES": (too_many_watches, Expected(StatusCode.RESOURCE_EXHAUSTED, NONE, ("limit",))),
    "WATCH_TOO_SLOW": (watch_too_slow, Expected(StatusCode.ABORTED)),
    "UNAUTHENTICATED": (lambda s: authenticated_read(s, "write", "not-a-key"), Expected(StatusCode.UNAUTHENTICATED)),
    "PERMISSION_DENIED": (
        lambda s: authenticated_read(s, "write"),
        Expected(StatusCode.PERMISSION_DENIED, NONE, ("permission",)),
    ),
    "DEADLINE_EXCEEDED": (deadline_exceeded, Expected(StatusCode.DEADLINE_EXCEEDED)),
    "INTERNAL": (internal, Expected(StatusCode.INTERNAL, NONE, ("error_id",))),
    "INTERNAL by watch": (internal_in_watch, Expected(StatusCode.INTERNAL, NONE, ("error_id",))),
}
"""By reason; with the RPC where there are several scenarios for one reason."""
FAILURES = {
    "STORE_BUSY": Expected(StatusCode.UNAVAILABLE, LATER, ("cause",)),
    "STORE_UNAVAILABLE": Expected(StatusCode.UNAVAILABLE, LATER),
    "STORE_UNAVAILABLE by watch": Expected(StatusCode.UNAVAILABLE, LATER),
    "OUTCOME_UNKNOWN": Expected(StatusCode.UNAVAILABLE),
    "STORE_FULL": Expected(StatusCode.RESOURCE_EXHAUSTED),
}
"""Expected statuses of database failures, the same for every backend."""
ALL = {way: expected for way, (_, expected) in TABLE.items()} | FAILURES


def reason_of(way: str) -> str:
    return way.partition(" ")[0]


def assert_error_matches(way: str, provoke: Callable[[], object]) -> None:
    """Asserts that the call fails with the expected status, and that no part of it contains a value."""
    expected, reason = ALL[way], reason_of(way)
    with pytest.raises(grpc.RpcError) as caught:
        provoke()
    found = refusal(caught.value)
    assert (found.code, found.reason) == (expected.code, reason)
    assert found.details.keys() == {"ErrorInfo", *expected.details}
    assert found.metadata.keys() == set(expected.metadata)
    assert found.message
    if "PreconditionFailure" in found.details:
        [violation] = found.details["PreconditionFailure"].violations
        assert violation.type == reason
    if "RetryInfo" in found.details:
        assert 0 < found.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 3
    assert_pushback(caught.value, found)
    assert CANARY.lower() not in full_error_text(caught.value).lower()


def assert_pushback(error: Any, found: Refusal) -> None:
    """The grpc-retry-pushback-ms header has the delay of RetryInfo.

    Without RetryInfo it is -1 (never retry) for codes that gRPC clients may retry by themselves.
    """
    expected = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
    if "RetryInfo" in found.details:
        assert abs(int(expected or 0) - found.details["RetryInfo"].retry_delay.ToMilliseconds()) <= 1
    else:
        assert expected == ("-1" if found.code is StatusCode.RESOURCE_EXHAUSTED else None)
