"""Who treats whom: periods begin and end here, whichever side asked.

Every write locks the patient's row first, so that a pair's periods, and a patient's primary ones, can be compared
before one is added; therapists' rows are locked after it. Unique indexes and checks in the schema hold the rest.
"""

from typing import Any, Final

from caseload_server.domain import enums, errors, limits, requests
from caseload_server.domain.records import Assignment, P, Therapist
from caseload_server.domain.requests import AssignmentQuery, CaseloadQuery
from caseload_server.store import lists, records
from caseload_server.store.backends.protocol import SerializationConflict, Value
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.write import Write

COLUMNS = ", ".join(f"period.{column}" for column in Assignment._fields)

BY_ID = f"SELECT {COLUMNS} FROM assignment AS period WHERE assignment_id = :id"
CHECK = f"""
SELECT (SELECT head_revision FROM store), pair.key, period.assignment_id, period.role
FROM json_each(:pairs) AS pair
LEFT JOIN assignment AS period ON period.therapist_id = pair.value ->> 0 AND period.patient_id = pair.value ->> 1
    AND period.start_us <= :at_us AND (period.end_us IS NULL OR period.end_us > :at_us)
    AND period.end_reason <> {enums.END_ENTERED_IN_ERROR}"""
_AS_OF_WALKS: Final = (
    "period.end_us IS NULL",
    """period.assignment_id IN (
    SELECT assignment_id FROM assignment
    WHERE end_us > :as_of_us AND start_us <= :as_of_us AND assignment_id > :after)""",
)
"""Those in force at a time that go on still, and those that ended after it, which are looked up and sorted."""
_ACTIVE_OF_PAIR = f"""
SELECT {COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id = :therapist_id AND end_us IS NULL"""
_LATEST_OF_PAIR = f"""
SELECT {COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id = :therapist_id
ORDER BY start_us DESC, assignment_id DESC LIMIT 1"""
_OTHER_PRIMARY = f"""
SELECT {COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id <> :therapist_id AND end_us IS NULL
    AND role = {enums.ROLE_PRIMARY}"""
_LAST_OVERLAP = f"""
SELECT assignment_id, end_us FROM assignment
WHERE patient_id = :patient_id AND end_us > :start_us AND end_us > start_us
    AND end_reason <> {enums.END_ENTERED_IN_ERROR}
    AND (therapist_id = :therapist_id OR role = :exclusive_role)
ORDER BY end_us DESC LIMIT 1"""
_TAKE_PLACE = """
UPDATE therapist SET active_patient_count = active_patient_count + 1
WHERE therapist_id = :therapist_id
    AND (:unbounded = 1 OR max_active_patients IS NULL OR active_patient_count < max_active_patients)
RETURNING 1"""
_LEAVE_PLACE = "UPDATE therapist SET active_patient_count = active_patient_count - 1 WHERE therapist_id = :therapist_id"
_COUNT_FOR_PATIENT = """
UPDATE patient SET active_therapist_count = active_therapist_count + :more,
    primary_therapist_id = CASE WHEN :primary_changes = 1 THEN :primary_id ELSE primary_therapist_id END
WHERE patient_id = :patient_id"""
_INSERT = f"""
INSERT INTO assignment ({", ".join(Assignment._fields)})
VALUES ({", ".join(f":{column}" for column in Assignment._fields)})"""
_END = """
UPDATE assignment SET end_us = :end_us, end_reason = :end_reason, ended_by = :ended_by, updated_us = :updated_us,
    etag = :etag
WHERE assignment_id = :assignment_id"""


def not_found(assignment_id: str) -> errors.AssignmentNotFound:
    """ASSIGNMENT_NOT_FOUND, which names the id."""
    return errors.AssignmentNotFound(resources=[errors.Resource("caseload.v1.Assignment", assignment_id)])


def require(write: Write, assignment_id: str) -> Assignment:
    """One period, active or ended. Raises AssignmentNotFound."""
    period = _one(write, BY_ID, {"id": assignment_id})
    if period is None:
        raise not_found(assignment_id)
    return period


def assign(write: Write, order: requests.Assign) -> tuple[list[Assignment], bool]:
    """Begins a period, unless the same is active: the active period, and whether it was begun now.

    Raises, in this order: TherapistNotFound, PatientNotFound, TherapistDeleted, PatientDeleted, AssignmentDiffers,
    TherapistNotActive, PatientNotActive, PeriodOverlaps, PrimaryExists, TherapistAtCapacity.
    """
    patient = records.find(write, PATIENT, order.patient_id)
    if order.replace_primary:
        rival = _one(write, _OTHER_PRIMARY, {"therapist_id": order.therapist_id, "patient_id": order.patient_id})
        records.lock(write, THERAPIST, [order.therapist_id, *([rival.therapist_id] if rival else [])])
    therapist = records.require(write, THERAPIST, order.therapist_id)
    if patient is None:
        raise records.not_found(PATIENT, [order.patient_id])
    if therapist.deleted_us is not None:
        raise errors.TherapistDeleted
    if patient.deleted_us is not None:
        raise errors.PatientDeleted
    current = active(write, order.therapist_id, order.patient_id)
    if current and _is_what_is_asked(current, order):
        return [current], False
    if current and not order.replace:
        raise errors.AssignmentDiffers(assignment_id=current.assignment_id)
    if therapist.status != enums.STATUS_ACTIVE:
        raise errors.TherapistNotActive
    if patient.status != enums.STATUS_ACTIVE:
        raise errors.PatientNotActive
    return [_begin(write, order, therapist, current)], True


def _is_what_is_asked(current: Assignment, order: requests.Assign) -> bool:
    same_start = order.start_us is None or order.start_us == current.start_us
    return same_start and (current.role, current.focus) == (order.role, order.focus)


def _begin(write: Write, order: requests.Assign, therapist: Therapist, current: Assignment | None) -> Assignment:
    pair: dict[str, Value] = {"therapist_id": order.therapist_id, "patient_id": order.patient_id}
    rival = _one(write, _OTHER_PRIMARY, pair) if order.role == enums.ROLE_PRIMARY else None
    start_us = start(write, order, [period for period in (current, rival) if period])
    if rival and not order.replace_primary:
        raise errors.PrimaryExists(therapist_id=rival.therapist_id)
    if rival and start_us < rival.start_us:
        raise errors.PeriodOverlaps(assignment_id=rival.assignment_id)
    for period in (current, rival):
        if period:
            end(write, period, start_us, enums.END_REPLACED)
    # Replacing leaves the count as it is.
    return begin(write, order, therapist, start_us, unbounded=order.ignore_capacity or current is not None)


def start(write: Write, order: requests.Assign, replaced: list[Assignment]) -> int:
    """When a period begins that may replace active ones of the pair or of the patient. Raises PeriodOverlaps.

    A start that was not given is moved behind what it would overlap, so that clocks that differ break nothing.
    """
    start_us = order.start_us
    if start_us is None:
        start_us = max([write.now_us, *(period.start_us for period in replaced)])
    for period in replaced:
        if period.therapist_id == order.therapist_id and start_us < period.start_us:
            raise errors.PeriodOverlaps(assignment_id=period.assignment_id)
    span: dict[str, Value] = {
        "patient_id": order.patient_id,
        "therapist_id": order.therapist_id,
        "start_us": start_us,
        "exclusive_role": enums.ROLE_PRIMARY if order.role == enums.ROLE_PRIMARY else 0,
    }
    for assignment_id, end_us in write.run(_LAST_OVERLAP, span):
        if order.start_us is not None:
            raise errors.PeriodOverlaps(assignment_id=assignment_id)
        start_us = end_us
    return start_us


def begin(write: Write, order: requests.Assign, therapist: Therapist, start_us: int, *, unbounded: bool) -> Assignment:
    """Begins a period, with the counts of both sides. Raises TherapistAtCapacity, unless unbounded."""
    if not write.run(_TAKE_PLACE, {"therapist_id": order.therapist_id, "unbounded": int(unbounded)}):
        raise errors.TherapistAtCapacity(limit=therapist.max_active_patients, current=therapist.active_patient_count)
    assignment = Assignment(
        assignment_id=write.new_id(),
        therapist_id=order.therapist_id,
        patient_id=order.patient_id,
        role=order.role,
        focus=order.focus,
        start_us=start_us,
        end_us=None,
        end_reason=0,
        created_by=write.call.actor,
        ended_by="",
        created_us=write.now_us,
        updated_us=write.now_us,
        etag=write.new_etag(),
    )
    write.run(_INSERT, assignment._asdict())
    _count_for_patient(write, assignment, 1)
    write.record_change(enums.CHANGE_CREATED, assignment)
    return assignment


def unassign(write: Write, order: requests.Unassign) -> tuple[list[Assignment], bool]:
    """Ends the pair's active period: the period, and whether it ended now; nothing where allow_missing found none.

    Raises, in this order: TherapistNotFound, PatientNotFound, AssignmentNotFound, EtagMismatch, InvalidField (an end
    before the start).
    """
    patient = records.find(write, PATIENT, order.patient_id)
    records.require(write, THERAPIST, order.therapist_id)
    if patient is None:
        raise records.not_found(PATIENT, [order.patient_id])
    period = active(write, order.therapist_id, order.patient_id)
    if period is None:
        latest = _one(write, _LATEST_OF_PAIR, {"therapist_id": order.therapist_id, "patient_id": order.patient_id})
        if latest is None and not order.allow_missing:
            raise errors.AssignmentNotFound
        return [latest] if latest else [], False
    if order.etag and order.etag != period.etag:
        raise errors.EtagMismatch
    end_us = max(write.now_us, period.start_us) if order.end_us is None else order.end_us
    if end_us < period.start_us:
        raise errors.InvalidField(errors.Violation("end_time", "must not lie before the assignment's start_time"))
    return [end(write, period, end_us, order.end_reason)], True


def end(write: Write, period: Assignment, end_us: int, reason: int) -> Assignment:
    """Ends an active period, with the counts of both sides."""
    actor, etag = write.call.actor, write.new_etag()
    ended = period._replace(end_us=end_us, end_reason=reason, ended_by=actor, updated_us=write.now_us, etag=etag)
    write.run(_END, {name: value for name, value in ended._asdict().items() if f":{name}" in _END})
    write.run(_LEAVE_PLACE, {"therapist_id": period.therapist_id})
    _count_for_patient(write, ended, -1)
    fields = ["state", "end_time", *(["end_reason"] if reason else []), "ended_by"]
    write.record_change(enums.CHANGE_UPDATED, ended, *fields)
    return ended


def end_all(write: Write, kind: RecordKind[P], record: P, locked: set[str]) -> int:
    """Ends every active period of a record that is about to be deleted: how many.

    Args: locked, what lock_caseload returned. Raises TooManyAssignments.
    """
    count = records.active_count(kind, record)
    if count > limits.MAX_ASSIGNMENTS_PER_CALL:
        raise errors.TooManyAssignments(limit=limits.MAX_ASSIGNMENTS_PER_CALL, current=count)
    periods = all_active(write, kind, record[0]) if count else []
    if write.lock_clause and not locked.issuperset(_others(kind, periods)):
        raise SerializationConflict  # someone was assigned before the therapist was locked
    for period in periods:
        end(write, period, max(write.now_us, period.start_us), enums.END_RECORD_DELETED)
    return count


def lock_caseload(write: Write, kind: RecordKind[Any], record_id: str) -> set[str]:
    """Locks the other side of a record's active periods, patients before therapists: the others' ids."""
    if not write.lock_clause:
        return set()
    if kind.name == PATIENT.name:
        records.lock(write, kind, [record_id])
    ids = _others(kind, all_active(write, kind, record_id))
    records.lock(write, _other(kind), ids)
    return ids


def _other(kind: RecordKind[Any]) -> RecordKind[Any]:
    return PATIENT if kind.name == THERAPIST.name else THERAPIST


def _others(kind: RecordKind[Any], periods: list[Assignment]) -> set[str]:
    return {getattr(period, _other(kind).id) for period in periods}


def all_active(write: Write, kind: RecordKind[Any], record_id: str) -> list[Assignment]:
    """Every active period of a record, the oldest first."""
    sql = f"SELECT {COLUMNS} FROM assignment AS period WHERE {kind.id} = :id AND end_us IS NULL ORDER BY assignment_id"
    return [Assignment._make(row) for row in write.run(sql, {"id": record_id})]


def active(write: Write, therapist_id: str, patient_id: str) -> Assignment | None:
    """The active period of a pair."""
    return _one(write, _ACTIVE_OF_PAIR, {"therapist_id": therapist_id, "patient_id": patient_id})


def _one(write: Write, sql: str, parameters: dict[str, Value]) -> Assignment | None:
    rows = write.run(sql, parameters)
    return Assignment._make(rows[0]) if rows else None


def _count_for_patient(write: Write, period: Assignment, more: int) -> None:
    is_primary = period.role == enums.ROLE_PRIMARY
    parameters: dict[str, Value] = {
        "patient_id": period.patient_id,
        "more": more,
        "primary_changes": int(is_primary),
        "primary_id": period.therapist_id if more > 0 else "",
    }
    write.run(_COUNT_FOR_PATIENT, parameters)


def listing_with(kind: RecordKind[Any], other: RecordKind[Any], query: CaseloadQuery) -> tuple[str, dict[str, Value]]:
    """The SELECT of one page of a record's periods, each with the record on the other side, and its parameters.

    :after and :limit are left to the caller. Rows are an assignment's columns and then the other record's.
    """
    conditions, parameters = _conditions(query, {kind.id: query.parent_id})
    sql = (
        f"SELECT {COLUMNS}, {other.columns} FROM assignment AS period"
        f" JOIN {other.name} AS one ON one.{other.id} = period.{other.id}"
        f" WHERE {conditions} ORDER BY period.assignment_id LIMIT :limit"
    )
    return sql, parameters


def listing(query: AssignmentQuery) -> tuple[str, dict[str, Value]]:
    """The SELECT of one page of periods, and its parameters but for :after and :limit."""
    sides = {"therapist_id": query.therapist_id, "patient_id": query.patient_id}
    conditions, parameters = _conditions(query, sides)
    walks = [conditions]
    if not any(sides.values()):  # of all periods, where one caseload is not what bounds them
        if query.as_of_us is not None:
            walks = [f"{conditions} AND {walk}" for walk in _AS_OF_WALKS]
        elif query.roles:
            unbound = _conditions(query._replace(roles=()), sides)[0]
            walks = [f"period.role = {role} AND {unbound}" for role in sorted(set(query.roles))]
    return lists.merged([f"SELECT {COLUMNS} FROM assignment AS period WHERE {walk}" for walk in walks]), parameters


def _conditions(query: CaseloadQuery | AssignmentQuery, sides: dict[str, str]) -> tuple[str, dict[str, Value]]:
    """The periods of the sides that are not empty, in the states or at the time, and in the roles, asked for."""
    parameters: dict[str, Value] = {column: value for column, value in sides.items() if value}
    conditions = ["period.assignment_id > :after", *(f"period.{column} = :{column}" for column in parameters)]
    if query.as_of_us is not None:
        conditions += [
            "period.start_us <= :as_of_us",
            "(period.end_us IS NULL OR period.end_us > :as_of_us)",
            f"period.end_reason <> {enums.END_ENTERED_IN_ERROR}",
        ]
        parameters["as_of_us"] = query.as_of_us
    elif set(query.states) <= {enums.STATE_ACTIVE}:
        conditions.append("period.end_us IS NULL")
    elif set(query.states) == {enums.STATE_ENDED}:
        conditions.append("period.end_us IS NOT NULL")
    if query.roles:
        # The + is for SQLite, which would walk all periods of a role instead of one caseload.
        conditions.append(f"+period.role IN ({lists.numbers(query.roles)})")
    return " AND ".join(conditions), parameters
