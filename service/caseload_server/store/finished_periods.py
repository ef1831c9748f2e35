"""Records periods that are over, in any order of calls.

Statuses and the capacity do not matter, because they describe the present. Active periods matter if they overlap.
"""

from caseload_server.domain import requests
from caseload_server.domain.records import Assignment
from caseload_server.store import assignments, records
from caseload_server.store.overlaps import refuse_overlap
from caseload_server.store.records import PATIENT
from caseload_server.store.write_transaction import Write

SELECT_SAME = f"""
SELECT {assignments.COLUMNS} FROM assignment AS period
WHERE patient_id = :patient_id AND therapist_id = :therapist_id AND start_us = :start_us AND end_us = :end_us
    AND role = :role AND focus = :focus AND end_reason = :end_reason
ORDER BY assignment_id LIMIT 1"""


def record(write: Write, request: requests.Assign) -> tuple[list[Assignment], bool]:
    """Records a finished period unless the very same one exists. Returns the period, and whether it is new.

    Raises, in this order: TherapistNotFound, PatientNotFound, TherapistDeleted, PatientMerged, PatientDeleted,
    PeriodOverlaps.
    """
    # The patient's row stays locked, so no other writer adds a period between the check and the insert.
    patient = records.find(write, PATIENT, request.patient_id)
    assignments.require_live(write, request, patient)
    period = assignments.new_period(write, request, request.start_us or 0)
    values = {name: value for name, value in period._asdict().items() if f":{name}" in SELECT_SAME}
    for row in write.run(SELECT_SAME, values):
        return [Assignment._make(row)], False
    refuse_overlap(write, period)
    assignments.insert(write, period)
    return [period], True
