"""The counts of active periods that therapists and patients carry, and each patient's primary therapist."""

import json
from collections import Counter

from caseload_server.domain import enums
from caseload_server.domain.records import Assignment
from caseload_server.store.backends.protocol import Value
from caseload_server.store.write_transaction import Write

_UPDATE_THERAPIST = """
UPDATE therapist SET active_patient_count = active_patient_count + :difference WHERE therapist_id = :id"""
_UPDATE_THERAPISTS = """
UPDATE therapist SET active_patient_count = active_patient_count + CAST(changed.value ->> 'difference' AS BIGINT)
FROM json_each(:changes) AS changed WHERE therapist_id = changed.value ->> 'id'"""
_UPDATE_PATIENT = """
UPDATE patient SET active_therapist_count = active_therapist_count + :difference WHERE patient_id = :id"""
_UPDATE_PRIMARY = """
UPDATE patient SET active_therapist_count = active_therapist_count + :difference, primary_therapist_id = :primary_id
WHERE patient_id = :id"""
_UPDATE_PATIENTS = """
UPDATE patient SET active_therapist_count = active_therapist_count + CAST(changed.value ->> 'difference' AS BIGINT),
    primary_therapist_id = COALESCE(changed.value ->> 'primary_id', primary_therapist_id)
FROM json_each(:changes) AS changed WHERE patient_id = changed.value ->> 'id'"""


class CountChanges:
    """What periods that begin and end change. Each record is updated once, however many periods of it there are."""

    def __init__(self) -> None:
        self._of_therapists: Counter[str] = Counter()
        self._of_patients: Counter[str] = Counter()
        self._primary_ids: dict[str, str] = {}

    def add(self, period: Assignment, difference: int) -> None:
        """Adds one period. Args: difference, 1 where it began, -1 where it ended."""
        self._of_therapists[period.therapist_id] += difference
        self._of_patients[period.patient_id] += difference
        if period.role == enums.ROLE_PRIMARY:
            self._primary_ids[period.patient_id] = period.therapist_id if difference > 0 else ""

    def of_therapist(self, therapist_id: str) -> int:
        """Returns by how many the therapist's active periods change."""
        return self._of_therapists[therapist_id]

    def save(self, write: Write) -> None:
        """Updates the records, which the caller has locked."""
        patients: list[dict[str, Value]] = [
            {"id": patient_id, "difference": difference, "primary_id": self._primary_ids.get(patient_id)}
            for patient_id, difference in self._of_patients.items()
            if difference or patient_id in self._primary_ids
        ]
        therapists: list[dict[str, Value]] = [
            {"id": therapist_id, "difference": difference}
            for therapist_id, difference in self._of_therapists.items()
            if difference
        ]
        _run(write, _UPDATE_PRIMARY if self._primary_ids else _UPDATE_PATIENT, _UPDATE_PATIENTS, patients)
        _run(write, _UPDATE_THERAPIST, _UPDATE_THERAPISTS, therapists)


def _run(write: Write, update_one: str, update_many: str, changes: list[dict[str, Value]]) -> None:
    """Updates all records in one statement. One record has a statement of its own, whose plan is never a scan."""
    if len(changes) == 1:
        write.run(update_one, changes[0])
    elif changes:
        write.run(update_many, {"changes": json.dumps(changes)})
