"""The store: all SQL, the database drivers and the migrations."""

from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.relationship_store import RelationshipStore

__all__ = ["PATIENT", "THERAPIST", "RecordKind", "RelationshipStore"]
