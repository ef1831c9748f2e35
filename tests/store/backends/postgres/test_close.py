"""What a store on PostgreSQL finishes before it closes."""

import threading
from typing import Any

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.store.conftest import Clock
from tests.store.store_calls import make, update
from tests.support.waiting import eventually, join


def test_closing_waits_for_a_write_that_waits_for_a_lock(postgres_url: str, clock: Clock) -> None:
    database: Any = PostgresDatabase(f"{postgres_url}?options=-c%20lock_timeout%3D0")
    store = RelationshipStore(database, clock)
    make(store, THERAPIST, "locked")
    answers: list[Any] = []
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT FROM therapist FOR UPDATE")
        write = threading.Thread(target=lambda: answers.append(update(store, THERAPIST, "locked", email="a@b")))
        write.start()
        eventually(lambda: (database._group_commit._leaders, database._group_commit._batches) == (0, 1))
        closing = threading.Thread(target=store.close)
        closing.start()
        eventually(lambda: database._group_commit._closed)
        with pytest.raises(errors.ShuttingDown):
            make(store, THERAPIST, "late")
        assert closing.is_alive()
        other.rollback()
        join(closing, write)
    assert [answer.email for answer in answers] == ["a@b"]
