"""Migrating a PostgreSQL while instances of the previous version write to it."""

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from caseload_server.domain.requests import Transfer
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.postgres import migrate as postgres_migrate
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.store.store_calls import CALL, assign, make, unassign
from tests.support.postgres.cluster import Server
from tests.support.waiting import HUNG_SECONDS, eventually

WAITERS = """
SELECT count(*) FROM pg_locks
WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
WAITING = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
CREATE TRIGGER wait AFTER INSERT ON assignment FOR EACH ROW EXECUTE FUNCTION wait()"""


@pytest.fixture
def first_step(postgres: Server) -> Iterator[str]:
    """The URL of a database with the schema of the first migration."""
    name = f"caseload_test_{secrets.token_hex(8)}"
    url = postgres.create_database(name)
    postgres_migrate.migrate(url, migrations("postgres")[:1])
    yield url
    postgres.drop_database(name)


@contextmanager
def opened(url: str) -> Iterator[RelationshipStore]:
    with closing(PostgresDatabase(url)) as database:
        yield RelationshipStore(database, lambda: 1)


def deadlocks(url: str) -> int:
    """The number of deadlocks since the database was created, of closed connections."""
    with psycopg.connect(url) as connection:
        found = connection.execute(DEADLOCKS).fetchone()
    assert found is not None
    return int(found[0])


def wait_for(connection: "psycopg.Connection[Any]", waiters: int) -> None:
    """Waits until the given number of sessions wait for a lock."""
    eventually(lambda: connection.execute(WAITERS).fetchone() == (waiters,))


def test_a_migration_waits_for_running_writes_and_blocks_later_ones(first_step: str) -> None:
    with (
        opened(first_step) as store,
        psycopg.connect(first_step, autocommit=True) as holder,
        ThreadPoolExecutor() as threads,
    ):
        source, target, patient = make(store, THERAPIST, ""), make(store, THERAPIST, ""), make(store, PATIENT, "")
        assign(store, source.therapist_id, patient.patient_id)
        holder.execute(WAITING)
        holder.execute("SELECT pg_advisory_lock(1)")
        # A transfer waits for a lock in a transaction of its own. Others would be rolled back after 20 ms.
        order = Transfer(source.therapist_id, target.therapist_id)
        under_way = threads.submit(store.transfer, order, CALL)
        wait_for(holder, 1)
        migrated = threads.submit(postgres_migrate.migrate, first_step)
        wait_for(holder, 2)
        later = threads.submit(make, store, PATIENT, "")
        wait_for(holder, 3)
        holder.execute("SELECT pg_advisory_unlock(1)")
        assert [one.patient_id for one in under_way.result(HUNG_SECONDS).active] == [patient.patient_id]
        assert migrated.result(HUNG_SECONDS) == migrations("postgres")[1:]
        assert later.result(HUNG_SECONDS).patient_id
    assert deadlocks(first_step) == 0


def test_a_migration_completes_during_writes_and_fails_none(first_step: str) -> None:
    ended = threading.Event()
    written = [0] * 4

    def write_on(store: RelationshipStore, therapist_id: str, writer: int) -> None:
        patient_id = make(store, PATIENT, "").patient_id
        while not ended.is_set():
            (unassign if written[writer] % 2 else assign)(store, therapist_id, patient_id)
            written[writer] += 1

    with opened(first_step) as store, ThreadPoolExecutor() as threads:
        therapist_id = make(store, THERAPIST, "").therapist_id
        writers = [threads.submit(write_on, store, therapist_id, n) for n in range(4)]
        try:
            eventually(lambda: min(written) > 10)
            assert postgres_migrate.migrate(first_step) == migrations("postgres")[1:]
            migrated = list(written)
            eventually(lambda: all(now > then for now, then in zip(written, migrated, strict=True)))
        finally:
            ended.set()
        for writer in writers:
            writer.result(HUNG_SECONDS)
    assert deadlocks(first_step) == 0


def test_a_migration_retries_after_a_deadlock(first_step: str) -> None:
    with psycopg.connect(first_step) as other, ThreadPoolExecutor() as threads:
        other.execute("SET deadlock_timeout = '1min'")  # so that PostgreSQL cancels the migration, not this session
        other.execute("LOCK TABLE therapist IN ROW EXCLUSIVE MODE")
        migrated = threads.submit(postgres_migrate.migrate, first_step)
        wait_for(other, 1)
        other.execute("LOCK TABLE request IN ROW EXCLUSIVE MODE")
        other.commit()
        assert migrated.result(HUNG_SECONDS) == migrations("postgres")[1:]
    assert deadlocks(first_step) == 1
