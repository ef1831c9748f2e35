"""A caller with all permissions and one that may only write, and records with private values in every field."""

from itertools import count
from typing import Any, Final, NamedTuple

import grpc
from caseload.v1 import resources_pb2
from google.protobuf.message_factory import GetMessageClass

from tests.api.client_calls import full_error_text
from tests.security.canaries import CANARY, WELL_FORMED, names_of
from tests.security.server_fixture import LogReader, bearer
from tests.support.api_driver import PRIMARY, RPCS, full_name, new_request_id, request
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS

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
numbers = count()


class People(NamedTuple):
    """Records with private values in every field, for one scenario.

    The therapist treats the patient and a secret patient. The primary therapist of the patient is secret.
    """

    therapist: str
    patient: str
    secret_assignment: str
    """Of the patient and the secret therapist."""
    number: int
    """The one in the identifiers of the therapist and the patient, see `record`."""


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


def record(kind: str, number: int) -> dict[str, Any]:
    """A record with a private value in every field that takes one."""
    names = names_of(getattr(resources_pb2, kind)())
    values = {name: value for name, value in WELL_FORMED.items() if name in names}
    return {**values, "identifiers": [{"system": f"urn:{SECRET}", "value": f"{SECRET}-{number}"}]}


def build(pair: Pair) -> People:
    clerk, number = pair.clerk, next(numbers)
    therapists, patients = (f"t{number}", f"{SECRET}-t{number}"), (f"p{number}", f"{SECRET}-p{number}")
    for kind, ids in (("Therapist", therapists), ("Patient", patients)):
        for index, one in enumerate(ids):
            clerk.send(f"Create{kind}", **{f"{kind.lower()}_id": one, kind.lower(): record(kind, 2 * number + index)})
    secret = {"therapist_id": therapists[1], "patient_id": patients[0], "role": PRIMARY}
    made = clerk.send("AssignPatient", **secret, focus=SECRET)
    for patient_id in patients:
        clerk.send("AssignPatient", therapist_id=therapists[0], patient_id=patient_id, focus=SECRET)
    return People(therapists[0], patients[0], made.assignment.assignment_id, 2 * number)


def accepted(people: People, other: People) -> dict[str, dict[str, Any]]:
    """For each method that needs `write`, a request that succeeds."""
    therapist, patient = {"therapist_id": people.therapist}, {"patient_id": people.patient}
    both, number = {**therapist, **patient}, next(numbers)
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


def merge_into_another(pair: Pair, people: People) -> People:
    """Merges the patient into another one, which is returned."""
    hidden = build(pair)
    asked = {"source_patient_id": people.patient, "target_patient_id": hidden.patient, "force": True}
    pair.clerk.send("MergePatients", **asked, request_id=new_request_id())
    return hidden
