"""Create, get, batch get, delete and undelete: what therapists and patients share."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.api.client_calls import People, Side, covers, refused
from tests.support.api_driver import COMPLETED, ENTERED_IN_ERROR, PATIENT_REQUEST, THERAPIST_UNAVAILABLE

ONE = "0190a3c4-0000-7000-8000-000000000001"


@covers("Create{A}Request.{a}", "Create{A}Request.{a}_id", "{A}.display_name", "Get{A}Request.{a}_id")
def test_get_returns_the_created_record(people: People) -> None:
    created = people.call("Create", id="one", record={"display_name": "Zoë Ünal"})
    record = people.record(created)
    assert (people.id_of(record), record.display_name, record.status) == ("one", "Zoë Ünal", 1)
    assert record.create_time == record.update_time
    assert not record.HasField("delete_time")
    assert record.etag
    assert created.revision == people.head()
    assert people.get("one") == record


def test_the_default_id_is_a_new_uuid7(people: People) -> None:
    first, second = (people.id_of(people.create()) for _ in range(2))
    assert uuid.UUID(first).version == uuid.UUID(second).version == 7
    assert first < second


def test_a_taken_id_is_rejected_even_after_a_delete(people: People) -> None:
    people.create("one")
    assert refused(people.create, "one").reason == "ID_TAKEN"
    people.delete("one")
    assert refused(people.create, "one").reason == "ID_TAKEN"


def test_more_callers_can_write_at_once_than_the_server_has_threads(people: People) -> None:
    with ThreadPoolExecutor(32) as threads:
        made = list(threads.map(lambda n: people.id_of(people.create(f"r{n}")), range(200)))
    assert made == [f"r{n}" for n in range(200)]


def test_a_therapist_and_a_patient_can_share_an_id(therapists: People, patients: People) -> None:
    therapists.create("one")
    assert patients.id_of(patients.create("one")) == "one"


@covers("{A}.{a}_id", "{A}.etag")
def test_create_ignores_id_and_etag_in_the_body(people: People) -> None:
    record = people.create("one", **{f"{people.name}_id": "NOT an id", "etag": "mine"})
    assert people.id_of(record) == "one"
    assert record.etag != "mine"


@covers("Create{A}Request.request_id")
def test_create_with_a_used_request_id_returns_the_current_first_record(people: People) -> None:
    order = {"record": {"display_name": "Ann"}, "request_id": ONE}
    first = people.call("Create", **order)
    record_id = people.id_of(people.record(first))
    renamed = people.update(record_id, display_name="Ann Lee")
    again = people.call("Create", **order | {"request_id": ONE.upper()})
    assert people.record(again) == renamed
    assert again.revision == first.revision
    assert people.ids(people.call("List")) == [record_id]


def test_a_different_request_with_a_used_request_id_is_rejected(people: People) -> None:
    people.call("Create", record={"display_name": "Ann"}, request_id=ONE)
    assert refused(people.call, "Create", record={"display_name": "Bob"}, request_id=ONE).reason == "REQUEST_ID_REUSED"
    assert refused(people.call, "Delete", id="one", request_id=ONE).reason == "REQUEST_ID_REUSED"


def test_a_request_id_is_bound_to_its_method_even_for_identical_requests(people: People) -> None:
    people.create("one")
    people.call("Delete", id="one", request_id=ONE)
    assert refused(people.call, "Undelete", id="one", request_id=ONE).reason == "REQUEST_ID_REUSED"
    assert people.get("one").HasField("delete_time")


@covers("Create{A}Request.validate_only")
def test_create_with_validate_only_writes_nothing(people: People) -> None:
    answer = people.call("Create", record={"display_name": " Ann "}, validate_only=True, request_id=ONE)
    assert people.record(answer).display_name == "Ann"
    assert (people.id_of(people.record(answer)), answer.revision) == ("", "")
    assert people.ids(people.call("List", show_deleted=True)) == []
    people.create("one")
    assert (
        refused(people.call, "Create", id="one", record={"display_name": "A"}, validate_only=True).reason == "ID_TAKEN"
    )


def test_validate_only_does_not_use_up_a_request_id(people: People) -> None:
    people.call("Create", record={"display_name": "Ann"}, validate_only=True, request_id=ONE)
    made = people.call("Create", record={"display_name": "Bob"}, request_id=ONE)
    assert people.record(made).display_name == "Bob"


def test_get_returns_a_deleted_record(people: People) -> None:
    people.create("one")
    deleted = people.delete("one")
    assert deleted.HasField("delete_time")
    assert people.get("one") == deleted


def test_get_of_an_unknown_id_names_it(people: People) -> None:
    found = refused(people.get, "unknown")
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, f"{people.kind.upper()}_NOT_FOUND")
    resource = found.details["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == (f"caseload.v1.{people.kind}", "unknown")


@covers("BatchGet{A}sRequest.{a}_ids")
def test_batch_get_keeps_order_duplicates_and_deleted_records(people: People) -> None:
    for one in ("a", "b", "c"):
        people.create(one)
    people.delete("b")
    response = people.call("BatchGet", ids=["c", "b", "c", "a"])
    assert people.ids(response) == ["c", "b", "c", "a"]
    assert people.records(response)[1] == people.get("b")


def test_batch_get_returns_all_records_or_none(people: People) -> None:
    people.create("a")
    found = refused(people.call, "BatchGet", ids=["a", "unknown"])
    assert found.reason == f"{people.kind.upper()}_NOT_FOUND"
    assert found.details["ResourceInfo"].resource_name == "unknown"


@pytest.mark.parametrize("count", [0, 101])
def test_batch_get_accepts_1_to_100_ids(people: People, count: int) -> None:
    people.create("a")
    assert len(people.ids(people.call("BatchGet", ids=["a"] * 100))) == 100
    assert refused(people.call, "BatchGet", ids=["a"] * count).fields == [f"{people.name}_ids"]


def test_batch_get_names_a_malformed_id_by_its_index(people: People) -> None:
    assert refused(people.call, "BatchGet", ids=["a", "", "B"]).fields == [
        f"{people.name}_ids[1]",
        f"{people.name}_ids[2]",
    ]


@covers("Delete{A}Request.{a}_id")
def test_delete_is_soft_and_idempotent(people: People) -> None:
    people.create("one")
    first = people.call("Delete", id="one")
    assert people.ids(people.call("List")) == []
    again = people.call("Delete", id="one", etag="whatever")
    assert people.record(again) == people.record(first)
    assert (again.ended_assignment_count, again.revision) == (0, first.revision)


@covers("Delete{A}Request.etag")
def test_delete_compares_the_etag(people: People) -> None:
    record = people.create("one")
    assert refused(people.delete, "one", etag="stale").reason == "ETAG_MISMATCH"
    assert people.delete("one", etag=record.etag).HasField("delete_time")


@covers("Delete{A}Request.force")
def test_delete_requires_force_to_end_assignments(side: Side) -> None:
    made = side.assign().assignment
    own = made.therapist_id if side.kind == "Therapist" else made.patient_id
    stopped = refused(side.mine.delete, own)
    assert (stopped.reason, stopped.metadata) == ("HAS_ACTIVE_ASSIGNMENTS", {"count": "1"})
    answer = side.mine.call("Delete", id=own, force=True)
    assert answer.ended_assignment_count == 1
    assert getattr(side.mine.record(answer), side.mine.count) == 0
    [ended] = side.page(states=[2]).entries
    assert (ended.assignment.assignment_id, ended.assignment.end_reason) == (made.assignment_id, 6)


@covers("Update{A}Request.force", "Update{A}Request.end_reason")
@pytest.mark.parametrize("reason", [0, COMPLETED, PATIENT_REQUEST, ENTERED_IN_ERROR])
def test_an_update_with_force_ends_the_assignments_for_a_reason(side: Side, reason: int) -> None:
    made, own = side.assign(role=1).assignment, f"{side.name[0]}1"
    body = side.mine.body(own, status=side.mine.idle)
    assert refused(side.mine.call, "Update", record=body).reason == "HAS_ACTIVE_ASSIGNMENTS"
    answer = side.mine.call("Update", record=body, force=True, end_reason=reason)
    default = THERAPIST_UNAVAILABLE if side.kind == "Therapist" else COMPLETED
    assert answer.ended_assignment_count == 1
    assert (side.mine.record(answer), answer.revision) == (side.mine.get(own), side.head())
    assert getattr(side.mine.record(answer), side.mine.count) == 0
    [ended] = side.page(states=[2]).entries
    assert (ended.assignment.assignment_id, ended.assignment.end_reason) == (made.assignment_id, reason or default)
    again = side.mine.call("Update", record=body, force=True, end_reason=reason)
    assert (again.ended_assignment_count, again.revision) == (0, answer.revision)


def test_an_invalid_end_reason_of_an_update_is_rejected(side: Side) -> None:
    side.assign()
    body = side.mine.body(f"{side.name[0]}1", status=side.mine.idle)
    for reason in (2, 6, 7, 8, 9, 99, -1):
        assert refused(side.mine.call, "Update", record=body, force=True, end_reason=reason).fields == ["end_reason"]
    stopped = refused(side.mine.call, "Update", record=body, end_reason=COMPLETED)
    assert (stopped.reason, stopped.fields) == ("INVALID_FIELD", ["end_reason"])


def test_an_update_with_force_and_a_used_request_id_returns_the_count_of_the_first_call(side: Side) -> None:
    side.assign()
    body = side.mine.body(f"{side.name[0]}1", status=side.mine.idle)
    validated = side.mine.call("Update", record=body, force=True, request_id=ONE, validate_only=True)
    assert (validated.ended_assignment_count, validated.revision) == (1, "")
    first = side.mine.call("Update", record=body, force=True, request_id=ONE)
    assert side.mine.call("Update", record=body, force=True, request_id=ONE) == first
    assert first.ended_assignment_count == 1
    for changed in ({}, {"force": True, "end_reason": PATIENT_REQUEST}):
        assert refused(side.mine.call, "Update", record=body, request_id=ONE, **changed).reason == "REQUEST_ID_REUSED"


@covers("Delete{A}Request.allow_missing")
def test_delete_of_an_unknown_id_requires_allow_missing(people: People) -> None:
    assert refused(people.delete, "unknown").reason == f"{people.kind.upper()}_NOT_FOUND"
    answer = people.call("Delete", id="unknown", allow_missing=True)
    assert not answer.HasField(people.name)
    assert answer.revision == people.head()


@covers("Delete{A}Request.request_id")
def test_delete_with_a_used_request_id_deletes_once(people: People) -> None:
    people.create("one")
    first = people.call("Delete", id="one", request_id=ONE)
    restored = people.record(people.call("Undelete", id="one"))
    again = people.call("Delete", id="one", request_id=ONE)
    assert (people.record(again), again.revision) == (restored, first.revision)
    assert not people.get("one").HasField("delete_time")


@covers("Delete{A}Request.validate_only")
def test_delete_with_validate_only_returns_what_force_would_end(side: Side) -> None:
    made = side.assign().assignment
    own = made.therapist_id if side.kind == "Therapist" else made.patient_id
    answer = side.mine.call("Delete", id=own, force=True, validate_only=True)
    assert (answer.ended_assignment_count, answer.revision) == (1, "")
    assert side.mine.record(answer).HasField("delete_time")
    assert not side.mine.get(own).HasField("delete_time")
    assert side.page().entries[0].assignment == made


@covers("Undelete{A}Request.{a}_id")
def test_undelete_restores_and_is_idempotent(people: People) -> None:
    created = people.create("one", email="ann@example.org")
    people.delete("one")
    first = people.call("Undelete", id="one")
    restored = people.record(first)
    assert not restored.HasField("delete_time")
    assert (restored.email, restored.create_time) == (created.email, created.create_time)
    again = people.call("Undelete", id="one")
    assert (people.record(again), again.revision) == (restored, first.revision)
    assert refused(people.call, "Undelete", id="unknown").reason == f"{people.kind.upper()}_NOT_FOUND"


@covers("Undelete{A}Request.request_id")
def test_undelete_with_a_used_request_id_undeletes_once(people: People) -> None:
    people.create("one")
    people.delete("one")
    first = people.call("Undelete", id="one", request_id=ONE)
    deleted = people.delete("one")
    again = people.call("Undelete", id="one", request_id=ONE)
    assert (people.record(again), again.revision) == (deleted, first.revision)


@covers("Undelete{A}Request.validate_only")
def test_undelete_with_validate_only_writes_nothing(people: People) -> None:
    people.create("one")
    people.delete("one")
    answer = people.call("Undelete", id="one", validate_only=True)
    assert not people.record(answer).HasField("delete_time")
    assert answer.revision == ""
    assert people.get("one").HasField("delete_time")


@covers("{A}.email", "{A}.annotations")
def test_email_and_annotations_are_stored(people: People) -> None:
    notes = {"team": "blue", "a key": "", "größe": "zwölf"}
    record = people.create("one", email="ann@example.org", annotations=notes)
    assert (record.email, dict(record.annotations)) == ("ann@example.org", notes)
    assert people.get("one") == record


@covers("{A}.status")
def test_create_accepts_a_status(people: People) -> None:
    assert people.create("one", status=people.idle).status == people.idle


def test_an_idle_status_is_rejected_while_assignments_are_active(side: Side) -> None:
    side.assign()
    own = f"{side.name[0]}1"
    stopped = refused(side.mine.update, own, status=side.mine.idle)
    assert (stopped.reason, stopped.metadata) == ("HAS_ACTIVE_ASSIGNMENTS", {"count": "1"})
    side.unassign()
    assert side.mine.update(own, status=side.mine.idle).status == side.mine.idle


def test_assignment_counts_do_not_change_etag_or_update_time(side: Side) -> None:
    own = f"{side.name[0]}1"
    before = side.mine.get(own)
    side.assign(role=1)
    after = side.mine.get(own)
    assert getattr(after, side.mine.count) == 1
    assert (after.etag, after.update_time) == (before.etag, before.update_time)
