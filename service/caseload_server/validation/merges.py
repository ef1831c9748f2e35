"""Validates requests about merged patients. Each function returns what the store needs, or raises InvalidField."""

from caseload.v1 import patient_service_pb2 as pb

from caseload_server.domain import requests
from caseload_server.validation import rules
from caseload_server.validation.rules import ValidationErrors


def merge_patients(request: pb.MergePatientsRequest) -> requests.Merge:
    """Returns the store's request for a MergePatients request."""
    violations = ValidationErrors()
    if not request.request_id:
        violations.add("request_id", "is required")
    rules.request_id(request.request_id, "request_id", violations)
    order = requests.Merge(
        source_id=rules.record_id(request.source_patient_id, "source_patient_id", violations),
        target_id=rules.record_id(request.target_patient_id, "target_patient_id", violations),
        force=request.force,
    )
    if order.source_id and order.source_id == order.target_id:
        violations.add("target_patient_id", "must not be the source")
    violations.raise_if_any()
    return order


def unmerge_patients(request: pb.UnmergePatientsRequest) -> str:
    """Returns the id of the source of an UnmergePatients request."""
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    source_id = rules.record_id(request.source_patient_id, "source_patient_id", violations)
    violations.raise_if_any()
    return source_id
