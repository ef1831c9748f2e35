"""Requests about therapists and patients: messages to what the store takes, or InvalidField.

The tables name the rule of every field a caller can set; required, output-only and immutable fields are known from
the contract's google.api.field_behavior. No I/O.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeVar

from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import resources_pb2 as pb
from caseload.v1 import therapist_service_pb2 as therapist_pb
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask

from caseload_server.domain import limits, requests
from caseload_server.validation import rules
from caseload_server.validation.rules import Problems, Rule

PersonMessage = TypeVar("PersonMessage", pb.Therapist, pb.Patient)


_UNSET: Final = {"max_active_patients": None, "birth_date": ""}
"""Fields that know whether they are set, and what is stored where they are not."""


class RecordRules(NamedTuple):
    """How the fields of a therapist or patient are checked."""

    name: str
    """The field of a request that holds the record, such as "therapist"."""
    rules: dict[str, Rule]
    required: frozenset[str]
    output_only: frozenset[str]


def _behaving(descriptor: Descriptor, behavior: int) -> frozenset[str]:
    return frozenset(
        field.name
        for field in descriptor.fields
        if behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    )


def _record_rules(message: type[pb.Therapist | pb.Patient], rules: dict[str, Rule]) -> RecordRules:
    descriptor = message.DESCRIPTOR
    return RecordRules(
        name=descriptor.name.lower(),
        rules=rules,
        required=_behaving(descriptor, field_behavior_pb2.REQUIRED),
        output_only=_behaving(descriptor, field_behavior_pb2.OUTPUT_ONLY),
    )


THERAPIST: Final = _record_rules(
    pb.Therapist,
    {
        "display_name": rules.display_name,
        "email": rules.email,
        "status": rules.enum(pb.Therapist.Status.values()),
        "identifiers": rules.identifiers,
        "specialties": rules.specialties,
        "max_active_patients": rules.bound,
        "annotations": rules.annotations,
    },
)


def patient_rules(now_us: int) -> RecordRules:
    """The rules of a patient; that no one is born in the future depends on the time."""
    return PATIENT._replace(rules={**PATIENT.rules, "birth_date": rules.birth_date(now_us)})


PATIENT: Final = _record_rules(
    pb.Patient,
    {
        "display_name": rules.display_name,
        "birth_date": rules.birth_date(0),
        "email": rules.email,
        "phone_number": rules.phone_number,
        "status": rules.enum(pb.Patient.Status.values()),
        "identifiers": rules.identifiers,
        "annotations": rules.annotations,
    },
)


def create(record: RecordRules, request: Any) -> tuple[str, requests.Fields]:
    """The id to use (or empty) and the fields of a Create request."""
    problems = Problems()
    rules.request_id(request.request_id, "request_id", problems)
    id_field = f"{record.name}_id"
    record_id = rules.optional_id(getattr(request, id_field), id_field, problems)
    if not request.HasField(record.name):
        problems.add(record.name, "is required")
        problems.check()
    message = getattr(request, record.name)
    populated = _populated(message)
    values = _values(record, message, [name for name in record.rules if name in populated | record.required], problems)
    problems.check()
    return record_id, values


class Update(NamedTuple):
    """What an Update request asks for."""

    record_id: str
    etag: str
    rules: requests.Fields


def update(record: RecordRules, request: Any) -> Update:
    """The id, the etag (or empty) and the fields to set of an Update request."""
    problems = Problems()
    rules.request_id(request.request_id, "request_id", problems)
    if not request.HasField(record.name):
        problems.add(record.name, "is required")
        problems.check()
    message = getattr(request, record.name)
    id_field = f"{record.name}_id"
    record_id = rules.record_id(getattr(message, id_field), f"{record.name}.{id_field}", problems)
    values = _values(record, message, _masked(record, message, request.update_mask, problems), problems)
    problems.check()
    return Update(record_id, message.etag, values)


def _masked(record: RecordRules, message: PersonMessage, mask: FieldMask, problems: Problems) -> list[str]:
    """The fields that a mask names: none means the populated ones, "*" all. Output-only ones are never set."""
    if not mask.paths:
        return [name for name in record.rules if name in _populated(message)]
    if list(mask.paths) == ["*"]:
        return list(record.rules)
    if len(mask.paths) > limits.MAX_MASK_PATHS:
        problems.add("update_mask", f"must have at most {limits.MAX_MASK_PATHS} paths")
        return []
    for index, path in enumerate(mask.paths):
        if path not in record.rules and path != f"{record.name}_id":
            problems.add(f"update_mask.paths[{index}]", _mask_problem(record, path))
    return [name for name in record.rules if name in set(mask.paths)]


def _mask_problem(record: RecordRules, path: str) -> str:
    if path == "*":
        return "must stand alone"
    if path in record.output_only or path == "etag":
        return "must not name a field that the server sets"
    return f"must name a field of the {record.name}"


def _populated(message: pb.Therapist | pb.Patient) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


def _values(record: RecordRules, message: PersonMessage, names: Iterable[str], problems: Problems) -> requests.Fields:
    values: requests.Fields = {}
    for name in names:
        if name in _UNSET and not message.HasField(name):  # type: ignore[arg-type]
            values[name] = _UNSET[name]
        else:
            values[name] = record.rules[name](getattr(message, name), f"{record.name}.{name}", problems)
    return values


def record_id(value: str, field: str) -> str:
    """The id of a Get request."""
    problems = Problems()
    rules.record_id(value, field, problems)
    problems.check()
    return value


def batch(ids: Iterable[str], field: str) -> list[str]:
    """The 1 to 100 ids of a BatchGet request."""
    wanted = list(ids)
    problems = Problems()
    if not 1 <= len(wanted) <= limits.MAX_BATCH_SIZE:
        problems.add(field, f"must have 1 to {limits.MAX_BATCH_SIZE} entries")
        problems.check()
    for index, one in enumerate(wanted):
        if not rules.ID.fullmatch(one):  # a path for each would take longer than all else here
            rules.record_id(one, f"{field}[{index}]", problems)
    problems.check()
    return wanted


ListPeople = therapist_pb.ListTherapistsRequest | patient_pb.ListPatientsRequest
Delete = therapist_pb.DeleteTherapistRequest | patient_pb.DeletePatientRequest
Undelete = therapist_pb.UndeleteTherapistRequest | patient_pb.UndeletePatientRequest


def list_therapists(request: therapist_pb.ListTherapistsRequest) -> requests.RecordQuery:
    """What a ListTherapists request asks for."""
    problems = Problems()
    wanted = request.filter
    specialties = wanted.specialties
    if len(specialties) > limits.MAX_SPECIALTIES:
        problems.add("filter.specialties", f"must have at most {limits.MAX_SPECIALTIES} entries")
    query = _people_query(request, THERAPIST, problems)._replace(
        specialties=tuple(
            sorted(
                {
                    rules.required_code(one, f"filter.specialties[{index}]", problems)
                    for index, one in enumerate(specialties[: limits.MAX_SPECIALTIES])
                }
            )
        ),
        accepting_patients=wanted.accepting_patients,
    )
    problems.check()
    return query


def list_patients(request: patient_pb.ListPatientsRequest) -> requests.RecordQuery:
    """What a ListPatients request asks for."""
    problems = Problems()
    query = _people_query(request, PATIENT, problems)
    problems.check()
    return query


def _people_query(
    request: therapist_pb.ListTherapistsRequest | patient_pb.ListPatientsRequest,
    record: RecordRules,
    problems: Problems,
) -> requests.RecordQuery:
    wanted = request.filter
    identifier = None
    if wanted.HasField("identifier"):
        identifier = rules.identifier(wanted.identifier, "filter.identifier", problems)
    return requests.RecordQuery(
        name_prefix=_name_prefix(wanted.name_prefix, problems),
        statuses=rules.enums(record.rules["status"])(wanted.statuses, "filter.statuses", problems),
        identifier=identifier,
        unassigned=wanted.unassigned,
        show_deleted=request.show_deleted,
    )


_prefix_text = rules.text(2, 100)


def _name_prefix(value: str, problems: Problems) -> str:
    return _prefix_text(value, "filter.name_prefix", problems) if value else ""


def delete(request: Delete, field: str) -> requests.Delete:
    """What a Delete request asks for; field is the one of the id."""
    problems = Problems()
    rules.request_id(request.request_id, "request_id", problems)
    order = requests.Delete(
        record_id=rules.record_id(getattr(request, field), field, problems),
        etag=request.etag,
        force=request.force,
        allow_missing=request.allow_missing,
    )
    problems.check()
    return order


def undelete(request: Undelete, field: str) -> str:
    """The id of an Undelete request; field is the one of the id."""
    problems = Problems()
    rules.request_id(request.request_id, "request_id", problems)
    record_id = rules.record_id(getattr(request, field), field, problems)
    problems.check()
    return record_id
