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
from caseload_server.store.backends.migrations import Migration, SchemaError, migrations
from caseload_server.store.backends.postgres import migrate as postgres_migrate
from caseload_server.store.backends.postgres.connection import connect
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.store_check import share_lock

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


LATER = Migration("9999_later", "CREATE INDEX later ON assignment (updated_us)")
STEPS = [*migrations("postgres"), LATER]
CHAIN = next(step for step in migrations("postgres") if step.name == "0005_chain")
WRITE_OF_VERSION_4 = """
INSERT INTO change_set (revision, committed_us, actor, method, request_id)
SELECT head_revision + 1, 1, 'a', 'm', '' FROM store"""


@pytest.fixture
def previous(postgres: Server) -> Iterator[str]:
    """The URL of a database with the schema of the previous version."""
    name = f"caseload_test_{secrets.token_hex(8)}"
    url = postgres.create_database(name)
    postgres_migrate.migrate(url)
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


def test_a_migration_waits_for_running_writes_and_blocks_later_ones(previous: str) -> None:
    with (
        opened(previous) as store,
        psycopg.connect(previous, autocommit=True) as holder,
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
        migrated = threads.submit(postgres_migrate.migrate, previous, STEPS)
        wait_for(holder, 2)
        later = threads.submit(make, store, PATIENT, "")
        wait_for(holder, 3)
        holder.execute("SELECT pg_advisory_unlock(1)")
        assert [one.patient_id for one in under_way.result(HUNG_SECONDS).active] == [patient.patient_id]
        assert migrated.result(HUNG_SECONDS) == [LATER]
        assert later.result(HUNG_SECONDS).patient_id
    assert deadlocks(previous) == 0


def test_a_migration_completes_during_writes_and_fails_none(previous: str) -> None:
    ended = threading.Event()
    written = [0] * 4

    def write_on(store: RelationshipStore, therapist_id: str, writer: int) -> None:
        patient_id = make(store, PATIENT, "").patient_id
        while not ended.is_set():
            (unassign if written[writer] % 2 else assign)(store, therapist_id, patient_id)
            written[writer] += 1

    with opened(previous) as store, ThreadPoolExecutor() as threads:
        therapist_id = make(store, THERAPIST, "").therapist_id
        writers = [threads.submit(write_on, store, therapist_id, n) for n in range(4)]
        try:
            eventually(lambda: min(written) > 10)
            assert postgres_migrate.migrate(previous, STEPS) == [LATER]
            migrated = list(written)
            eventually(lambda: all(now > then for now, then in zip(written, migrated, strict=True)))
        finally:
            ended.set()
        for writer in writers:
            writer.result(HUNG_SECONDS)
    assert deadlocks(previous) == 0


def test_a_migration_retries_after_a_deadlock(previous: str) -> None:
    with psycopg.connect(previous) as other, ThreadPoolExecutor() as threads:
        other.execute("SET deadlock_timeout = '1min'")  # so that PostgreSQL cancels the migration, not this session
        other.execute("LOCK TABLE therapist IN ROW EXCLUSIVE MODE")
        migrated = threads.submit(postgres_migrate.migrate, previous, STEPS)
        wait_for(other, 1)
        other.execute("LOCK TABLE request IN ROW EXCLUSIVE MODE")
        other.commit()
        assert migrated.result(HUNG_SECONDS) == [LATER]
    assert deadlocks(previous) == 1


@pytest.fixture
def before_chain(postgres: Server) -> Iterator[str]:
    """The URL of a database with the schema before the hash chain."""
    name = f"caseload_test_{secrets.token_hex(8)}"
    url = postgres.create_database(name)
    steps = migrations("postgres")
    postgres_migrate.migrate(url, steps[: steps.index(CHAIN)])
    yield url
    postgres.drop_database(name)


def test_the_step_of_the_chain_is_refused_while_an_instance_is_connected(before_chain: str) -> None:
    with closing(connect(before_chain)) as instance:
        share_lock(instance)  # as an instance of the older version does
        with pytest.raises(SchemaError, match="is served: stop its instances first"):
            postgres_migrate.migrate(before_chain)
        assert CHAIN in postgres_migrate.pending(before_chain)
    assert CHAIN in postgres_migrate.migrate(before_chain)


def test_an_instance_cannot_start_during_the_step_of_the_chain(before_chain: str) -> None:
    with psycopg.connect(before_chain) as reader, ThreadPoolExecutor() as threads:
        reader.execute("SELECT 1 FROM store")
        migrated = threads.submit(postgres_migrate.migrate, before_chain)
        wait_for(reader, 1)
        with closing(PostgresDatabase(before_chain)) as instance, pytest.raises(SchemaError, match="is running"):
            instance.open()
        reader.commit()
        assert CHAIN in migrated.result(HUNG_SECONDS)


def test_a_write_of_an_older_version_after_the_step_of_the_chain_fails(before_chain: str) -> None:
    """An instance may lose its connection, and with it the lock, just before the migration."""
    with psycopg.connect(before_chain, autocommit=True) as older:
        older.execute(WRITE_OF_VERSION_4)
        older.execute("UPDATE store SET head_revision = 1")
        postgres_migrate.migrate(before_chain)
        with pytest.raises(psycopg.errors.NotNullViolation):
            older.execute(WRITE_OF_VERSION_4)
    with opened(before_chain) as store:
        make(store, PATIENT, "")
        assert store.log_head().revision == 2
