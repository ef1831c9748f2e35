"""The stored outcome of a request_id on PostgreSQL, while other instances commit."""

from typing import Any

import psycopg
from caseload_server.domain.requests import Update
from caseload_server.domain.results import UpdateResult
from caseload_server.store import THERAPIST, RelationshipStore

from tests.store.backends.postgres.shared_transactions import starting
from tests.store.store_calls import make, request
from tests.support.waiting import eventually, join

REQUEST_ID = "3b241101-e2bb-4255-8caf-4136c566a962"
WAITING = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
PAUSE = f"""
CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END';
CREATE TRIGGER pause AFTER INSERT OR UPDATE ON request FOR EACH ROW
WHEN (NEW.request_id = '{REQUEST_ID}' AND NEW.revision >= 0) EXECUTE FUNCTION pause()"""
"""Makes the write wait once its outcome is stored, for whoever holds the advisory lock."""


def test_a_repeat_of_a_write_that_changed_nothing_has_its_revision(
    store: RelationshipStore, other: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    """Another instance commits between the two statements of the first call that read the head."""
    make(store, THERAPIST, "t")
    admin.execute(PAUSE)
    results: list[UpdateResult[Any]] = []

    def rename() -> None:
        results.append(store.update(THERAPIST, Update("t", {"display_name": "Ada Lovelace"}), request(REQUEST_ID)))

    admin.execute("SELECT pg_advisory_lock(7)")
    running = starting(rename)
    eventually(lambda: admin.execute(WAITING).rowcount > 0)
    make(other, THERAPIST, "u")
    admin.execute("SELECT pg_advisory_unlock(7)")
    join(running)
    rename()
    assert results[0].revision == results[1].revision
