"""Stores in schemas other than public."""

from contextlib import closing
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.backends.postgres import migrate as postgres_migrate
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.store.store_calls import make

SCHEMAS_OF_TABLES = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'store'"


def with_path(url: str, search_path: str) -> str:
    return f"{url}?options={quote(f'-c search_path={search_path}')}"


def test_a_second_store_beside_the_served_one_is_refused(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    admin.execute(f'CREATE SCHEMA "{urlsplit(postgres_url).username}"'.encode())  # the search_path has it first
    for command in (postgres_migrate.pending, postgres_migrate.migrate):
        with pytest.raises(SchemaError, match="set search_path to their schema"):
            command(postgres_url)
    assert admin.execute(SCHEMAS_OF_TABLES.encode()).fetchall() == [("public",)]
    assert postgres_migrate.migrate(with_path(postgres_url, "public")) == []


def test_stores_in_schemas_of_their_own_are_separate(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    admin.execute("CREATE SCHEMA one; CREATE SCHEMA other")
    one, other = with_path(postgres_url, "one"), with_path(postgres_url, "other")
    for url in (one, other):
        assert postgres_migrate.migrate(url) == migrations("postgres")
    with closing(PostgresDatabase(one)) as here, closing(PostgresDatabase(other)) as there:
        patient = make(RelationshipStore(here, lambda: 1), PATIENT, "")
        with pytest.raises(errors.PatientNotFound):
            RelationshipStore(there, lambda: 1).get(PATIENT, patient.patient_id)


def test_tables_of_another_application_in_a_later_schema_do_not_matter(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    admin.execute("CREATE SCHEMA ours; CREATE SCHEMA theirs; CREATE TABLE theirs.migration (x INT)")
    assert postgres_migrate.migrate(with_path(postgres_url, "ours,theirs")) == migrations("postgres")


def test_a_search_path_without_a_schema_is_refused(postgres_url: str) -> None:
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        postgres_migrate.migrate(with_path(postgres_url, "nowhere"))


def test_tables_of_an_extension_do_not_make_the_schema_another_applications(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    """As with PostGIS, whose table spatial_ref_sys is in the schema public."""
    admin.execute(
        "CREATE SCHEMA ours; CREATE EXTENSION hstore; CREATE TABLE ours.spatial_ref_sys (srid INT PRIMARY KEY)"
    )
    admin.execute("ALTER EXTENSION hstore ADD TABLE ours.spatial_ref_sys")
    ours = with_path(postgres_url, "ours")
    assert postgres_migrate.pending(ours) == migrations("postgres")
    assert postgres_migrate.migrate(ours) == migrations("postgres")
    assert postgres_migrate.migrate(ours) == []


def test_a_table_that_only_uses_an_extension_belongs_to_another_application(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    admin.execute("CREATE SCHEMA ours; CREATE EXTENSION hstore; CREATE TABLE ours.theirs (settings hstore)")
    for command in (postgres_migrate.pending, postgres_migrate.migrate):
        with pytest.raises(SchemaError, match="tables of another application"):
            command(with_path(postgres_url, "ours"))


@pytest.mark.parametrize("mark", ["%0A", "%0D%0A", "%09"])
@pytest.mark.parametrize("part", ["user", "password", "dbname"])
def test_a_control_character_in_a_parameter_is_refused_by_its_name(postgres_url: str, part: str, mark: str) -> None:
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}{part}=do-not-repeat-me{mark}"
    with pytest.raises(psycopg.OperationalError, match=f"^the parameter {part} contains a line end") as caught:
        postgres_migrate.pending(url)
    assert "do-not-repeat-me" not in str(caught.value)
