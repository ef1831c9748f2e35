"""BatchAssign locks all patients first, then all therapists, each in id order."""

from typing import Any

import psycopg
import pytest
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import Assign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.backends.postgres.shared_transactions import starting
from tests.store.store_calls import CALL, assign, make
from tests.support.waiting import eventually, join

WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


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
    with admin.transaction():
        admin.execute(f"SELECT FROM {held[0]} WHERE {held[0]}_id = %s FOR UPDATE", [held[1]])
        running = starting(lambda: store.batch_assign(batch, CALL))
        eventually(lambda: admin.execute(WAITING).rowcount > 0)
        assert [one for one in _records() if one != held and not _is_free(admin, *one)] == locked
    join(running)
    assert store.get(PATIENT, "a").primary_therapist_id == "b"


def _records() -> list[tuple[str, str]]:
    return [*(("patient", name) for name in "ab"), *(("therapist", name) for name in "abc")]


def _is_free(admin: "psycopg.Connection[Any]", table: str, record_id: str) -> bool:
    sql = f"SELECT FROM {table} WHERE {table}_id = %s FOR UPDATE SKIP LOCKED"
    return admin.execute(sql, [record_id]).rowcount == 1
