"""Helpers for the tests of transfers, corrections and the log: people, periods, and the invariants."""

import itertools
import json
from typing import Any

from caseload_server.domain import enums
from caseload_server.domain.records import Assignment, Patient
from caseload_server.domain.requests import Assign, CallContext, Transfer, Unassign
from caseload_server.domain.results import TransferResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Row, Value

CALL = CallContext(actor="reception", method="/caseload.v1.AssignmentService/Test")
VALIDATE = CALL._replace(validate_only=True)
SECOND = 1_000_000
VERSION_TABLES = ("therapist_version", "patient_version", "assignment_version")
TABLES = (
    *("store", "therapist", "patient", "same_person", "assignment", *VERSION_TABLES),
    *("change_set", "change", "request", "purged"),
)


def remembered(request_id: str) -> CallContext:
    """A call with a request_id, which a replay can refer to."""
    return CALL._replace(request_id=request_id, fingerprint=b"the request")


def therapists(store: RelationshipStore, *ids: str, **fields: str | int | None) -> None:
    for one in ids:
        store.create(THERAPIST, one, {"display_name": "Ann Lee", **fields}, CALL)


def patients(store: RelationshipStore, *ids: str) -> None:
    for one in ids:
        store.create(PATIENT, one, {"display_name": "Bob Ray"}, CALL)


def assign(store: RelationshipStore, therapist_id: str, patient_id: str, **order: Any) -> Assignment:
    return store.assign(Assign(therapist_id, patient_id, **order), CALL).record


def unassign(store: RelationshipStore, therapist_id: str, patient_id: str, **order: Any) -> Assignment:
    ended = store.unassign(Unassign(therapist_id, patient_id, **order), CALL).record
    assert ended
    return ended


def period(
    store: RelationshipStore, therapist_id: str, patient_id: str, start_us: int, end_us: int, **order: Any
) -> Any:
    """Creates a period that has ended."""
    assign(store, therapist_id, patient_id, start_us=start_us, **order)
    return unassign(store, therapist_id, patient_id, end_us=end_us)


def transfer(
    store: RelationshipStore,
    source: str,
    target: str,
    *ids: str,
    call: CallContext = CALL,
    **options: Any,
) -> TransferResult:
    return store.transfer(Transfer(source, target, ids, **options), call)


def split(outcome: TransferResult) -> tuple[list[Assignment], list[Assignment]]:
    """The periods that the transfer ended, and those of the target."""
    return outcome.ended, outcome.active


def run(store: RelationshipStore, sql: str, parameters: dict[str, Value] | None = None) -> list[Row]:
    """Runs one statement without the store's checks; only the database's constraints apply."""
    return store._database.write(lambda transaction: transaction.run(sql, parameters))


def dump(store: RelationshipStore) -> dict[str, list[Row]]:
    """All rows of people, periods, changes and requests, without requests that have no caller-chosen id."""
    tables = {table: sorted(run(store, f"SELECT * FROM {table}"), key=repr) for table in TABLES}
    return tables | {"request": [row for row in tables["request"] if not row[1].startswith("server:")]}


def periods(store: RelationshipStore) -> list[Assignment]:
    """Every stored period."""
    columns = ", ".join(Assignment._fields)
    return [Assignment._make(row) for row in run(store, f"SELECT {columns} FROM assignment ORDER BY start_us")]


def assert_consistent(store: RelationshipStore) -> None:
    """Asserts that counts and primary therapists match the periods, and that no periods overlap wrongly."""
    everything = periods(store)
    active = [one for one in everything if one.end_us is None]
    for therapist_id, count in run(store, "SELECT therapist_id, active_patient_count FROM therapist"):
        assert count == sum(one.therapist_id == therapist_id for one in active), therapist_id
    sql = "SELECT patient_id, active_therapist_count, primary_therapist_id FROM patient"
    for patient_id, count, primary_id in run(store, sql):
        theirs = [one for one in active if one.patient_id == patient_id]
        primary = [one.therapist_id for one in theirs if one.role == enums.ROLE_PRIMARY]
        assert (count, [primary_id] if primary_id else []) == (len(theirs), primary), patient_id
    for one, other in itertools.combinations(everything, 2):
        assert not overlap(one, other), (one, other)


def overlap(one: Assignment, other: Assignment) -> bool:
    """Whether two periods break the overlap rule, computed without SQL."""
    if one.patient_id != other.patient_id or enums.END_ENTERED_IN_ERROR in (one.end_reason, other.end_reason):
        return False
    if one.therapist_id != other.therapist_id and not one.role == other.role == enums.ROLE_PRIMARY:
        return False
    start_us = max(one.start_us, other.start_us)
    ends = [end_us for end_us in (one.end_us, other.end_us) if end_us is not None]
    return all(start_us < end_us for end_us in ends)


def crowd(store: RelationshipStore, therapist_id: str, count: int) -> list[str]:
    """Inserts count patients assigned to the therapist. Returns their ids."""
    ids = [f"crowd-{n:04}" for n in range(count)]
    many: dict[str, Value] = {"ids": json.dumps(ids)}
    run(
        store,
        f"INSERT INTO patient ({', '.join(Patient._fields)})"
        " SELECT atom, 'Bob Ray', '', '', '', 1, '[]', '{}', '', 1, 0, 0, CAST(NULL AS INTEGER), 'e', '[]', ''"
        " FROM json_each(:ids)",
        many,
    )
    run(
        store,
        "INSERT INTO assignment"
        " SELECT 'a-' || atom, :therapist_id, atom, 2, '', 0, CAST(NULL AS INTEGER), 0, 'x', '', 0, 0, 'e',"
        " CAST(NULL AS INTEGER) FROM json_each(:ids)",
        {**many, "therapist_id": therapist_id},
    )
    run(
        store,
        "UPDATE therapist SET active_patient_count = active_patient_count + :count WHERE therapist_id = :therapist_id",
        {"count": count, "therapist_id": therapist_id},
    )
    return ids


def fill(store: RelationshipStore, sets: int, lines: int) -> None:
    """Adds change sets of the given number of lines each, with ids of the maximum length."""
    head = store.head_revision()
    numbers = {"first": head + 1, "last": head + sets}
    series = "WITH RECURSIVE n(r) AS (SELECT :first UNION ALL SELECT r + 1 FROM n WHERE r < :last)"
    run(
        store,
        f"{series} INSERT INTO change_set (revision, committed_us, actor, method, request_id, hash_version)"
        " SELECT r, 0, 'importer', 'm', '', 1 FROM n",
        dict(numbers),
    )
    run(
        store,
        f"{series}, p(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM p WHERE i < :lines)"
        " INSERT INTO change"
        " SELECT r, i, 2, 'state,end_time,end_reason,ended_by', :long, :long, :uuid, NULL, NULL FROM n, p",
        {**numbers, "lines": lines, "long": "x" * 63, "uuid": "u" * 36},
    )
    run(store, "UPDATE store SET head_revision = :last", {"last": head + sets})
