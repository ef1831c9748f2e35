"""The counts of active periods that therapists and patients carry, and each patient's primary therapist."""

from collections import Counter

from caseload_server.domain import enums
from caseload_server.domain.records import Assignment
from caseload_server.store.backends.protocol import Value
from caseload_server.store.write_transaction import Write

_UPDATE_THERAPIST = """
UPDATE therapist SET active_patient_count = active_patient_count + :difference WHERE therapist_id = :therapist_id"""
_UPDATE_PATIENT = """
UPDATE patient SET active_therapist_count = active_therapist_count + :difference,
    primary_therapist_id = CASE WHEN :primary_changes = 1 THEN :primary_id ELSE primary_therapist_id END
WHERE patient_id = :patient_id"""


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
        for patient_id, difference in self._of_patients.items():
            primary_id = self._primary_ids.get(patient_id)
            if difference or primary_id is not None:
                parameters: dict[str, Value] = {
                    "patient_id": patient_id,
                    "difference": difference,
                    "primary_changes": int(primary_id is not None),
                    "primary_id": primary_id or "",
                }
                write.run(_UPDATE_PATIENT, parameters)
        for therapist_id, difference in self._of_therapists.items():
            if difference:
                write.run(_UPDATE_THERAPIST, {"therapist_id": therapist_id, "difference": difference})
