"""Records to messages: the only place where the two meet. Empty columns stay unset fields.

Fields are set one by one, in the message where it is going to stay: that takes half as long as to make messages of
messages. A function that is given no message makes one.
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
from caseload_server.domain.results import CheckResult

_MICROS = 1_000_000
_scan = json.JSONDecoder().raw_decode  # json.loads, but for what it looks at first

R = TypeVar("R")


def each(records: Iterable[R], convert: Callable[[R, Any], Any], messages: Any) -> None:
    """Adds a message for each record. Args: convert, one of the functions below; messages, a repeated field."""
    add = messages.add
    for record in records:
        convert(record, add())


def _set_time(time: Timestamp, at_us: int) -> None:
    time.seconds, micros = divmod(at_us, _MICROS)
    time.nanos = micros * 1000


def therapist(record: Therapist, message: pb.Therapist | None = None) -> pb.Therapist:
    """A therapist as callers see it."""
    message = pb.Therapist() if message is None else message
    message.therapist_id = record.therapist_id
    if record.max_active_patients is not None:
        message.max_active_patients = record.max_active_patients
    message.active_patient_count = record.active_patient_count
    if record.specialties != "[]":
        message.specialties.extend(_scan(record.specialties)[0])
    _set_shared(message, record)
    return message


def patient(record: Patient, message: pb.Patient | None = None) -> pb.Patient:
    """A patient as callers see it."""
    message = pb.Patient() if message is None else message
    message.patient_id = record.patient_id
    if record.birth_date:
        message.birth_date.CopyFrom(_date(record.birth_date))
    message.phone_number = record.phone_number
    message.primary_therapist_id = record.primary_therapist_id
    message.active_therapist_count = record.active_therapist_count
    _set_shared(message, record)
    return message


def _set_shared(message: pb.Therapist | pb.Patient, record: Therapist | Patient) -> None:
    message.display_name = record.display_name
    message.email = record.email
    message.status = record.status  # type: ignore[assignment]
    _set_time(message.create_time, record.created_us)
    _set_time(message.update_time, record.updated_us)
    if record.deleted_us is not None:
        _set_time(message.delete_time, record.deleted_us)
    message.etag = record.etag
    if record.identifiers != "[]":
        add = message.identifiers.add
        for system, value in _scan(record.identifiers)[0]:
            add(system=system, value=value)
    if record.annotations != "{}":
        message.annotations.update(_scan(record.annotations)[0])


def _date(text: str) -> Date:
    year, month, day = text.split("-")
    return Date(year=int(year), month=int(month), day=int(day))


def assignment(record: Assignment, message: pb.Assignment | None = None) -> pb.Assignment:
    """An assignment as callers see it."""
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
    message.end_reason = record.end_reason  # type: ignore[assignment]
    message.created_by = record.created_by
    message.ended_by = record.ended_by
    _set_time(message.create_time, record.created_us)
    _set_time(message.update_time, record.updated_us)
    message.etag = record.etag
    return message


def check(record: CheckResult, result: assignment_pb.CheckAssignmentsResponse.Result) -> None:
    """Whether a pair is assigned, as callers see it."""
    if record.assignment_id is not None:
        result.assigned = True
        result.assignment_id = record.assignment_id
        result.role = record.role  # type: ignore[assignment]


def change_set(record: ChangeSet, message: change_pb.ChangeSet | None = None) -> change_pb.ChangeSet:
    """A committed transaction as callers see it."""
    message = change_pb.ChangeSet() if message is None else message
    message.revision = record.revision
    _set_time(message.commit_time, record.committed_us)
    message.actor = record.actor
    message.request_id = record.request_id
    message.method = record.method
    each(record.changes, _change, message.changes)
    return message


def _change(record: Change, change: change_pb.Change) -> None:
    change.kind = record.kind  # type: ignore[assignment]
    if record.changed_fields:
        change.changed_fields.extend(record.changed_fields.split(","))
    if record.assignment_id:
        change.assignment.assignment_id = record.assignment_id
        change.assignment.therapist_id = record.therapist_id or ""
        change.assignment.patient_id = record.patient_id or ""
    elif record.therapist_id:
        change.therapist_id = record.therapist_id
    else:
        change.patient_id = record.patient_id or ""
