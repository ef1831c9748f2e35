"""Assignments of therapists to patients: begins and ends their periods.

Every write locks the patient's row first. So the periods of a pair, and the PRIMARY periods of a patient, can be
compared before one is added. Therapists' rows are locked after it. Unique indexes and checks in the schema enforce
the other rules.
"""

from typing import Any

from caseload_server.domain import enums, errors, limits, requests
from caseload_server.domain.records import Assignment, P, Patient, Therapist
from caseload_server.store import expiry, records
from caseload_server.store.backends.protocol import SerializationConflict, Value
from caseload_server.store.counts import CountChanges
from caseload_server.store.overlaps import MAX_TIME_US
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.write_transaction import Write

COLUMNS = ", ".join(f"period.{column}" for column in Assignment._fields)

SELECT_BY_ID = f"SELECT {COLUMNS} FROM assignment AS period WHERE assignment_id = :id"
_SELECT_ACTIVE = f"""
SELECT {COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id = :therapist_id AND end_us IS NULL"""
_SELECT_LATEST = f"""
SELECT {COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id = :therapist_id
ORDER BY start_us DESC, assignment_id DESC LIMIT 1"""
_SELECT_OTHER_PRIMARY = f"""
SELECT {COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id <> :therapist_id AND end_us IS NULL
    AND role = {enums.ROLE_PRIMARY}"""
_SELECT_LAST_OVERLAPPING = f"""
SELECT assignment_id, end_us FROM assignment
WHERE patient_id = :patient_id AND end_us > :start_us AND end_us > start_us AND start_us < :before_us
    AND end_reason <> {enums.END_ENTERED_IN_ERROR}
    AND (therapist_id = :therapist_id OR role = :exclusive_role)
ORDER BY end_us DESC, assignment_id LIMIT 1"""
_INSERT = f"""
INSERT INTO assignment ({", ".join(Assignment._fields)})
VALUES ({", ".join(f":{column}" for column in Assignment._fields)})"""
_END = """
UPDATE assignment SET end_us = :end_us, end_reason = :end_reason, ended_by = :ended_by, updated_us = :updated_us,
    etag = :etag
WHERE assignment_id = :assignment_id"""


def not_found(assignment_id: str) -> errors.AssignmentNotFound:
    """Returns ASSIGNMENT_NOT_FOUND, which names the id."""
    return errors.AssignmentNotFound(resources=[errors.Resource("caseload.v1.Assignment", assignment_id)])


def require(write: Write, assignment_id: str) -> Assignment:
    """Returns one period, active or ended. Raises AssignmentNotFound."""
    period = _select_one(write, SELECT_BY_ID, {"id": assignment_id})
    if period is None:
        raise not_found(assignment_id)
    return period


def require_all(write: Write, ids: list[str]) -> list[Assignment]:
    """Returns periods in the order of their ids. Raises AssignmentNotFound."""
    return [require(write, assignment_id) for assignment_id in ids]


def assign(write: Write, request: requests.Assign) -> tuple[list[Assignment], bool]:
    """Begins a period unless the same one is active. Returns the active period, and whether it is new.

    The TREATING period of a demoted therapist follows. Raises, in this order: InvalidField (an expire_time that has
    passed), TherapistNotFound, PatientNotFound, TherapistDeleted, PatientMerged, PatientDeleted, AssignmentDiffers,
    TherapistNotActive, PatientNotActive, PeriodOverlaps, PrimaryExists, InvalidField (an expire_time before the start),
    TherapistAtCapacity.
    """
    if request.expire_us is not None:
        expiry.require_future(write, request.expire_us, "expire_time")
    patient = records.find(write, PATIENT, request.patient_id)
    primary = _lock_other_primary(write, request)
    therapist, patient = require_live(write, request, patient)
    current = find_active(write, request.therapist_id, request.patient_id)
    if current and _is_same(current, request):
        return [current], False
    if current and not request.replace:
        raise errors.AssignmentDiffers(assignment_id=current.assignment_id)
    if current is None and therapist.status != enums.STATUS_ACTIVE:
        raise errors.TherapistNotActive
    if patient.status != enums.STATUS_ACTIVE:
        raise errors.PatientNotActive
    return _replace_and_begin(write, request, therapist, current, primary), True


def _lock_other_primary(write: Write, request: requests.Assign) -> Assignment | None:
    """Returns the PRIMARY period of another therapist that a PRIMARY one would overlap, and locks both therapists.

    Ends it first if it has expired. Args: request, whose patient is locked.
    """
    if request.role != enums.ROLE_PRIMARY:
        return None
    pair: dict[str, Value] = {"therapist_id": request.therapist_id, "patient_id": request.patient_id}
    primary = _select_one(write, _SELECT_OTHER_PRIMARY, pair)
    if primary is None:
        return None
    records.lock(write, THERAPIST, [request.therapist_id, primary.therapist_id])
    return next(iter(expiry.end_due(write, [primary])), None)


def require_live(write: Write, request: requests.Assign, patient: Patient | None) -> tuple[Therapist, Patient]:
    """Returns and locks the two records of an assignment. Args: patient, as found, already locked.

    Raises, in this order: TherapistNotFound, PatientNotFound, TherapistDeleted, PatientMerged,
    PatientDeleted.
    """
    therapist = records.require(write, THERAPIST, request.therapist_id)
    if patient is None:
        raise records.not_found(PATIENT, [request.patient_id])
    if therapist.deleted_us is not None:
        raise errors.TherapistDeleted
    records.refuse_merged(write, patient)
    if patient.deleted_us is not None:
        raise errors.PatientDeleted
    return therapist, patient


def _is_same(current: Assignment, request: requests.Assign) -> bool:
    """Returns whether role and focus are equal, and start time and expire time if the request has them."""
    same_start = request.start_us is None or request.start_us == current.start_us
    same_end = request.expire_us is None or request.expire_us == current.expire_us
    return same_start and same_end and (current.role, current.focus) == (request.role, request.focus)


def _replace_and_begin(
    write: Write,
    request: requests.Assign,
    therapist: Therapist,
    current: Assignment | None,
    primary: Assignment | None,
) -> list[Assignment]:
    """Ends the pair's current period and the other PRIMARY one, where the request replaces them, and begins a period.

    Returns it, and then the TREATING period of the therapist who was PRIMARY, if the request demotes them. Raises
    PeriodOverlaps, PrimaryExists, InvalidField, TherapistAtCapacity.
    """
    start_us = resolve_start(write, request, [period for period in (current, primary) if period])
    if primary and not (request.replace_primary or request.demote_primary):
        raise errors.PrimaryExists(therapist_id=primary.therapist_id)
    if primary and start_us < primary.start_us:
        raise errors.PeriodOverlaps(assignment_id=primary.assignment_id)
    if request.expire_us is not None and request.expire_us <= start_us:
        raise errors.InvalidField(errors.Violation("expire_time", expiry.NOT_AFTER_START))
    counts = CountChanges()
    for period in (current, primary):
        if period:
            end(write, period, start_us, enums.END_REPLACED, counts)
    # Replacing the pair's own period does not change the count, so capacity does not limit it.
    if current is None and not request.ignore_capacity:
        require_capacity(write, therapist, counts)
    begun = [begin(write, request, start_us, counts)]
    if primary and request.demote_primary and (primary.expire_us is None or start_us < primary.expire_us):
        begun.append(begin(write, expiry.demoted(primary), start_us, counts))
    counts.save(write)
    return begun


def resolve_start(write: Write, request: requests.Assign, replaced: list[Assignment]) -> int:
    """Returns the start of the new period, in microseconds since 1970 (UTC). Raises PeriodOverlaps.

    A start that the request leaves out is moved behind periods that it would overlap, so that differing clocks cause
    no error. Args: replaced, active periods of the pair or the patient that the new one may replace.
    """
    start_us = request.start_us
    if start_us is None:
        start_us = max([write.now_us, *(period.start_us for period in replaced)])
    for period in replaced:
        if period.therapist_id == request.therapist_id and start_us < period.start_us:
            raise errors.PeriodOverlaps(assignment_id=period.assignment_id)
    span: dict[str, Value] = {
        "patient_id": request.patient_id,
        "therapist_id": request.therapist_id,
        "start_us": start_us,
        "before_us": MAX_TIME_US if request.expire_us is None else request.expire_us,
        "exclusive_role": enums.ROLE_PRIMARY if request.role == enums.ROLE_PRIMARY else 0,
    }
    for assignment_id, end_us in write.run(_SELECT_LAST_OVERLAPPING, span):
        if request.start_us is not None:
            raise errors.PeriodOverlaps(assignment_id=assignment_id)
        start_us = end_us
    return start_us


def require_capacity(write: Write, therapist: Therapist, counts: CountChanges) -> None:
    """Raises TherapistAtCapacity unless another patient may be assigned. Args: therapist, locked.

    Expired periods do not count. They are not ended here, because their patients would have to be locked first.
    """
    limit, current = therapist.max_active_patients, therapist.active_patient_count
    change = counts.of_therapist(therapist.therapist_id)
    if limit is None or current + change < limit:
        return
    stored = records.require(write, THERAPIST, therapist.therapist_id)  # without what expired and has ended meanwhile
    current = stored.active_patient_count - expiry.count_due(write, therapist.therapist_id)
    if current + change >= limit:
        raise errors.TherapistAtCapacity(limit=limit, current=current)


def begin(write: Write, request: requests.Assign, start_us: int, counts: CountChanges) -> Assignment:
    """Inserts an active period, and adds it to the counts, which the caller saves."""
    assignment = new_period(write, request, start_us)
    insert(write, assignment)
    counts.add(assignment, 1)
    return assignment


def new_period(write: Write, request: requests.Assign, start_us: int) -> Assignment:
    """Returns a period with a new id, finished if the request has an end. Inserts nothing.

    Args: start_us, in microseconds since 1970 (UTC).
    """
    return Assignment(
        assignment_id=write.new_id(),
        therapist_id=request.therapist_id,
        patient_id=request.patient_id,
        role=request.role,
        focus=request.focus,
        start_us=start_us,
        end_us=request.end_us,
        expire_us=request.expire_us,
        end_reason=request.end_reason,
        created_by=write.call.actor,
        ended_by="" if request.end_us is None else write.call.actor,
        created_us=write.now_us,
        updated_us=write.now_us,
        etag=write.new_etag(),
    )


def insert(write: Write, assignment: Assignment) -> None:
    """Inserts a period, and records the change."""
    write.run(_INSERT, assignment._asdict())
    write.record_change(enums.CHANGE_CREATED, assignment)


def unassign(write: Write, request: requests.Unassign) -> tuple[list[Assignment], bool]:
    """Ends the pair's active period. Returns the period, and whether it ended now.

    Without an active period it returns the pair's latest one, or none where the request allows that. Raises, in this
    order: TherapistNotFound, PatientNotFound, PatientMerged, AssignmentNotFound, EtagMismatch, InvalidField (an end
    before the start).
    """
    patient = records.find(write, PATIENT, request.patient_id)
    records.require(write, THERAPIST, request.therapist_id)
    if patient is None:
        raise records.not_found(PATIENT, [request.patient_id])
    records.refuse_merged(write, patient)
    period = find_active(write, request.therapist_id, request.patient_id)
    if period is None:
        pair: dict[str, Value] = {"therapist_id": request.therapist_id, "patient_id": request.patient_id}
        latest = _select_one(write, _SELECT_LATEST, pair)
        if latest is None and not request.allow_missing:
            raise errors.AssignmentNotFound
        return [latest] if latest else [], False
    if request.etag and request.etag != period.etag:
        raise errors.EtagMismatch
    end_us = max(write.now_us, period.start_us) if request.end_us is None else request.end_us
    if end_us < period.start_us:
        raise errors.InvalidField(errors.Violation("end_time", "must not lie before the assignment's start_time"))
    counts = CountChanges()
    ended = end(write, period, end_us, request.end_reason, counts)
    counts.save(write)
    return [ended], True


def end(write: Write, period: Assignment, end_us: int, reason: int, counts: CountChanges) -> Assignment:
    """Ends an active period, at its planned end at the latest. Subtracts it from the counts, which the caller saves."""
    end_us = end_us if period.expire_us is None else min(end_us, period.expire_us)
    actor, etag = write.call.actor, write.new_etag()
    ended = period._replace(end_us=end_us, end_reason=reason, ended_by=actor, updated_us=write.now_us, etag=etag)
    write.run(_END, {name: value for name, value in ended._asdict().items() if f":{name}" in _END})
    counts.add(ended, -1)
    fields = ["state", "end_time", *(["end_reason"] if reason else []), "ended_by"]
    write.record_change(enums.CHANGE_UPDATED, ended, *fields, before=period)
    return ended


def end_all(write: Write, kind: RecordKind[P], record: P, reason: int, locked: set[str]) -> int:
    """Ends every active period of a record. Returns their number.

    Args: reason, an END_ enum; locked, what lock_caseload returned. Raises TooManyAssignments.
    """
    count = records.active_count(kind, record)
    if count > limits.MAX_ASSIGNMENTS_PER_CALL:
        raise errors.TooManyAssignments(limit=limits.MAX_ASSIGNMENTS_PER_CALL, current=count)
    periods = list_active(write, kind, record[0]) if count else []
    if write.lock_clause and not locked.issuperset(_other_ids(kind, periods)):
        raise SerializationConflict  # another assignment began before the record was locked
    counts = CountChanges()
    for period in periods:
        end(write, period, max(write.now_us, period.start_us), reason, counts)
    counts.save(write)
    return count


def lock_caseload(write: Write, kind: RecordKind[Any], record_id: str) -> set[str]:
    """Locks the other side of a record's active periods, patients before therapists. Returns the locked ids."""
    if not write.lock_clause:
        return set()
    if kind.name == PATIENT.name:
        records.lock(write, kind, [record_id])
    ids = _other_ids(kind, list_active(write, kind, record_id))
    records.lock(write, _other_kind(kind), ids)
    return ids


def _other_kind(kind: RecordKind[Any]) -> RecordKind[Any]:
    return PATIENT if kind.name == THERAPIST.name else THERAPIST


def _other_ids(kind: RecordKind[Any], periods: list[Assignment]) -> set[str]:
    return {getattr(period, _other_kind(kind).id_column) for period in periods}


def list_active(write: Write, kind: RecordKind[Any], record_id: str) -> list[Assignment]:
    """Returns every active period of a record, in id order, which is the order of creation."""
    sql = (
        f"SELECT {COLUMNS} FROM assignment AS period"
        f" WHERE {kind.id_column} = :id AND end_us IS NULL ORDER BY assignment_id"
    )
    return [Assignment._make(row) for row in write.run(sql, {"id": record_id})]


def find_active(write: Write, therapist_id: str, patient_id: str) -> Assignment | None:
    """Returns the active period of a pair, if any. Ends it first if it has expired. Both records must be locked."""
    period = _select_one(write, _SELECT_ACTIVE, {"therapist_id": therapist_id, "patient_id": patient_id})
    return next(iter(expiry.end_due(write, [period])), None) if period else None


def _select_one(write: Write, sql: str, parameters: dict[str, Value]) -> Assignment | None:
    rows = write.run(sql, parameters)
    return Assignment._make(rows[0]) if rows else None
