"""Corrections of assignments that were recorded wrongly."""

from typing import Any, Final

from caseload_server.domain import enums, errors
from caseload_server.domain.errors import InvalidField, Violation
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import Correction
from caseload_server.store import assignments, expiry
from caseload_server.store.overlaps import refuse_overlap
from caseload_server.store.records import PATIENT
from caseload_server.store.write_transaction import Write

_CONTRACT_NAMES: Final = {
    "focus": "focus",
    "start_us": "start_time",
    "end_us": "end_time",
    "end_reason": "end_reason",
    "expire_us": "expire_time",
}
"""The columns that can be corrected, with the names of their fields in the contract."""
_SERVER_REASONS: Final = {
    enums.END_TRANSFERRED,
    enums.END_RECORD_DELETED,
    enums.END_REPLACED,
    enums.END_MERGED,
    enums.END_EXPIRED,
}
"""End reasons that only the server sets."""
_UPDATE = """
UPDATE assignment SET focus = :focus, start_us = :start_us, end_us = :end_us, end_reason = :end_reason,
    expire_us = :expire_us, updated_us = :updated_us, etag = :etag
WHERE assignment_id = :assignment_id"""


def correct(write: Write, assignment_id: str, etag: str, correction: Correction) -> tuple[list[Assignment], bool]:
    """Corrects focus, start, end, end reason or planned end. Returns the period, and whether any field changed.

    Raises, in this order: AssignmentNotFound, EtagMismatch, InvalidField, PeriodOverlaps.
    """
    patient_id = assignments.require(write, assignment_id).patient_id
    expiry.sweep_record(write, PATIENT, patient_id)  # it locks the patient, as every assignment write does first
    period = assignments.require(write, assignment_id)
    if etag and etag != period.etag:
        raise errors.EtagMismatch
    differing: dict[str, Any] = {name: value for name, value in correction.items() if getattr(period, name) != value}
    if not differing:
        return [period], False
    corrected = period._replace(**differing, updated_us=write.now_us, etag=write.new_etag())
    _validate(period, corrected, differing)
    _validate_expiry(write, corrected, differing)
    refuse_overlap(write, corrected)
    write.run(_UPDATE, {name: value for name, value in corrected._asdict().items() if f":{name}" in _UPDATE})
    fields = (_CONTRACT_NAMES[name] for name in differing)
    write.record_change(enums.CHANGE_UPDATED, corrected, *fields, before=period)
    return [corrected], True


def _validate(period: Assignment, corrected: Assignment, differing: dict[str, Any]) -> None:
    """Raises InvalidField for a field that cannot be corrected in this period."""
    for name in differing.keys() - _CONTRACT_NAMES.keys():
        raise InvalidField(Violation(f"assignment.{name}", "must not change"))
    if period.end_us is None:
        for name in ("end_us", "end_reason"):
            if name in differing:
                text = "must not be set on an active assignment: unassign ends it"
                raise InvalidField(Violation(f"assignment.{_CONTRACT_NAMES[name]}", text))
    elif corrected.end_us is None:
        raise InvalidField(Violation("assignment.end_time", "is required on an ended assignment"))
    elif corrected.end_us < corrected.start_us:
        raise InvalidField(Violation("assignment.end_time", "must not lie before start_time"))
    if differing.get("end_reason") in _SERVER_REASONS:
        raise InvalidField(Violation("assignment.end_reason", "must not be one that only the server sets"))


def _validate_expiry(write: Write, corrected: Assignment, differing: dict[str, Any]) -> None:
    """Raises InvalidField unless the planned end of an active period lies ahead and after its start."""
    path = "assignment.expire_time"
    if corrected.end_us is not None:
        if "expire_us" in differing:
            raise InvalidField(Violation(path, "must not change on an ended assignment"))
    elif corrected.expire_us is not None:
        expiry.require_future(write, corrected.expire_us, path)
        if corrected.expire_us <= corrected.start_us:
            raise InvalidField(Violation(path, expiry.NOT_AFTER_START))
