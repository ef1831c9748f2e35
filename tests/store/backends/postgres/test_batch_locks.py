"""Batches take their locks in one order: patients before therapists, and each in the order of ids."""

import json
from typing import Any

import psycopg
import pytest
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import Assign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.backends.postgres.record_locks import WAITING, locked_while_held
from tests.store.backends.postgres.shared_transactions import starting
from tests.store.store_calls import CALL, VALIDATE, assign, make
from tests.support.waiting import eventually, join


@pytest.mark.parametrize(
    ("held", "locked"),
    [
        (("patient", "a"), []),
        (("patient", "b"), [("patient", "a")]),
        (("therapist", "a"), [("patient", "a"), ("patient", "b")]),
        (("therapist", "c"), [("patient", "a"), ("patient", "b"), ("therapist", "a"), ("therapist", "b")]),
    ],
    ids=str,
)
def test_a_batch_locks_its_records_in_one_order(
    store: RelationshipStore, admin: "psycopg.Connection[Any]", held: tuple[str, str], locked: list[tuple[str, str]]
) -> None:
    """Whatever the order of the entries. The primary therapist a is locked too, because an entry replaces them."""
    for name in "ab":
        make(store, PATIENT, name)
    for name in "abc":
        make(store, THERAPIST, name)
    assign(store, "a", "a", role=ROLE_PRIMARY)
    batch = [Assign("c", "b"), Assign("b", "a", ROLE_PRIMARY, replace_primary=True)]
    records = [*(("patient", name) for name in "ab"), *(("therapist", name) for name in "abc")]
    assert locked_while_held(admin, records, held, lambda: store.batch_assign(batch, CALL)) == locked
    assert store.get(PATIENT, "a").primary_therapist_id == "b"


HOLD_ID = """
INSERT INTO patient (patient_id, display_name, birth_date, email, phone_number, status, identifiers, annotations,
    primary_therapist_id, active_therapist_count, created_us, updated_us, etag, aliases, merged_into_patient_id)
VALUES ('b', 'Ann Lee', '', '', '', 1, '[]', '{}', '', 0, 0, 0, 'e', '[]', '')"""
HOLD_IDENTIFIER = """
INSERT INTO patient_identifier (patient_id, system, value, live, value_key, holds_key)
VALUES ('holder', 'urn:mrn', 'b', 1, 'b', 1)"""


@pytest.mark.parametrize("held", [HOLD_ID, HOLD_IDENTIFIER], ids=["id", "identifier"])
def test_a_batch_takes_ids_and_identifiers_in_one_order(
    store: RelationshipStore, other: RelationshipStore, admin: "psycopg.Connection[Any]", held: str
) -> None:
    """Whatever the order of the entries. So c is still free while the batch waits for b."""
    make(store, PATIENT, "holder")

    def identified(name: str) -> tuple[str, dict[str, str | int | None]]:
        return name, {"display_name": "Ann Lee", "identifiers": json.dumps([["urn:mrn", name]])}

    with admin.transaction(force_rollback=True):
        admin.execute(held)
        running = starting(lambda: store.batch_create(PATIENT, [identified(name) for name in "cba"], CALL))
        eventually(lambda: admin.execute(WAITING).rowcount > 0)
        assert other.create(PATIENT, "" if held == HOLD_IDENTIFIER else "c", identified("c")[1], VALIDATE).record
    join(running)
    assert [record.patient_id for record in store.batch_get(PATIENT, ["a", "b", "c"])] == ["a", "b", "c"]
