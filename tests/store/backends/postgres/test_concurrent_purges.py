"""Two purges at once: each continues if the other one took its batch."""

from collections.abc import Callable
from typing import Any

import psycopg
from caseload_server.store import PATIENT, RelationshipStore

from tests.store.backends.postgres.record_locks import WAITING
from tests.store.backends.postgres.shared_transactions import starting
from tests.store.conftest import Clock
from tests.store.store_calls import make, run, update
from tests.support.waiting import eventually, join

BATCH = 1000
MANY_VERSIONS = f"""
INSERT INTO patient_version (patient_id, to_revision, to_us, merged_into_patient_id, image)
SELECT 'p', number, 1, '', '{{}}' FROM generate_series(-{BATCH}, -1) AS number"""
MANY_CHANGES = f"""
INSERT INTO change_set (revision, committed_us, actor, method, request_id, hash_version, hash)
SELECT number, 1, 'a', 'm', '', 0, ''::bytea FROM generate_series(1 - {BATCH}, 0) AS number"""


def purge_behind(admin: "psycopg.Connection[Any]", statements: list[str], purge: Callable[[], int]) -> int:
    """Starts a purge that waits for what the statements lock. Returns its number once they are committed."""
    purged: list[int] = []
    with admin.transaction():
        for statement in statements:
            admin.execute(statement)
        running = starting(lambda: purged.append(purge()))
        eventually(lambda: admin.execute(WAITING).rowcount > 0)
    join(running)
    return purged[0]


def test_a_purge_of_versions_goes_on_where_another_took_its_batch(
    store: RelationshipStore, admin: "psycopg.Connection[Any]", clock: Clock
) -> None:
    make(store, PATIENT, "p")
    update(store, PATIENT, "p", email="a@example.org")
    run(store, MANY_VERSIONS)
    taken = ["DELETE FROM patient_version WHERE to_revision < 0"]
    assert purge_behind(admin, taken, lambda: store.purger.purge_versions(clock() + 1)) == 1
    assert run(store, "SELECT to_revision FROM patient_version") == []


def test_a_purge_of_changes_goes_on_where_another_took_its_batch(
    store: RelationshipStore, admin: "psycopg.Connection[Any]", clock: Clock
) -> None:
    make(store, PATIENT, "p")
    run(store, MANY_CHANGES)
    run(store, f"UPDATE store SET oldest_revision = -{BATCH}")
    taken = ["DELETE FROM change_set WHERE revision <= 0", "UPDATE store SET oldest_revision = 0"]
    assert purge_behind(admin, taken, lambda: store.purger.purge_changes(clock() + 1)) == 1
    assert run(store, "SELECT DISTINCT actor FROM change_set") == [("cli:purge",)]
