"""Finds periods that must not overlap: those of a pair, and the PRIMARY periods of a patient.

A period is in force from its start until just before its end, so one may begin when another one ends. An active period
runs to its planned end, or without limit. Callers lock the patient's row first, so that no other writer adds a period.
"""

from typing import Final

from caseload_server.domain import enums, errors
from caseload_server.domain.records import Assignment
from caseload_server.store.backends.protocol import Value
from caseload_server.store.write_transaction import Write

_SELECT_OVERLAPPING = f"""
SELECT assignment_id FROM assignment
WHERE patient_id = :patient_id AND assignment_id <> :assignment_id
    AND end_reason <> {enums.END_ENTERED_IN_ERROR}
    AND (therapist_id = :therapist_id OR role = :exclusive_role)
    AND (end_us IS NULL OR end_us > start_us)
    AND (COALESCE(end_us, expire_us) IS NULL OR COALESCE(end_us, expire_us) > :start_us)
    AND start_us < :before_us
ORDER BY start_us, assignment_id LIMIT 1"""
MAX_TIME_US: Final = 2**63 - 1
"""After every time, in microseconds since 1970 (UTC): the end of a period that runs for ever."""


def refuse_overlap(write: Write, period: Assignment) -> None:
    """Raises PeriodOverlaps with the first period that this one would overlap.

    An empty period, or one entered in error, overlaps nothing: it was never in force.
    """
    if period.end_reason == enums.END_ENTERED_IN_ERROR or period.start_us == period.end_us:
        return
    end_us = period.expire_us if period.end_us is None else period.end_us
    span: dict[str, Value] = {
        "patient_id": period.patient_id,
        "therapist_id": period.therapist_id,
        "assignment_id": period.assignment_id,
        "start_us": period.start_us,
        "before_us": MAX_TIME_US if end_us is None else end_us,
        "exclusive_role": enums.ROLE_PRIMARY if period.role == enums.ROLE_PRIMARY else 0,
    }
    for (other_id,) in write.run(_SELECT_OVERLAPPING, span):
        raise errors.PeriodOverlaps(assignment_id=other_id)
