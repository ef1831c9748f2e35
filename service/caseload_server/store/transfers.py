"""A caseload moves from one therapist to another, all or nothing."""

import json

from caseload_server.domain import enums, errors, limits, requests
from caseload_server.domain.records import Assignment, Therapist
from caseload_server.store import assignments, records
from caseload_server.store.backends.protocol import SerializationConflict
from caseload_server.store.records import PATIENT, THERAPIST
from caseload_server.store.write import Write

_PATIENTS = "SELECT patient_id, deleted_us FROM patient WHERE patient_id IN (SELECT atom FROM json_each(:ids))"


def transfer(write: Write, order: requests.Transfer) -> tuple[list[Assignment], int]:
    """Ends the source's active periods and begins the target's: first those ended, then the target's; how many ended.

    Where the target has the patient already that period stays, unless the one moved is PRIMARY: then a PRIMARY one
    replaces it. Role and focus are kept. Raises, in this order: TherapistNotFound, PatientNotFound, TherapistDeleted,
    PatientDeleted, AssignmentNotFound, TooManyAssignments, TherapistNotActive, TherapistAtCapacity.
    """
    locked = _lock(write, order)
    source = records.require(write, THERAPIST, order.source_id)
    target = records.require(write, THERAPIST, order.target_id)
    patients: dict[str, int | None] = dict(write.run(_PATIENTS, {"ids": json.dumps(order.patient_ids)}))
    if missing := [one for one in order.patient_ids if one not in patients]:
        raise records.not_found(PATIENT, missing)
    for therapist in (source, target):
        if therapist.deleted_us is not None:
            raise errors.TherapistDeleted(therapist_id=therapist.therapist_id)
    if deleted := [one for one, deleted_us in patients.items() if deleted_us is not None]:
        raise errors.PatientDeleted(resources=records.resources(PATIENT, deleted))
    moved = _moved(write, order)
    if write.lock_clause and not locked.issuperset(period.patient_id for period in moved):
        raise SerializationConflict  # someone was assigned before the therapists were locked
    if moved and target.status != enums.STATUS_ACTIVE:
        raise errors.TherapistNotActive
    ended, active = [], []
    for period in moved:
        over, present = _move(write, period, target, ignore_capacity=order.ignore_capacity)
        ended.append(over)
        active.append(present)
    return ended + active, len(ended)


def _lock(write: Write, order: requests.Transfer) -> set[str]:
    """Locks whom it is about, patients before therapists: which patients."""
    if not write.lock_clause:
        return set()
    active = assignments.all_active(write, THERAPIST, order.source_id)
    patients = set(order.patient_ids) or {period.patient_id for period in active}
    records.lock(write, PATIENT, patients)
    records.lock(write, THERAPIST, [order.source_id, order.target_id])
    return patients


def _moved(write: Write, order: requests.Transfer) -> list[Assignment]:
    """The source's active periods that are asked for. Raises AssignmentNotFound, TooManyAssignments."""
    periods = assignments.all_active(write, THERAPIST, order.source_id)
    if order.patient_ids:
        by_patient = {period.patient_id: period for period in periods}
        if strangers := [one for one in order.patient_ids if one not in by_patient]:
            raise errors.AssignmentNotFound(resources=records.resources(PATIENT, strangers), missing=len(strangers))
        periods = [by_patient[one] for one in order.patient_ids]
    if len(periods) > limits.MAX_ASSIGNMENTS_PER_CALL:
        raise errors.TooManyAssignments(limit=limits.MAX_ASSIGNMENTS_PER_CALL, current=len(periods))
    return periods


def _move(
    write: Write, period: Assignment, target: Therapist, *, ignore_capacity: bool
) -> tuple[Assignment, Assignment]:
    """The period that ended, and the one that the target has now. Raises TherapistAtCapacity."""
    present = assignments.active(write, target.therapist_id, period.patient_id)
    order = requests.Assign(target.therapist_id, period.patient_id, period.role, period.focus)
    at_us = assignments.start(write, order, [one for one in (period, present) if one])
    ended = assignments.end(write, period, at_us, enums.END_TRANSFERRED)
    if present and period.role != enums.ROLE_PRIMARY:
        return ended, present
    if present:
        assignments.end(write, present, at_us, enums.END_REPLACED)
    unbounded = ignore_capacity or present is not None
    return ended, assignments.begin(write, order, target, at_us, unbounded=unbounded)
