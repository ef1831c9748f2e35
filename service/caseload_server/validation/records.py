"""Validates requests about therapists and patients. Each function returns what the store needs, or raises InvalidField.

The two tables name the rule of every field that a caller can set. Required and output-only fields come from the
google.api.field_behavior options of the contract.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import resources_pb2 as pb
from caseload.v1 import therapist_service_pb2 as therapist_pb
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask

from caseload_server.domain import limits, requests
from caseload_server.domain.text_folding import begins_spaceless
from caseload_server.validation import rules
from caseload_server.validation.assignments import caller_end_reason
from caseload_server.validation.batches import validate_batch
from caseload_server.validation.ordering import record_order
from caseload_server.validation.rules import Rule, ValidationErrors

RecordMessage = TypeVar("RecordMessage", pb.Therapist, pb.Patient)
ListRequest = therapist_pb.ListTherapistsRequest | patient_pb.ListPatientsRequest
DeleteRequest = therapist_pb.DeleteTherapistRequest | patient_pb.DeletePatientRequest
UndeleteRequest = therapist_pb.UndeleteTherapistRequest | patient_pb.UndeletePatientRequest

_UNSET_VALUES: Final = {"max_active_patients": None, "birth_date": ""}
"""The fields with presence (`HasField`), and the value to store when they are not set."""


class _RecordRules(NamedTuple):
    """The rules for the fields of a therapist or a patient."""

    name: str
    """The field of a request that holds the record, such as "therapist"."""
    rules: dict[str, Rule]
    required: frozenset[str]
    output_only: frozenset[str]


def _fields_with_behavior(descriptor: Descriptor, behavior: int) -> frozenset[str]:
    return frozenset(
        field.name
        for field in descriptor.fields
        if behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    )


def _record_rules(message: type[pb.Therapist | pb.Patient], rules: dict[str, Rule]) -> _RecordRules:
    descriptor = message.DESCRIPTOR
    return _RecordRules(
        name=descriptor.name.lower(),
        rules=rules,
        required=_fields_with_behavior(descriptor, field_behavior_pb2.REQUIRED),
        output_only=_fields_with_behavior(descriptor, field_behavior_pb2.OUTPUT_ONLY),
    )


_THERAPIST: Final = _record_rules(
    pb.Therapist,
    {
        "display_name": rules.display_name,
        "aliases": rules.aliases,
        "email": rules.email,
        "status": rules.enum(pb.Therapist.Status.values()),
        "identifiers": rules.identifiers,
        "specialties": rules.specialties,
        "max_active_patients": rules.non_negative,
        "annotations": rules.annotations,
    },
)
_PATIENT: Final = _record_rules(
    pb.Patient,
    {
        "display_name": rules.display_name,
        "aliases": rules.aliases,
        "birth_date": rules.birth_date(0),  # _patient_rules replaces it
        "email": rules.email,
        "phone_number": rules.phone_number,
        "status": rules.enum(pb.Patient.Status.values()),
        "identifiers": rules.identifiers,
        "annotations": rules.annotations,
    },
)


def _patient_rules(now_us: int) -> _RecordRules:
    """Returns the rules of a patient at a time. A birth date must not be in the future."""
    return _PATIENT._replace(rules={**_PATIENT.rules, "birth_date": rules.birth_date(now_us)})


def create_therapist(request: therapist_pb.CreateTherapistRequest) -> requests.NewRecord:
    """Returns the id to use (or empty), and the fields to store."""
    return _create(_THERAPIST, request)


def create_patient(request: patient_pb.CreatePatientRequest, now_us: int) -> requests.NewRecord:
    """Returns the id to use (or empty), and the fields to store. Args: now_us, microseconds since 1970 (UTC)."""
    return _create(_patient_rules(now_us), request)


def batch_create_therapists(request: therapist_pb.BatchCreateTherapistsRequest) -> list[requests.NewRecord]:
    """Returns the id to use (or empty), and the fields to store, for each entry."""
    return validate_batch(request, create_therapist)


def batch_create_patients(request: patient_pb.BatchCreatePatientsRequest, now_us: int) -> list[requests.NewRecord]:
    """Returns the same as create_patient, for each entry."""
    return validate_batch(request, lambda entry: create_patient(entry, now_us))


def _create(record: _RecordRules, request: Any) -> requests.NewRecord:
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    id_field = f"{record.name}_id"
    record_id = rules.optional_id(getattr(request, id_field), id_field, violations)
    message = _record_message(record, request, violations)
    set_fields = _set_fields(message)
    names = [name for name in record.rules if name in set_fields | record.required]
    values = _values(record, message, names, violations)
    violations.raise_if_any()
    return record_id, values


def update_therapist(request: therapist_pb.UpdateTherapistRequest) -> requests.Update:
    """Returns the store\'s request for an UpdateTherapist request."""
    return _update(_THERAPIST, request, pb.Assignment.END_REASON_THERAPIST_UNAVAILABLE)


def update_patient(request: patient_pb.UpdatePatientRequest, now_us: int) -> requests.Update:
    """Returns the store\'s request for an UpdatePatient request. Args: now_us, microseconds since 1970 (UTC)."""
    return _update(_patient_rules(now_us), request, pb.Assignment.END_REASON_COMPLETED)


def _update(record: _RecordRules, request: Any, default_reason: int) -> requests.Update:
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    message = _record_message(record, request, violations)
    id_field = f"{record.name}_id"
    record_id = rules.record_id(getattr(message, id_field), f"{record.name}.{id_field}", violations)
    names = _fields_to_set(record, message, request.update_mask, violations)
    values = _values(record, message, names, violations)
    end_reason = caller_end_reason(request, violations)
    if end_reason and not request.force:
        violations.add("end_reason", "must not be set without force")
    violations.raise_if_any()
    return requests.Update(record_id, values, message.etag, (end_reason or default_reason) if request.force else None)


def _record_message(record: _RecordRules, request: Any, violations: ValidationErrors) -> Any:
    """Returns the therapist or patient in a request. Raises InvalidField when the request has none."""
    if not request.HasField(record.name):
        violations.add(record.name, "is required")
        violations.raise_if_any()
    return getattr(request, record.name)


def _fields_to_set(
    record: _RecordRules, message: RecordMessage, mask: FieldMask, violations: ValidationErrors
) -> list[str]:
    """Returns the fields that a mask names. No mask means the fields that are set; "*" means all.

    Never returns an output-only field. See https://google.aip.dev/134 and https://google.aip.dev/161.
    """
    if not mask.paths:
        set_fields = _set_fields(message)
        return [name for name in record.rules if name in set_fields]
    if len(mask.paths) > limits.MAX_MASK_PATHS:
        violations.add("update_mask", f"must have at most {limits.MAX_MASK_PATHS} paths")
        return []
    if list(mask.paths) == ["*"]:
        return list(record.rules)
    for index, path in enumerate(mask.paths):
        if path not in record.rules and path != f"{record.name}_id":
            violations.add(f"update_mask.paths[{index}]", _path_violation(record, path))
    return [name for name in record.rules if name in set(mask.paths)]


def _path_violation(record: _RecordRules, path: str) -> str:
    if path == "*":
        return "must stand alone"
    if path in record.output_only or path == "etag":
        return "must not name a field that the server sets"
    return f"must name a field of the {record.name}"


def _set_fields(message: pb.Therapist | pb.Patient) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


def _values(
    record: _RecordRules, message: RecordMessage, names: Iterable[str], violations: ValidationErrors
) -> requests.Fields:
    values: requests.Fields = {}
    for name in names:
        if name in _UNSET_VALUES and not message.HasField(name):  # type: ignore[arg-type]
            values[name] = _UNSET_VALUES[name]
        else:
            values[name] = record.rules[name](getattr(message, name), f"{record.name}.{name}", violations)
    return values


def record_id(value: str, field: str) -> str:
    """Returns the id of a Get request. Args: field, the name of the id's field in the request."""
    violations = ValidationErrors()
    rules.record_id(value, field, violations)
    violations.raise_if_any()
    return value


def batch_ids(ids: Sequence[str], field: str) -> list[str]:
    """Returns the ids of a BatchGet request. Args: field, the name of the ids' field in the request."""
    violations = ValidationErrors()
    if not 1 <= len(ids) <= limits.MAX_BATCH_SIZE:
        violations.add(field, f"must have 1 to {limits.MAX_BATCH_SIZE} entries")
        violations.raise_if_any()
    checked = list(ids)
    rules.record_ids(checked, field, violations)
    violations.raise_if_any()
    return checked


def list_therapists(request: therapist_pb.ListTherapistsRequest) -> requests.RecordQuery:
    """Returns the query of a ListTherapists request."""
    violations = ValidationErrors()
    query = _record_query(
        request,
        _THERAPIST,
        violations,
        specialties=_specialties(request.filter.specialties, violations),
        accepting_patients=request.filter.accepting_patients,
    )
    violations.raise_if_any()
    return query


def _specialties(values: Sequence[str], violations: ValidationErrors) -> tuple[str, ...]:
    if len(values) > limits.MAX_SPECIALTIES:
        violations.add("filter.specialties", f"must have at most {limits.MAX_SPECIALTIES} entries")
    checked = {
        rules.required_code(value, f"filter.specialties[{index}]", violations)
        for index, value in enumerate(values[: limits.MAX_SPECIALTIES])
    }
    return tuple(sorted(checked))


def list_patients(request: patient_pb.ListPatientsRequest, now_us: int) -> requests.RecordQuery:
    """Returns the query of a ListPatients request. Args: now_us, microseconds since 1970 (UTC)."""
    violations = ValidationErrors()
    sent = request.filter
    birth_date = ""
    if sent.HasField("birth_date"):
        birth_date = rules.birth_date(now_us)(sent.birth_date, "filter.birth_date", violations)
    query = _record_query(
        request,
        _PATIENT,
        violations,
        birth_date=birth_date,
        phone_number=_filter_text(rules.required_phone_number, sent, "phone_number", violations),
        without_primary=sent.without_primary,
    )
    violations.raise_if_any()
    return query


def _record_query(
    request: ListRequest, record: _RecordRules, violations: ValidationErrors, **own: Any
) -> requests.RecordQuery:
    """Returns the query. Args: own, its fields that only the filter of this kind of record has."""
    sent = request.filter
    identifier = None
    if sent.HasField("identifier"):
        identifier = rules.identifier(sent.identifier, "filter.identifier", violations)
    return requests.RecordQuery(
        name_prefix=_name_prefix(sent.name_prefix, "filter.name_prefix", violations),
        statuses=rules.enum_set(record.rules["status"])(sent.statuses, "filter.statuses", violations),
        identifier=identifier,
        identifier_value=_filter_text(rules.identifier_value, sent, "identifier_value", violations),
        email=_filter_text(rules.required_email, sent, "email", violations),
        unassigned=sent.unassigned,
        deleted_only=sent.deleted_only,
        show_deleted=request.show_deleted or sent.deleted_only,
        order=record_order(request.order_by, "order_by", violations),
        with_total=request.include_total_size,
        **own,
    )


def _filter_text(rule: Rule, sent: Any, name: str, violations: ValidationErrors) -> str:
    """Returns a text of a filter. Empty means no restriction, but white space alone would find nothing."""
    value: str = getattr(sent, name)
    return rule(value, f"filter.{name}", violations) if value else ""


_prefix_text = rules.text(1, 100)
_WRITING_DIRECTIONS: Final = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""Invisible characters that other programs put around names. A stored name must not have them."""


def _name_prefix(value: str, path: str, violations: ValidationErrors) -> str:
    """The words of a search, or empty. One character is enough where a character can be a whole name."""
    if not value:
        return ""
    before = len(violations)
    prefix: str = _prefix_text(value.translate(_WRITING_DIRECTIONS), path, violations)
    if len(prefix) == 1 and len(violations) == before and not begins_spaceless(prefix):
        violations.add(path, "must have at least 2 characters, or one that is Chinese, Japanese or Korean")
    return prefix


def delete(request: DeleteRequest, id_field: str) -> requests.Delete:
    """Returns the store\'s request for a Delete request. Args: id_field, the field of the id."""
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    order = requests.Delete(
        record_id=rules.record_id(getattr(request, id_field), id_field, violations),
        etag=request.etag,
        force=request.force,
        allow_missing=request.allow_missing,
    )
    violations.raise_if_any()
    return order


def undelete(request: UndeleteRequest, id_field: str) -> str:
    """Returns the id of an Undelete request. Args: id_field, the field of the id."""
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    record_id = rules.record_id(getattr(request, id_field), id_field, violations)
    violations.raise_if_any()
    return record_id
