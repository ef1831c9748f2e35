"""Records to messages: the only place where the two meet. Empty columns stay unset fields."""

import json

from caseload.v1 import assignment_service_pb2, change_service_pb2
from caseload.v1 import resources_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date

from service.records import Assignment, Change, ChangeSet, Check, Patient, Therapist

_MICROS = 1_000_000


def _time(at_us: int) -> Timestamp:
    seconds, micros = divmod(at_us, _MICROS)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def therapist(record: Therapist) -> pb.Therapist:
    """A therapist as callers see it."""
    message = pb.Therapist(
        therapist_id=record.therapist_id,
        display_name=record.display_name,
        email=record.email,
        status=record.status,  # type: ignore[arg-type]
        max_active_patients=record.max_active_patients,
        active_patient_count=record.active_patient_count,
        create_time=_time(record.created_us),
        update_time=_time(record.updated_us),
        delete_time=None if record.deleted_us is None else _time(record.deleted_us),
        etag=record.etag,
    )
    if record.specialties != "[]":
        message.specialties.extend(json.loads(record.specialties))
    _add_shared(message, record)
    return message


def patient(record: Patient) -> pb.Patient:
    """A patient as callers see it."""
    message = pb.Patient(
        patient_id=record.patient_id,
        display_name=record.display_name,
        birth_date=_date(record.birth_date) if record.birth_date else None,
        email=record.email,
        phone_number=record.phone_number,
        status=record.status,  # type: ignore[arg-type]
        primary_therapist_id=record.primary_therapist_id,
        active_therapist_count=record.active_therapist_count,
        create_time=_time(record.created_us),
        update_time=_time(record.updated_us),
        delete_time=None if record.deleted_us is None else _time(record.deleted_us),
        etag=record.etag,
    )
    _add_shared(message, record)
    return message


def _add_shared(message: pb.Therapist | pb.Patient, record: Therapist | Patient) -> None:
    if record.identifiers != "[]":
        message.identifiers.extend(
            pb.Identifier(system=system, value=value) for system, value in json.loads(record.identifiers)
        )
    if record.annotations != "{}":
        message.annotations.update(json.loads(record.annotations))


def _date(text: str) -> Date:
    year, month, day = text.split("-")
    return Date(year=int(year), month=int(month), day=int(day))


def assignment(record: Assignment) -> pb.Assignment:
    """An assignment as callers see it."""
    return pb.Assignment(
        assignment_id=record.assignment_id,
        therapist_id=record.therapist_id,
        patient_id=record.patient_id,
        role=record.role,  # type: ignore[arg-type]
        focus=record.focus,
        state=pb.Assignment.STATE_ACTIVE if record.end_us is None else pb.Assignment.STATE_ENDED,
        start_time=_time(record.start_us),
        end_time=None if record.end_us is None else _time(record.end_us),
        end_reason=record.end_reason,  # type: ignore[arg-type]
        created_by=record.created_by,
        ended_by=record.ended_by,
        create_time=_time(record.created_us),
        update_time=_time(record.updated_us),
        etag=record.etag,
    )


def check(record: Check) -> assignment_service_pb2.CheckAssignmentsResponse.Result:
    """Whether a pair is assigned, as callers see it."""
    if record.assignment_id is None:
        return assignment_service_pb2.CheckAssignmentsResponse.Result()
    return assignment_service_pb2.CheckAssignmentsResponse.Result(
        assigned=True,
        assignment_id=record.assignment_id,
        role=record.role,  # type: ignore[arg-type]
    )


def change_set(record: ChangeSet) -> change_service_pb2.ChangeSet:
    """A committed transaction as callers see it."""
    return change_service_pb2.ChangeSet(
        revision=record.revision,
        commit_time=_time(record.committed_us),
        actor=record.actor,
        request_id=record.request_id,
        method=record.method,
        changes=map(_change, record.changes),
    )


def _change(record: Change) -> change_service_pb2.Change:
    change = change_service_pb2.Change(
        kind=record.kind,  # type: ignore[arg-type]
        changed_fields=record.changed_fields.split(",") if record.changed_fields else (),
    )
    if record.assignment_id:
        change.assignment.assignment_id = record.assignment_id
        change.assignment.therapist_id = record.therapist_id or ""
        change.assignment.patient_id = record.patient_id or ""
    elif record.therapist_id:
        change.therapist_id = record.therapist_id
    else:
        change.patient_id = record.patient_id or ""
    return change
