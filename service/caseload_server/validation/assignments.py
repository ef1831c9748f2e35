"""Validates requests about assignments. Each function returns what the store needs, or raises InvalidField.

Times are microseconds since 1970 (UTC).
"""

from typing import Any, Final

from caseload.v1 import assignment_service_pb2 as assignment_pb
from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import resources_pb2 as pb
from caseload.v1 import therapist_service_pb2 as therapist_pb

from caseload_server.domain import limits, requests
from caseload_server.domain.id_formats import are_ids
from caseload_server.validation import rules
from caseload_server.validation.batches import validate_batch
from caseload_server.validation.ordering import caseload_order
from caseload_server.validation.rules import ValidationErrors

AssignRequest = therapist_pb.AssignPatientRequest | patient_pb.AssignTherapistRequest
UnassignRequest = therapist_pb.UnassignPatientRequest | patient_pb.UnassignTherapistRequest
CaseloadRequest = therapist_pb.ListTherapistPatientsRequest | patient_pb.ListPatientTherapistsRequest

_role = rules.enum(pb.Assignment.Role.values())
_roles = rules.enum_set(_role)
_states = rules.enum_set(rules.enum(pb.Assignment.State.values()))
_END_REASONS: Final = frozenset(pb.Assignment.EndReason.values())
_CALLER_END_REASONS: Final = _END_REASONS - {
    pb.Assignment.END_REASON_TRANSFERRED,
    pb.Assignment.END_REASON_RECORD_DELETED,
    pb.Assignment.END_REASON_REPLACED,
    pb.Assignment.END_REASON_MERGED,
    pb.Assignment.END_REASON_EXPIRED,
}
"""The end reasons that a caller may give. The server alone sets the others."""
_NOT_OF_FINISHED: Final = ("replace", "replace_primary", "demote_primary", "expire_time")
"""Fields that say what a period replaces or when it will end. A finished period has neither."""
_CORRECTABLE: Final = ("focus", "start_time", "end_time", "end_reason")
"""Fields that an update changes, and that the mask "*" names."""
_BY_NAME: Final = "expire_time"
"""A field that the mask "*" does not name, because it was added later: older callers would clear it."""
_IMMUTABLE: Final = ("therapist_id", "patient_id", "role")
"""Fields that an update does not change. The store compares their values with the assignment's."""


def list_caseload(request: CaseloadRequest, id_field: str, now_us: int) -> requests.CaseloadQuery:
    """Returns the query of a ListTherapistPatients or ListPatientTherapists request.

    Args: id_field, the field with the id of the record whose assignments are listed.
    """
    violations = ValidationErrors()
    query = requests.CaseloadQuery(
        parent_id=rules.record_id(getattr(request, id_field), id_field, violations),
        roles=_roles(request.roles, "roles", violations),
        states=_states(request.states, "states", violations),
        as_of_us=rules.past_us(request, "as_of_time", violations, now_us),
        order=caseload_order(request.order_by, "order_by", violations),
        with_total=request.include_total_size,
    )
    _check_not_both(query, "as_of_time", violations)
    violations.raise_if_any()
    return query


def _check_not_both(
    query: requests.CaseloadQuery | requests.AssignmentQuery, path: str, violations: ValidationErrors
) -> None:
    if query.states and query.as_of_us is not None:
        violations.add(path, "must not be given together with states")


def list_assignments(request: assignment_pb.ListAssignmentsRequest, now_us: int) -> requests.AssignmentQuery:
    """Returns the query of a ListAssignments request."""
    violations = ValidationErrors()
    sent = request.filter
    query = requests.AssignmentQuery(
        therapist_id=rules.optional_id(sent.therapist_id, "filter.therapist_id", violations),
        patient_id=rules.optional_id(sent.patient_id, "filter.patient_id", violations),
        roles=_roles(sent.roles, "filter.roles", violations),
        states=_states(sent.states, "filter.states", violations),
        as_of_us=rules.past_us(sent, "filter.as_of_time", violations, now_us),
        known_at_us=_known_at_us(request, violations, now_us),
        with_total=request.include_total_size,
    )
    _check_not_both(query, "filter.as_of_time", violations)
    violations.raise_if_any()
    return query


def _known_at_us(
    request: assignment_pb.ListAssignmentsRequest | assignment_pb.CheckAssignmentsRequest,
    violations: ValidationErrors,
    now_us: int,
) -> int | None:
    """Returns the time as of whose knowledge to answer, or None for now. A time ahead, by another clock, is now."""
    if not request.HasField("known_at"):
        return None
    at_us = rules.past_us(request, "known_at", violations, now_us)
    return None if at_us is None or at_us >= now_us else at_us


def check_assignments(
    request: assignment_pb.CheckAssignmentsRequest, now_us: int
) -> tuple[list[tuple[str, str]], int, int | None]:
    """Returns the (therapist_id, patient_id) pairs of a CheckAssignments request, the time to check them at, and the
    time as of whose knowledge to answer, or None for now.
    """
    violations = ValidationErrors()
    if not 1 <= len(request.pairs) <= limits.MAX_BATCH_SIZE:
        violations.add("pairs", f"must have 1 to {limits.MAX_BATCH_SIZE} entries")
        violations.raise_if_any()
    pairs = [(pair.therapist_id, pair.patient_id) for pair in request.pairs]
    if not are_ids([one for pair in pairs for one in pair]):
        for index, (therapist_id, patient_id) in enumerate(pairs):
            rules.record_id(therapist_id, f"pairs[{index}].therapist_id", violations)
            rules.record_id(patient_id, f"pairs[{index}].patient_id", violations)
    at_us = rules.past_us(request, "as_of_time", violations, now_us)
    known_at_us = _known_at_us(request, violations, now_us)
    violations.raise_if_any()
    if at_us is None:
        at_us = now_us if known_at_us is None else known_at_us
    return pairs, at_us, known_at_us


def transfer_patients(request: assignment_pb.TransferPatientsRequest, now_us: int) -> requests.Transfer:
    """Returns the store\'s request for a TransferPatients request."""
    violations = ValidationErrors()
    if not request.request_id:
        violations.add("request_id", "is required")
    rules.request_id(request.request_id, "request_id", violations)
    if len(request.patient_ids) > limits.MAX_ASSIGNMENTS_PER_CALL:
        violations.add("patient_ids", f"must have at most {limits.MAX_ASSIGNMENTS_PER_CALL} entries")
        violations.raise_if_any()
    rules.record_ids(request.patient_ids, "patient_ids", violations)
    order = requests.Transfer(
        source_id=rules.record_id(request.source_therapist_id, "source_therapist_id", violations),
        target_id=rules.record_id(request.target_therapist_id, "target_therapist_id", violations),
        patient_ids=tuple(dict.fromkeys(request.patient_ids)),
        ignore_capacity=request.ignore_capacity,
        effective_us=rules.past_us(request, "effective_time", violations, now_us),
    )
    if order.source_id and order.source_id == order.target_id:
        violations.add("target_therapist_id", "must not be the source")
    violations.raise_if_any()
    return order


def update_assignment(
    request: assignment_pb.UpdateAssignmentRequest, now_us: int
) -> tuple[str, str, requests.Correction]:
    """Returns the id, the etag (or empty) and the columns to correct or compare of an UpdateAssignment request."""
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    if not request.HasField("assignment"):
        violations.add("assignment", "is required")
        violations.raise_if_any()
    message = request.assignment
    assignment_id = rules.record_id(message.assignment_id, "assignment.assignment_id", violations)
    columns: requests.Correction = {}
    for name in _fields_to_correct(request, violations):
        column, value = _column(message, name, now_us, violations)
        columns[column] = value
    violations.raise_if_any()
    return assignment_id, message.etag, columns


def _fields_to_correct(request: assignment_pb.UpdateAssignmentRequest, violations: ValidationErrors) -> list[str]:
    """Returns the fields to correct or compare. No mask means the fields that are set; "*" means all."""
    set_fields = {field.name for field, _ in request.assignment.ListFields()}
    immutable = [name for name in _IMMUTABLE if name in set_fields]
    if len(request.update_mask.paths) > limits.MAX_MASK_PATHS:
        violations.add("update_mask", f"must have at most {limits.MAX_MASK_PATHS} paths")
        return []
    paths = list(request.update_mask.paths)
    if not paths:
        return [*immutable, *(name for name in (*_CORRECTABLE, _BY_NAME) if name in set_fields)]
    if paths == ["*"]:
        return [*immutable, *_CORRECTABLE]
    for index, path in enumerate(paths):
        if path not in (*_CORRECTABLE, _BY_NAME, *_IMMUTABLE, "assignment_id"):
            text = "must be focus, start_time, end_time, end_reason or expire_time"
            violations.add(f"update_mask.paths[{index}]", text)
    return [name for name in (*_IMMUTABLE, *_CORRECTABLE, _BY_NAME) if name in paths]


def _column(
    message: pb.Assignment, name: str, now_us: int, violations: ValidationErrors
) -> tuple[str, str | int | None]:
    path = f"assignment.{name}"
    if name in ("start_time", "end_time"):
        at_us = rules.past_us(message, path, violations, now_us)
        if name == "start_time" and not message.HasField("start_time"):
            violations.add(path, "is required")
        return name.replace("_time", "_us"), at_us
    if name == _BY_NAME:
        return "expire_us", rules.planned_time_us(message, path, violations)
    if name == "focus":
        return name, rules.code(message.focus, path, violations)
    if name in ("therapist_id", "patient_id"):
        return name, rules.record_id(getattr(message, name), path, violations)
    if name == "role":
        return name, _role(message.role, path, violations)
    if name == "end_reason" and message.end_reason not in _END_REASONS:
        violations.add(path, "must be a known value")
    return name, getattr(message, name)


def _pair(request: Any, violations: ValidationErrors) -> tuple[str, str]:
    rules.request_id(request.request_id, "request_id", violations)
    return (
        rules.record_id(request.therapist_id, "therapist_id", violations),
        rules.record_id(request.patient_id, "patient_id", violations),
    )


def assign(request: AssignRequest, now_us: int) -> requests.Assign:
    """Returns the store\'s request for an AssignPatient or AssignTherapist request."""
    violations = ValidationErrors()
    therapist_id, patient_id = _pair(request, violations)
    role = request.role or pb.Assignment.ROLE_TREATING
    order = requests.Assign(
        therapist_id=therapist_id,
        patient_id=patient_id,
        role=_role(role, "role", violations),
        focus=rules.code(request.focus, "focus", violations),
        start_us=rules.past_us(request, "start_time", violations, now_us),
        replace=request.replace,
        replace_primary=request.replace_primary,
        ignore_capacity=request.ignore_capacity,
        end_us=rules.past_us(request, "end_time", violations, now_us),
        end_reason=caller_end_reason(request, violations),
        expire_us=rules.planned_time_us(request, "expire_time", violations),
        demote_primary=request.demote_primary,
    )
    _check_finished(request, order, violations)
    if order.replace_primary and order.demote_primary:
        violations.add("demote_primary", "must not be given together with replace_primary")
    violations.raise_if_any()
    return order


def caller_end_reason(request: Any, violations: ValidationErrors) -> int:
    """The field end_reason of a request: UNSPECIFIED, or a reason that callers may set."""
    if request.end_reason not in _CALLER_END_REASONS:
        violations.add("end_reason", "must be a known value that callers may set")
    reason: int = request.end_reason
    return reason


def _check_finished(request: AssignRequest, order: requests.Assign, violations: ValidationErrors) -> None:
    """Adds violations of the fields of a finished period."""
    if not request.HasField("end_time"):
        if request.end_reason in _CALLER_END_REASONS - {0}:
            violations.add("end_reason", "must only be set together with end_time")
        return
    if not request.HasField("start_time"):
        violations.add("start_time", "is required with end_time")
    elif order.start_us is not None and order.end_us is not None and order.end_us < order.start_us:
        violations.add("end_time", "must not lie before start_time")
    set_fields = {field.name for field, _ in request.ListFields()}
    for name in _NOT_OF_FINISHED:
        if name in set_fields:
            violations.add(name, "must not be set together with end_time")


def batch_assign(request: assignment_pb.BatchAssignRequest, now_us: int) -> list[requests.Assign]:
    """Returns the store\'s request for each entry of a BatchAssign request."""
    return validate_batch(request, lambda entry: assign(entry, now_us))


def unassign(request: UnassignRequest, now_us: int) -> requests.Unassign:
    """Returns the store\'s request for an UnassignPatient or UnassignTherapist request."""
    violations = ValidationErrors()
    therapist_id, patient_id = _pair(request, violations)
    order = requests.Unassign(
        therapist_id=therapist_id,
        patient_id=patient_id,
        end_reason=caller_end_reason(request, violations),
        end_us=rules.past_us(request, "end_time", violations, now_us),
        etag=request.etag,
        allow_missing=request.allow_missing,
    )
    violations.raise_if_any()
    return order
