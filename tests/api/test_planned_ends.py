"""expire_time and demote_primary, as callers see them."""

from typing import Any

import grpc
from caseload_server.rpc.server import CaseloadServer

from tests.api.client_calls import Side, covers, refused
from tests.support.api_driver import ApiDriver, ahead, new_request_id, number, planned
from tests.support.waiting import eventually

PRIMARY, TREATING = 1, 2
ACTIVE, ENDED = 1, 2
REPLACED, EXPIRED = 7, 9
LATER = {"seconds": 4_000_000_000, "nanos": 123_456_789}


def assign_for_a_moment(api: ApiDriver, **fields: Any) -> Any:
    """Assigns t1 and p1 with an expire_time that comes soon. Returns the assignment."""
    return planned(lambda seconds: api.assign("t1", "p1", expire_time=ahead(seconds), **fields))


@covers("Assign{A}Request.expire_time", "Assignment.expire_time")
def test_an_assignment_has_the_planned_end_that_assign_gives(side: Side) -> None:
    begun = side.assign(expire_time=LATER)
    expire_time = begun.assignment.expire_time
    assert (expire_time.seconds, expire_time.nanos) == (4_000_000_000, 123_456_000)
    again = side.assign(expire_time=LATER)
    assert (again.created, again.assignment) == (False, begun.assignment)
    assert not side.assign().created
    found = refused(side.assign, expire_time={"seconds": 4_000_000_001})
    assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ASSIGNMENT_DIFFERS")
    assert side.assign(replace=True, focus="grief").assignment.HasField("expire_time") is False


def test_assign_rejects_a_planned_end_that_is_not_ahead(side: Side) -> None:
    for sent in ({"seconds": 1}, {"seconds": -70_000_000_000}, {"seconds": 0, "nanos": -1}):
        found = refused(side.assign, expire_time=sent)
        assert (found.reason, list(found.fields)) == ("INVALID_FIELD", ["expire_time"]), sent


def test_the_server_ends_an_assignment_at_its_expire_time_within_five_seconds(api: ApiDriver) -> None:
    before = api.head()
    begun = assign_for_a_moment(api, role=PRIMARY)
    eventually(lambda: api.get(begun.assignment_id).state == ENDED)
    ended = api.get(begun.assignment_id)
    assert (ended.end_time, ended.expire_time) == (begun.expire_time, begun.expire_time)
    assert (ended.end_reason, ended.ended_by) == (EXPIRED, "system:expiry")
    assert ended.etag != begun.etag
    [_, expiry] = api.log(before)
    assert (expiry.actor, expiry.method, expiry.request_id) == ("system:expiry", "", "")
    [change] = expiry.changes
    assert change.assignment.assignment_id == begun.assignment_id
    assert set(change.changed_fields) == {"state", "end_time", "end_reason", "ended_by"}
    patient = api.send("GetPatient", patient_id="p1").patient
    assert (patient.primary_therapist_id, patient.active_therapist_count) == ("", 0)
    assert api.checked(("t1", "p1")) == [False]
    assert api.checked(("t1", "p1"), as_of_time=begun.start_time) == [True]
    assert api.checked(("t1", "p1"), as_of_time=begun.expire_time) == [False]


def test_no_read_finds_an_expired_assignment_before_it_is_ended(server: CaseloadServer, api: ApiDriver) -> None:
    server.expiry_sweeper.stop()
    begun = assign_for_a_moment(api)
    eventually(lambda: api.checked(("t1", "p1")) == [False])
    assert api.get(begun.assignment_id) == begun  # what is stored follows later
    assert api.listed() == api.listed(therapist_id="t1") == api.listed(patient_id="p1") == []
    assert api.send("ListTherapistPatients", therapist_id="t1").entries == []
    assert api.send("ListPatientTherapists", patient_id="p1").entries == []
    assert api.listed(states=[ACTIVE, ENDED]) == [begun]
    assert api.send("UnassignPatient", therapist_id="t1", patient_id="p1").ended is False
    assert api.get(begun.assignment_id).end_reason == EXPIRED


def test_update_sets_and_clears_a_planned_end_only_by_name(api: ApiDriver) -> None:
    begun = api.assign("t1", "p1")

    def update(mask: list[str], **fields: Any) -> Any:
        sent = {"assignment_id": begun.assignment_id, **fields}
        return api.send("UpdateAssignment", assignment=sent, update_mask={"paths": mask}).assignment

    assert update(["expire_time"], expire_time=LATER).expire_time.seconds == 4_000_000_000
    everything = {"focus": "grief", "start_time": begun.start_time}
    assert update(["*"], **everything).expire_time.seconds == 4_000_000_000  # "*" does not name it
    assert update([], focus="anxiety").expire_time.seconds == 4_000_000_000
    assert update([], expire_time={"seconds": 4_000_000_001}).expire_time.seconds == 4_000_000_001
    assert not update(["expire_time"]).HasField("expire_time")
    found = refused(update, ["expire_time"], expire_time={"seconds": 1})
    assert (found.reason, list(found.fields)) == ("INVALID_FIELD", ["assignment.expire_time"])
    api.unassign("t1", "p1")
    found = refused(update, ["expire_time"], expire_time=LATER)
    assert (found.reason, list(found.fields)) == ("INVALID_FIELD", ["assignment.expire_time"])


def test_a_record_that_was_read_can_be_sent_back_after_its_planned_end(server: CaseloadServer, api: ApiDriver) -> None:
    begun = assign_for_a_moment(api)
    eventually(lambda: server.store.end_expired() is None)
    ended = api.get(begun.assignment_id)
    ended.focus = "grief"
    ended.etag = ""
    ended.ClearField("end_reason")  # which only the server sets
    assert api.send("UpdateAssignment", assignment=ended).assignment.focus == "grief"


@covers("Assign{A}Request.demote_primary", "Assign{A}Response.demoted")
def test_demote_primary_keeps_the_primary_therapist_on_the_team(side: Side) -> None:
    side.therapists.create("t2")
    side.assign(role=PRIMARY, focus="grief")
    side.therapists.update("t1", status=2)
    request_id = new_request_id()
    sent: dict[str, Any] = {"role": PRIMARY, "demote_primary": True, "expire_time": LATER, "request_id": request_id}
    shown = side.assign("t2", **sent, validate_only=True)
    assert (shown.demoted.therapist_id, shown.demoted.assignment_id) == ("t1", "")
    answer = side.assign("t2", **sent)
    demoted = answer.demoted
    assert (demoted.therapist_id, demoted.role, demoted.focus, demoted.state) == ("t1", TREATING, "grief", ACTIVE)
    assert demoted.start_time == answer.assignment.start_time
    assert not demoted.HasField("expire_time")
    [ended] = [entry.assignment for entry in side.page(states=[ENDED]).entries]
    assert (ended.end_time, ended.end_reason) == (demoted.start_time, REPLACED)
    assert side.assign("t2", **sent) == answer
    repeated = side.assign("t2", **{**sent, "request_id": ""})
    assert (repeated.created, repeated.HasField("demoted")) == (False, False)
    assert number(repeated.revision) == number(answer.revision)


def test_the_primary_therapist_is_demoted_or_replaced_but_not_both(side: Side) -> None:
    found = refused(side.assign, role=PRIMARY, demote_primary=True, replace_primary=True)
    assert (found.reason, list(found.fields)) == ("INVALID_FIELD", ["demote_primary"])
