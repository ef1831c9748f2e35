"""The store: all SQL, the drivers, the migrations."""

from service.store.people import PATIENT, THERAPIST, Kind
from service.store.relationship_store import RelationshipStore

__all__ = ["PATIENT", "THERAPIST", "Kind", "RelationshipStore"]
