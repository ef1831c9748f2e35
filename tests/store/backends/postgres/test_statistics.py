"""What PostgreSQL knows of tables before it has counted their rows."""

from typing import Any

import psycopg
import pytest
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.postgres import migrate as postgres_migrate

from tests.store.backends.postgres.test_schemas import with_path
from tests.store.portability.copies import exported, imported
from tests.store.store_calls import make

TABLES = ("therapist", "patient", "patient_identifier", "patient_name_word", "assignment", "change_set")


@pytest.fixture
def empty(postgres_url: str, admin: "psycopg.Connection[Any]") -> str:
    """The URL of a schema without tables."""
    admin.execute("CREATE SCHEMA one")
    return with_path(postgres_url, "one")


def scanned(url: str) -> list[str]:
    """The tables of which a lookup by the first column would read all rows."""
    lookups = {table: f"EXPLAIN SELECT FROM {table} WHERE {key_of(table)}" for table in TABLES}
    with psycopg.connect(url) as connection:
        return [
            table for table, sql in lookups.items() if "Seq Scan" in str(connection.execute(sql.encode()).fetchall())
        ]


def key_of(table: str) -> str:
    return "revision = 1" if table == "change_set" else f"{table.partition('_')[0]}_id = 'a'"


def test_lookups_in_a_new_store_are_planned_for_tables_that_grow(empty: str) -> None:
    postgres_migrate.migrate(empty)
    assert scanned(empty) == []


def test_lookups_in_tables_without_imported_rows_are_planned_for_tables_that_grow(
    empty: str, store: RelationshipStore, postgres_url: str
) -> None:
    for number in range(300):
        make(store, PATIENT, f"p{number}", display_name="Ada Roe")
    postgres_migrate.migrate(empty)
    imported(exported(postgres_url), empty)
    assert scanned(empty) == []


def test_the_step_of_keys_counts_the_rows_of_a_store_without_statistics(
    empty: str, admin: "psycopg.Connection[Any]"
) -> None:
    steps = migrations("postgres")
    before = [step.name for step in steps].index("0007_find")
    postgres_migrate.migrate(empty, steps[:before])
    admin.execute("SET search_path = one")
    admin.execute(
        "INSERT INTO patient SELECT 'p' || n, 'Ada Roe', '', '', '', 1, '[]', '{}', '', 0, 1, 1, NULL, 'e'"
        " FROM generate_series(1, 100) AS n"
    )
    postgres_migrate.migrate(empty)
    counted = "SELECT count(DISTINCT tablename) FROM pg_stats WHERE schemaname = 'one' AND tablename = 'patient'"
    assert admin.execute(counted).fetchall() == [(1,)]
