"""Requests about assignments: messages to what the store takes, or InvalidField."""

from typing import Any, Final

from caseload.v1 import assignment_service_pb2 as assignment_pb
from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import resources_pb2 as pb
from caseload.v1 import therapist_service_pb2 as therapist_pb

from caseload_server.domain import limits, requests
from caseload_server.validation import rules
from caseload_server.validation.rules import Problems

Assign = therapist_pb.AssignPatientRequest | patient_pb.AssignTherapistRequest
Unassign = therapist_pb.UnassignPatientRequest | patient_pb.UnassignTherapistRequest
ListAssigned = therapist_pb.ListTherapistPatientsRequest | patient_pb.ListPatientTherapistsRequest

_role = rules.enum(pb.Assignment.Role.values())
_roles = rules.enums(_role)
_states = rules.enums(rules.enum(pb.Assignment.State.values()))
_REASONS: Final = frozenset(pb.Assignment.EndReason.values())
_OWN_REASONS: Final = _REASONS - {
    pb.Assignment.END_REASON_TRANSFERRED,
    pb.Assignment.END_REASON_RECORD_DELETED,
    pb.Assignment.END_REASON_REPLACED,
}
_TOO_FAR_AHEAD: Final = "must lie at most a minute ahead"
_FUTURE: Final = "must not lie in the future"
_CORRECTABLE: Final = ("focus", "start_time", "end_time", "end_reason")
_IMMUTABLE: Final = ("therapist_id", "patient_id", "role")


def list_assigned(request: ListAssigned, parent: str, now_us: int) -> requests.CaseloadQuery:
    """What a request for a record's assignments asks for; parent is the field of its id."""
    problems = Problems()
    query = requests.CaseloadQuery(
        parent_id=rules.record_id(getattr(request, parent), parent, problems),
        roles=_roles(request.roles, "roles", problems),
        states=_states(request.states, "states", problems),
        as_of_us=rules.moment(request, "as_of_time", problems, now_us, _FUTURE),
    )
    _not_both(query, "as_of_time", problems)
    problems.check()
    return query


def _not_both(query: requests.CaseloadQuery | requests.AssignmentQuery, path: str, problems: Problems) -> None:
    if query.states and query.as_of_us is not None:
        problems.add(path, "must not be given together with states")


def list_assignments(request: assignment_pb.ListAssignmentsRequest, now_us: int) -> requests.AssignmentQuery:
    """What a ListAssignments request asks for."""
    problems = Problems()
    wanted = request.filter
    query = requests.AssignmentQuery(
        therapist_id=rules.optional_id(wanted.therapist_id, "filter.therapist_id", problems),
        patient_id=rules.optional_id(wanted.patient_id, "filter.patient_id", problems),
        roles=_roles(wanted.roles, "filter.roles", problems),
        states=_states(wanted.states, "filter.states", problems),
        as_of_us=rules.moment(wanted, "filter.as_of_time", problems, now_us, _FUTURE),
    )
    _not_both(query, "filter.as_of_time", problems)
    problems.check()
    return query


def check(request: assignment_pb.CheckAssignmentsRequest, now_us: int) -> tuple[list[tuple[str, str]], int]:
    """The pairs of a CheckAssignments request, and the time it asks about."""
    problems = Problems()
    if not 1 <= len(request.pairs) <= limits.MAX_BATCH_SIZE:
        problems.add("pairs", f"must have 1 to {limits.MAX_BATCH_SIZE} entries")
        problems.check()
    pairs = [(pair.therapist_id, pair.patient_id) for pair in request.pairs]
    for index, (therapist_id, patient_id) in enumerate(pairs):
        if not (rules.ID.fullmatch(therapist_id) and rules.ID.fullmatch(patient_id)):
            rules.record_id(therapist_id, f"pairs[{index}].therapist_id", problems)
            rules.record_id(patient_id, f"pairs[{index}].patient_id", problems)
    at_us = rules.moment(request, "as_of_time", problems, now_us, _FUTURE)
    problems.check()
    return pairs, now_us if at_us is None else at_us


def transfer(request: assignment_pb.TransferPatientsRequest) -> requests.Transfer:
    """What a TransferPatients request asks for."""
    problems = Problems()
    if not request.request_id:
        problems.add("request_id", "is required")
    rules.request_id(request.request_id, "request_id", problems)
    if len(request.patient_ids) > limits.MAX_ASSIGNMENTS_PER_CALL:
        problems.add("patient_ids", f"must have at most {limits.MAX_ASSIGNMENTS_PER_CALL} entries")
        problems.check()
    patient_ids = [
        rules.record_id(one, f"patient_ids[{index}]", problems) for index, one in enumerate(request.patient_ids)
    ]
    order = requests.Transfer(
        source_id=rules.record_id(request.source_therapist_id, "source_therapist_id", problems),
        target_id=rules.record_id(request.target_therapist_id, "target_therapist_id", problems),
        patient_ids=tuple(dict.fromkeys(patient_ids)),
        ignore_capacity=request.ignore_capacity,
    )
    if order.source_id and order.source_id == order.target_id:
        problems.add("target_therapist_id", "must not be the source")
    problems.check()
    return order


def correct(request: assignment_pb.UpdateAssignmentRequest, now_us: int) -> tuple[str, str, requests.Correction]:
    """The id, the etag (or empty) and the named columns of an UpdateAssignment request."""
    problems = Problems()
    rules.request_id(request.request_id, "request_id", problems)
    if not request.HasField("assignment"):
        problems.add("assignment", "is required")
        problems.check()
    message = request.assignment
    assignment_id = rules.record_id(message.assignment_id, "assignment.assignment_id", problems)
    columns: requests.Correction = {}
    for name in _named(request, problems):
        column, value = _corrected(message, name, now_us, problems)
        columns[column] = value
    problems.check()
    return assignment_id, message.etag, columns


def _named(request: assignment_pb.UpdateAssignmentRequest, problems: Problems) -> list[str]:
    """The fields to correct or to compare: the ones named, all under "*", the populated ones without a mask."""
    populated = {field.name for field, _ in request.assignment.ListFields()}
    immutable = [name for name in _IMMUTABLE if name in populated]
    paths = list(request.update_mask.paths)
    if not paths:
        return [*immutable, *(name for name in _CORRECTABLE if name in populated)]
    if paths == ["*"]:
        return [*immutable, *_CORRECTABLE]
    if len(paths) > limits.MAX_MASK_PATHS:
        problems.add("update_mask", f"must have at most {limits.MAX_MASK_PATHS} paths")
        return []
    for index, path in enumerate(paths):
        if path not in (*_CORRECTABLE, *_IMMUTABLE, "assignment_id"):
            problems.add(f"update_mask.paths[{index}]", "must be focus, start_time, end_time or end_reason")
    return [name for name in (*_IMMUTABLE, *_CORRECTABLE) if name in paths]


def _corrected(message: pb.Assignment, name: str, now_us: int, problems: Problems) -> tuple[str, str | int | None]:
    path = f"assignment.{name}"
    if name in ("start_time", "end_time"):
        at_us = rules.moment(message, path, problems, now_us + rules.MINUTE_US, _TOO_FAR_AHEAD)
        if name == "start_time" and not message.HasField("start_time"):
            problems.add(path, "is required")
        return name.replace("_time", "_us"), at_us
    if name == "focus":
        return name, rules.code(message.focus, path, problems)
    if name in ("therapist_id", "patient_id"):
        return name, rules.record_id(getattr(message, name), path, problems)
    if name == "role":
        return name, _role(message.role, path, problems)
    if name == "end_reason" and message.end_reason not in _REASONS:
        problems.add(path, "must be a known value")
    return name, getattr(message, name)


def _pair(request: Any, problems: Problems) -> tuple[str, str]:
    rules.request_id(request.request_id, "request_id", problems)
    return (
        rules.record_id(request.therapist_id, "therapist_id", problems),
        rules.record_id(request.patient_id, "patient_id", problems),
    )


def assign(request: Assign, now_us: int) -> requests.Assign:
    """What an Assign request from either side asks for."""
    problems = Problems()
    therapist_id, patient_id = _pair(request, problems)
    role = request.role or pb.Assignment.ROLE_TREATING
    order = requests.Assign(
        therapist_id=therapist_id,
        patient_id=patient_id,
        role=_role(role, "role", problems),
        focus=rules.code(request.focus, "focus", problems),
        start_us=rules.moment(request, "start_time", problems, now_us + rules.MINUTE_US, _TOO_FAR_AHEAD),
        replace=request.replace,
        replace_primary=request.replace_primary,
        ignore_capacity=request.ignore_capacity,
    )
    problems.check()
    return order


def unassign(request: Unassign, now_us: int) -> requests.Unassign:
    """What an Unassign request from either side asks for."""
    problems = Problems()
    therapist_id, patient_id = _pair(request, problems)
    if request.end_reason not in _OWN_REASONS:
        problems.add("end_reason", "must be a known value that is not the server's own")
    order = requests.Unassign(
        therapist_id=therapist_id,
        patient_id=patient_id,
        end_reason=request.end_reason,
        end_us=rules.moment(request, "end_time", problems, now_us + rules.MINUTE_US, _TOO_FAR_AHEAD),
        etag=request.etag,
        allow_missing=request.allow_missing,
    )
    problems.check()
    return order
