"""Converts records to messages. Empty columns become unset fields.

Each function fills a message in place, field by field. This takes half as long as building messages from messages.
A function that gets no message creates one.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from caseload.v1 import assignment_service_pb2 as assignment_pb
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import resources_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date

from caseload_server.domain.records import Assignment, Change, ChangeSet, Patient, Therapist
from caseload_server.domain.results import CheckResult, RecordVersion, VersionPage

_MICROS_PER_SECOND = 1_000_000
_parse_json = json.JSONDecoder().raw_decode  # json.loads without its checks of the argument

R = TypeVar("R")


def add_all(records: Iterable[R], convert: Callable[[R, Any], Any], messages: Any) -> None:
    """Adds one message for each record. Args: convert, a function of this module; messages, a repeated field."""
    add = messages.add
    for record in records:
        convert(record, add())


def _set_time(time: Timestamp, at_us: int) -> None:
    time.seconds, micros = divmod(at_us, _MICROS_PER_SECOND)
    time.nanos = micros * 1000


def therapist(record: Therapist, message: pb.Therapist | None = None) -> pb.Therapist:
    """Converts a therapist."""
    message = pb.Therapist() if message is None else message
    message.therapist_id = record.therapist_id
    if record.max_active_patients is not None:
        message.max_active_patients = record.max_active_patients
    message.active_patient_count = record.active_patient_count
    if record.specialties != "[]":
        message.specialties.extend(_parse_json(record.specialties)[0])
    _set_common_fields(message, record)
    return message


def patient(record: Patient, message: pb.Patient | None = None) -> pb.Patient:
    """Converts a patient."""
    message = pb.Patient() if message is None else message
    message.patient_id = record.patient_id
    if record.birth_date:
        message.birth_date.CopyFrom(_date(record.birth_date))
    message.phone_number = record.phone_number
    message.primary_therapist_id = record.primary_therapist_id
    message.active_therapist_count = record.active_therapist_count
    message.merged_into_patient_id = record.merged_into_patient_id
    _set_common_fields(message, record)
    return message


def _set_common_fields(message: pb.Therapist | pb.Patient, record: Therapist | Patient) -> None:
    message.display_name = record.display_name
    if record.aliases != "[]":
        message.aliases.extend(_parse_json(record.aliases)[0])
    message.email = record.email
    message.status = record.status  # type: ignore[assignment]
    _set_time(message.create_time, record.created_us)
    _set_time(message.update_time, record.updated_us)
    if record.deleted_us is not None:
        _set_time(message.delete_time, record.deleted_us)
    message.etag = record.etag
    if record.identifiers != "[]":
        add = message.identifiers.add
        for pair in _parse_json(record.identifiers)[0]:
            identifier = add()
            identifier.system, identifier.value = pair
    if record.annotations != "{}":
        message.annotations.update(_parse_json(record.annotations)[0])


def _date(text: str) -> Date:
    year, month, day, *_ = (*map(int, text.split("-")), 0, 0)
    return Date(year=year, month=month, day=day)


def assignment(record: Assignment, message: pb.Assignment | None = None) -> pb.Assignment:
    """Converts an assignment."""
    message = pb.Assignment() if message is None else message
    message.assignment_id = record.assignment_id
    message.therapist_id = record.therapist_id
    message.patient_id = record.patient_id
    message.role = record.role  # type: ignore[assignment]
    message.focus = record.focus
    message.state = pb.Assignment.STATE_ACTIVE if record.end_us is None else pb.Assignment.STATE_ENDED
    _set_time(message.start_time, record.start_us)
    if record.end_us is not None:
        _set_time(message.end_time, record.end_us)
    if record.expire_us is not None:
        _set_time(message.expire_time, record.expire_us)
    message.end_reason = record.end_reason  # type: ignore[assignment]
    message.created_by = record.created_by
    message.ended_by = record.ended_by
    _set_time(message.create_time, record.created_us)
    _set_time(message.update_time, record.updated_us)
    message.etag = record.etag
    return message


def version_page(page: VersionPage[R], convert: Callable[[R, Any], Any], field: str, response: Any) -> None:
    """Fills a response with a page of versions. Args: convert, of the record; field, of a version, for the record."""
    for record in page.versions:
        message = response.versions.add()
        convert(record.record, getattr(message, field))
        _set_version(record, message)
    response.revision = page.revision
    response.oldest_revision = page.oldest_revision
    if page.oldest_us is not None:
        _set_time(response.oldest_time, page.oldest_us)


def _set_version(record: RecordVersion[Any], message: Any) -> None:
    message.from_revision = record.from_revision
    _set_time(message.from_time, record.from_us)
    message.to_revision = record.to_revision
    if record.to_us is not None:
        _set_time(message.to_time, record.to_us)
    message.actor = record.actor
    message.on_behalf_of = record.on_behalf_of


def check_result(record: CheckResult, result: assignment_pb.CheckAssignmentsResponse.Result) -> None:
    """Converts the result of checking one pair."""
    if record.assignment_id is not None:
        result.assigned = True
        result.assignment_id = record.assignment_id
        result.role = record.role  # type: ignore[assignment]


def change_set(record: ChangeSet, message: change_pb.ChangeSet | None = None) -> change_pb.ChangeSet:
    """Converts a change set."""
    message = change_pb.ChangeSet() if message is None else message
    message.revision = record.revision
    _set_time(message.commit_time, record.committed_us)
    message.actor = record.actor
    message.request_id = record.request_id
    message.method = record.method
    message.on_behalf_of = record.on_behalf_of
    add_all(record.changes, _change, message.changes)
    return message


def _change(record: Change, message: change_pb.Change) -> None:
    message.kind = record.kind  # type: ignore[assignment]
    if record.changed_fields:
        message.changed_fields.extend(record.changed_fields.split(","))
    if record.assignment_id:
        message.assignment.assignment_id = record.assignment_id
        message.assignment.therapist_id = record.therapist_id or ""
        message.assignment.patient_id = record.patient_id or ""
    elif record.therapist_id:
        message.therapist_id = record.therapist_id
    elif record.through_revision:
        message.purged_through_revision = record.through_revision
    else:
        message.patient_id = record.patient_id or ""
