"""What records were at each revision, replayed from the stored versions, for tests of versions."""

import json
from typing import Any

from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.store import RelationshipStore
from caseload_server.store.version_images import DERIVED_COLUMNS, version_of

from tests.store.store_calls import run

RECORDS: dict[str, Any] = {"therapist": Therapist, "patient": Patient, "assignment": Assignment}
State = dict[tuple[str, str], dict[str, Any]]
"""The rows of all records without derived columns, by table and id."""


def current_state(store: RelationshipStore) -> State:
    """All records as they are."""
    state: State = {}
    for table, record in RECORDS.items():
        for row in run(store, f"SELECT {', '.join(record._fields)} FROM {table}"):
            columns = zip(record._fields, row, strict=True)
            state[table, row[0]] = {name: value for name, value in columns if name not in DERIVED_COLUMNS}
    return state


def replayed_state(store: RelationshipStore, revision: int) -> State:
    """All records that exist now as they were after a revision, by their versions. Later ones are included."""
    state = current_state(store)
    for table, record in RECORDS.items():
        columns = ", ".join(record._fields) if record is Assignment else f"{table}_id, image"
        for row in run(
            store,
            f"SELECT {columns} FROM {table}_version WHERE to_revision > :revision ORDER BY to_revision DESC",
            {"revision": revision},
        ):
            image = dict(zip(record._fields, row, strict=True)) if record is Assignment else json.loads(row[1])
            state[table, row[0]] = image
    return state


def kept_hashes(store: RelationshipStore) -> list[tuple[int, str, str]]:
    """The revision, the record's id and the hash of each stored version, computed from its row."""
    hashes = []
    for table in ("therapist", "patient"):
        for row in run(store, f"SELECT to_revision, {table}_id, image FROM {table}_version"):
            record: Any = RECORDS[table]
            blank = dict.fromkeys(record._fields, 0) | json.loads(row[2])
            hashes.append((row[0], row[1], version_of(record(**blank)).hash))
    periods = run(store, f"SELECT to_revision, {', '.join(Assignment._fields)} FROM assignment_version")
    return sorted([*hashes, *((row[0], row[1], version_of(Assignment._make(row[1:])).hash) for row in periods)])


def logged_hashes(store: RelationshipStore) -> list[tuple[int, str, str]]:
    """The revision, the record's id and the hash of each version, by the change log."""
    record_id = "COALESCE(assignment_id, patient_id, therapist_id)"
    rows = run(store, f"SELECT revision, {record_id}, version_hash FROM change WHERE version_hash IS NOT NULL")
    return sorted((row[0], row[1], row[2]) for row in rows)
