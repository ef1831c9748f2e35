"""A caller without `read` gets no personal data from any method that it may call."""

from collections.abc import Iterator
from itertools import count
from typing import Any, Final, NamedTuple

import grpc
import pytest
from caseload.v1 import resources_pb2
from google.protobuf.message_factory import GetMessageClass

from tests.api.client_calls import full_error_text
from tests.security.canaries import CANARY, PRIVATE, WELL_FORMED, names_of
from tests.security.redacted_fields import KEPT, WRITES, set_fields
from tests.security.server_fixture import KeysFile, LogReader, bearer, serving
from tests.support.api_driver import PRIMARY, RPCS, full_name, new_request_id, request
from tests.support.servers import Refusal, refusal
from tests.support.waiting import HUNG_SECONDS, eventually

SECRET: Final = CANARY.lower()
"""A name of a caller, and the beginning of ids that no request may reveal. `PRIVATE` finds it."""
NAMED: Final = {"display_name": CANARY}
_COVER: Final = {
    "role": PRIMARY,
    "replace": True,
    "demote_primary": True,
    "expire_time": {"seconds": 4_000_000_000},
}
"""Demotes the secret primary therapist."""
_numbers = count()


class People(NamedTuple):
    """Records with private values in every field, for one scenario.

    The therapist treats the patient and a secret patient. The primary therapist of the patient is secret.
    """

    therapist: str
    patient: str
    secret_assignment: str
    """Of the patient and the secret therapist."""


class Caller:
    """Calls with one key, and collects all that it receives as text."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = bearer(token)
        self.received: list[str] = []

    def send(self, rpc: str, **fields: Any) -> Any:
        """Returns the response, or the error as a Refusal."""
        call: Any = self._channel.unary_unary(full_name(rpc), None, GetMessageClass(RPCS[rpc].output_type).FromString)
        sent = request(rpc, **fields).SerializeToString()
        try:
            answer, done = call.with_call(sent, metadata=self._metadata, timeout=HUNG_SECONDS)
        except grpc.RpcError as error:
            self.received.append(full_error_text(error))
            return refusal(error)
        self.received.append(f"{answer}{done.initial_metadata()}{done.trailing_metadata()}")
        return answer


class Pair(NamedTuple):
    """A caller with all permissions, and one that may only write."""

    clerk: Caller
    writer: Caller
    log: LogReader


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("redaction")
    keys, log = KeysFile(folder / "keys"), folder / "access.log"
    clerk, writer = keys.add(SECRET), keys.add("writer", "write")
    with serving(folder, keys_file=keys.path, access_log=log) as server, grpc.insecure_channel(server.address) as one:
        yield Pair(Caller(one, clerk), Caller(one, writer), LogReader(log))


def record(kind: str, number: int) -> dict[str, Any]:
    """A record with a private value in every field that takes one."""
    names = names_of(getattr(resources_pb2, kind)())
    values = {name: value for name, value in WELL_FORMED.items() if name in names}
    return {**values, "identifiers": [{"system": f"urn:{SECRET}", "value": f"{SECRET}-{number}"}]}


def build(pair: Pair) -> People:
    clerk, number = pair.clerk, next(_numbers)
    therapists, patients = (f"t{number}", f"{SECRET}-t{number}"), (f"p{number}", f"{SECRET}-p{number}")
    for kind, ids in (("Therapist", therapists), ("Patient", patients)):
        for index, one in enumerate(ids):
            clerk.send(f"Create{kind}", **{f"{kind.lower()}_id": one, kind.lower(): record(kind, 2 * number + index)})
    secret = {"therapist_id": therapists[1], "patient_id": patients[0], "role": PRIMARY}
    made = clerk.send("AssignPatient", **secret, focus=SECRET)
    for patient_id in patients:
        clerk.send("AssignPatient", therapist_id=therapists[0], patient_id=patient_id, focus=SECRET)
    return People(therapists[0], patients[0], made.assignment.assignment_id)


def accepted(people: People, other: People) -> dict[str, dict[str, Any]]:
    """For each method that needs `write`, a request that succeeds."""
    therapist, patient = {"therapist_id": people.therapist}, {"patient_id": people.patient}
    both, number = {**therapist, **patient}, next(_numbers)
    return {
        "CreateTherapist": {"therapist": record("Therapist", 10_000 + number)},
        "CreatePatient": {"patient": record("Patient", 10_000 + number)},
        "BatchCreateTherapists": {"requests": [{"therapist": record("Therapist", 20_000 + number)}]},
        "BatchCreatePatients": {"requests": [{"patient": record("Patient", 20_000 + number)}, {"patient": NAMED}]},
        "UpdateTherapist": {"therapist": therapist},
        "UpdatePatient": {"patient": patient},
        "DeleteTherapist": {**therapist, "force": True},
        "DeletePatient": {**patient, "force": True},
        "UndeleteTherapist": therapist,
        "UndeletePatient": patient,
        "AssignPatient": {**both, "focus": SECRET},
        "AssignTherapist": {**both, "focus": SECRET, **_COVER},
        "BatchAssign": {"requests": [{**both, "focus": SECRET}, {**both, "patient_id": other.patient}]},
        "UnassignPatient": both,
        "UnassignTherapist": both,
        "UpdateAssignment": {"assignment": {"assignment_id": people.secret_assignment}},
        "MergePatients": {"source_patient_id": people.patient, "target_patient_id": other.patient, "force": True},
        "UnmergePatients": {"source_patient_id": people.patient},
        "TransferPatients": {"source_therapist_id": people.therapist, "target_therapist_id": other.therapist},
    }


def test_every_write_of_the_contract_has_a_scenario(pair: Pair) -> None:
    assert accepted(build(pair), build(pair)).keys() == WRITES


@pytest.mark.parametrize("rpc", sorted(WRITES))
def test_a_write_without_read_returns_ids_times_etags_and_the_revision_only(pair: Pair, rpc: str) -> None:
    pair.writer.received.clear()
    fields, request_id = accepted(build(pair), build(pair))[rpc], new_request_id()
    answers = [
        pair.writer.send(rpc, **fields, request_id=request_id, validate_only=True),
        pair.writer.send(rpc, **fields, request_id=request_id),
        pair.writer.send(rpc, **fields, request_id=request_id),  # a replay
        pair.writer.send(rpc, **fields, request_id=request_id, validate_only=True),  # a replay too
    ]
    assert not any(isinstance(answer, Refusal) for answer in answers), answers
    assert [text for text in pair.writer.received if PRIVATE.search(text)] == []
    assert {name for answer in answers for name in set_fields(answer)} <= KEPT
    assert answers[1].revision


@pytest.mark.parametrize("rpc", sorted(WRITES))
def test_the_same_write_with_read_returns_the_private_values(pair: Pair, rpc: str) -> None:
    """So the test above would notice them."""
    pair.clerk.received.clear()
    pair.clerk.send(rpc, **accepted(build(pair), build(pair))[rpc], request_id=new_request_id(), validate_only=True)
    pair.clerk.received = pair.clerk.received[-1:]
    assert PRIVATE.search(pair.clerk.received[0])


def test_without_read_a_response_has_the_id_of_the_record(pair: Pair) -> None:
    people = build(pair)
    made = pair.writer.send("CreatePatient", patient=NAMED)
    assert made.patient.patient_id
    updated = pair.writer.send("UpdatePatient", patient={"patient_id": people.patient}).patient
    assert (updated.patient_id, updated.display_name, updated.primary_therapist_id) == (people.patient, "", "")
    assert updated.etag
    assert updated.HasField("create_time")
    assigned = pair.writer.send(
        "AssignPatient", therapist_id=people.therapist, patient_id=made.patient.patient_id, focus=SECRET
    )
    period = assigned.assignment
    assert (period.therapist_id, period.patient_id) == (people.therapist, made.patient.patient_id)
    assert (bool(period.assignment_id), period.focus, period.created_by, assigned.created) == (True, "", "", True)


def test_a_transfer_without_read_lists_only_the_patients_that_the_request_names(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    sides = {"source_therapist_id": people.therapist, "target_therapist_id": other.therapist}
    for flag in (True, False):
        asked = {**sides, "request_id": new_request_id(), "validate_only": flag}
        named = pair.writer.send("TransferPatients", **asked, patient_ids=[people.patient])
        for periods in (named.ended, named.active):
            assert [period.patient_id for period in periods] == [people.patient]
        whole = pair.writer.send("TransferPatients", **{**asked, "request_id": new_request_id()})
        assert (len(whole.ended), len(whole.active)) == (0, 0)
    moved = pair.clerk.send("ListTherapistPatients", therapist_id=people.therapist)
    assert len(moved.entries) == 0


def test_a_merge_without_read_shows_no_therapist_and_no_fact(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    asked = {"source_patient_id": people.patient, "target_patient_id": other.patient, "force": True}
    seen = pair.clerk.send("MergePatients", **asked, request_id=new_request_id(), validate_only=True)
    assert (len(seen.ended), len(seen.active), seen.primary_demoted) == (2, 2, True)
    found = pair.writer.send("MergePatients", **asked, request_id=new_request_id())
    assert (len(found.ended), len(found.active), found.primary_demoted) == (0, 0, False)
    assert (found.source.patient_id, found.target.patient_id) == (people.patient, other.patient)
    assert found.source.merged_into_patient_id == other.patient  # which the request names
    deleted = pair.writer.send("DeletePatient", patient_id=people.patient)
    assert (deleted.patient.patient_id, deleted.patient.merged_into_patient_id) == (people.patient, "")


def test_an_unmerge_without_read_does_not_show_the_target(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    asked = {"source_patient_id": people.patient, "target_patient_id": other.patient, "force": True}
    pair.clerk.send("MergePatients", **asked, request_id=new_request_id())
    assert pair.clerk.send("UnmergePatients", source_patient_id=people.patient, validate_only=True).HasField("target")
    found = pair.writer.send("UnmergePatients", source_patient_id=people.patient)
    assert (found.source.patient_id, found.HasField("target")) == (people.patient, False)


def test_a_merge_confirms_no_guessed_birth_date_without_read(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    asked = {"source_patient_id": people.patient, "target_patient_id": other.patient}
    assert pair.clerk.send("MergePatients", **asked, request_id=new_request_id(), validate_only=True).target.patient_id
    found = pair.writer.send("MergePatients", **asked, request_id=new_request_id(), validate_only=True)
    assert (found.reason, found.metadata) == ("BIRTH_DATES_DIFFER", {})


def test_a_merge_confirms_no_guessed_name_without_read(pair: Pair) -> None:
    """A name that the target has already takes no place among its aliases, of which it can have ten."""
    people = build(pair)
    stored = pair.clerk.send("GetPatient", patient_id=people.patient).patient
    assert len(stored.aliases) == 1

    def guess(caller: Caller, value: str) -> Any:
        aliases = [f"Name {index}" for index in range(9)]
        made = pair.writer.send("CreatePatient", patient={"display_name": value, "aliases": aliases})
        asked = {"source_patient_id": people.patient, "target_patient_id": made.patient.patient_id}
        found = caller.send("MergePatients", **asked, request_id=new_request_id(), validate_only=True, force=True)
        return getattr(found, "reason", "")

    assert (guess(pair.clerk, stored.display_name), guess(pair.clerk, "Another")) == ("", "MERGE_TOO_LARGE")
    assert guess(pair.writer, stored.display_name) == guess(pair.writer, "Another") == "MERGE_TOO_LARGE"


def test_a_request_id_names_no_therapist(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    therapist = pair.clerk.send("CreateTherapist", therapist={"display_name": "New"}).therapist.therapist_id
    pair.clerk.send("AssignPatient", therapist_id=therapist, patient_id=people.patient)
    asked = {"source_patient_id": people.patient, "target_patient_id": other.patient, "force": True}
    found = pair.writer.send("MergePatients", **asked, request_id=therapist, validate_only=True)
    assert found.target.patient_id == other.patient
    assert (len(found.ended), len(found.active)) == (0, 0)


def merged(pair: Pair, people: People) -> People:
    """Merges the patient into another one, which is returned."""
    hidden = build(pair)
    asked = {"source_patient_id": people.patient, "target_patient_id": hidden.patient, "force": True}
    pair.clerk.send("MergePatients", **asked, request_id=new_request_id())
    return hidden


@pytest.mark.parametrize("rpc", ["UpdatePatient", "AssignPatient", "TransferPatients"])
def test_an_error_about_a_merged_patient_names_the_other_record_only_to_readers(pair: Pair, rpc: str) -> None:
    people, other = build(pair), build(pair)
    hidden = merged(pair, people)
    sent = {**accepted(people, other)[rpc], "request_id": new_request_id()}
    if rpc == "TransferPatients":
        sent["patient_ids"] = [people.patient]
    shown, found = pair.clerk.send(rpc, **sent), pair.writer.send(rpc, **sent)
    assert (shown.reason, shown.metadata) == ("PATIENT_MERGED", {"patient_id": hidden.patient})
    assert (found.reason, found.metadata, "ResourceInfo" in found.details) == ("PATIENT_MERGED", {}, False)


def refusals(people: People, other: People) -> dict[str, tuple[str, dict[str, Any]]]:
    """Calls that end with an error that names or counts other records: the reason, the method and the request."""
    both = {"therapist_id": people.therapist, "patient_id": people.patient}
    named = {"source_therapist_id": other.therapist, "target_therapist_id": people.therapist}
    return {
        "PRIMARY_EXISTS": ("AssignTherapist", {**both, "role": PRIMARY, "replace": True}),
        "ASSIGNMENT_DIFFERS": ("AssignPatient", {**both, "focus": "other"}),
        "HAS_ACTIVE_ASSIGNMENTS": ("DeletePatient", {"patient_id": people.patient}),
        "THERAPIST_AT_CAPACITY": ("AssignPatient", {**both, "patient_id": other.patient}),
        "PERIOD_OVERLAPS": (
            "AssignTherapist",
            {**both, "role": PRIMARY, "replace": True, "replace_primary": True, "start_time": {"seconds": 1}},
        ),
        "IDENTIFIER_TAKEN": ("CreatePatient", {"patient": record("Patient", 0)}),
        "ASSIGNMENT_NOT_FOUND": ("TransferPatients", {**named, "patient_ids": [people.patient]}),
    }


@pytest.mark.parametrize("reason", refusals(People("", "", ""), People("", "", "")))
def test_an_error_without_read_names_and_counts_no_records(pair: Pair, reason: str) -> None:
    people, other = build(pair), build(pair)
    limit = {"therapist_id": people.therapist, "max_active_patients": 1}
    pair.clerk.send("UpdateTherapist", therapist=limit, update_mask={"paths": ["max_active_patients"]})
    rpc, fields = refusals(people, other)[reason]
    pair.writer.received.clear()
    found = pair.writer.send(rpc, **fields, request_id=new_request_id(), validate_only=True)
    assert (found.reason, found.metadata, "ResourceInfo" in found.details) == (reason, {}, False)
    assert [text for text in pair.writer.received if PRIVATE.search(text)] == []
    shown = pair.clerk.send(rpc, **fields, request_id=new_request_id(), validate_only=True)
    assert shown.reason == reason
    assert shown.metadata or "ResourceInfo" in shown.details


def test_a_batch_without_read_returns_the_id_and_the_created_flag_of_each_entry(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    both = {"therapist_id": people.therapist, "patient_id": people.patient, "focus": SECRET}
    first, second = pair.writer.send("BatchAssign", requests=[both, {**both, "patient_id": other.patient}]).results
    assert (first.created, second.created) == (False, True)
    assert all(one.assignment.assignment_id and not one.assignment.focus for one in (first, second))
    assert [one.assignment.patient_id for one in (first, second)] == [people.patient, other.patient]


def test_an_error_of_a_batch_without_read_has_the_index_of_the_entry_only(pair: Pair) -> None:
    people = build(pair)
    both = {"therapist_id": people.therapist, "patient_id": people.patient}
    batch = [{**both, "focus": SECRET}, {**both, "focus": "other"}]
    found = pair.writer.send("BatchAssign", requests=batch)
    assert (found.reason, found.metadata) == ("ASSIGNMENT_DIFFERS", {"index": "1"})
    assert pair.clerk.send("BatchAssign", requests=batch).metadata.keys() == {"index", "assignment_id"}


def test_an_error_of_a_batch_of_new_records_without_read_names_entries_and_no_record(pair: Pair) -> None:
    """That two entries conflict is no news to the caller. Which record has an identifier is."""
    identifiers = pair.clerk.send("GetPatient", patient_id=build(pair).patient).patient.identifiers
    assert identifiers
    new = {"patient_id": f"new-{next(_numbers)}", "patient": NAMED}
    found = pair.writer.send("BatchCreatePatients", requests=[new, {"patient": NAMED}, new])
    assert (found.reason, found.metadata) == ("ID_TAKEN", {"index": "2", "other_index": "0"})
    batch = [new, {"patient": {**NAMED, "identifiers": identifiers}}]
    found = pair.writer.send("BatchCreatePatients", requests=batch)
    assert (found.reason, found.metadata) == ("IDENTIFIER_TAKEN", {"index": "1"})
    assert "ResourceInfo" not in found.details
    assert "ResourceInfo" in pair.clerk.send("BatchCreatePatients", requests=batch).details


def test_an_error_without_read_names_what_the_request_named(pair: Pair) -> None:
    people = build(pair)
    found = pair.writer.send("AssignPatient", therapist_id=people.therapist, patient_id="unknown")
    assert (found.reason, found.details["ResourceInfo"].resource_name) == ("PATIENT_NOT_FOUND", "unknown")


def test_a_call_that_only_validates_confirms_no_guess_without_read(pair: Pair) -> None:
    """An update to the stored value changes nothing. Its response must not differ from that of any other update."""
    people = build(pair)
    stored = pair.clerk.send("GetPatient", patient_id=people.patient).patient

    def guess(value: dict[str, int]) -> Any:
        patient, mask = {"patient_id": people.patient, "birth_date": value}, {"paths": ["birth_date"]}
        return pair.writer.send("UpdatePatient", patient=patient, update_mask=mask, validate_only=True)

    right = guess({"year": stored.birth_date.year, "month": stored.birth_date.month, "day": stored.birth_date.day})
    assert right == guess({"year": 1901, "month": 2, "day": 3})
    assert right.patient.patient_id == people.patient


def test_a_call_that_only_validates_is_marked_in_the_access_log(pair: Pair) -> None:
    people = build(pair)
    for flag in (False, True):
        pair.writer.send("UpdatePatient", patient={"patient_id": people.patient}, validate_only=flag)

    def lines() -> list[dict[str, Any]]:
        found = pair.log.lines()
        return [line for line in found if line["caller"] == "writer" and line.get("patient_ids") == [people.patient]]

    eventually(lambda: len(lines()) == 2)
    assert [line.get("validate_only") for line in lines()] == [None, True]
