"""Migrations that lock tables beside readers of an older instance."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.postgres.migrate import migrate

from tests.support.postgres.cluster import Server
from tests.support.waiting import HUNG_SECONDS, eventually

STEPS = migrations("postgres")
BEFORE_KEYS = [step.name for step in STEPS].index("0007_find")
_WAITS_FOR_PATIENTS = "SELECT FROM pg_locks WHERE NOT granted AND relation = CAST('patient' AS regclass)"
_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@pytest.fixture
def previous_url(postgres: Server) -> Iterator[str]:
    """A database with the schema of the version before keys."""
    name = f"caseload_test_{secrets.token_hex(8)}"
    url = postgres.create_database(name)
    migrate(url, STEPS[:BEFORE_KEYS])
    yield url
    postgres.drop_database(name)


def test_a_migration_lets_a_reader_go_on_that_has_one_table_and_waits_for_another(previous_url: str) -> None:
    with (
        psycopg.connect(previous_url) as reader,
        psycopg.connect(previous_url, autocommit=True) as observer,
        ThreadPoolExecutor(1) as threads,
    ):
        reader.execute("SELECT FROM patient")
        migration = threads.submit(migrate, previous_url)
        eventually(lambda: observer.execute(_WAITS_FOR_PATIENTS).fetchall())
        reader.execute("SELECT FROM therapist")
        reader.rollback()
        assert migration.result(HUNG_SECONDS) == STEPS[BEFORE_KEYS:]
        assert observer.execute(_DEADLOCKS).fetchall() == [(0,)]
