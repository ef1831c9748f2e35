"""BatchAssign locks all patients first, then all therapists, each in id order."""

from typing import Any

import psycopg
import pytest
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import Assign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.backends.postgres.record_locks import locked_while_held
from tests.store.store_calls import CALL, assign, make


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
