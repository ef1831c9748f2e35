"""The store: all SQL, the database drivers and the migrations."""

from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.relationship_store import RelationshipStore
from caseload_server.store.versions import ASSIGNMENT_HISTORY, PATIENT_HISTORY, THERAPIST_HISTORY

__all__ = [
    "ASSIGNMENT_HISTORY",
    "PATIENT",
    "PATIENT_HISTORY",
    "THERAPIST",
    "THERAPIST_HISTORY",
    "RecordKind",
    "RelationshipStore",
]
