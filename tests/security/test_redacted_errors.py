"""An error says nothing about records to a caller without `read`, except what its request names."""

from typing import Any

import pytest

from tests.security.canaries import PRIVATE
from tests.security.redaction_callers import (
    NAMED,
    SECRET,
    Caller,
    Pair,
    People,
    accepted,
    build,
    merge_into_another,
    numbers,
    record,
)
from tests.support.api_driver import PRIMARY, new_request_id

NO_PEOPLE = People("", "", "", 0)


@pytest.mark.parametrize("rpc", ["UpdatePatient", "AssignPatient", "TransferPatients"])
def test_an_error_about_a_merged_patient_names_the_other_record_only_to_readers(pair: Pair, rpc: str) -> None:
    people, other = build(pair), build(pair)
    hidden = merge_into_another(pair, people)
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
        "IDENTIFIER_TAKEN": ("CreatePatient", {"patient": record("Patient", people.number)}),
        "ASSIGNMENT_NOT_FOUND": ("TransferPatients", {**named, "patient_ids": [people.patient]}),
    }


@pytest.mark.parametrize("reason", refusals(NO_PEOPLE, NO_PEOPLE))
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
    new = {"patient_id": f"new-{next(numbers)}", "patient": NAMED}
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
