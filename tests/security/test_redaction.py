"""A caller without `read` gets no personal data from any method that it may call."""

from typing import Any

import pytest

from tests.security.canaries import PRIVATE
from tests.security.redacted_fields import KEPT, WRITES, set_fields
from tests.security.redaction_callers import NAMED, SECRET, Pair, accepted, build
from tests.support.api_driver import new_request_id
from tests.support.servers import Refusal
from tests.support.waiting import eventually


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


def test_a_request_id_names_no_therapist(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    therapist = pair.clerk.send("CreateTherapist", therapist={"display_name": "New"}).therapist.therapist_id
    pair.clerk.send("AssignPatient", therapist_id=therapist, patient_id=people.patient)
    asked = {"source_patient_id": people.patient, "target_patient_id": other.patient, "force": True}
    found = pair.writer.send("MergePatients", **asked, request_id=therapist, validate_only=True)
    assert found.target.patient_id == other.patient
    assert (len(found.ended), len(found.active)) == (0, 0)


def test_a_batch_without_read_returns_the_id_and_the_created_flag_of_each_entry(pair: Pair) -> None:
    people, other = build(pair), build(pair)
    both = {"therapist_id": people.therapist, "patient_id": people.patient, "focus": SECRET}
    first, second = pair.writer.send("BatchAssign", requests=[both, {**both, "patient_id": other.patient}]).results
    assert (first.created, second.created) == (False, True)
    assert all(one.assignment.assignment_id and not one.assignment.focus for one in (first, second))
    assert [one.assignment.patient_id for one in (first, second)] == [people.patient, other.patient]


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
