"""Transfers of a caseload from one therapist to another, all or nothing."""

import json

from caseload_server.domain import enums, errors, limits, requests
from caseload_server.domain.records import Assignment, Therapist
from caseload_server.store import assignments, expiry, records
from caseload_server.store.backends.protocol import Row, SerializationConflict
from caseload_server.store.counts import CountChanges
from caseload_server.store.records import PATIENT, THERAPIST
from caseload_server.store.write_transaction import Write

_SELECT_PATIENTS = """
SELECT patient_id, deleted_us, merged_into_patient_id FROM patient
WHERE patient_id IN (SELECT atom FROM json_each(:ids))"""


def transfer(write: Write, request: requests.Transfer) -> tuple[list[Assignment], int]:
    """Ends active periods of the source and begins periods of the target, with the same role and focus.

    Where the target already treats a patient, its period stays. But if the moved period is PRIMARY, a new PRIMARY
    period replaces it. Returns the ended periods and then the target's periods, and the number of ended ones.

    Raises, in this order: TherapistNotFound, PatientNotFound, TherapistDeleted, PatientMerged, PatientDeleted,
    AssignmentNotFound, TooManyAssignments, InvalidField (an effective_time before the start of a moved period),
    TherapistNotActive, PeriodOverlaps, TherapistAtCapacity.
    """
    locked = _lock(write, request)
    source = records.require(write, THERAPIST, request.source_id)
    target = records.require(write, THERAPIST, request.target_id)
    patients = {row[0]: row for row in write.run(_SELECT_PATIENTS, {"ids": json.dumps(request.patient_ids)})}
    if missing := [patient_id for patient_id in request.patient_ids if patient_id not in patients]:
        raise records.not_found(PATIENT, missing)
    for therapist in (source, target):
        if therapist.deleted_us is not None:
            raise errors.TherapistDeleted(therapist_id=therapist.therapist_id)
    _refuse_gone(write, [patients[patient_id] for patient_id in request.patient_ids])
    moved = _select_moved(write, request, locked)
    _refuse_early_end(moved, request.effective_us)
    if moved and target.status != enums.STATUS_ACTIVE:
        raise errors.TherapistNotActive
    counts = CountChanges()
    ended, active = [], []
    for period in moved:
        source_period, target_period = _move(write, period, target, request, counts)
        ended.append(source_period)
        active.append(target_period)
    counts.save(write)
    return ended + active, len(ended)


def _refuse_gone(write: Write, patients: list[Row]) -> None:
    """Raises PatientMerged, PatientDeleted. Args: patients, rows of _SELECT_PATIENTS in the order of the request."""
    for patient_id, _, merged_into in patients:
        if merged_into:
            raise records.merged(write, patient_id)
    if deleted := [patient_id for patient_id, deleted_us, _ in patients if deleted_us is not None]:
        raise errors.PatientDeleted(resources=records.resources(PATIENT, deleted))


def _lock(write: Write, request: requests.Transfer) -> set[str]:
    """Locks the records of the transfer, patients before therapists. Returns the ids of the locked patients."""
    if not write.lock_clause:
        return set()
    active = assignments.list_active(write, THERAPIST, request.source_id)
    patient_ids = set(request.patient_ids) or {period.patient_id for period in active}
    records.lock(write, PATIENT, patient_ids)
    records.lock(write, THERAPIST, [request.source_id, request.target_id])
    return patient_ids


def _select_moved(write: Write, request: requests.Transfer, locked: set[str]) -> list[Assignment]:
    """Returns the active periods of the source to move. Ends those that have expired instead.

    Args: locked, what _lock returned. Raises AssignmentNotFound, TooManyAssignments.
    """
    periods = assignments.list_active(write, THERAPIST, request.source_id)
    if request.patient_ids:
        periods = [period for period in periods if period.patient_id in request.patient_ids]
    if write.lock_clause and not locked.issuperset(period.patient_id for period in periods):
        raise SerializationConflict  # a patient was assigned before the therapists were locked
    periods = expiry.end_due(write, periods)
    if request.patient_ids:
        by_patient = {period.patient_id: period for period in periods}
        if unassigned := [patient_id for patient_id in request.patient_ids if patient_id not in by_patient]:
            raise errors.AssignmentNotFound(resources=records.resources(PATIENT, unassigned), missing=len(unassigned))
        periods = [by_patient[patient_id] for patient_id in request.patient_ids]
    if len(periods) > limits.MAX_ASSIGNMENTS_PER_CALL:
        raise errors.TooManyAssignments(limit=limits.MAX_ASSIGNMENTS_PER_CALL, current=len(periods))
    return periods


def _refuse_early_end(moved: list[Assignment], effective_us: int | None) -> None:
    """Raises InvalidField where a moved period would end before it started."""
    if effective_us is not None and any(effective_us < period.start_us for period in moved):
        raise errors.InvalidField(
            errors.Violation("effective_time", "must not lie before the start_time of a moved assignment")
        )


def _move(
    write: Write, period: Assignment, target: Therapist, request: requests.Transfer, counts: CountChanges
) -> tuple[Assignment, Assignment]:
    """Moves one period. Returns the ended one, and the target's active one. Raises PeriodOverlaps, TherapistAtCapacity.

    With an effective_time, an active period of the target that stays or is replaced must not start later.
    """
    existing = assignments.find_active(write, target.therapist_id, period.patient_id)
    begun = requests.Assign(
        target.therapist_id, period.patient_id, period.role, period.focus, start_us=request.effective_us
    )
    replaced = [active for active in (period, existing) if active]
    start_us = assignments.resolve_start(write, begun, replaced)
    ended = assignments.end(write, period, start_us, enums.END_TRANSFERRED, counts)
    if existing and period.role != enums.ROLE_PRIMARY:
        return ended, existing
    if existing:
        assignments.end(write, existing, start_us, enums.END_REPLACED, counts)
    elif not request.ignore_capacity:
        assignments.require_capacity(write, target, counts)
    return ended, assignments.begin(write, begun, start_us, counts)
