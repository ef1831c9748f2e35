"""The definitions of the contract agree with each other and with the code."""

import re
from pathlib import Path

from caseload.v1 import error_reason_pb2, patient_service_pb2, resources_pb2, therapist_service_pb2
from caseload_server.domain import enums
from caseload_server.rpc.status_map import CODES
from google.protobuf.descriptor import FieldDescriptor

PROTOS = Path(__file__).parents[1] / "protos" / "caseload" / "v1"
CATALOGUE = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118 - not a dict


def test_assign_and_unassign_have_the_same_fields_on_both_sides() -> None:
    for verb in ("Assign", "Unassign"):
        for part in ("Request", "Response"):
            ours = therapist_service_pb2.DESCRIPTOR.message_types_by_name[f"{verb}Patient{part}"]
            theirs = patient_service_pb2.DESCRIPTOR.message_types_by_name[f"{verb}Therapist{part}"]
            assert {shape(field) for field in ours.fields} == {shape(field) for field in theirs.fields}


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type or field.enum_type
    return field.name, field.type, field.is_repeated, field.has_presence, kind.full_name if kind else ""


def test_the_domain_enums_match_the_contract() -> None:
    contract = {
        "STATUS_ACTIVE": {resources_pb2.Therapist.STATUS_ACTIVE, resources_pb2.Patient.STATUS_ACTIVE},
        "THERAPIST_INACTIVE": {resources_pb2.Therapist.STATUS_INACTIVE},
        "PATIENT_DISCHARGED": {resources_pb2.Patient.STATUS_DISCHARGED},
        "ROLE_PRIMARY": {resources_pb2.Assignment.ROLE_PRIMARY},
        "ROLE_TREATING": {resources_pb2.Assignment.ROLE_TREATING},
        "ROLE_COVERING": {resources_pb2.Assignment.ROLE_COVERING},
        "STATE_ACTIVE": {resources_pb2.Assignment.STATE_ACTIVE},
        "STATE_ENDED": {resources_pb2.Assignment.STATE_ENDED},
        "END_TRANSFERRED": {resources_pb2.Assignment.END_REASON_TRANSFERRED},
        "END_ENTERED_IN_ERROR": {resources_pb2.Assignment.END_REASON_ENTERED_IN_ERROR},
        "END_RECORD_DELETED": {resources_pb2.Assignment.END_REASON_RECORD_DELETED},
        "END_REPLACED": {resources_pb2.Assignment.END_REASON_REPLACED},
        "END_MERGED": {resources_pb2.Assignment.END_REASON_MERGED},
        "END_EXPIRED": {resources_pb2.Assignment.END_REASON_EXPIRED},
    }
    prefixes = ("STATUS_", "THERAPIST_", "PATIENT_", "ROLE_", "STATE_", "END_")
    ours = {name: {value} for name, value in vars(enums).items() if name.startswith(prefixes)}
    assert ours == contract


def reasons_of_calls() -> dict[str, list[str]]:
    """The reasons in the comments of each service: per RPC and for all RPCs."""
    texts = {file.stem: file.read_text() for file in PROTOS.glob("*_service.proto")}
    any_reason = re.compile("|".join(rf"\b{name}\b" for name in CATALOGUE))
    return {
        file: re.findall(r"^  // - ([A-Z_]+):", text, re.MULTILINE)
        + any_reason.findall("\n".join(re.findall(r"^// .*", text, re.MULTILINE)))
        for file, text in texts.items()
    }


def test_the_reasons_listed_by_services_match_the_catalogue() -> None:
    listed = reasons_of_calls()
    assert {file: len(reasons) >= 10 for file, reasons in listed.items()} == dict.fromkeys(listed, True)
    assert len(listed) == 4
    assert set().union(*listed.values()) == set(CODES) == CATALOGUE - {"UNSPECIFIED"}
