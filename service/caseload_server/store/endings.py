"""Updates and deletes of therapists and patients. With `force` they end the record's active assignments first."""

from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import P
from caseload_server.store import assignments, expiry, records
from caseload_server.store.records import RecordKind
from caseload_server.store.write_transaction import Write


def update(write: Write, kind: RecordKind[P], request: requests.Update) -> tuple[list[P], int]:
    """Updates fields of a record. Writes nothing where no field differs. Returns it, and the number of ended periods.

    Raises, in this order: the kind's NOT_FOUND, PatientMerged, the kind's DELETED, EtagMismatch, InvalidField (over
    32 KiB), HasActiveAssignments or TooManyAssignments, IdentifierTaken.
    """
    may_end = request.end_reason is not None and request.fields.get("status") == kind.idle_status
    locked = assignments.lock_caseload(write, kind, request.record_id) if may_end else set()
    if request.fields.get("status") == kind.idle_status:
        expiry.sweep_record(write, kind, request.record_id)
    record = records.require(write, kind, request.record_id)
    differing = records.differing_fields(write, kind, record, request)
    if not differing:
        return [record], 0
    ended = 0
    if differing.get("status") == kind.idle_status:
        ended = _end_all(write, kind, record, request.end_reason, locked)
        record = records.require(write, kind, request.record_id)  # with the new counts
    return [records.update(write, kind, record, differing)], ended


def delete(write: Write, kind: RecordKind[P], request: requests.Delete) -> tuple[list[P], int]:
    """Soft-deletes a record. Returns it, or none where the request allows that, and the number of ended periods.

    Raises, in this order: the kind's NOT_FOUND, EtagMismatch, HasActiveAssignments, TooManyAssignments.
    """
    locked = assignments.lock_caseload(write, kind, request.record_id) if request.force else set()
    expiry.sweep_record(write, kind, request.record_id)
    record = records.find(write, kind, request.record_id)
    if record is None:
        if request.allow_missing:
            return [], 0
        raise records.not_found(kind, [request.record_id])
    if record.deleted_us is not None:
        return [record], 0
    if request.etag and request.etag != record.etag:
        raise errors.EtagMismatch
    ended = _end_all(write, kind, record, enums.END_RECORD_DELETED if request.force else None, locked)
    return [records.delete(write, kind, records.require(write, kind, request.record_id))], ended


def _end_all(write: Write, kind: RecordKind[P], record: P, end_reason: int | None, locked: set[str]) -> int:
    """Ends every active period. Raises HasActiveAssignments where there is one and no reason, TooManyAssignments."""
    count = records.active_count(kind, record)
    if count and end_reason is None:
        raise errors.HasActiveAssignments(count=count)
    return assignments.end_all(write, kind, record, end_reason, locked) if end_reason is not None else 0
