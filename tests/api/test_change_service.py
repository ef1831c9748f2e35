"""ListChanges over the wire, and what each mutating RPC writes into the change log."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.api.client_calls import covers
from tests.support.api_driver import (
    COVERING,
    ENTERED_IN_ERROR,
    PRIMARY,
    READS,
    RPCS,
    SUPERVISING,
    T0,
    ApiDriver,
    at,
    full_name,
    new_request_id,
    number,
    refused,
)

CREATED, UPDATED, DELETED, UNDELETED = 1, 2, 3, 4
LOG_PURGED, VERSIONS_PURGED = 6, 7
ENDING = ("state", "end_time", "ended_by")
ENDING_FOR = ("state", "end_time", "end_reason", "ended_by")


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    """Therapists t1 and t2, patients p1 and p2."""
    with ApiDriver(server.address) as opened:
        opened.therapists("t1", "t2")
        opened.patients("p1", "p2")
        yield opened


def line(change: Any) -> tuple[int, str, str, tuple[str, ...]]:
    """A change as a tuple: kind, therapist id, patient id, fields. Both ids are set for an assignment."""
    if change.WhichOneof("resource") == "assignment":
        ref = change.assignment
        assert ref.assignment_id
        return change.kind, ref.therapist_id, ref.patient_id, tuple(change.changed_fields)
    return change.kind, change.therapist_id, change.patient_id, tuple(change.changed_fields)


class Mutation(NamedTuple):
    """A call of a mutating RPC, and its expected log entries."""

    rpc: str
    fields: dict[str, Any]
    lines: list[tuple[int, str, str, tuple[str, ...]]]
    prepare: Callable[[ApiDriver], object] = lambda _clinic: None


def assigned(api: ApiDriver) -> None:
    api.assign("t1", "p1", role=PRIMARY)


def two_assigned(api: ApiDriver) -> None:
    api.assign("t1", "p1", role=PRIMARY)
    api.assign("t1", "p2", role=COVERING)
    api.assign("t2", "p1", role=SUPERVISING)


def deleted(rpc: str, **fields: Any) -> Callable[[ApiDriver], object]:
    return lambda api: api.send(rpc, **fields)


def correction(api: ApiDriver) -> dict[str, Any]:
    """The fields that depend on the stored assignment."""
    [one] = api.listed()
    return {"assignment": {"assignment_id": one.assignment_id, "focus": "grief", "start_time": at(0)}}


T1, P1 = {"therapist_id": "t1"}, {"patient_id": "p1"}
PAIR = {**T1, **P1}
NEW = {"display_name": "Cy Poe"}
RENAMED = {"display_name": "Cy Poe", "email": "cy@example.org"}
MERGED = {"source_patient_id": "p1", "target_patient_id": "p2"}
LINK = "merged_into_patient_id"
MUTATIONS = [
    Mutation("CreateTherapist", {"therapist_id": "new", "therapist": NEW}, [(CREATED, "new", "", ())]),
    Mutation("CreatePatient", {"patient_id": "new", "patient": NEW}, [(CREATED, "", "new", ())]),
    Mutation(
        "BatchCreateTherapists",
        {"requests": [{"therapist_id": "new", "therapist": NEW}, {"therapist_id": "else", "therapist": NEW}]},
        [(CREATED, "new", "", ()), (CREATED, "else", "", ())],
    ),
    Mutation(
        "BatchCreatePatients",
        {"requests": [{"patient_id": "new", "patient": NEW}, {"patient_id": "else", "patient": NEW}]},
        [(CREATED, "", "new", ()), (CREATED, "", "else", ())],
    ),
    Mutation("UpdateTherapist", {"therapist": {**T1, **RENAMED}}, [(UPDATED, "t1", "", ("display_name", "email"))]),
    Mutation("UpdatePatient", {"patient": {**P1, **RENAMED}}, [(UPDATED, "", "p1", ("display_name", "email"))]),
    Mutation("DeleteTherapist", T1, [(DELETED, "t1", "", ("delete_time",))]),
    Mutation("DeletePatient", P1, [(DELETED, "", "p1", ("delete_time",))]),
    Mutation(
        "DeleteTherapist",
        {**T1, "force": True},
        [(UPDATED, "t1", "p1", ENDING_FOR), (DELETED, "t1", "", ("delete_time",))],
        assigned,
    ),
    Mutation(
        "DeletePatient",
        {**P1, "force": True},
        [(UPDATED, "t1", "p1", ENDING_FOR), (UPDATED, "t2", "p1", ENDING_FOR), (DELETED, "", "p1", ("delete_time",))],
        two_assigned,
    ),
    Mutation("UndeleteTherapist", T1, [(UNDELETED, "t1", "", ("delete_time",))], deleted("DeleteTherapist", **T1)),
    Mutation("UndeletePatient", P1, [(UNDELETED, "", "p1", ("delete_time",))], deleted("DeletePatient", **P1)),
    Mutation("AssignPatient", PAIR, [(CREATED, "t1", "p1", ())]),
    Mutation("AssignTherapist", PAIR, [(CREATED, "t1", "p1", ())]),
    Mutation(
        "AssignPatient",
        {**PAIR, "role": SUPERVISING, "replace": True},
        [(UPDATED, "t1", "p1", ENDING_FOR), (CREATED, "t1", "p1", ())],
        assigned,
    ),
    Mutation(
        "AssignTherapist",
        {**P1, "therapist_id": "t2", "role": PRIMARY, "replace_primary": True},
        [(UPDATED, "t1", "p1", ENDING_FOR), (CREATED, "t2", "p1", ())],
        assigned,
    ),
    Mutation("AssignPatient", {**PAIR, "start_time": at(0), "end_time": at(9)}, [(CREATED, "t1", "p1", ())]),
    Mutation(
        "BatchAssign",
        {"requests": [{**PAIR, "role": SUPERVISING, "replace": True}, {**PAIR, "patient_id": "p2"}]},
        [(UPDATED, "t1", "p1", ENDING_FOR), (CREATED, "t1", "p1", ()), (CREATED, "t1", "p2", ())],
        assigned,
    ),
    Mutation("UnassignPatient", PAIR, [(UPDATED, "t1", "p1", ENDING)], assigned),
    Mutation("UnassignTherapist", {**PAIR, "end_reason": 1}, [(UPDATED, "t1", "p1", ENDING_FOR)], assigned),
    Mutation("UpdateAssignment", {}, [(UPDATED, "t1", "p1", ("focus", "start_time"))], assigned),
    Mutation(
        "TransferPatients",
        {"source_therapist_id": "t1", "target_therapist_id": "t2"},
        [
            (UPDATED, "t1", "p1", ENDING_FOR),
            (UPDATED, "t2", "p1", ENDING_FOR),
            (CREATED, "t2", "p1", ()),
            (UPDATED, "t1", "p2", ENDING_FOR),
            (CREATED, "t2", "p2", ()),
        ],
        two_assigned,
    ),
    Mutation(
        "MergePatients",
        MERGED,
        [
            (UPDATED, "t1", "p1", ENDING_FOR),
            (CREATED, "t1", "p2", ()),
            (DELETED, "", "p1", ("delete_time", LINK)),
            (UPDATED, "", "p2", ()),  # it gains nothing that it lacks
        ],
        assigned,
    ),
    Mutation(
        "UnmergePatients",
        {"source_patient_id": "p1"},
        [(UPDATED, "", "p2", ()), (UNDELETED, "", "p1", ("delete_time", LINK))],
        lambda api: api.send("MergePatients", **MERGED, request_id=new_request_id()),
    ),
]
NO_REPEAT = {"CreateTherapist", "CreatePatient", "BatchCreateTherapists", "BatchCreatePatients", "MergePatients"}
"""Without the first request_id, a repeat of these is rejected. So their no-op is a replay."""
each_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{n}-{m.rpc}" for n, m in enumerate(MUTATIONS)])


def test_every_mutating_rpc_is_in_the_table() -> None:
    assert {mutation.rpc for mutation in MUTATIONS} == set(RPCS) - READS


@each_mutation
def test_a_mutation_writes_one_change_set_and_a_no_op_writes_none(api: ApiDriver, mutation: Mutation) -> None:
    mutation.prepare(api)
    fields = {**mutation.fields, "request_id": new_request_id()}
    if mutation.rpc == "UpdateAssignment":
        fields |= correction(api)
    before = api.head()
    api.send(mutation.rpc, **fields, validate_only=True)
    assert api.head() == before
    answer = api.send(mutation.rpc, **fields)
    [one] = api.log(before)
    assert number(before) + 1 == number(one.revision)
    assert one.revision == answer.revision == api.head()
    assert (one.actor, one.method, one.request_id) == ("local", full_name(mutation.rpc), fields["request_id"])
    assert one.commit_time.seconds > T0
    assert [line(change) for change in one.changes] == mutation.lines

    assert api.send(mutation.rpc, **fields) == answer  # replays the request
    if mutation.rpc not in NO_REPEAT:
        assert api.send(mutation.rpc, **{**fields, "request_id": new_request_id()}).revision == answer.revision
    refused(api.send, mutation.rpc, request_id="no uuid")
    assert api.head() == answer.revision


def test_two_calls_show_who_was_responsible_and_who_assigned_them_when(api: ApiDriver) -> None:
    api.period("t1", "p1", 0, 100, role=PRIMARY)
    period = api.assign("t2", "p1", role=PRIMARY, start_time=at(100))
    api.assign("t1", "p1", role=PRIMARY, start_time=at(300), replace_primary=True)
    api.assign("t1", "p2")
    # On that day:
    [responsible] = api.listed(patient_id="p1", roles=[PRIMARY], as_of_time=at(200))
    assert (responsible.therapist_id, responsible.assignment_id) == ("t2", period.assignment_id)
    # Who assigned them, and when:
    sets = api.send("ListChanges", filter={"patient_id": "p1", "therapist_id": "t2"}).change_sets
    [made, ended] = [
        one for one in sets if any(c.assignment.assignment_id == period.assignment_id for c in one.changes)
    ]
    assert (made.actor, made.method) == ("local", full_name("AssignPatient"))
    assert (made.commit_time, responsible.created_by) == (period.create_time, made.actor)
    assert line(ended.changes[0]) == (UPDATED, "t2", "p1", ENDING_FOR)


@covers("ListChangesRequest.after_revision")
def test_through_revision_advances_even_when_nothing_matches(api: ApiDriver) -> None:
    page = api.send("ListChanges", filter={"therapist_id": "unknown"})
    assert (list(page.change_sets), page.through_revision) == ([], page.head_revision)
    assert number(page.head_revision) == 4
    assert number(page.oldest_revision) == 0
    api.patients("p3")
    following = api.send("ListChanges", after_revision=page.through_revision)
    assert [line(change) for one in following.change_sets for change in one.changes] == [(CREATED, "", "p3", ())]


@covers("ListChangesRequest.filter", "ChangeFilter.therapist_id", "ChangeFilter.patient_id", "ChangeFilter.actor")
def test_every_page_size_returns_the_same_log(api: ApiDriver) -> None:
    two_assigned(api)
    api.transfer("t1", "t2")
    whole = list(api.log())
    assert [number(one.revision) for one in whole] == list(range(1, 9))
    for size in (1, 2, 3, 8, 9):
        assert list(api.log(page_size=size)) == whole
    for size in (1, 3):
        about = list(api.log(page_size=size, therapist_id="t2", patient_id="p2", actor="local"))
        assert about == [whole[-1]]
    assert list(api.log(actor="someone")) == []


def test_a_purge_of_the_log_is_a_change_of_its_own_kind(server: CaseloadServer, api: ApiDriver) -> None:
    before = api.head()
    assert server.store.purger.purge_changes(time.time_ns() // 1000 + 1) == number(before)
    [purge] = api.log()
    assert (purge.actor, purge.method, purge.request_id, purge.on_behalf_of) == ("cli:purge", "", "", "")
    [change] = purge.changes
    assert (change.kind, change.WhichOneof("resource")) == (LOG_PURGED, "purged_through_revision")
    assert change.purged_through_revision == before == api.send("ListChanges").oldest_revision
    assert list(api.log(before, patient_id="p1")) == []


def test_a_purge_of_versions_is_a_change_of_its_own_kind(server: CaseloadServer, api: ApiDriver) -> None:
    before = api.head()
    api.send("UpdatePatient", patient={"patient_id": "p1", "email": "p1@example.org"})
    updated = api.head()
    assert server.store.purger.purge_versions(time.time_ns() // 1000 + 1) == 1
    [_, purge] = api.log(before)
    [change] = purge.changes
    assert (change.kind, change.WhichOneof("resource")) == (VERSIONS_PURGED, "purged_through_revision")
    assert change.purged_through_revision == updated


@covers("ListChangesRequest.page_size")
def test_the_default_page_size_of_change_sets_is_50(api: ApiDriver) -> None:
    api.patients(*(f"q{n}" for n in range(50)))
    assert len(api.send("ListChanges").change_sets) == 50
    assert len(api.send("ListChanges", page_size=5000).change_sets) == 54


@pytest.mark.parametrize("rpc", ["ListChanges", "WatchChanges"])
def test_an_invalid_request_is_rejected_with_its_field_path(api: ApiDriver, rpc: str) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"filter": {"therapist_id": "No id"}}, ["filter.therapist_id"]),
        ({"filter": {"patient_id": "-p"}}, ["filter.patient_id"]),
        ({"filter": {"actor": "a" * 201}}, ["filter.actor"]),
        ({"filter": {"actor": "a\0b", "patient_id": "P"}}, ["filter.patient_id", "filter.actor"]),
    ]
    if rpc == "ListChanges":
        cases.append(({"page_size": -1}, ["page_size"]))
    for sent, fields in cases:
        found = refused(called, api, rpc, **sent)
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert found.fields == fields


@pytest.mark.parametrize("rpc", ["ListChanges", "WatchChanges"])
def test_a_revision_of_another_store_or_no_store_is_foreign(api: ApiDriver, rpc: str) -> None:
    head = api.head()
    store_id = head.partition(".")[0]
    for revision in ("x", f"{store_id}.99", f"{store_id}.", f"other.{number(head)}", f"{head}.0"):
        found = refused(called, api, rpc, after_revision=revision)
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_FOREIGN")
        assert revision not in found.message
        assert found.metadata == {}


def called(api: ApiDriver, rpc: str, **fields: Any) -> Any:
    """Returns the response, or the first message of a stream."""
    answer = api.send(rpc, **fields)
    return next(answer) if rpc == "WatchChanges" else answer


def test_the_change_log_contains_no_names_or_values(api: ApiDriver) -> None:
    canaries = {
        "display_name": "Canary Name",
        "email": "canary@example.org",
        "phone_number": "+4930999999",
        "annotations": {"canary-key": "canary value"},
        "identifiers": [{"system": "urn:canary", "value": "canary-mrn"}],
    }
    api.patients("p3", **canaries)
    api.assign("t1", "p3", focus="canary-focus", role=PRIMARY)
    api.unassign("t1", "p3", end_reason=ENTERED_IN_ERROR)
    [one] = api.listed(states=[2])
    api.correct(one.assignment_id, focus="canary-again")
    sent = api.send("ListChanges", page_size=1000).SerializeToString().lower()
    assert b"p3" in sent
    assert b"canary" not in sent
    assert b"4930999999" not in sent
